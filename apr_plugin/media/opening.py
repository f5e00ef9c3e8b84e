"""The only place where a file is given to libav.

It must be a local file, checked by its descriptor, in one of the formats that video data sets use. libav never gets a
name. It gets the descriptor of a file that was found to be a regular file, and may open nothing else: no address, no
playlist and no other file that this one names.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition

from apr_plugin.media import kinds
from apr_plugin.media.errors import MediaOpenError, MediaTooLarge, words

Version = tuple[int, int]
"""Distinguishes a file from a later one with the same name: size in bytes and time of change in nanoseconds."""

MAX_PIXELS = 8192 * 8192
"""Larger pictures are never decoded. There is room for 8K and for two 8K halves of a 360-degree film."""

PIXELS_HERE = 4096 * 4096
"""Larger pictures are decoded only by a worker process, whose memory is limited."""

_FILMS = (
    "mov,matroska,webm,avi,flv,live_flv,kux,mpegts,mpeg,asf,asf_o,ogg,rm,wtv,mxf,"
    "nut,dv,ivf,gxf,gif,apng,nsv,nuv,pva,dhav,yuv4mpegpipe,mtv,"
    "wav,w64,mp3,flac,aac,loas,aiff,au,caf,amr,amrnb,amrwb,ac3,eac3,dts,dtshd,truehd,mlp,tta,wv,ape,mpc,mpc8,voc,"
    "tak,shn,oma,ircam"
)
# Formats of pictures without any time stamps.
_RAW = "av1,avs2,avs3,cavsvideo,dirac,dnxhd,evc,h261,h263,h264,hevc,ipu,m4v,mjpeg,mpegvideo,obu,vc1,vvc"

_ADDRESS = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_PROBED = (
    "h264,hevc,vvc,mpeg1video,mpeg2video,mpegvideo,mpeg4,msmpeg4v1,msmpeg4v2,msmpeg4,"
    "wmv1,wmv2,wmv3,vc1,h261,h263,h263i,h263p,flv,"
    "rv10,rv20,rv30,rv40,vp6,vp6a,vp6f"
)
# Picture decoders that libav may use to find out what a file contains, before it can be told how large a picture may
# be: those that it needs for the order or the size of pictures. The other decoders run only when this package asks for
# pictures, under that limit.

_TOLERANT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
# Names and titles with a wrong encoding are no reason to refuse a file; from release 19 on PyAV never refuses one.


def check_file(path: str) -> Version:
    """Refuse anything that is not a regular file with content, without opening it.

    Raises:
        MediaOpenError: it is missing, a folder, a device, a pipe, a socket, or empty.
    """
    try:
        return _plain(path, os.stat(path))  # noqa: PTH116 - any name, even an impossible one
    except (OSError, ValueError) as error:
        address = _ADDRESS.match(path) and "it is an address, and only local files are opened"
        raise MediaOpenError(path, "open", address or _why(error)) from error


@contextlib.contextmanager
def descriptor(path: str, version: Version | None = None) -> Iterator[int]:
    """A regular file, open for reading; it is closed at the end of the context.

    It is checked before it is opened, because opening a device can have an effect, and again after that, because it may
    be another file by then. Opening never waits, as it would for a pipe without a writer.

    Raises:
        MediaOpenError: as in `check_file`; or it is not the file of that `version`.
    """
    check_file(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise MediaOpenError(path, "open", _why(error)) from error
    try:
        now = _plain(path, os.fstat(fd))
        if version is not None and now != version:
            raise MediaOpenError(path, "open", "the file has changed since it was opened")
        yield fd
    finally:
        os.close(fd)


def _why(error: OSError | ValueError) -> str:
    return "no such file" if isinstance(error, FileNotFoundError | NotADirectoryError) else words(error)


def _plain(path: str, facts: os.stat_result) -> Version:
    if stat.S_ISDIR(facts.st_mode):
        raise MediaOpenError(path, "open", "it is a folder, not a file")
    if not stat.S_ISREG(facts.st_mode):
        raise MediaOpenError(path, "open", "it is a device or a pipe, not a file")
    if facts.st_size == 0:
        raise MediaOpenError(path, "open", "the file is empty")
    return facts.st_size, facts.st_mtime_ns


def open_container(path: str, version: Version | None = None, max_pixels: int = MAX_PIXELS) -> InputContainer:
    """Open a file with libav.

    Args:
        path: The file.
        version: What `check_file` returned before, if it must be the same file.
        max_pixels: No picture with more pixels is decoded, neither now nor later.

    Raises:
        MediaTooLarge: its pictures have more pixels than `max_pixels`.
        MediaOpenError: it is neither a film nor sound, or it can't be read.
    """
    with descriptor(path, version) as fd:
        try:
            head = os.pread(fd, kinds.HEAD_BYTES, 0)
            size = os.fstat(fd).st_size
            known = kinds.picture(fd, head, size)
            if known is not None:
                raise MediaOpenError(path, "open", known)
            container = _detect(path, fd, head, size)
        except OSError as error:
            raise MediaOpenError(path, "open", words(error)) from error
        try:
            _check(path, fd, head, size, container, max_pixels)
        except BaseException:
            container.close()
            raise
        return container


def _detect(path: str, fd: int, head: bytes, size: int) -> InputContainer:
    """Open by content, or by the file name's suffix if the content does not tell (MP3 after a large cover)."""
    try:
        return _open(fd)
    except (av.FFmpegError, OSError, ValueError) as error:
        told = kinds.no_film(fd, head, size, path)
        if told is None and isinstance(error, av.InvalidDataError):
            named = _format_of(Path(path).suffix[1:].lower())
            if named is not None:
                with contextlib.suppress(av.FFmpegError, OSError, ValueError):
                    return _open(fd, named)
        # libav raises this if the format is not one of those it may open.
        if told is None and error.args and error.args[0] == 22:
            told = "it is damaged, or in a format that is not supported; `ffmpeg -i IN OUT.mkv` converts such a format"
        raise MediaOpenError(path, "open", told or words(error)) from error


