"""The one place where a file is given to libav."""

from __future__ import annotations

from typing import Any

import av
from av.container import InputContainer

from apr_plugin.media.errors import MediaOpenError, words

_TOLERANT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
"""Names and titles in a broken encoding are no reason to refuse a file; from release 19 on PyAV never does."""

_RAW_FORMATS = {"cavsvideo", "dirac", "h261", "h263", "h264", "hevc", "m4v", "mpegvideo", "vc1", "vvc"}  # pictures without any time stamps


def open_container(path: str) -> InputContainer:
    """Open a file with libav.

    Raises:
        MediaOpenError: libav refuses it, or it would render a text file as a film.
    """
    try:
        container: InputContainer = av.open(path, mode="r", **_TOLERANT)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaOpenError(path, "open", words(error)) from error
    if container.format.name == "tty":
        container.close()
        raise MediaOpenError(path, "open", "it is a text file")
    if container.format.name in _RAW_FORMATS:
        container.close()
        raise MediaOpenError(path, "open", "it is a bare stream without time stamps; `ffmpeg -i IN -c copy OUT.mkv` puts it into a container")
    return container
