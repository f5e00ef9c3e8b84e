"""Releases of the decoders: together with the file and the settings they decide every pixel and every sample."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING

import av

if TYPE_CHECKING:
    from apr_plugin.media.video import Decoder


@cache
def decoder_versions(decoder: Decoder) -> tuple[tuple[str, str], ...]:
    """Name and release of each package and library that turns a file into pictures and sound, in a fixed order.

    Args:
        decoder: What decodes the frames. Sound is always decoded by PyAV, whose libraries (FFmpeg's) may be of other
            releases in two builds of the same PyAV.
    """
    found = [("av", av.__version__)]
    found += [(name, ".".join(map(str, release))) for name, release in sorted(av.library_versions.items())]
    if decoder == "decord":
        found.append(("decord", metadata.version("decord")))
    return tuple(found)
