"""One open container, read by one thread at a time: seek, decode only what is needed, scale in libswscale.

The unit of work is a run: one keyframe and the requested times between it and the next one. Runs are independent, so
that several readers of the same file can work at the same time.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain, islice

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from apr_plugin.media.errors import words
from apr_plugin.media.pick import BEGINNING, Found, Image, Pick, Stretch
from apr_plugin.media.pick import Effort as Effort

_LOOKAHEAD = 32  # packets that are read ahead to find the one on screen at a requested time
_REWIND_S = 10.0  # some formats find their first packet only by a seek to a time well before it
_SILENT = {"hevc"}  # decoders that drop a damaged picture without an error
_REORDER = 16  # packets by which decoding order may differ from the order of presentation
_SCAN = 600  # packets that are searched for the next keyframe if the file has no index of keyframes
_BACK_STEPS = (0.0, 0.5, 2.0, 8.0, 32.0)  # seconds to seek further back if a seek ends after its target


class PacketReader:
    """A container and a single-threaded decoder for one of its video streams.

    Args:
        container: The open file, not used by others.
        stream_index: The stream.
        reorder: For files whose presentation times can't be trusted: how many ticks later than the time of its packet
            in decoding order a picture comes out. `None` if the presentation times are used.
        progress: Counts packets as they are decoded, so that another thread can see the progress.
    """

    numbered = False
    """Whether the number of every packet is known, so that the count is right even after a seek."""

    def __init__(
        self, container: InputContainer, stream_index: int, reorder: int | None = None, progress: Effort | None = None
    ) -> None:
        self.container = container
        stream = self.container.streams[stream_index]
        assert isinstance(stream, VideoStream)
        self.stream = stream
        self.stream.thread_type = "NONE"
        # Before anything is skipped, because AV1's decoder reads `skip_frame` only when it is opened.
        self.stream.codec_context.open(strict=False)
        assert stream.time_base is not None
        self.time_base: Fraction = stream.time_base
        self._reorder = reorder
        self._progress = progress if progress is not None else Effort()
        self._at_end = False
        self._shift = 0  # ticks to add to counted times

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    def key_before(self, limit: int) -> int | None:
        """Time of the keyframe from which the picture at `limit` is decoded, or `None` if the file does not give it."""
        packet = self._seek(limit)
        return self._time(packet) if packet is not None else None

    def key_after(self, limit: int) -> int | None:
        """Time of the first keyframe at or after `limit`, or `None` if there is none or the file does not give it."""
        self._shift = 0
        try:  # an index is in decoding order, and a keyframe is decoded before its presentation time
            self.container.seek(limit - _REORDER * self._tick(), stream=self.stream, backward=False)
            for packet in islice(demux(self.container, self.stream), _SCAN):
                at = self._time(packet)
                if packet.is_keyframe and at is not None and at >= limit:
                    return at
        except (av.FFmpegError, OSError):
            return None
        return None

    def _time(self, packet: Packet) -> int | None:
        return packet.pts if self._reorder is None else packet.dts + self._shift if packet.dts is not None else None

    def _seek(self, limit: int) -> Packet | None:
        """Go to the keyframe at or before `limit`; return its packet, which the caller still has to decode."""
        self._shift = 0
        for back_s in _BACK_STEPS:
            try:
                self.container.seek(
                    max(limit - math.ceil(back_s / self.time_base), BEGINNING), stream=self.stream, backward=True
                )
            except av.FFmpegError:
                return None
            for packet in demux(self.container, self.stream):
                if packet.dts is None and packet.pts is None:
                    break
                if packet.is_keyframe and packet.size:
                    at = self._time(packet)
                    if at is None or at <= limit:
                        return packet
                    break
        return None

    def run(
        self,
        run: Stretch,
        render: Callable[[VideoFrame], Image],
        late: int,
        deadline: float,
        cancelled: threading.Event | None = None,
    ) -> Found:
        """Decode one run.

        Args:
            run: The requested times.
            render: Makes the array of a decoded frame.
            late: How many ticks after the last picture of the file a time may be and still show it.
            deadline: `time.monotonic()` at which to stop.
            cancelled: Set it from another thread to stop the run.

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
        self,
        run: Stretch,
        render: Callable[[VideoFrame], Image],
        late: int,
        deadline: float,
        cancelled: threading.Event | None,
        found: Found,
    ) -> None:
        context = self.stream.codec_context
        first = self._seek(run.aim if run.aim is not None else run.limits[0]) if run.key != BEGINNING else None
        key = max(run.key, self._time(first) or run.key) if first is not None else BEGINNING
        self._shift = 0
        sought = (first.pos, first.dts) if first is not None and not self.numbered else None
        # In such a file it is not known which pictures after a keyframe depend on packets before it.
        if self._reorder and first is not None:
            first = self._seek(key - 1)
        # The time is before the first keyframe, or the file marks no keyframes.
        packets = self._from_beginning() if first is None else chain([first], self._following())
        slack = self._slack()
        pick = Pick(run.limits, key, found, render, late, slack, trusted=run.trusted or bool(self._reorder))
        for packet, maybe in self._needed(packets, run.limits):
            if time.monotonic() > deadline or (cancelled is not None and cancelled.is_set()):
                raise TimeoutError
            if self._reorder and sought is not None and packet.pos == sought[0] and packet.dts is not None:
                self._shift = (sought[1] or 0) - packet.dts
                if self._shift:
                    pick.fault("packets are missing")  # the count shows it
            at = self._time(packet)
            # Wrongly decoded pictures must not affect later ones.
            if pick.damaged and packet.is_keyframe and at is not None and not self._reorder:
                self._drain(pick)
                pick.restart(at, self._tick())
            context.skip_frame = "DEFAULT" if maybe else "NONREF"
            found.effort.packets += 1
            self._progress.packets += 1
            pick.sent(at, maybe and context.name in _SILENT, packet.duration or 0)
            if packet.is_corrupt:
                pick.fault("a packet is damaged")
            try:
                self._take(pick, context.decode(packet))
            except av.FFmpegError as error:
                pick.fault(words(error))
            if pick.done:
                break
        self._drain(pick)
        pick.finish(self._at_end)

    def _from_beginning(self) -> Iterator[Packet]:
        """All packets."""
        rewind(self.container, self.stream)
        return demux(self.container, self.stream)

    def _following(self) -> Iterator[Packet]:
        """The packets after the one that `_seek` returned."""
        return demux(self.container, self.stream)

    def _slack(self) -> int:
        """By how many packets a picture may come out later than its packet, if times do not tell."""
        return math.ceil((self._reorder or 0) / self._tick())

    def _take(self, pick: Pick, frames: list[VideoFrame]) -> None:
        for number, frame in enumerate(frames):
            if self._reorder is None:
                pick.take(frame, frame.pts)
            elif frame.dts is not None:
                pick.take(frame, frame.dts - self._reorder + self._shift)
            elif pick.latest is not None:  # the last picture held to the end belongs to the last packet
                pick.take(frame, pick.latest - (len(frames) - 1 - number) * self._tick())

    def _drain(self, pick: Pick) -> None:
        """Take the pictures that are still in the decoder, and reset the decoder."""
        context = self.stream.codec_context
        context.skip_frame = "DEFAULT"
        try:
            self._take(pick, context.decode(None))
        except av.FFmpegError as error:
            pick.fault(words(error))
        context.flush_buffers()
        pick.account(-BEGINNING)

    def _tick(self) -> int:
        """Ticks from one picture to the next."""
        rate = self.stream.average_rate or self.stream.guessed_rate
        return max(1, round(1 / (rate * self.time_base))) if rate else 1

    def _needed(self, packets: Iterator[Packet], limits: list[int]) -> Iterator[tuple[Packet, bool]]:
        """Packets in decoding order, each with whether it may be on screen at a requested time.

        The packets end after the last one that matters.
        """
        self._at_end = False
        ahead: deque[Packet] = deque()
        past: deque[int] = deque(maxlen=_LOOKAHEAD)
        timed, ended = self._reorder is None, False
        while True:
            while not ended and len(ahead) < (_LOOKAHEAD if timed else 1):
                packet = next(packets, None)
                if packet is None or (packet.size == 0 and packet.pts is None and packet.dts is None):
                    ended = self._at_end = True
                elif packet.size == 0:  # in AVI this repeats the picture before; a decoder would take it for the end
                    continue
                elif timed and packet.dts is not None and packet.dts > limits[-1]:
                    ended = True
                else:
                    timed = timed and packet.pts is not None
                    ahead.append(packet)
                    # Exactly the requested picture: nothing decoded later can replace it.
                    ended = timed and len(limits) == 1 and packet.pts == limits[0]
            if not ahead:
                return
            packet = ahead.popleft()
            yield packet, not timed or _may_show(packet.pts or 0, past, ahead, limits)
            past.append(packet.pts if packet.pts is not None else BEGINNING)


def demux(container: InputContainer, stream: VideoStream | AudioStream) -> Iterator[Packet]:
    """The packets of a stream from here on.

    PyAV raises an error for a packet of a stream that appeared later than the headers; that packet is skipped.
    """
    while True:
        try:
            yield from container.demux(stream)
            return
        except IndexError:
            continue


def rewind(container: InputContainer, stream: VideoStream) -> None:
    """Go to the first packet.

    Raises:
        av.FFmpegError: the container can't seek.
    """
    start, back = stream.start_time or 0, math.ceil(_REWIND_S / (stream.time_base or 1))
    try:
        container.seek(start - back, stream=stream, backward=True)
    except av.FFmpegError:  # some formats refuse that
        container.seek(start, stream=stream, backward=True)


def _may_show(pts: int, past: deque[int], ahead: deque[Packet], limits: list[int]) -> bool:
    """Whether no known packet is shown after this one and still in time for the next requested time."""
    at = bisect_left(limits, pts)
    if at == len(limits):
        return False
    limit = limits[at]
    return not (
        any(pts < other <= limit for other in past)
        or any(other.pts is not None and pts < other.pts <= limit for other in ahead)
    )
