"""`Video`: one media file, opened once and read at any time. It does not depend on the loop.

Times are seconds from the moment a player's clock begins (see `MediaInfo.start_s`). The frame at `t` is the one that a
player shows then: the last one whose presentation time is not after `t`.

A healthy file is read in this process. A file that gives errors, or takes too long, is read by a worker process from
then on, so that a file that crashes or hangs a decoder only affects the worker (`isolation="auto"`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from apr_plugin.media.errors import MediaDecodeError, MediaTimeout, MediaTooLarge, WindowError
from apr_plugin.media.index import reading_through_s
from apr_plugin.media.info import OUTLASTS_S, MediaInfo
from apr_plugin.media.isolated import OPEN_TIMEOUT_S, IsolatedFile
from apr_plugin.media.local import LocalFile, Mode, Pictures, Size, Sound, fit
from apr_plugin.media.opening import MAX_PIXELS, PIXELS_HERE
from apr_plugin.media.reader import Effort
from apr_plugin.media.threads import start

Isolation = Literal["auto", "always", "never"]
Decoder = Literal["pyav", "decord"]
_T = TypeVar("_T")

TIMEOUT_S = 120.0
"""Longest time for one read."""

STALL_S = 3.0
"""A file in which nothing is decoded for this long is read by a worker process instead (`isolation="auto"`)."""

# A read is told to stop this long before its deadline, or a fifth of the time if that is less. A read that does not
# stop is stuck in libav.
_GRACE_S = 2.0


@dataclass(frozen=True)
class Frames:
    """Frames as they were shown."""

    images: NDArray[np.uint8]
    """Shape (n, height, width, 3), RGB."""

    times_s: tuple[float, ...]
    """Presentation time of each frame, in seconds of the video."""

    mode: str = "exact"
    """`exact`, `keyframe`, or `mixed` if only some of the times had a keyframe near enough."""

    missing_s: tuple[float, ...] = ()
    """Requested times at which the file is damaged. The next picture that can be decoded takes the place, with its own
    time, if there is one."""

    packets: int = 0
    """Packets decoded."""

    decode_s: float = 0.0
    """Seconds of decoding, summed over workers."""


@dataclass(frozen=True)
class Waveform:
    """Sound of a window."""

    samples: NDArray[np.float32]
    """Shape (samples,), mono, 16 kHz, in [-1, 1]; exactly the window's length."""

    start_s: float
    """Where it begins, in seconds of the video."""

    padded_s: float = 0.0
    """Seconds of it for which the file has no sound (filled with silence)."""

    packets: int = 0
    """Packets decoded."""

    decode_s: float = 0.0
    """Seconds of decoding."""


@dataclass(frozen=True)
class Clip:
    """A moving window with its sound."""

    frames: Frames
    fps: float
    """Frames per second at which it was sampled."""
    audio: Waveform | None
    """Sound of the same window, or `None` if the file has none."""


