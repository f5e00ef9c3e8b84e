"""A file opened in this process. Several threads may read it at once; each run of decoding has its own reader."""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_right, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, TypeVar

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from apr_plugin.media.colour import Converter
from apr_plugin.media.duration import LATE_S
from apr_plugin.media.errors import MediaDecodeError, MediaOpenError, words
from apr_plugin.media.indexed import IndexedReader
from apr_plugin.media.info import read_info
from apr_plugin.media.lending import Lending
from apr_plugin.media.opening import MAX_PIXELS, check_file, open_container
from apr_plugin.media.pick import BEGINNING, Effort, Found, Image, Stretch
from apr_plugin.media.reader import PacketReader
from apr_plugin.media.sound import read_sound
from apr_plugin.media.threads import spread

Mode = Literal["exact", "keyframe"]

Size = tuple[int, int]
"""(width, height) in pixels."""

_RETRIES = 3  # keyframes that are tried after a damaged stretch
_EARLIER = 4  # earlier keyframes that are tried if decoding from one was not enough
_BYTES_A_PIXEL = 60  # for a decoder that keeps 20 pictures of 10 bits
# Sound decoders that keep no state across a seek; the output of others (AAC's noise) depends on earlier packets.
_FORGETFUL = (
    "pcm_",
    "flac",
    "alac",
    "mp3",
    "vorbis",
)


@dataclass(frozen=True)
class Pictures:
    """The result of reading frames."""

    images: NDArray[np.uint8]
    """Shape (n, height, width, 3), RGB."""
    times_s: tuple[float, ...]
    """True presentation time of each picture."""
    missing_s: tuple[float, ...]
    """Requested times at which nothing can be decoded. The next picture that can be decoded takes the place, with its
    own time, if there is one."""
    keyframes: int
    """How many pictures are the nearest keyframe instead of the exact picture."""
    effort: Effort


@dataclass(frozen=True)
class Sound:
    """The result of reading sound."""

    samples: NDArray[np.float32]
    """Shape (samples,), mono, 16 kHz."""
    padded_s: float
    """Seconds of the window for which the file has no sound."""
    effort: Effort


_R = TypeVar("_R")


class _SoundReader:
    """An open container for the sound."""

    def __init__(self, container: InputContainer, index: int) -> None:
        self.container = container
        stream = self.container.streams[index]
        assert isinstance(stream, AudioStream)
        self.stream = stream

    def close(self) -> None:
        self.container.close()


