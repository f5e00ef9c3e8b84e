"""`Percepts`: where `replay` finds the pictures and the sound of a look, so that they need not be decoded again.

A look is known by a `LookKey`. Two looks have the same key only if decoding gives the same bytes for both.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from apr_plugin import __version__
from apr_plugin.loop.question import MediaRef
from apr_plugin.loop.trajectory import Film, Shown
from apr_plugin.media import MediaSettings
from apr_plugin.media.versions import decoder_versions

FORMAT = 1
"""Goes up when equal keys would mean other bytes."""


@dataclass(frozen=True)
class Decoded:
    """The media of one look."""

    images: NDArray[np.uint8] | None = None
    """Frames, shape (n, height, width, 3), RGB; `None` if the look has only sound."""
    waveform: NDArray[np.float32] | None = None
    """Sound, shape (samples,), mono; `None` if the look has none."""


@dataclass(frozen=True)
class LookKey:
    """What decides the media of a look."""

    text: str
    """All of it, as JSON."""
    images: tuple[int, int, int, int] | None
    """Shape of the frames, (n, height, width, 3); `None` if there are none."""
    sound: bool
    """Whether there is sound."""

    @property
    def name(self) -> str:
        """40 hex digits that identify it."""
        return hashlib.blake2b(self.text.encode(), digest_size=20).hexdigest()


def look_key(shown: Shown, film: Film, ref: MediaRef, settings: MediaSettings) -> LookKey:
    """The key of a look.

    It holds the look itself (kind, times in the file, size, mode, window of the sound), the video (size and digest of
    the file, what the policy was told about it, the question's window), how it is read (decoder, releases of the
    decoder's libraries and of this package, kind of processor), and `FORMAT`. Where the file lies is not part of it.
    Two processors of one kind (`x86_64`) are taken to decode alike, as replay takes them to.

    Args:
        shown: The look, of kind `frames`, `audio` or `clip`.
        film: Its video, as the trajectory says.
        ref: Its video, as the question says.
        settings: How the run read files.
    """
    about = {
        "format": FORMAT,
        "look": [shown.kind, shown.file_s, shown.width, shown.height, shown.mode, shown.sound_file_s],
        "video": film.model_dump(mode="json"),
        "window": [ref.start_s, ref.end_s],
        "decoder": [settings.decoder, *decoder_versions(settings.decoder)],
        "here": [__version__, platform.machine()],
    }
    shape = (len(shown.file_s), shown.height, shown.width, 3) if shown.file_s else None
    return LookKey(json.dumps(about, sort_keys=True), shape, shown.sound_file_s is not None)


class Percepts(Protocol):
    """Keeps the media of looks. Neither method raises because of what is kept, or because it can't be kept."""

    def get(self, key: LookKey) -> Decoded | None:
        """The media of a look, in arrays that the caller may change; `None` if it is not kept."""

    def put(self, key: LookKey, decoded: Decoded) -> None:
        """Keep the media of a look that was decoded. The arrays are not changed and not held."""
