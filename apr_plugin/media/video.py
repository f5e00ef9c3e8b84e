"""`Video`: one media file, opened once and read at any time. Knows nothing of agents.

Times are seconds from the first moment of the video stream (of the audio stream where there is no picture), whatever time stamp the file
begins with. The frame at `t` is the one a player shows then: the last whose presentation time is not after `t`.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from apr_plugin.media.errors import MediaDecodeError, MediaOpenError, WindowError

SAMPLE_RATE = 16_000
"""Every waveform is mono at this rate."""

_SEEK_GAP_S = 1.0  # decoding on beats seeking when the next time is this close
_AUDIO_PREROLL_S = 0.25  # decoded and dropped before a window, so that codecs with overlap (AAC, Opus) have settled
_BEFORE_START_S = -1.0  # where a rewind seeks to: at 0 itself MPEG-TS leads to the second keyframe
_LATE_FRAME_S = 1.0  # a stream may end this much before the duration it claims


@dataclass(frozen=True)
class Frames:
    """Frames as they were shown."""

    images: NDArray[np.uint8]
    """Shape (n, height, width, 3), RGB."""

    times_s: tuple[float, ...]
    """Presentation time of each frame, in seconds of the video; at most one frame before the time asked for."""


@dataclass(frozen=True)
class Waveform:
    """Sound of a window."""

    samples: NDArray[np.float32]
    """Shape (samples,), mono, 16 kHz, in [-1, 1]; exactly the window's length."""

    start_s: float
    """Where it begins, in seconds of the video."""

    padded_s: float = 0.0
    """How much of it the file has no sound for (filled with silence), in seconds."""


@dataclass(frozen=True)
class Clip:
    """A moving window with its sound."""

    frames: Frames
    fps: float
    """Frames per second it was sampled at."""
    audio: Waveform | None
    """Sound of the same window, or `None` where the file has none."""


def fit(width: int, height: int, max_pixels: int | None) -> tuple[int, int]:
    """The largest (width, height) of the same shape with at most `max_pixels` pixels; never larger than the original."""
    if max_pixels is None or width * height <= max_pixels:
        return width, height
    scale = math.sqrt(max_pixels / (width * height))
    return max(1, math.floor(width * scale)), max(1, math.floor(height * scale))


