"""How long a film lasts: to the end of its last picture.

The packets decide. A header is believed unless the packets contradict it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream

from apr_plugin.media.errors import MediaOpenError, words
from apr_plugin.media.index import Index, packets_of
from apr_plugin.media.opening import descriptor

LATE_S = 1.0
"""A stream may end this much before the duration in its header; the last picture is shown until then."""

_ROUNDING_S = 0.002  # claims are rounded to milliseconds
_EARLY_S = 0.1  # no warning if the header is too short by less than this
_FAR = 2**53  # microseconds: later than any file
_BACK_S = (10.0, 60.0, 300.0, 1200.0)  # where the search for the last picture begins, before the end
_TAG = re.compile(r"(\d{1,4}):(\d\d):(\d\d(?:\.\d{1,9})?)")

Source = VideoStream | AudioStream


@dataclass(frozen=True)
class Length:
    """How long a file lasts, in seconds from second 0."""

    seconds: float
    """To the end of the picture, or of the sound if there is no picture."""
    source: str
    """Where the length was read."""
    sound_end_s: float | None = None
    """To the end of the sound, if it was read."""
    warnings: list[str] = field(default_factory=list)


def read_length(
    path: str,
    container: InputContainer,
    video: VideoStream | None,
    audio: AudioStream | None,
    zero: Fraction,
    index: Index | None,
) -> Length:
    """Find out how long the file lasts.

    Args:
        path: The file.
        container: The open file; this seeks in it.
        video: The picture stream.
        audio: The sound stream.
        zero: Time stamp of second 0.
        index: The file's packets, if it was read through.

    Raises:
        MediaOpenError: neither the headers nor the packets give a length.
    """
    streams: list[Source] = [stream for stream in (video, audio) if stream is not None]
    timed = streams[0]
    claims = _claims(container, timed, zero)
    fault: Exception | None = None
    if index is not None:
        ends = {number: float(track.end * _base(container, number) - zero) for number, track in index.tracks.items()}
    else:
        ends, fault = _ends(container, streams, zero, max((seconds for seconds, _ in claims), default=0.0))
    seen = ends.get(timed.index, 0.0)
    length = _decide(path, timed, claims, seen if seen > 0 else None, whole=index is not None)
    if length is None:
        why = (
            f"no duration in the header, and reading it through failed: {words(fault)}"
            if fault is not None
            else "the file has no length"
        )
        raise MediaOpenError(path, "open", why)
    return Length(length.seconds, length.source, ends.get(audio.index) if audio is not None else None, length.warnings)


def _decide(
    path: str, timed: Source, claims: Sequence[tuple[float, str]], seen: float | None, whole: bool
) -> Length | None:
    """Choose the length among what the headers claim and what the packets show."""
    kind = "pictures" if isinstance(timed, VideoStream) else "sound"
    if seen is None:
        return Length(*claims[0]) if claims else None
    if not claims or whole:
        return Length(seen, "time stamps of all packets")
    rate = timed.average_rate if isinstance(timed, VideoStream) else None
    step = float(1 / rate) if rate else 0.0
    ends = f"{kind} {'ends' if kind == 'sound' else 'end'} at {seen:.2f} s"
    denied: list[str] = []
    for claimed, source in claims:
        if -0.5 * step - _ROUNDING_S <= claimed - seen <= max(LATE_S, 2 * step):
            return Length(claimed, source, warnings=denied)
        denied.append(f"the {source} says {claimed:.2f} s, the {ends}")
    if -_EARLY_S - step <= claims[0][0] - seen < 0:
        return Length(seen, "time stamps of the last packets")
    if claims[0][0] > seen and is_cut_short(path):
        return Length(
            *claims[0],
            warnings=[f"the file is cut short: by its {claims[0][1]} it lasts {claims[0][0]:.2f} s, the {ends}"],
        )
    return Length(seen, "time stamps of the last packets", warnings=denied)


def _claims(container: InputContainer, stream: Source, zero: Fraction) -> list[tuple[float, str]]:
    """Durations in the headers, beginning with the one that belongs most closely to the stream."""
    found: list[tuple[Fraction, str]] = []
    base = stream.time_base or Fraction(1)
    if stream.duration and stream.duration > 0:
        found.append((Fraction(stream.start_time or 0) * base + stream.duration * base - zero, f"{stream.type} stream"))
    elif tag := _TAG.fullmatch(stream.metadata.get("DURATION", "")):  # Matroska: when the stream ends
        found.append((int(tag[1]) * 3600 + int(tag[2]) * 60 + Fraction(tag[3]) - zero, "DURATION tag"))
    if container.duration and container.duration > 0:
        found.append(
            (
                Fraction(container.duration, 1_000_000) + Fraction(container.start_time or 0, 1_000_000) - zero,
                "container",
            )
        )
    return [(float(seconds), source) for seconds, source in found if math.isfinite(seconds) and seconds > 0]


def _ends(
    container: InputContainer, streams: Sequence[Source], zero: Fraction, claimed_s: float
) -> tuple[dict[int, float], Exception | None]:
    """When each stream ends, by its last packets.

    If a stream ends long before the others, its end is searched for further back.
    """
    ends: dict[int, float] = {}
    fault: Exception | None = None
    timed = streams[0]
    base = timed.time_base or Fraction(1)
    aims: list[int | None] = [None]
    while aims:
        aim = aims.pop(0)
        try:
            if aim is None:
                container.seek(_FAR, backward=True)
            else:
                container.seek(aim, stream=timed, backward=True)
            for packet in packets_of(container, streams):
                at = packet.pts if packet.pts is not None else packet.dts
                if at is not None and packet.time_base is not None:
                    end = float((at + (packet.duration or 0)) * packet.time_base - zero)
                    ends[packet.stream.index] = max(end, ends.get(packet.stream.index, end))
        except (av.FFmpegError, OSError) as error:
            fault = error
        if ends.get(timed.index, 0.0) > 0:
            break
        if aim is None:
            until = max([claimed_s, *ends.values()])
            aims += [math.floor((Fraction(until - back) + zero) / base) for back in _BACK_S if until > back]
            aims.append(timed.start_time or 0)
    return ends, fault


def _base(container: InputContainer, number: int) -> Fraction:
    return container.streams[number].time_base or Fraction(1)


_MOST_BOXES = 100_000
"""Number of boxes of an MP4 that are read; a file with fragments of a second has 7,200 an hour."""


def is_cut_short(path: str) -> bool:
    """Whether a file ends before the end that its own container gives (MP4, MOV, Matroska, AVI, FLV).

    The result is `False` if this can't be told.
    """
    with descriptor(path) as fd, open(fd, "rb", closefd=False) as file:
        size = file.seek(0, 2)
        file.seek(0)
        head = file.read(64)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"styp"):
            at = 0
            for _ in range(_MOST_BOXES):
                if at + 8 > size:
                    return at < size
                file.seek(at)
                box = file.read(16)
                length = int.from_bytes(box[:4], "big")
                if length == 1:
                    length = int.from_bytes(box[8:16], "big")
                if length == 0:  # to the end of the file
                    return False
                if length < 8 or at + length > size:
                    return True
                at += length
            return False
        if head[:4] == b"\x1aE\xdf\xa3":
            at, length = _element(head, 4)
            if head[at + length :][:4] == b"\x18S\x80g":
                begin, whole = _element(head, at + length + 4)
                return whole >= 0 and begin + whole > size
            return False
        if head[:4] == b"RIFF":
            return 8 + int.from_bytes(head[4:8], "little") > size
        if head[:3] == b"FLV":
            file.seek(max(0, size - 4))
            last = int.from_bytes(file.read(4), "big")
            if not 11 <= last <= size - 4 - 9:
                return True
            file.seek(size - 4 - last)
            tag = file.read(4)
            return tag[0] & 0x1F not in (8, 9, 18) or int.from_bytes(tag[1:4], "big") + 11 != last
    return False


def _element(data: bytes, at: int) -> tuple[int, int]:
    """Where the content of an EBML element begins, and its length (-1: not given).

    Args:
        data: Bytes of the file.
        at: Where the length of the element is written.
    """
    first = data[at] if at < len(data) else 0
    width = 9 - first.bit_length()
    if width > 8:
        return at, -1
    value = int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1)
    return at + width, -1 if value == (1 << 7 * width) - 1 else value
