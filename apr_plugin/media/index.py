"""Every packet of a file, in the order of the file, for containers whose times can't be trusted after a seek.

MPEG program streams, ASF and others give most packets no time of their own. libav derives the times from what it has
read since the last seek, and they differ from those it derives when it reads from the beginning. Such a file is read
through once (nothing is decoded). After a seek each packet is recognised by its place, size and check sum, and gets the
time that it has when the file is read from the beginning.
"""

from __future__ import annotations

import os
import threading
import zlib
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream
from numpy.typing import NDArray

from apr_plugin.media.clock import Stamp, offsets, runs_steadily
from apr_plugin.media.errors import MediaOpenError
from apr_plugin.media.opening import descriptor

_TRUSTED = ("mov,", "matroska", "flv", "avi", "ogg", "nut", "gif", "apng", "ivf")
"""Demuxers whose packets have times of their own, the same after a seek. AVI counts packets, which `PacketReader`
handles."""

_BY_BYTES = ("mpegts", "mpeg", "mpegvideo")  # seeking to a byte is safer here, because clocks may start again
_BACK_BYTES = (0, 1 << 16, 1 << 20, 1 << 24)
_BACK_S = (0.0, 1.0, 5.0, 30.0)
_SEARCH = 20_000  # packets that are read to find the place after a seek
_UNTIMED = 0.1  # if a larger share of the packets has no time, pictures are counted
_BESIDE = (-2, -1, 0, 1, 2)  # distances from the last packet before a joint
_SLOWEST = 20e6  # bytes per second
_KEPT = 4  # indexes that are kept of files opened before

Source = VideoStream | AudioStream
# Presentation time, decoding time, duration, place, sum, whether it is a keyframe.
_Row = tuple[int | None, int | None, int, int, int, bool]


class Astray(OSError):
    """After a seek, packets came that are not those of the index."""


@dataclass(frozen=True)
class Track:
    """The packets of one stream, in decoding order."""

    times: NDArray[np.int64]
    """Presentation time of each on one continuous timeline, in the stream's ticks."""
    dts: NDArray[np.int64]
    """Decoding time of each, on the same timeline."""
    raw: NDArray[np.int64]
    """Decoding time of each as the file gives it, for seeking."""
    places: NDArray[np.int64]
    """Where each begins in the file, or -1."""
    sums: NDArray[np.int64]
    """Size and check sum of each."""
    keys: NDArray[np.int64]
    """Numbers of the keyframes."""
    key_times: list[int]
    """Their times, rising."""
    end: int
    """When the last presented packet ends, in ticks."""
    counted: bool = False
    """Whether the file gives most packets no time, so that they were counted at the frame rate."""
    joints: frozenset[int] = frozenset()
    """Numbers of the packets beside a place where the clock starts again: libav treats the joint as a loss of data and
    marks them as damaged."""

    @property
    def rising(self) -> bool:
        """Whether presentation times only rise in decoding order: there is no reordering, or no presentation times."""
        return bool((np.diff(self.times) > 0).all())

    def key_before(self, limit: int) -> int | None:
        """Number of the last keyframe not after `limit`."""
        at = bisect_right(self.key_times, limit)
        return int(self.keys[at - 1]) if at else None

    def key_after(self, limit: int) -> int | None:
        """Number of the first keyframe not before `limit`."""
        at = bisect_left(self.key_times, limit)
        return int(self.keys[at]) if at < len(self.keys) else None


@dataclass(frozen=True)
class Index:
    """The result of reading a file through."""

    tracks: dict[int, Track]
    """Tracks by the number of the stream."""
    restarts_s: tuple[float, ...]
    """Times at which the clock of the file starts again, on the continuous timeline (before second 0 is subtracted)."""


_cache: OrderedDict[tuple[object, ...], Index] = OrderedDict()
_lock = threading.Lock()


def needs_index(path: str, container: InputContainer, video: VideoStream | None, audio: AudioStream | None) -> bool:
    """Whether this file has to be read through before its times are known."""
    name = container.format.name
    leader = video if video is not None else audio
    if leader is None:
        return False
    if name == "mpegts":
        return not runs_steadily(path, leader.id)
    return video is not None and not name.startswith(_TRUSTED)


