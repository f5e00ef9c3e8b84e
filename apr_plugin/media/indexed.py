"""The reader of files that have to be read through first (see `index`): their pictures, and the sound of a window."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from apr_plugin.media.index import Astray, Cursor, Track
from apr_plugin.media.pick import Effort, Found, Image, Pick, Stretch
from apr_plugin.media.reader import PacketReader

_FIRST = 200  # packets after which the first picture must have come out


class IndexedReader(PacketReader):
    """Reads pictures with the times that they have when the file is read from the beginning.

    Args:
        container: The open file, not used by others.
        stream_index: The stream.
        track: The packets of the stream.
        delay: For files without presentation times: how many packets after its own packet a picture comes out. `None`
            if the file has such times.
        progress: See `PacketReader`.
    """

    numbered = True

    def __init__(
        self,
        container: InputContainer,
        stream_index: int,
        track: Track,
        delay: int | None,
        progress: Effort | None = None,
    ) -> None:
        super().__init__(container, stream_index, delay, progress)
        self._track = track
        self._cursor = Cursor(container, self.stream, track)
        self._rest: Iterator[Packet] = iter(())

    def key_before(self, limit: int) -> int | None:
        """See `PacketReader.key_before`."""
        number = self._track.key_before(limit)
        return int(self._track.times[number]) if number is not None else None

    def key_after(self, limit: int) -> int | None:
        """See `PacketReader.key_after`."""
        number = self._track.key_after(limit)
        return int(self._track.times[number]) if number is not None else None

    def run(
        self,
        run: Stretch,
        render: Callable[[VideoFrame], Image],
        late: int,
        deadline: float,
        cancelled: threading.Event | None = None,
    ) -> Found:
        """See `PacketReader.run`. If a seek leads to the wrong place, the file is read from its beginning."""
        try:
            return super().run(run, render, late, deadline, cancelled)
        except (Astray, av.FFmpegError):
            self.stream.codec_context.flush_buffers()
            self._cursor.distrust()
            return super().run(run, render, late, deadline, cancelled)

    def _seek(self, limit: int) -> Packet | None:
        self._shift = 0
        number = self._track.key_before(limit)
        if number is None:
            return None
        self._rest = self._packets_from(number)
        return next(self._rest, None)

    def _from_beginning(self) -> Iterator[Packet]:
        return self._packets_from(0)

    def _following(self) -> Iterator[Packet]:
        return self._rest

    def _packets_from(self, number: int) -> Iterator[Packet]:
        for packet in self._cursor.packets_from(number):
            if self._reorder is not None:  # counted: the number goes through the decoder in place of a time
                packet.dts = self._cursor.number - 1
            yield packet

    def _time(self, packet: Packet) -> int | None:
        return packet.pts

    def _slack(self) -> int:
        return self._reorder or 0

    def _take(self, pick: Pick, frames: list[VideoFrame]) -> None:
        if self._reorder is None:
            super()._take(pick, frames)
            return
        for place, frame in enumerate(frames):
            number = frame.dts - self._reorder if frame.dts is not None else self._cursor.number - len(frames) + place
            if 0 <= number < len(self._track.times):
                pick.take(frame, int(self._track.times[number]))


def first_picture(container: InputContainer, video: VideoStream, track: Track) -> tuple[VideoFrame | None, int | None]:
    """The first picture and, for files without presentation times, its delay in packets (see `IndexedReader`).

    The delay is the number of packets after its own packet at which the picture comes out.
    """
    context = video.codec_context
    counted = track.rising
    try:
        for number, packet in enumerate(Cursor(container, video, track).packets_from(0)):
            packet.dts = number
            for frame in context.decode(packet):
                return frame, (frame.dts or 0) if counted else None
            if number > _FIRST:
                break
        for frame in context.decode(None):
            return frame, 0 if counted else None
    except (av.FFmpegError, OSError):
        pass
    finally:
        context.flush_buffers()
    return None, 0 if counted else None


def sound_packets(container: InputContainer, stream: AudioStream, track: Track, aim: int) -> Iterator[Packet]:
    """The packets of sound from the last one that begins at or before `aim` (ticks), with their true times."""
    number = max(0, bisect_right(track.times.tolist(), aim) - 1)
    yield from Cursor(container, stream, track).packets_from(number)
