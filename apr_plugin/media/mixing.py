"""Mixes many channels into one.

libav mixes the layouts whose loudspeakers it knows. It refuses to mix any other layout; those are mixed here.
"""

from __future__ import annotations

from collections.abc import Sequence

import av
import numpy as np


class MonoResampler:
    """Like `av.AudioResampler` to mono 32-bit float, for any layout of channels.

    Of ambisonic sound it takes channel 0 (W), which is the mono signal by definition. Of an unknown layout it takes the
    average of all channels.
    """

    def __init__(self, rate: int) -> None:
        self._mono = av.AudioResampler(format="flt", layout="mono", rate=rate)
        self._packed: av.AudioResampler | None = None
        self._rate = rate
        self._mixes = False

    def resample(self, frame: av.AudioFrame | None) -> Sequence[av.AudioFrame | None]:
        """Add a frame, or `None` at the end; the result is mono."""
        if self._packed is None:
            try:
                mixed: Sequence[av.AudioFrame | None] = self._mono.resample(frame)
            except (av.FFmpegError, ValueError):
                if self._mixes or frame is None:
                    raise
                self._mono = av.AudioResampler(format="flt", layout="mono", rate=self._rate)
                self._packed = av.AudioResampler(format="flt", layout=frame.layout, rate=frame.sample_rate)
            else:
                self._mixes = True
                return mixed
        parts = self._packed.resample(frame)
        out = [whole for part in parts if part is not None for whole in self._mono.resample(_one_channel(part))]
        return out if frame is not None else [*out, *self._mono.resample(None)]


def _one_channel(frame: av.AudioFrame) -> av.AudioFrame:
    """A packed frame of many channels, as a frame with one channel."""
    channels = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
    samples = channels[:, 0] if frame.layout.name.startswith("ambisonic") else channels.mean(axis=1)
    single = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples, np.float32)[None], format="flt", layout="mono")
    single.sample_rate = frame.sample_rate
    single.pts = frame.pts
    if frame.time_base is not None:
        single.time_base = frame.time_base
    return single
