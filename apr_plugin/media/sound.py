"""Sound of a window: seek, decode, resample to mono 16 kHz, put every sample at the place of its time stamp."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction

import av
import numpy as np
from av.audio.stream import AudioStream
from av.codec.context import Flags2
from av.container import InputContainer
from av.packet import Packet
from numpy.typing import NDArray

from apr_plugin.media.errors import MediaDecodeError, words
from apr_plugin.media.index import Track
from apr_plugin.media.indexed import sound_packets
from apr_plugin.media.mixing import MonoResampler
from apr_plugin.media.pick import Effort
from apr_plugin.media.reader import demux

SAMPLE_RATE = 16_000
"""Every waveform is mono at this rate."""

# Seconds that are decoded and dropped before a window, so that codecs with overlap (AAC, Opus, MP3) and the resampler
# have settled.
_PREROLL_S = 0.25
_SEEK_WRONG = {("ogg", "flac")}  # libav's time stamps are wrong after a seek; these are read from the beginning
# PyAV 19: samples that an edit cuts off at the beginning are cut off after each seek too.
_SKIPS_AGAIN = av.library_versions["libavformat"] >= (63,)
_GAP_S = 0.02  # a time stamp further off than this is a gap in the track, not rounding


def read_sound(
    path: str,
    container: InputContainer,
    stream: AudioStream,
    zero: Fraction,
    start_s: float,
    end_s: float,
    deadline: float,
    cancelled: threading.Event | None,
    progress: Effort,
    track: Track | None = None,
) -> tuple[NDArray[np.float32], float, int]:
    """The sound of a window.

    Returns:
        Samples, shape (round((end_s - start_s) * 16000),); the seconds of them for which the file has no sound; the
        number of decoded packets.

    Raises:
        MediaDecodeError: the track can't be read there at all.
        TimeoutError: the deadline passed, or the read was cancelled.
    """
    assert stream.time_base is not None
    length = round((end_s - start_s) * SAMPLE_RATE)
    out = _Track(length)
    packets = 0
    fault: BaseException | None = None
    # The first packet of a codec is before 0.
    aim = max(start_s - _PREROLL_S, -float(zero)) if float(zero) > 0 else start_s - _PREROLL_S
    try:
        ticks = math.floor((Fraction(aim) + zero) / stream.time_base)
        if track is not None:  # its times are known because the file was read through
            following: Iterator[Packet] = sound_packets(container, stream, track, ticks)
        else:
            seekable = (container.format.name, stream.codec_context.name) not in _SEEK_WRONG
            _seek(container, stream, ticks if seekable else stream.start_time or 0)
            following = demux(container, stream)
        if _SKIPS_AGAIN:  # every sample has its time, so nothing has to be cut off
            stream.codec_context.flags2 |= Flags2.skip_manual
        for packet in following:
            if time.monotonic() > deadline or (cancelled is not None and cancelled.is_set()):
                raise TimeoutError
            packets += 1
            progress.packets += 1
            try:
                frames = stream.codec_context.decode(packet if packet.size else None)
            except av.FFmpegError as error:  # a damaged packet leaves a gap; what follows is read
                fault = error
                continue
            past_end = False
            for frame in frames:
                if frame.pts is None or frame.time_base is None:
                    continue
                at_s = float(frame.pts * frame.time_base - zero)
                past_end = at_s >= end_s
                if past_end:
                    break
                out.add(frame, at_s - start_s)
            if past_end or not packet.size:
                break
        out.flush()
    except TimeoutError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        fault = error
    finally:
        stream.codec_context.flush_buffers()
    padded = float(length - np.count_nonzero(out.filled)) / SAMPLE_RATE
    if fault is not None and not out.filled.any():
        raise MediaDecodeError(path, f"decode audio {start_s:.3f}s-{end_s:.3f}s", words(fault)) from fault
    return np.clip(out.samples, -1.0, 1.0), padded, packets


def _seek(container: InputContainer, stream: AudioStream, aim: int) -> None:
    try:
        container.seek(aim, stream=stream, backward=True)
    except av.FFmpegError:  # some formats refuse a time before the first packet
        if aim > (stream.start_time or 0):
            raise
        container.seek(stream.start_time or 0, stream=stream, backward=True)


class _Track:
    """A window into which decoded frames are written."""

    def __init__(self, length: int) -> None:
        self.samples = np.zeros(length, np.float32)
        self.filled = np.zeros(length, np.bool_)
        self._resampler: MonoResampler | None = None
        self._shape: tuple[object, ...] = ()
        self._position = 0.0  # where the next resampled sample belongs, in samples of the window
        self._expected = 0.0

    def add(self, frame: av.AudioFrame, at_s: float) -> None:
        shape = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._resampler is None or abs(at_s - self._expected) > _GAP_S or shape != self._shape:
            self.flush()
            self._resampler = MonoResampler(SAMPLE_RATE)
            self._shape = shape
            self._position = at_s * SAMPLE_RATE
            self._expected = at_s
        self._expected += frame.samples / frame.sample_rate
        self._place(self._resampler.resample(frame))

    def flush(self) -> None:
        if self._resampler is not None:
            self._place(self._resampler.resample(None))
            self._resampler = None

    def _place(self, frames: Sequence[av.AudioFrame | None]) -> None:
        for frame in frames:
            if frame is None:
                continue
            samples = frame.to_ndarray().reshape(-1)
            at = round(self._position)
            low, high = max(at, 0), min(at + len(samples), len(self.samples))
            if low < high:
                self.samples[low:high] = samples[low - at : high - at]
                self.filled[low:high] = True
            self._position += len(samples)