def _open(fd: int, named: str | None = None) -> InputContainer:
    os.lseek(fd, 0, os.SEEK_SET)
    container: InputContainer = av.open(
        "fd:",
        mode="r",
        format=named,
        container_options={
            "fd": str(fd),
            "protocol_whitelist": "fd",
            "format_whitelist": f"{_FILMS},{_RAW}",
            "codec_whitelist": _probed(),
        },
        # There are no `options` here: PyAV writes past the end of a list of them if streams appear later than the
        # headers (FLV,
        # MPEG-TS).
        **_TOLERANT,
    )
    return container


@functools.cache
def _probed() -> str:
    """Decoders that libav may use while it opens a file: those for sound and subtitles, and `_PROBED`."""
    others = []
    for name in av.codecs_available:
        with contextlib.suppress(ValueError):  # encoders raise this
            if av.Codec(name, "r").type != "video":
                others.append(name)
    return ",".join([_PROBED, *sorted(others)])


def _format_of(suffix: str) -> str | None:
    """The usual format of files with such a name."""
    for name in _FILMS.split(",") if suffix else ():
        with contextlib.suppress(ValueError):  # not every build of libav has every format
            if suffix in av.format.ContainerFormat(name, "r").extensions:
                return name
    return None


def _check(path: str, fd: int, head: bytes, size: int, container: InputContainer, max_pixels: int) -> None:
    """Refuse files that libav opens but can't read, and files that would take too much memory."""
    if container.format.name in _RAW.split(","):
        raise MediaOpenError(
            path,
            "open",
            "it is a bare stream without time stamps; `ffmpeg -i IN -c copy OUT.mkv` puts it into a container",
        )
    told = kinds.no_content(fd, head, size, container)
    if told is not None:
        raise MediaOpenError(path, "open", told)
    for stream in container.streams.video:
        context = stream.codec_context
        if context is None:
            continue
        context.options = {**context.options, "max_pixels": str(max_pixels)}
        if stream.disposition & Disposition.attached_pic:
            continue
        pixels = context.width * context.height  # 0 if the size is not known before a picture is decoded
        if pixels > MAX_PIXELS:
            limit = f"at most {MAX_PIXELS / 1e6:.0f} million are decoded"
            raise MediaOpenError(
                path, "open", f"its pictures would be {context.width}x{context.height} pixels; {limit}"
            )
        if pixels > max_pixels or (not pixels and max_pixels < MAX_PIXELS):
            size_px = f"{context.width}x{context.height} pixels" if pixels else "of an unknown size"
            raise MediaTooLarge(
                path, "open", f"its pictures are {size_px}, which are decoded only in a separate process"
            )
