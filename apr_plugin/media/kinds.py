"""What a file is that is not a film, from its first bytes and, in the MP4 family, from its boxes.

All of this is used only for error messages.

Downloads and data sets often have something else in place of a film: Git LFS pointers, a server's error page, a
playlist, half of a file, an encrypted film.
"""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEAD_BYTES = 1 << 16
"""How many bytes at the beginning of a file are read."""

_BOXES_AT_MOST = 256  # a file with many fragments has thousands
_TAIL = "a film is needed"
_ENCRYPTED = "it is encrypted (copy protection, DRM); a copy without it is needed"
_BROKEN_OFF = "the file is cut off, as a download that was broken off leaves it"

_PICTURES: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"8BPS", "a Photoshop picture"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"\xffO\xffQ", "a JPEG 2000 picture"),
    (b"qoif", "a QOI picture"),
    (b"DDS ", "a DDS picture"),
    (b"v/1\x01", "an OpenEXR picture"),
)
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"%PDF-", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive; unpack it first"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it first"),
    (b"Rar!\x1a\x07", "a RAR archive; unpack it first"),
    (b"\xfd7zXZ\0", "an xz archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive; unpack it first"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"PAR1", "a Parquet table"),
    (b"ARROW1", "an Arrow table"),
)
_TEXTS: tuple[tuple[str, str], ...] = (
    (
        r"version https?://(git-lfs|hawser)",
        "it is a Git LFS pointer, not the file itself; `git lfs pull` in its repository fetches that",
    ),
    (
        r"(\.\./)*(\.git/|/)annex/objects/",
        "it is a git-annex pointer, not the file itself; `git annex get` in its repository fetches that",
    ),
    (r"#extm3u", "it is an HLS playlist (text); the film itself is needed, in one file"),
    (r"ffconcat version", "it is a list of files for ffmpeg (ffconcat text); the film itself is needed, in one file"),
    (r"(<\?xml.*?)?<mpd\b", "it is a DASH manifest (XML text); the film itself is needed, in one file"),
    (
        r"(<\?xml.*?)?<(smil|asx|playlist)\b|\[playlist\]|\[reference\]",
        "it is a playlist (text); the film itself is needed, in one file",
    ),
    (r"v=0\r?\no=", "it is a description of a live stream (SDP text); the film itself is needed, in one file"),
    (
        r"(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b",
        f"it is a web page (HTML text), such as a server's error page; {_TAIL}",
    ),
    (r"<(\?xml|!doctype|[a-z][\w:-]*[\s>])", f"it is a page of XML text, such as a server's error message; {_TAIL}"),
    (r"webvtt|\d+\r?\n\d+:\d\d:\d\d[,.]\d+ -->|\[script info\]", f"it contains subtitles (text); {_TAIL}"),
    (
        r"(https?|rtsp|rtmp|ftp)://\S+\s*$|\[internetshortcut\]",
        "it is an address (text), not the file at that address; download that first",
    ),
    (r"[\[{]", f"it is JSON text, such as a server's error message; {_TAIL}"),
    (r"", f"it is a text file; {_TAIL}"),
)
_UNFINISHED = {".part", ".crdownload", ".download", ".aria2", ".tmp", ".partial", ".!qb", ".!ut", ".ytdl"}
_FTYP_PICTURES = {
    b"avif": "an AVIF picture",
    b"heic": "a HEIC picture",
    b"heix": "a HEIC picture",
    b"mif1": "a HEIF picture",
}
_BOX_NAMES = {
    b"ftyp",
    b"styp",
    b"moov",
    b"moof",
    b"mdat",
    b"free",
    b"skip",
    b"wide",
    b"sidx",
    b"pnot",
    b"uuid",
    b"emsg",
}
# Sample entries of common encryption, and Apple's older ones.
_HIDDEN = {
    b"encv",
    b"enca",
    b"encs",
    b"enct",
    b"encm",
    b"drmi",
    b"drms",
    b"drmt",
}
_ASF_HIDDEN = (bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e"), bytes.fromhex("14e68a292226174cb935dae07ee9289c"))
_ANIMATED_PNG = re.compile(rb"acTL(?!\0\0\0[\0\1])", re.DOTALL)  # matches if there is more than one picture
_TS_PACKET = 188


def picture(fd: int, head: bytes, size: int) -> str | None:
    """The message for a picture that is not a film; `None` for everything else, including an animated GIF or PNG."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        moves = head[12:16] == b"VP8X" and len(head) > 20 and head[20] & 2
        return (
            "it is an animated WebP, which is not read; convert it to GIF or MP4 first"
            if moves
            else f"it is a WebP picture; {_TAIL}"
        )
    if head[:2] == b"BM" and len(head) > 18 and head[6:10] == bytes(4) and head[14] in (12, 40, 52, 56, 64, 108, 124):
        return f"it is a BMP picture; {_TAIL}"
    if (
        head[4:8] == b"ftyp"
        and head[8:12] in _FTYP_PICTURES
        and all(kind != b"moov" for kind, _, _ in _boxes(fd, 0, size))
    ):
        return f"it is {_FTYP_PICTURES[head[8:12]]}; {_TAIL}"
    for magic, name in _PICTURES:
        if head.startswith(magic):
            animated = (magic == b"GIF8" and _gif_moves(fd)) or (
                magic[1:4] == b"PNG" and _ANIMATED_PNG.search(head.partition(b"IDAT")[0])
            )
            return None if animated else f"it is {name}; {_TAIL}"
    return None


def no_film(fd: int, head: bytes, size: int, path: str) -> str | None:
    """The message for a file that libav can't open; `None` if it is not recognised."""
    unfinished = Path(path).suffix.lower() in _UNFINISHED
    told = _text(head) or _magic(head)
    if told is None and head[4:8] in _BOX_NAMES:
        told = _without_index(fd, size)
    if told is None and not any(head):
        told = f"it begins with {len(head)} zeros; {_BROKEN_OFF}"
    if told is None and unfinished:
        told = f"its name says that it is a download under way, and it can't be opened; {_BROKEN_OFF}"
    return told


def no_content(fd: int, head: bytes, size: int, container: Any) -> str | None:
    """The message for a file that libav opens but that has nothing to show; `None` if there is no problem."""
    format_name = container.format.name
    if "mp4" in format_name:
        tracks = [*container.streams.video, *container.streams.audio]
        return _film_in_boxes(fd, size) if tracks else _without_index(fd, size)
    hidden = (
        ("matroska" in format_name and _all_tracks_hidden(container))
        or (format_name.startswith("asf") and any(mark in head for mark in _ASF_HIDDEN))
        or (format_name == "mpegts" and _scrambled(head))
    )
    return _ENCRYPTED if hidden else None


def _text(head: bytes) -> str | None:
    wide = head[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = head.decode("utf-16" if wide else "utf-8-sig", errors="ignore" if len(head) == HEAD_BYTES else "strict")
    except UnicodeDecodeError:
        return None
    if any(ord(letter) < 32 and letter not in "\t\n\r\f\x1b" for letter in text[:4096]):
        return None
    text = text[:4096].lstrip()
    return next(told for pattern, told in _TEXTS if re.match(pattern, text, re.IGNORECASE | re.DOTALL))


def _magic(head: bytes) -> str | None:
    if head[257:262] == b"ustar":
        return "it is a tar archive; unpack it first"
    return next((f"it is {name}" for magic, name in _OTHERS if head.startswith(magic)), None)


def _boxes(fd: int, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes of the MP4 family from `at` on: kind, start of the content, end.

    The end may be after the end of the file.
    """
    for _ in range(_BOXES_AT_MOST):
        header = os.pread(fd, 16, at) if at + 8 <= end else b""
        if len(header) < 8:
            return
        length, kind = struct.unpack(">I4s", header[:8])
        body = at + 8
        if length == 1 and len(header) == 16:
            (length,), body = struct.unpack(">Q", header[8:]), at + 16
        elif length == 0:
            length = end - at
        if length < body - at:
            return
        yield kind, body, at + length
        at += length


def _inside(fd: int, at: int, end: int, *kinds: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of the content of every box that is reached by a path of kinds."""
    for kind, body, after in _boxes(fd, at, end):
        if kind == kinds[0]:
            if len(kinds) == 1:
                yield body, min(after, end)
            else:
                yield from _inside(fd, body, min(after, end), *kinds[1:])


def _without_index(fd: int, size: int) -> str | None:
    kinds = {}
    for kind, _, end in _boxes(fd, 0, size):
        kinds[kind] = end
        if kind == b"moov":
            return f"it is an MP4 whose index (moov) can't be read; {_BROKEN_OFF}" if end > size else None
    if b"moof" in kinds or b"styp" in kinds:
        return (
            "it is one segment of a stream (DASH or HLS) without the init segment that describes it; put them "
            "together first"
        )
    if not kinds:
        return None
    return f"it is an MP4 without its index (moov); {_BROKEN_OFF}"


def _film_in_boxes(fd: int, size: int) -> str | None:
    media, fragments, entries = False, False, []
    for kind, body, end in _boxes(fd, 0, size):
        media = media or kind in (b"mdat", b"moof")
        if kind == b"moov":
            fragments = any(True for _ in _inside(fd, body, min(end, size), b"mvex"))
            for at, after in _inside(fd, body, min(end, size), b"trak", b"mdia", b"minf", b"stbl", b"stsd"):
                entries += [name for name, _, _ in _boxes(fd, at + 8, after)][:8]
        if media and entries:
            break
    if fragments and not media:
        return (
            "it is only the init segment of a stream (DASH or HLS): it describes a film and contains no picture of "
            "it; join the segments first"
        )
    shown = [name for name in entries if name not in (b"text", b"tx3g", b"wvtt", b"stpp", b"tmcd", b"mebx", b"rtp ")]
    return _ENCRYPTED if shown and all(name in _HIDDEN for name in shown) else None


def _all_tracks_hidden(container: Any) -> bool:
    tracks = [*container.streams.video, *container.streams.audio]
    return bool(tracks) and all("enc_key_id" in track.metadata for track in tracks)


def _scrambled(head: bytes) -> bool:
    places = range(0, min(len(head), 64 * _TS_PACKET) - _TS_PACKET, _TS_PACKET)
    marks = [head[at + 3] >> 6 for at in places if head[at] == 0x47]
    return len(marks) > 20 and sum(mark > 1 for mark in marks) > len(marks) / 2


def _gif_moves(fd: int) -> bool:
    """Whether a second picture follows the first."""
    with io.BufferedReader(_Positioned(fd)) as file:
        header = file.read(13)
        if len(header) < 13:
            return False
        if header[10] & 0x80:
            file.read(3 << ((header[10] & 7) + 1))
        pictures = 0
        while mark := file.read(1):
            if mark == b"!":
                file.read(1)
            elif mark == b",":
                pictures += 1
                facts = file.read(9)
                if pictures == 2:
                    return True
                if len(facts) < 9:
                    return False
                file.read((3 << ((facts[8] & 7) + 1) if facts[8] & 0x80 else 0) + 1)
            else:
                return False
            while (length := file.read(1)) and length != b"\0":
                file.read(length[0])
    return False


class _Positioned(io.RawIOBase):
    """A file that is read by its descriptor, with its own position."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self._fd, len(buffer), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