class LocalFile:
    """One file, read in this process.

    Args:
        path: The file.
        workers: How many runs are decoded at once.
        max_pixels: No picture with more pixels is decoded.
        memory: Bytes that decoding may use, so that fewer runs of large pictures are decoded at once; 0 for no limit.

    Raises:
        MediaTooLarge: its pictures have more pixels than `max_pixels`.
        MediaOpenError: the file can't be used.
    """

    def __init__(self, path: str, workers: int, max_pixels: int = MAX_PIXELS, memory: int = 0) -> None:
        self.version = check_file(path)
        self.path = path
        self.workers = max(1, workers)
        self._max_pixels = max_pixels
        self.progress = Effort()
        container = self._container()
        try:
            self._opened = read_info(path, container)
        except MediaOpenError:
            raise
        except (av.FFmpegError, OSError, ValueError, OverflowError) as error:
            raise MediaOpenError(path, "open", words(error)) from error
        else:
            self.info = self._opened.info
            self._zero = self._opened.zero
            stream = container.streams[
                self.info.video_stream if self.info.video_stream is not None else self.info.audio_stream or 0
            ]
            self._time_base: Fraction = stream.time_base or Fraction(1, 1000)
        finally:
            container.close()
        if memory and self.info.size is not None:
            self.workers = max(1, min(self.workers, memory // (_BYTES_A_PIXEL * self.info.size[0] * self.info.size[1])))
        self._lock = threading.Lock()
        self._readers = Lending(self._new_reader, self.workers)
        self._sound = Lending(self._new_sound, 1, reuse=self.info.audio_codec.startswith(_FORGETFUL))
        self._keys: list[int] = []
        self._known_to: dict[int, int] = {}

    def close(self) -> None:
        """Close the file; readers in use are closed when they are returned."""
        self._readers.close()
        self._sound.close()

    def frames(
        self, times_s: Sequence[float], size: Size, mode: Mode, deadline: float, cancelled: threading.Event | None
    ) -> Pictures:
        """The pictures at the given times, in the given order, each scaled to `size`.

        Raises:
            MediaDecodeError: nothing could be decoded at any of the times.
            TimeoutError: the deadline passed, or the read was cancelled.
        """
        self._check_version()
        effort = Effort()
        began = time.perf_counter()
        render = self._renderer(size)
        ticks = {t: self._ticks(t) for t in times_s}
        wanted = sorted(set(ticks.values()))
        with self._readers.lend(deadline, cancelled) as reader:
            nearest = self._nearest_keys(reader, wanted) if mode == "keyframe" else {}
            runs = self._runs(reader, sorted({nearest.get(limit, limit) for limit in wanted}))
        effort.decode_s += time.perf_counter() - began
        late = math.ceil(max(LATE_S, 2 / (self.info.fps or 1)) / self._time_base)
        found = self._decode(runs, render, late, deadline, cancelled)
        for part in found:
            effort += part.effort
        shown = {limit: picture for part in found for limit, picture in part.shown.items()}
        faults = {limit: fault for part in found for limit, fault in part.faults.items()}
        if faults:
            effort += self._step_over(faults, shown, render, late, deadline, cancelled)
        pictures = [(t, shown.get(nearest.get(ticks[t], ticks[t]))) for t in times_s]
        if all(picture is None for _, picture in pictures):
            first = min(faults)
            raise MediaDecodeError(self.path, f"decode the frame at {self._seconds(first):.3f}s", faults[first])
        kept = [picture for _, picture in pictures if picture is not None]
        missing = tuple(dict.fromkeys(t for t, _ in pictures if nearest.get(ticks[t], ticks[t]) in faults))
        keyframes = sum(limit in nearest for limit in ticks.values())
        return Pictures(
            np.stack([image for image, _ in kept]),
            tuple(max(0.0, self._seconds(at)) for _, at in kept),
            missing,
            keyframes,
            effort,
        )

    def audio(self, start_s: float, end_s: float, deadline: float, cancelled: threading.Event | None) -> Sound:
        """The sound of a window.

        Raises:
            MediaDecodeError: the track can't be read there at all.
            TimeoutError: the deadline passed, or the read was cancelled.
        """
        self._check_version()
        began = time.perf_counter()
        with self._sound.lend(deadline, cancelled) as reader:
            index, number = self._opened.index, self.info.audio_stream or 0
            track = index.tracks.get(number) if index is not None else None
            samples, padded_s, packets = read_sound(
                self.path,
                reader.container,
                reader.stream,
                self._zero,
                start_s,
                end_s,
                deadline,
                cancelled,
                self.progress,
                track,
            )
        return Sound(samples, padded_s, Effort(packets, time.perf_counter() - began))

    def _runs(self, reader: PacketReader, limits: Sequence[int]) -> list[Stretch]:
        runs: list[Stretch] = []
        for limit in limits:
            key = self._key_for(reader, limit)
            if runs and runs[-1].key == key:
                runs[-1].limits.append(limit)
            else:
                runs.append(Stretch(key, [limit]))
        return runs

    def _key_for(self, reader: PacketReader, limit: int) -> int:
        """The keyframe before `limit`; a result of an earlier look is used again if there is one."""
        with self._lock:
            at = bisect_right(self._keys, limit) - 1
            if at >= 0 and limit <= self._known_to[self._keys[at]]:
                return self._keys[at]
        try:
            key = reader.key_before(limit)
        except (av.FFmpegError, OSError) as error:
            raise MediaDecodeError(self.path, f"seek to {self._seconds(limit):.3f}s", words(error)) from error
        if key is None:
            return BEGINNING
        with self._lock:
            if key not in self._known_to:
                insort(self._keys, key)
            self._known_to[key] = max(limit, self._known_to.get(key, key))
        return key

    def _nearest_keys(self, reader: PacketReader, wanted: Sequence[int]) -> dict[int, int]:
        """For each time whose neighbours are further away than the keyframes, the nearest keyframe.

        The keyframe must be within half the spacing of the times.
        """
        nearest: dict[int, int] = {}
        for number, limit in enumerate(wanted):
            gaps = [abs(wanted[other] - limit) for other in (number - 1, number + 1) if 0 <= other < len(wanted)]
            if not gaps:
                continue
            before, after = self._key_for(reader, limit), reader.key_after(limit + 1)
            around = [key for key in (before, after) if key is not None and key != BEGINNING]
            if after is not None and before != BEGINNING and min(gaps) <= after - before:
                continue
            closest = min(around, key=lambda key: (abs(key - limit), key), default=None)
            if closest is not None and abs(closest - limit) + 1 <= min(gaps) / 2:  # both are rounded down to a tick
                nearest[limit] = closest
        return nearest

    def _decode(
        self,
        runs: list[Stretch],
        render: Callable[[VideoFrame], Image],
        late: int,
        deadline: float,
        cancelled: threading.Event | None,
    ) -> list[Found]:
        def one(run: Stretch) -> Found:
            with self._readers.lend(deadline, cancelled) as reader:
                try:
                    found = reader.run(run, render, late, deadline, cancelled)
                    key: int | None = run.key
                    for tried in range(_EARLIER):
                        if not found.early:
                            break
                        key = reader.key_before(key - 1) if key is not None and tried < _EARLIER - 1 else None
                        again = Stretch(
                            key if key is not None else BEGINNING, sorted(found.early), aim=key, trusted=True
                        )
                        found.retried(reader.run(again, render, late, deadline, cancelled))
                    return found
                except TimeoutError:
                    raise
                except (av.FFmpegError, OSError, ValueError) as error:
                    return Found(faults=dict.fromkeys(run.limits, words(error)))

        return spread(one, runs, self.workers)

    def _step_over(
        self,
        faults: dict[int, str],
        shown: dict[int, tuple[Image, int]],
        render: Callable[[VideoFrame], Image],
        late: int,
        deadline: float,
        cancelled: threading.Event | None,
    ) -> Effort:
        """For each time that can't be decoded, the next picture that can: later keyframes are tried."""
        effort = Effort()
        stand_in: tuple[Image, int] | None = None
        for limit in sorted(faults):
            if stand_in is not None and stand_in[1] >= limit:
                shown[limit] = stand_in
                continue
            aim = limit + 1
            for _ in range(_RETRIES):
                with self._readers.lend(deadline, cancelled) as reader:
                    key = reader.key_after(aim)
                    if key is None:
                        break
                    try:
                        part = reader.run(Stretch(key, [key]), render, late, deadline, cancelled)
                    except (av.FFmpegError, ValueError):
                        break
                effort += part.effort
                if key in part.shown:
                    stand_in = shown[limit] = part.shown[key]
                    break
                aim = key + 1
        return effort

    def _renderer(self, size: Size) -> Callable[[VideoFrame], Image]:
        """Make the function that converts colours and scales in libswscale, then turns the picture.

        Every picture gets the same size, even if the file changes its own.
        """
        width, height = size
        orientation = self._opened.orientation
        convert = Converter(height, width) if orientation.sideways else Converter(width, height)
        return lambda frame: orientation.apply(convert(frame))

    def _new_reader(self) -> PacketReader:
        assert self.info.video_stream is not None
        return self._fresh(self._open_reader)

    def _open_reader(self) -> PacketReader:
        number, reorder, index = self.info.video_stream or 0, self._opened.reorder, self._opened.index
        if index is not None and number in index.tracks:
            return IndexedReader(self._container(), number, index.tracks[number], reorder, self.progress)
        return PacketReader(self._container(), number, reorder, self.progress)

    def _new_sound(self) -> _SoundReader:
        assert self.info.audio_stream is not None
        return self._fresh(lambda: _SoundReader(self._container(), self.info.audio_stream or 0))

    def _container(self) -> InputContainer:
        return open_container(self.path, self.version, self._max_pixels)

    def _fresh(self, make: Callable[[], _R]) -> _R:
        """Open the file again; the content that its headers promise may have changed in the meantime."""
        self._check_version(must_exist=True)
        try:
            return make()
        except (AssertionError, IndexError, av.FFmpegError, OSError) as error:
            raise MediaOpenError(
                self.path, "open", f"it could be opened before, but not now: {words(error)}"
            ) from error

    def _check_version(self, must_exist: bool = False) -> None:
        """Refuse to mix pictures of two files with the same name.

        Raises:
            MediaOpenError: the path now belongs to another file.
        """
        if not must_exist and not Path(self.path).exists():
            return  # open readers still read the old file
        if check_file(self.path) != self.version:
            raise MediaOpenError(self.path, "open", "the file has changed since it was opened")

    def _ticks(self, t: float) -> int:
        """The latest presentation time, in ticks, of a picture on screen at `t`, with a tolerance of 1 microsecond."""
        return math.floor((Fraction(t) + self._zero + Fraction(1, 1_000_000)) / self._time_base)

    def _seconds(self, ticks: int) -> float:
        return float(ticks * self._time_base - self._zero)


def fit(width: int, height: int, max_pixels: int | None) -> tuple[int, int]:
    """The largest (width, height) of the same shape with at most `max_pixels` pixels, and never larger than it was."""
    if max_pixels is None or width * height <= max_pixels:
        return width, height
    scale = math.sqrt(max_pixels / (width * height))
    return max(1, math.floor(width * scale)), max(1, math.floor(height * scale))
