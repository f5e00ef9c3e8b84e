"""One open container, read by one thread at a time: seeking, decoding only what is needed, scaling inside libswscale.

The unit of work is a run: one keyframe and the times wanted between it and the next. Runs are independent, so that several readers of the same
file can work on them at once.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from apr_plugin.media.errors import words

Image = NDArray[np.uint8]

_LOOKAHEAD = 32  # packets read ahead to find out which of them is on screen at a time wanted
BEGINNING = -(2**62)
"""Key of a run that is decoded from the beginning of the file."""

_BACK_STEPS = (0.0, 0.5, 2.0, 8.0, 32.0)  # seconds tried further back when a seek lands behind its aim


@dataclass
class Effort:
    """What reading cost."""

    packets: int = 0
    """Packets given to a decoder."""
    decode_s: float = 0.0
    """Seconds seeking, demuxing, decoding and scaling, summed over workers."""

    def __iadd__(self, other: Effort) -> Effort:
        self.packets += other.packets
        self.decode_s += other.decode_s
        return self


PROGRESS = Effort()
"""Everything this process has decoded, so that a watcher sees whether it still does."""


@dataclass
class Run:
    """Times wanted of one stretch that begins at a keyframe, as the latest acceptable presentation times in the stream's ticks."""

    key: int
    limits: list[int]


@dataclass
class Found:
    """What a run brought."""

    shown: dict[int, tuple[Image, int]] = field(default_factory=dict)
    """For each limit, the picture and its presentation time in ticks."""
    faults: dict[int, str] = field(default_factory=dict)
    """For each limit without a picture, libav's words."""
    resume_at: int | None = None
    """Presentation time of the first fault, from which a later keyframe has to be found."""
    effort: Effort = field(default_factory=Effort)


class Reader:
    """A container and a single-threaded decoder for one video stream of it."""

    def __init__(self, container: InputContainer, stream_index: int) -> None:
        self.container = container
        stream = self.container.streams[stream_index]
        assert isinstance(stream, VideoStream)
        self.stream = stream
        self.stream.thread_type = "NONE"
        assert stream.time_base is not None
        self.time_base: Fraction = stream.time_base
        self._at_end = False

    def close(self) -> None:
        """Give the file back."""
        self.container.close()

    def key_before(self, limit: int) -> int | None:
        """Presentation time of the keyframe from which the picture at `limit` is decoded, or `None` where the file does not say."""
        packet = self._seek(limit)
        return packet.pts if packet is not None else None

    def key_after(self, limit: int) -> int | None:
        """Presentation time of the first keyframe not before `limit`."""
        try:
            self.container.seek(limit, stream=self.stream, backward=False)
        except av.FFmpegError:
            return None
        for packet in self.container.demux(self.stream):
            if packet.dts is None and packet.pts is None:
                return None
            if packet.is_keyframe and packet.pts is not None and packet.pts >= limit:
                return packet.pts
            if packet.dts is not None and packet.dts > limit:
                return packet.pts if packet.is_keyframe else None
        return None

    def _seek(self, limit: int) -> Packet | None:
        """Go to the keyframe at or before `limit`; returns its packet, which the caller still has to decode."""
        for back_s in _BACK_STEPS:
            self.container.seek(max(limit - math.ceil(back_s / self.time_base), -(2**62)), stream=self.stream, backward=True)
            for packet in self.container.demux(self.stream):
                if packet.dts is None and packet.pts is None:
                    break
                if packet.is_keyframe:
                    if packet.pts is None or packet.pts <= limit:
                        return packet
                    break
        return None

    def run(self, run: Run, render: Callable[[VideoFrame], Image], late: int, deadline: float, cancelled: threading.Event | None = None) -> Found:
        """Decode one run.

        Args:
            run: What is wanted.
            render: Makes the array of a decoded frame.
            late: How many ticks after the last picture of the file a time may lie and still show it.
            deadline: `time.monotonic()` at which to stop.
            cancelled: Set from another thread to stop.

        Raises:
            TimeoutError: the deadline passed, or the read was cancelled.
        """
        began = time.perf_counter()
        found = Found()
        try:
            self._run(run, render, late, deadline, cancelled, found)
        finally:
            found.effort.decode_s = time.perf_counter() - began
        return found

    def _run(
        self, run: Run, render: Callable[[VideoFrame], Image], late: int, deadline: float, cancelled: threading.Event | None, found: Found
    ) -> None:
        limits = run.limits
        context = self.stream.codec_context
        state = _Pick(run, found, render, late)
        first = self._seek(limits[0]) if run.key != BEGINNING else None
        if first is None:  # before the first keyframe, or a file without any mark of keyframes
            self.container.seek(self.stream.start_time or 0, stream=self.stream, backward=True)
            packets: Iterator[Packet] = self.container.demux(self.stream)
        else:
            packets = _chain(first, self.container.demux(self.stream))
        for packet, maybe in self._needed(packets, limits):
            if time.monotonic() > deadline or (cancelled is not None and cancelled.is_set()):
                raise TimeoutError
            context.skip_frame = "DEFAULT" if maybe else "NONREF"
            found.effort.packets += 1
            PROGRESS.packets += 1
            try:
                frames = context.decode(packet)
            except av.FFmpegError as error:
                state.fault(packet.pts, words(error))
                continue
            for frame in frames:
                state.take(frame)
            if state.done:
                break
        else:
            context.skip_frame = "DEFAULT"
            try:
                for frame in context.decode(None):
                    state.take(frame)
            except av.FFmpegError as error:
                state.fault(None, words(error))
        context.flush_buffers()
        state.finish(self._at_end)

    def _needed(self, packets: Iterator[Packet], limits: list[int]) -> Iterator[tuple[Packet, bool]]:
        """Packets in decoding order with whether each may be on screen at a wanted time; ends after the last that matters."""
        self._at_end = False
        ahead: deque[Packet] = deque()
        past: deque[int] = deque(maxlen=_LOOKAHEAD)
        timed, ended = True, False
        while True:
            while not ended and len(ahead) < (_LOOKAHEAD if timed else 1):
                packet = next(packets, None)
                if packet is None or packet.size == 0:
                    ended = self._at_end = True
                elif packet.pts is None or packet.dts is None:
                    timed = False
                    ahead.append(packet)
                elif timed and packet.dts > limits[-1]:
                    ended = True
                else:
                    ahead.append(packet)
            if not ahead:
                return
            packet = ahead.popleft()
            yield packet, not timed or _may_show(packet.pts or 0, past, ahead, limits)
            past.append(packet.pts if packet.pts is not None else -(2**62))