def reading_through_s(path: str) -> float:
    """How many seconds longer opening may take, because the file may have to be read through."""
    try:
        with descriptor(path) as fd:
            head, size = os.pread(fd, 8, 0), os.fstat(fd).st_size
    except (MediaOpenError, OSError):
        return 0.0
    return (
        size / _SLOWEST
        if not head.startswith((b"\x1aE\xdf\xa3", b"RIFF", b"FLV")) and head[4:8] not in (b"ftyp", b"moov", b"mdat")
        else 0.0
    )


def read_index(path: str, container: InputContainer, streams: Sequence[Source]) -> Index:
    """Read a file through, or return the index from an earlier call.

    Args:
        path: The file.
        container: The file, just opened, at its beginning.
        streams: The streams whose packets are wanted; the first one leads (see `clock.offsets`).
    """
    facts = Path(path).stat()
    key = (path, facts.st_size, facts.st_mtime_ns, tuple(stream.index for stream in streams))
    with _lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    index = _read(container, streams)
    with _lock:
        _cache[key] = index
        while len(_cache) > _KEPT:
            _cache.popitem(last=False)
    return index


def _read(container: InputContainer, streams: Sequence[Source]) -> Index:
    rows: dict[int, list[_Row]] = {stream.index: [] for stream in streams}
    order: list[tuple[int, int, int]] = []  # place in the file, stream, number of the packet
    place = 0
    try:
        for packet in packets_of(container, streams):
            own = rows[packet.stream.index]
            known = packet.pos if packet.pos is not None else -1
            place = known if known >= 0 else place
            order.append((place, packet.stream.index, len(own)))
            own.append((packet.pts, packet.dts, packet.duration or 0, known, summed(packet), packet.is_keyframe))
    except (av.FFmpegError, OSError):
        pass  # what comes after can't be read from the beginning either
    if container.format.name in _BY_BYTES:  # a packet comes out when it is complete, not where it begins
        order.sort()
    bases = {stream.index: float(stream.time_base or 1) for stream in streams}
    decoding = {index: _filled(own) for index, own in rows.items()}
    stamps = []
    for _, stream_index, number in order:
        base = bases[stream_index]
        stamps.append(Stamp(stream_index, decoding[stream_index][number] * base, rows[stream_index][number][2] * base))
    added, jumps = offsets(stamps, streams[0].index)
    shift = {index: np.zeros(len(own), np.int64) for index, own in rows.items()}
    for (_, stream_index, number), more in zip(order, added, strict=True):
        shift[stream_index][number] = round(more / bases[stream_index])
    tracks = {}
    for stream in streams:
        own = rows[stream.index]
        if own:
            even = _tick(stream) if sum(row[0] is None for row in own) > _UNTIMED * len(own) else None
            tracks[stream.index] = _track(own, decoding[stream.index], shift[stream.index], even)
    leader = tracks.get(streams[0].index)
    late = float(leader.times[0] - leader.dts[0]) * bases[streams[0].index] if leader is not None else 0.0
    return Index(tracks, tuple(jump + late for jump in jumps))


def _filled(own: Sequence[_Row]) -> list[int]:
    """Decoding times; if the file gives none, the packet follows the one before it."""
    first = next((number for number, row in enumerate(own) if row[1] is not None), 0)
    start = own[first][1] or 0 if own else 0
    found: list[int] = []
    for number in range(first - 1, -1, -1):
        start -= own[number][2]
        found.insert(0, start)
    for row in own[first:]:
        found.append(row[1] if row[1] is not None else found[-1] + (own[len(found) - 1][2] or 1) if found else 0)
    return found


def _tick(stream: Source) -> Fraction | None:
    """Ticks from one picture to the next, if the file gives a rate."""
    rate = (stream.average_rate or stream.guessed_rate) if isinstance(stream, VideoStream) else None
    return 1 / (rate * stream.time_base) if rate and stream.time_base else None