class Video:
    """One media file. It may be shared between threads.

    Raises:
        MediaOpenError: from `open`, if the file can't be used.
        MediaDecodeError, MediaTimeout, MediaWorkerKilled: from reads, if a part can't be decoded.
        WindowError: from reads, if a time is outside the video.
    """

    def __init__(self, path: str, workers: int, isolation: Isolation, decoder: Decoder) -> None:
        self.path = path
        self._workers = workers
        self._isolation = isolation
        self._decoder = decoder
        self._lock = threading.Lock()
        self._distrusted = False  # a read was stuck in this process; all later reads are done by a worker
        self._file: LocalFile | IsolatedFile
        self._file = self._open_here() or IsolatedFile(path, workers)
        self.info: MediaInfo = self._file.info

    @classmethod
    def open(
        cls, path: str | Path, *, workers: int | None = None, isolation: Isolation = "auto", decoder: Decoder = "pyav"
    ) -> Self:
        """Open a file without reading more than its headers and its first picture.

        Args:
            path: The file.
            workers: How many stretches are decoded at once; one per core by default.
            isolation: `auto` reads in a separate process once the file has caused a problem, `always` from the start,
                `never` not at all.
            decoder: `pyav`, or `decord` for parity with harnesses that use it (slower, and it fails on the files that
                `docs/media.md` lists).

        Raises:
            MediaOpenError: it is missing, empty, a folder, not a media file, or has neither picture nor sound.
        """
        return cls(str(path), workers or os.cpu_count() or 1, isolation, decoder)

    def _open_here(self) -> LocalFile | None:
        """The file, opened in this process; `None` if a worker has to open it."""
        if self._isolation == "always":
            return None
        try:
            return _guard(self._open_local, OPEN_TIMEOUT_S + reading_through_s(self.path), self.path, "open")
        except MediaTooLarge:
            if self._isolation == "never" or self._decoder != "pyav":
                raise
            return None

    def _open_local(self) -> LocalFile:
        if self._decoder == "decord":
            from apr_plugin.media.decord import DecordFile

            return DecordFile(self.path)
        return LocalFile(self.path, self._workers, MAX_PIXELS if self._isolation == "never" else PIXELS_HERE)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def duration_s(self) -> float:
        """Length in seconds: to the end of the pictures."""
        return self.info.duration_s

    @property
    def sound_s(self) -> float:
        """Seconds up to which sound may be read: the length, or to the end of the sound if that is longer."""
        return max(self.info.duration_s, self.info.sound_s or 0.0)

    @property
    def has_video(self) -> bool:
        """Whether there is a picture."""
        return self.info.has_video

    @property
    def has_audio(self) -> bool:
        """Whether there is sound."""
        return self.info.has_audio

    @property
    def fps(self) -> float | None:
        """Average frames per second, or `None` if there is no picture or the file does not give it."""
        return self.info.fps

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) as shown, after rotation; `None` if there is no picture."""
        return self.info.size

    @property
    def isolated(self) -> bool:
        """Whether a worker process does the reads now."""
        return self._distrusted or isinstance(self._file, IsolatedFile)

    def frames(
        self,
        times_s: Sequence[float],
        max_pixels: int | None = None,
        mode: Mode = "exact",
        *,
        size: Size | None = None,
        timeout_s: float = TIMEOUT_S,
        cancelled: threading.Event | None = None,
    ) -> Frames:
        """The frames that are shown at the given times, in the given order.

        Args:
            times_s: Seconds of the video, each in [0, duration].
            max_pixels: Frames with more pixels are scaled down to fit, with their shape kept.
            mode: `keyframe` shows the nearest keyframe inside half the spacing if the times are further apart than
                keyframes.
            size: (width, height) in pixels to which every frame is scaled, larger or smaller; it replaces `max_pixels`.
            timeout_s: Longest time for this read.
            cancelled: Set it from another thread to stop the read.

        Raises:
            MediaDecodeError: nothing can be decoded at any of the times.
            MediaTimeout: it took longer than `timeout_s`, or was cancelled.
        """
        if not self.has_video:
            raise WindowError(f"{self.path} has no picture")
        if not times_s:
            raise WindowError("no times were asked for")
        if mode not in ("exact", "keyframe"):
            raise WindowError(f"there is no mode {mode!r}; the modes are exact and keyframe")
        for t in times_s:
            self._check(t)
        shape = size or fit(*(self.size or (1, 1)), max_pixels)
        if min(shape) < 1 or shape[0] * shape[1] > MAX_PIXELS:
            raise WindowError(f"frames can't be scaled to {shape[0]}x{shape[1]} pixels")
        until = time.monotonic() + timeout_s

        def read(file: LocalFile | IsolatedFile) -> Pictures:
            return file.frames(times_s, shape, mode, _own_deadline(file, until), cancelled)

        found = self._read(read, lambda pictures: bool(pictures.missing_s), until, "decode frames", cancelled)
        mode_used = "exact" if not found.keyframes else "keyframe" if found.keyframes == len(set(times_s)) else "mixed"
        return Frames(
            found.images, found.times_s, mode_used, found.missing_s, found.effort.packets, found.effort.decode_s
        )

    def audio(
        self, start_s: float, end_s: float, *, timeout_s: float = TIMEOUT_S, cancelled: threading.Event | None = None
    ) -> Waveform:
        """The sound from `start_s` to `end_s`, exactly that long.

        Where the track has nothing it is padded with silence, and `Waveform.padded_s` says how much.
        """
        if not self.has_audio:
            raise WindowError(f"{self.path} has no audio track")
        self._check(start_s, self.sound_s)
        self._check(end_s, self.sound_s)
        if not end_s > start_s:
            raise WindowError(f"the window {start_s}s-{end_s}s is empty or reversed")
        until = time.monotonic() + timeout_s

        def read(file: LocalFile | IsolatedFile) -> Sound:
            return file.audio(start_s, end_s, _own_deadline(file, until), cancelled)

        found = self._read(read, lambda sound: False, until, "decode audio", cancelled)
        return Waveform(found.samples, start_s, found.padded_s, found.effort.packets, found.effort.decode_s)

    def clip(
        self,
        start_s: float,
        end_s: float,
        fps: float,
        max_pixels: int | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        cancelled: threading.Event | None = None,
    ) -> Clip:
        """Frames at `fps` over the window, with the sound of the same window if there is any."""
        if not end_s > start_s:
            raise WindowError(f"the window {start_s}s-{end_s}s is empty or reversed")
        if not fps > 0:
            raise WindowError(f"a clip needs a positive frame rate, not {fps}")
        count = max(1, round((end_s - start_s) * fps))
        times = [start_s + i / fps for i in range(count) if start_s + i / fps < end_s]
        until = time.monotonic() + timeout_s
        frames = self.frames(times, max_pixels, timeout_s=timeout_s, cancelled=cancelled)
        left = until - time.monotonic()
        return Clip(
            frames, fps, self.audio(start_s, end_s, timeout_s=left, cancelled=cancelled) if self.has_audio else None
        )

    def _check(self, t: float, until_s: float | None = None) -> None:
        if not 0 <= t <= (self.duration_s if until_s is None else until_s):
            lasts = f"which lasts {self.duration_s:.3f}s"
            if self.info.sound_s is not None and self.info.sound_s > self.duration_s + OUTLASTS_S:
                lasts = f"whose pictures end at {self.duration_s:.3f}s and whose sound ends at {self.info.sound_s:.3f}s"
            raise WindowError(f"{t:g}s is outside {self.path}, {lasts}")

    def _read(
        self,
        read: Callable[[LocalFile | IsolatedFile], _T],
        odd: Callable[[_T], bool],
        until: float,
        stage: str,
        cancelled: threading.Event | None,
    ) -> _T:
        """Carry out a read.

        With `auto`, a file that causes a problem is passed to a worker process, which tries once more.
        """
        file = self._file
        if isinstance(file, IsolatedFile) or self._distrusted:
            return self._isolated_read(read, until, stage, cancelled)
        try:
            progress = file.progress if self._isolation == "auto" else None
            found = _guard(lambda: read(file), until - time.monotonic(), self.path, stage, progress)
            if self._isolation == "never" or not odd(found):
                return found
        except TimeoutError:
            if cancelled is not None and cancelled.is_set():
                raise MediaTimeout(self.path, stage, "the read was cancelled") from None
            raise MediaTimeout(self.path, stage, "it took too long") from None
        except MediaTimeout:  # it is stuck in libav; that thread is abandoned
            self._distrusted = self._isolation == "auto"
            if self._isolation == "never" or time.monotonic() >= until:
                raise
        except MediaDecodeError:
            if self._isolation == "never":
                raise
        return self._isolated_read(read, until, stage, cancelled)

    def _isolate(self, until: float) -> IsolatedFile:
        with self._lock:
            if not isinstance(self._file, IsolatedFile):
                local, self._file = self._file, IsolatedFile(self.path, self._workers, until)
                local.close()
            return self._file

    def _isolated_read(
        self, read: Callable[[IsolatedFile], _T], until: float, stage: str, cancelled: threading.Event | None
    ) -> _T:
        try:
            return read(self._isolate(until))
        except TimeoutError:
            why = "the read was cancelled" if cancelled is not None and cancelled.is_set() else "it took too long"
            raise MediaTimeout(self.path, stage, why) from None


def _own_deadline(file: LocalFile | IsolatedFile, until: float) -> float:
    """When a read has to stop by itself.

    For a worker the deadline is passed on unchanged, because the worker itself is told to stop earlier.
    """
    return until if isinstance(file, IsolatedFile) else until - min(_GRACE_S, max(0.0, until - time.monotonic()) / 5)


def _guard(work: Callable[[], _T], timeout_s: float, path: str, stage: str, progress: Effort | None = None) -> _T:
    """Run in a thread that can be abandoned, so that a decoder that is stuck in libav does not block the caller.

    Raises:
        MediaTimeout: it is not done after `timeout_s`, or `progress` did not change for `STALL_S`.
    """
    future = start(work)
    now = time.monotonic()
    until, stalled, packets = now + timeout_s, now + STALL_S, 0
    while True:
        left = (until if progress is None else min(until, stalled)) - now
        try:
            return future.result(timeout=max(0.0, min(left, STALL_S / 4)))
        except FutureTimeout:
            if future.done():
                return future.result()
        now = time.monotonic()
        if progress is not None and progress.packets != packets:
            packets, stalled = progress.packets, now + STALL_S
        if now >= (until if progress is None else min(until, stalled)):
            raise MediaTimeout(
                path, stage, f"stuck for {min(timeout_s, STALL_S) if progress is not None else timeout_s:.0f} s"
            )
