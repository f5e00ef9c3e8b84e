"""Media as files below a folder, named by what is in them: equal media is one file.

| medium | file | what is kept |
|---|---|---|
| picture | PNG | every pixel |
| sound | WAV, 32-bit floating point, mono | every sample |
| clip | AVI with FFV1 (lossless) and its sound as 32-bit floating point | every pixel, every sample, the rate |

AVI keeps the rate of a clip as a fraction; Matroska keeps times in milliseconds, so that readers would compute another
rate. FFV1 in `bgr0` is read without loss by PyAV, decord 0.6.0 and torchcodec 0.17.0 with FFmpeg 5.1.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from apr_plugin.media import SAMPLE_RATE
from apr_plugin.models.families import MIN_SOUND

_SHORT = 10_000
"""Largest denominator of a clip's rate."""


class MediaFolder:
    """Writes media.

    Args:
        root: The folder; paths that are returned are relative to it, with slashes.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.written = 0
        """Files that were not there before."""

    def picture(self, image: NDArray[np.uint8]) -> str:
        """Write a picture, shape (height, width, 3), and return its path.

        Raises:
            OSError: it can't be written.
        """
        return self._placed("images", "png", [image], "", lambda: _png(image))

    def sound(self, waveform: NDArray[np.float32]) -> str:
        """Write a sound, shape (samples,), at `SAMPLE_RATE`, and return its path.

        Raises:
            OSError: it can't be written.
        """
        whole = long_enough(waveform)
        return self._placed("audios", "wav", [whole], "", lambda: _wav(whole))

    def clip(self, frames: NDArray[np.uint8], fps: float, waveform: NDArray[np.float32] | None) -> str:
        """Write a clip with its sound, and return its path.

        Args:
            frames: Shape (n, height, width, 3), RGB.
            fps: Frames per second.
            waveform: Shape (samples,), at `SAMPLE_RATE`, or `None`.

        Raises:
            OSError: it can't be written.
        """
        sound = None if waveform is None else long_enough(waveform)
        arrays: list[NDArray[Any]] = [frames, *([] if sound is None else [sound])]
        return self._placed("videos", "avi", arrays, f"{fps!r}", lambda: _avi(frames, fps, sound))

    def _placed(self, kind: str, suffix: str, arrays: list[NDArray[Any]], about: str, made: Callable[[], bytes]) -> str:
        digest = hashlib.blake2b(f"{about} {[array.shape for array in arrays]}".encode(), digest_size=16)
        for array in arrays:
            digest.update(np.ascontiguousarray(array).data)
        name = digest.hexdigest()
        file = self.root / kind / name[:2] / f"{name}.{suffix}"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            part.write_bytes(made())
            part.replace(file)
            self.written += 1
        return file.relative_to(self.root).as_posix()


def long_enough(waveform: NDArray[np.float32], least: int = MIN_SOUND) -> NDArray[np.float32]:
    """A sound, padded with silence to so many samples as the student reads it (`Family.least_sound`)."""
    return np.pad(waveform.astype(np.float32), (0, max(0, least - len(waveform))))


def rate_of(fps: float) -> Fraction:
    """The rate of a clip's file."""
    return Fraction(fps).limit_denominator(_SHORT)


def _png(image: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, format="PNG")
    return out.getvalue()


def _wav(waveform: NDArray[np.float32]) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="wav") as file:
        stream = cast(Any, file.add_stream("pcm_f32le", rate=SAMPLE_RATE, layout="mono"))
        _mux_sound(file, stream, waveform)
    return out.getvalue()


def _avi(frames: NDArray[np.uint8], fps: float, waveform: NDArray[np.float32] | None) -> bytes:
    out, rate = io.BytesIO(), rate_of(fps)
    with av.open(out, "w", format="avi") as file:
        pictures = cast(Any, file.add_stream("ffv1", rate=rate))
        pictures.height, pictures.width = frames.shape[1:3]
        pictures.pix_fmt = "bgr0"
        sound = None
        if waveform is not None:
            sound = cast(Any, file.add_stream("pcm_f32le", rate=SAMPLE_RATE, layout="mono"))
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = number
            frame.time_base = 1 / rate
            file.mux(pictures.encode(frame))
        file.mux(pictures.encode(None))
        if sound is not None and waveform is not None:
            _mux_sound(file, sound, waveform)
    return out.getvalue()


def _mux_sound(file: Any, stream: Any, waveform: NDArray[np.float32]) -> None:
    frame = av.AudioFrame.from_ndarray(waveform[None], format="flt", layout="mono")
    frame.sample_rate = SAMPLE_RATE
    frame.pts = 0
    file.mux(stream.encode(frame))
    file.mux(stream.encode(None))