def _track(own: Sequence[_Row], decoding: Sequence[int], shift: NDArray[np.int64], even: Fraction | None) -> Track:
    """Make a track; pictures are `even` ticks apart if the file does not give the times of most of them."""
    raw = np.asarray(decoding, np.int64)
    durations, places, sums, marks = (np.asarray([row[column] for row in own], np.int64) for column in (2, 3, 4, 5))
    if even is not None:
        start = next((row[0] for row in own if row[0] is not None), decoding[0])
        times = np.asarray([start + round(number * even) for number in range(len(own))], np.int64)
    else:
        times = (
            np.asarray(
                [row[0] if row[0] is not None else dts for row, dts in zip(own, decoding, strict=True)], np.int64
            )
            + shift
        )
    turned = np.flatnonzero(np.diff(shift)).tolist()
    joints = frozenset(number + beside for number in turned for beside in _BESIDE)
    keys = np.flatnonzero(marks)
    key_times = times[keys]
    rising = (
        np.concatenate([[True], key_times[1:] > np.maximum.accumulate(key_times)[:-1]])
        if len(keys)
        else np.zeros(0, np.bool_)
    )
    keys = keys[rising]
    return Track(
        times,
        raw + shift,
        raw,
        places,
        sums,
        keys,
        times[keys].tolist(),
        int((times + durations).max()),
        even is not None,
        joints,
    )


def packets_of(container: InputContainer, streams: Sequence[Source]) -> Iterator[Packet]:
    """Packets that have content, from here to the end."""
    while True:
        try:
            yield from (packet for packet in container.demux(list(streams)) if packet.size)
            return
        except IndexError:  # PyAV raises this for a packet of a stream that appeared later than the headers
            continue


def summed(packet: Packet) -> int:
    """Size and check sum as one number."""
    data: Any = packet
    return packet.size << 32 | zlib.crc32(data)


class Cursor:
    """Goes to any packet of a track and reads on from there.

    Each packet gets the time that it has when the file is read from the beginning.

    Args:
        container: The open file, not used by others.
        stream: The stream.
        track: The packets of the stream.
    """

    def __init__(self, container: InputContainer, stream: Source, track: Track) -> None:
        self._container = container
        self._stream = stream
        self.track = track
        self._from_start = False
        self.number = 0
        """Number of the packet that comes next."""

    def distrust(self) -> None:
        """Read from the beginning of the file from now on, because a seek led to the wrong place."""
        self._from_start = True

    def packets_from(self, number: int) -> Iterator[Packet]:
        """The packets from this number on.

        Raises:
            Astray: the packets are not those of the index.
            av.FFmpegError: the file can't be read there.
        """
        known = number
        while known > 0 and self.track.places[known] < 0:
            known -= 1
        found = self._find(known) if not self._from_start and known > 0 else None
        if found is None:
            self._go(0, 0.0)
            packets, self.number = packets_of(self._container, [self._stream]), 0
        else:
            first, packets = found
            self.number = known + 1
            if known >= number:
                yield self._timed(first, known)
        for packet in packets:
            at = self.number
            if at >= len(self.track.sums):
                return
            if summed(packet) != self.track.sums[at]:
                raise Astray("its packets are not the same when they are read again")
            self.number = at + 1
            if at >= number:
                yield self._timed(packet, at)

    def _timed(self, packet: Packet, number: int) -> Packet:
        if packet.is_corrupt and number in self.track.joints:
            whole = Packet(bytes(packet))
            whole.time_base = packet.time_base
            whole.is_keyframe = packet.is_keyframe
            packet = whole
        packet.pts, packet.dts = int(self.track.times[number]), int(self.track.dts[number])
        return packet

    def _find(self, number: int) -> tuple[Packet, Iterator[Packet]] | None:
        place, wanted = int(self.track.places[number]), self.track.sums[number]
        bytewise = self._container.format.name in _BY_BYTES
        for back_bytes, back_s in zip(_BACK_BYTES, _BACK_S, strict=True):
            try:
                self._go(max(0, place - back_bytes) if bytewise else number, back_s)
                packets = packets_of(self._container, [self._stream])
                for count, packet in enumerate(packets):
                    if packet.pos == place and summed(packet) == wanted:
                        return packet, packets
                    if count > _SEARCH or (packet.pos is not None and packet.pos > place):
                        break
            except (av.FFmpegError, OSError):
                continue
        return None

    def _go(self, aim: int, back_s: float) -> None:
        """Seek to a byte or to the time of a packet, whichever is more reliable in this container."""
        if self._container.format.name in _BY_BYTES:
            self._container.seek(aim, unsupported_byte_offset=True)
            return
        time = int(self.track.raw[aim]) - round(back_s / float(self._stream.time_base or 1))
        for offset in (time, max(time, self._stream.start_time or 0)):
            try:
                self._container.seek(offset, stream=self._stream, backward=True)
                return
            except av.FFmpegError:
                continue
        raise Astray("seeking in it is not possible")