def _may_show(pts: int, past: deque[int], ahead: deque[Packet], limits: list[int]) -> bool:
    """Whether no packet at hand is shown later than this one and still in time for the next time wanted."""
    at = bisect_left(limits, pts)
    if at == len(limits):
        return False
    limit = limits[at]
    return not (any(pts < other <= limit for other in past) or any(other.pts is not None and pts < other.pts <= limit for other in ahead))


def _chain(first: Packet, rest: Iterator[Packet]) -> Iterator[Packet]:
    yield first
    yield from rest


class _Pick:
    """Takes decoded frames in order of presentation and keeps for each limit the last that is not after it."""

    def __init__(self, run: Run, found: Found, render: Callable[[VideoFrame], Image], late: int) -> None:
        self._limits, self._key, self._found, self._render, self._late = run.limits, run.key, found, render, late
        self._next = 0
        self._frame: VideoFrame | None = None
        self._at = -(2**62)
        self._image: Image | None = None
        self._broken_from: int | None = None
        self._words = ""

    @property
    def done(self) -> bool:
        return self._next == len(self._limits)

    def fault(self, pts: int | None, words: str) -> None:
        at = pts if pts is not None else self._at + 1
        if self._broken_from is None or at < self._broken_from:
            self._broken_from, self._words = at, words

    def take(self, frame: VideoFrame) -> None:
        pts = frame.pts
        if pts is None or pts < self._key or pts <= self._at:
            return
        if frame.is_corrupt:
            self.fault(pts, "the picture is damaged")
        if self._frame is not None or self._key != BEGINNING:  # before the first picture of the file, the first is shown
            self._settle(pts)
        if self._broken_from is not None and pts >= self._broken_from:
            if not frame.key_frame or frame.is_corrupt:
                return
            self._broken_from = None
        self._frame, self._at, self._image = frame, pts, None

    def finish(self, at_end: bool) -> None:
        """No more frames come. At the end of the file the last one stays on screen for as long as it lasts, and a little longer."""
        if self._frame is not None and at_end:
            self._settle(self._at + max(self._late, getattr(self._frame, "duration", 0) or 0) + 1)
            self._words = self._words or "the pictures end before it"
            self._broken_from = self._at if self._broken_from is None else self._broken_from
        self._settle(2**62)

    def _settle(self, until: int) -> None:
        """Every limit before `until` has its picture now, or has none."""
        while self._next < len(self._limits) and self._limits[self._next] < until:
            limit = self._limits[self._next]
            if self._broken_from is not None and limit >= self._broken_from:
                self._found.faults[limit] = self._words
            elif self._frame is None:
                self._found.faults[limit] = "no picture could be decoded there"
            else:
                if self._image is None:
                    self._image = self._render(self._frame)
                self._found.shown[limit] = (self._image, self._at)
            self._next += 1