class Video:
    """One media file. Reads are serialised by a lock, so an instance may be shared between threads.

    Raises:
        MediaOpenError: from `open`, when the file can't be used.
        MediaDecodeError: from reads, when a part can't be decoded.
        WindowError: from reads, when a time lies outside the video.
    """

    def __init__(self, path: str | Path, container: InputContainer) -> None:
        self.path = str(path)
        self._container = container
        self._lock = threading.Lock()
        videos = [s for s in container.streams.video if not (s.disposition & av.stream.Disposition.attached_pic)]
        best = container.streams.best("video")
        self._video: VideoStream | None = (best if best in videos else videos[0]) if videos else None
        self._audio: AudioStream | None = container.streams.best("audio")  # type: ignore[assignment]
        for stream in (self._video, self._audio):
            if stream is not None and stream.codec_context is None:
                raise MediaOpenError(path, "open", f"no decoder for its {stream.type} stream {stream.index}")
            if stream is not None:
                stream.codec_context.thread_type = "NONE"  # frame threads cost more than they gain on random access
        timed = self._video or self._audio
        assert timed is not None and timed.time_base is not None
        self._zero = Fraction(timed.start_time or 0) * timed.time_base
        self.duration_s = self._read_duration()

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a file without reading more than its headers.

        Raises:
            MediaOpenError: missing, empty, a folder, no media, or neither picture nor sound in it.
        """
        file = Path(path)
        try:
            if not file.exists():
                raise MediaOpenError(path, "open", "no such file")
            if file.is_dir():
                raise MediaOpenError(path, "open", "it is a folder, not a file")
            if not file.is_file():
                raise MediaOpenError(path, "open", "it is a device or a pipe, not a file")
            if file.stat().st_size == 0:
                raise MediaOpenError(path, "open", "the file is empty")
        except OSError as error:
            raise MediaOpenError(path, "open", error.strerror or str(error)) from error
        try:
            container = av.open(str(file), mode="r", metadata_errors="replace")
        except (av.FFmpegError, OSError, ValueError) as error:
            raise MediaOpenError(path, "open", _words(error)) from error
        if container.format.name == "tty":  # libav would render a text file as a film
            container.close()
            raise MediaOpenError(path, "open", "it is a text file")
        if not container.streams.video and not container.streams.audio:
            container.close()
            raise MediaOpenError(path, "open", "it holds neither picture nor sound")
        try:
            return cls(path, container)
        except BaseException:
            container.close()
            raise

    def close(self) -> None:
        """Give the file back; harmless when done twice."""
        with self._lock:
            self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def has_video(self) -> bool:
        """Whether there is a picture."""
        return self._video is not None

    @property
    def has_audio(self) -> bool:
        """Whether there is sound."""
        return self._audio is not None

    @property
    def fps(self) -> float | None:
        """Average frames per second, or `None` where there is no picture or the file does not say."""
        rate = self._video.average_rate or self._video.guessed_rate if self._video is not None else None
        return float(rate) if rate else None

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) as coded, or `None` where there is no picture."""
        return (self._video.codec_context.width, self._video.codec_context.height) if self._video is not None else None

    def frames(self, times_s: Sequence[float], max_pixels: int | None = None) -> Frames:
        """The frames shown at the given times, in the order given.

        Args:
            times_s: Seconds of the video, each in [0, duration].
            max_pixels: Frames with more pixels are scaled down to fit, keeping their shape.
        """
        if self._video is None:
            raise WindowError(f"{self.path} has no picture")
        if not times_s:
            raise WindowError("no times were asked for")
        for t in times_s:
            self._check(t)
        wanted = sorted(set(times_s))
        with self._lock:
            found = self._decode_frames(wanted, max_pixels)
        images = np.stack([found[t][0] for t in times_s])
        return Frames(images, tuple(found[t][1] for t in times_s))

    def audio(self, start_s: float, end_s: float) -> Waveform:
        """The sound from `start_s` to `end_s`, exactly that long; where the track has nothing it is padded with silence, and says so."""
        if self._audio is None:
            raise WindowError(f"{self.path} has no audio track")
        self._check(start_s)
        self._check(end_s)
        if end_s <= start_s:
            raise WindowError(f"the window {start_s}s-{end_s}s is empty or reversed")
        with self._lock:
            return self._decode_audio(start_s, end_s)

    def clip(self, start_s: float, end_s: float, fps: float, max_pixels: int | None = None) -> Clip:
        """Frames at `fps` over the window, with the sound of the same window where there is any."""
        self._check(start_s)
        self._check(end_s)
        if end_s <= start_s:
            raise WindowError(f"the window {start_s}s-{end_s}s is empty or reversed")
        count = max(1, round((end_s - start_s) * fps))
        times = [start_s + i / fps for i in range(count) if start_s + i / fps < end_s]
        return Clip(self.frames(times, max_pixels), fps, self.audio(start_s, end_s) if self.has_audio else None)

    def _check(self, t: float) -> None:
        if not 0 <= t <= self.duration_s:
            raise WindowError(f"{t:g}s lies outside {self.path}, which lasts {self.duration_s:.3f}s")

    def _read_duration(self) -> float:
        stream = self._video or self._audio
        assert stream is not None and stream.time_base is not None
        if stream.duration:
            seconds = float(stream.duration * stream.time_base)
        elif tag := re.fullmatch(
            r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", "")
        ):  # Matroska; the container's also counts sound
            seconds = float(int(tag[1]) * 3600 + int(tag[2]) * 60 + Fraction(tag[3]) - self._zero)
        elif self._container.duration:
            origin = Fraction(self._container.start_time or 0, 1_000_000)
            seconds = float(Fraction(self._container.duration, 1_000_000) + origin - self._zero)
        else:
            seconds = self._measure_duration(stream)
        if seconds <= 0:
            raise MediaOpenError(self.path, "open", "the file has no length")
        return seconds

    def _measure_duration(self, stream: VideoStream | AudioStream) -> float:
        """Read every packet's time stamp, for files whose headers give no duration."""
        end = Fraction(0)
        try:
            for packet in self._container.demux(stream):
                if packet.pts is not None and packet.time_base is not None:
                    end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base - self._zero)
            self._container.seek(0)
        except av.FFmpegError as error:
            raise MediaOpenError(self.path, "open", f"no duration in the header, and reading it through failed: {_words(error)}") from error
        return float(end)

    def _seconds(self, pts: int, time_base: Fraction) -> float:
        return float(pts * time_base - self._zero)

    def _seek(self, stream: VideoStream | AudioStream, t: float) -> None:
        assert stream.time_base is not None
        try:
            self._container.seek(math.floor((Fraction(t) + self._zero) / stream.time_base), stream=stream, backward=True)
        except av.FFmpegError as error:
            if t < 0:  # some containers (AVI) refuse a time before their first
                return self._seek(stream, 0.0)
            raise MediaDecodeError(self.path, f"seek to {t:.3f}s", _words(error)) from error

    def _decode_frames(self, wanted: Sequence[float], max_pixels: int | None) -> dict[float, tuple[NDArray[np.uint8], float]]:
        found: dict[float, tuple[NDArray[np.uint8], float]] = {}
        run: list[float] = []
        for t in [*wanted, math.inf]:  # one run of decoding serves times that lie close together
            if run and t - run[-1] > _SEEK_GAP_S:
                self._decode_run(run, max_pixels, found)
                run = []
            run.append(t)
        return found

    def _decode_run(self, times: list[float], max_pixels: int | None, found: dict[float, tuple[NDArray[np.uint8], float]]) -> None:
        assert self._video is not None
        waiting = iter(times)
        t: float | None = next(waiting)
        assert t is not None
        shown: VideoFrame | None = None
        shown_at = -math.inf
        rendered: NDArray[np.uint8] | None = None
        for frame in self._frames_from(t + 1e-6):
            at = self._seconds(frame.pts or 0, frame.time_base or Fraction(1))
            while t is not None and shown is not None and at > t + 1e-6:
                rendered = rendered if rendered is not None else self._render(shown, max_pixels)
                found[t] = (rendered, max(0.0, shown_at))
                t = next(waiting, None)
            if t is None:
                return
            if shown is not None and at <= shown_at:
                continue
            shown, shown_at, rendered = frame, at, None
        if shown is None:
            raise MediaDecodeError(self.path, f"decode the frame at {t:.3f}s", "no picture could be decoded there")
        assert t is not None
        last_wanted = times[-1]
        shown_until = shown_at + float((getattr(shown, "duration", 0) or 0) * (shown.time_base or 0))  # a picture may stand for long
        if last_wanted - shown_until > max(_LATE_FRAME_S, 2 / (self.fps or 1)):
            raise MediaDecodeError(
                self.path,
                f"decode the frame at {last_wanted:.3f}s",
                f"the pictures end at {shown_at:.3f}s although the file says {self.duration_s:.3f}s",
            )
        image = rendered if rendered is not None else self._render(shown, max_pixels)
        for rest in [t, *waiting]:
            found[rest] = (image, max(0.0, shown_at))

    def _frames_from(self, t: float) -> Iterator[VideoFrame]:
        """Decoded frames, beginning with one not after `t` where there is one: an index that leads too late (MPEG-TS, open GOPs) is not believed."""
        assert self._video is not None
        for back_s in (0.0, 2.0, 20.0, math.inf):
            self._seek(self._video, max(_BEFORE_START_S, t - back_s))
            frames = self._decoded_frames()
            first = next(frames, None)
            if t - back_s <= _BEFORE_START_S or (first is not None and self._seconds(first.pts or 0, first.time_base or Fraction(1)) <= t):
                break
        return chain([first] if first is not None else [], frames)

    def _decoded_frames(self) -> Iterator[VideoFrame]:
        assert self._video is not None
        try:
            yield from (frame for frame in self._container.decode(self._video) if frame.pts is not None)
        except (av.FFmpegError, OSError) as error:
            raise MediaDecodeError(self.path, "decode frames", _words(error)) from error

    def _render(self, frame: VideoFrame, max_pixels: int | None) -> NDArray[np.uint8]:
        width, height = fit(frame.width, frame.height, max_pixels)
        image: NDArray[np.uint8] = np.asarray(frame.reformat(width=width, height=height, format="rgb24").to_ndarray(), np.uint8)
        turns = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image

    def _decode_audio(self, start_s: float, end_s: float) -> Waveform:
        assert self._audio is not None and self._audio.time_base is not None
        length = round((end_s - start_s) * SAMPLE_RATE)
        out = np.zeros(length, np.float32)
        filled = np.zeros(length, np.bool_)
        resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        position: float | None = None  # where the next resampled sample belongs, in samples of the window
        expected: float | None = None

        def place(frames: Sequence[av.AudioFrame | None]) -> None:
            nonlocal position
            for frame in frames:
                if frame is None or position is None:
                    continue
                samples = frame.to_ndarray().reshape(-1)
                at = round(position)
                low, high = max(at, 0), min(at + len(samples), length)
                if low < high:
                    out[low:high] = samples[low - at : high - at]
                    filled[low:high] = True
                position += len(samples)

        self._seek(self._audio, max(0.0, start_s - _AUDIO_PREROLL_S))
        try:
            for frame in self._container.decode(self._audio):
                if frame.pts is None or frame.time_base is None:
                    continue
                at_s = self._seconds(frame.pts, frame.time_base)
                if at_s >= end_s:
                    break
                if expected is None or abs(at_s - expected) > 0.02:  # the first frame, or a gap in the track
                    place(resampler.resample(None)) if expected is not None else None
                    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
                    position = (at_s - start_s) * SAMPLE_RATE
                    expected = at_s
                expected += frame.samples / frame.sample_rate
                place(resampler.resample(frame))
            place(resampler.resample(None))
        except (av.FFmpegError, OSError, ValueError) as error:  # ValueError: the track changes its rate or layout
            raise MediaDecodeError(self.path, f"decode audio {start_s:.3f}s-{end_s:.3f}s", _words(error)) from error
        return Waveform(np.clip(out, -1.0, 1.0), start_s, float(length - np.count_nonzero(filled)) / SAMPLE_RATE)


def _words(error: BaseException) -> str:
    if isinstance(error, av.FFmpegError):
        return str(error.strerror or error)
    return str(error) or type(error).__name__
