"""A visitor's upload: streamed into the visitor's own folder, limited in size, then opened and limited in length."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from apr_plugin.errors import AprError
from apr_plugin.loop.text import printable
from apr_plugin.media import MediaError, MediaSettings, Video
from apr_plugin.terminal import one_line

LONGEST_NAME = 80
"""Characters of the name that an uploaded file is kept under."""


@dataclass(frozen=True)
class Limits:
    """What an upload may be."""

    mib: int = 512
    """Size in MiB."""
    minutes: float = 180.0
    """Length."""

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return self.mib * 2**20


@dataclass(frozen=True)
class Film:
    """A file that a visitor may ask about."""

    path: Path
    """Where it is."""
    root: Path
    """The folder that must contain it, with links followed."""
    name: str
    """What the page calls it."""
    facts: str
    """What was found in it, in words."""
    own: bool
    """Whether it is the visitor's upload, which is removed afterwards."""


class TooLarge(AprError):
    """An upload is larger than allowed."""


def safe_name(name: str) -> str:
    """A name for a file that a visitor named: one part of a path, of plain characters, with the suffix kept."""
    last = printable(name).replace("\\", "/").rpartition("/")[2]
    words = re.sub(r"[^\w.-]+", "_", last, flags=re.ASCII).strip("._-")
    return words[-LONGEST_NAME:].lstrip("._-") or "video"


def check_size(declared: str | None, limits: Limits) -> None:
    """Refuse an upload by its Content-Length, before anything of it is read.

    Raises:
        TooLarge: it is larger than allowed.
        AprError: the length is no number.
    """
    if declared is None:
        return
    if not (declared.isascii() and declared.isdigit() and len(declared) < 20):
        raise AprError("the upload's Content-Length is not a number")
    if int(declared) > limits.bytes:
        raise TooLarge(_too_large(limits))


async def receive(body: AsyncIterator[bytes], folder: Path, name: str, limits: Limits) -> Path:
    """Write an upload to a new file in `folder`; nothing of one that fails is left.

    Raises:
        TooLarge: it is larger than allowed, whatever its Content-Length said.
        AprError: it is empty, or can't be written.
    """
    place = folder / secrets.token_hex(8)
    file, size = place / safe_name(name), 0
    try:
        place.mkdir(parents=True)
        with file.open("xb") as out:
            async for piece in body:
                size += len(piece)
                if size > limits.bytes:
                    raise TooLarge(_too_large(limits))
                out.write(piece)
        if not size:
            raise AprError("the upload is empty")
    except OSError as error:
        discard(file)
        raise AprError(f"the upload can't be kept: {error.strerror or error}") from error
    except BaseException:
        discard(file)
        raise
    return file


def discard(file: Path) -> None:
    """Remove an upload and its folder, as far as they are there."""
    file.unlink(missing_ok=True)
    if file.parent.is_dir():
        file.parent.rmdir()


def examined(file: Path, settings: MediaSettings, limits: Limits) -> Film:
    """Open an uploaded file in a process of its own, and check its length. It takes a moment; call it in a thread.

    Raises:
        AprError: it can't be read, or is longer than allowed; the message has no path of this machine.
    """
    apart = settings.model_copy(update={"isolation": "always", "root": str(file.parent.resolve())})
    try:
        with Video.open(file, isolation=apart.isolation) as video:
            info = video.info
            sound = "with sound" if info.has_audio else "without sound"
            duration_s = video.duration_s
    except MediaError as error:
        raise AprError(f"this file can't be used: {one_line(str(error)).replace(f'{file.parent}/', '')}") from error
    if duration_s > limits.minutes * 60:
        raise AprError(
            f"this video lasts {duration_s / 60:.1f} minutes; at most {limits.minutes:g} minutes are allowed"
        )
    size = f"{info.size[0]}x{info.size[1]}, " if info.size else ""
    return Film(file, file.parent, file.name, f"{duration_s:.1f} s, {size}{sound}", True)


def _too_large(limits: Limits) -> str:
    return f"this file is larger than {limits.mib:,} MiB, the most that can be uploaded"
