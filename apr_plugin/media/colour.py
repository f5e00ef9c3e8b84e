"""Converts a decoded frame to RGB with the matrix and range that the frame names, as ffmpeg's `scale` filter does.

A frame that names no matrix is treated as BT.601, whatever its size, which is ffmpeg's rule too. The transfer function
is not applied: HDR (PQ, HLG) is not tone mapped, and neither primaries nor gamma are converted.

What PyAV does by default depends on its release: up to 16 it ignores the matrix of a frame unless source and
destination differ; 17 passes on the frame's own values. Here both are always given for YUV. RGB and gray are taken as
they are, whatever matrix or range a frame names, as ffmpeg does since 8.0; up to PyAV 16, source and destination must
be equal for that.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

import numpy as np
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, VideoReformatter
from numpy.typing import NDArray

BT709, FCC, BT601, SMPTE240M, BT2020 = 1, 4, 5, 7, 9
"""Matrices by libswscale's numbers."""

_MATRIX = {1: BT709, 4: FCC, 5: BT601, 6: BT601, 7: SMPTE240M, 9: BT2020, 10: BT2020}
"""libav's `AVColorSpace` to libswscale's number; every other value is BT.601, as in ffmpeg."""
_BT2020_CL = 10

# Pictures are spread over threads already.
_ONE_THREAD: dict[str, Any] = {"threads": 1} if "threads" in (VideoReformatter.reformat.__doc__ or "") else {}


def matrix_of(frame: VideoFrame) -> int:
    """The matrix that converts this frame to RGB, by libswscale's number."""
    return _MATRIX.get(int(frame.colorspace), BT601)


def full_range(frame: VideoFrame) -> bool:
    """Whether black is 0 and white is 255 in a YUV frame (`pc`, JPEG), not 16 and 235 (`tv`, MPEG)."""
    if frame.format.name.startswith("yuvj"):
        return True
    return int(frame.color_range) == int(ColorRange.JPEG)


def is_yuv(pixel_format: VideoFormat) -> bool:
    """Whether a pixel is one luma and two chroma values, whatever their depth and packing."""
    return len(pixel_format.components) > 2 and not (
        pixel_format.is_rgb or pixel_format.has_palette or pixel_format.name.startswith("xyz")
    )


class Converter:
    """Makes RGB pictures of one size from frames.

    It may be shared between threads. Each thread has its own scaler, which is kept from picture to picture.

    Args:
        width: Width of the result, in pixels.
        height: Height of the result, in pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self._own = threading.local()

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """The picture, shape (height, width, 3)."""
        matrix, full, other = matrix_of(frame), full_range(frame), BT601
        if not is_yuv(frame.format):
            _check(frame.format.name)
            matrix, full = BT601, True
        elif matrix == BT601:
            other = BT709  # RGB has no matrix; up to PyAV 16 two equal matrices would be ignored
        kind = (matrix, full, frame.format.name)
        if getattr(self._own, "kind", None) != kind:  # up to PyAV 16 a scaler keeps the first matrix that it was given
            self._own.kind = kind
            self._own.scaler = VideoReformatter()
        # libswscale has no constant luminance; PyAV 17 would pass it on nevertheless.
        if int(frame.colorspace) == _BT2020_CL:
            frame.colorspace = BT2020
        shown = self._own.scaler.reformat(
            frame,
            width=self._width,
            height=self._height,
            format="rgb24",
            src_colorspace=matrix,
            dst_colorspace=other,
            src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG,
            **_ONE_THREAD,
        )
        return np.asarray(shown.to_ndarray(), np.uint8)


@functools.lru_cache(maxsize=256)
def _check(pixel_format: str) -> None:
    """Try a small frame of this pixel format, because PyAV up to 16 crashes on one that libswscale can't read.

    It crashes where source and destination are equal.

    Raises:
        av.FFmpegError: libswscale can't read the format.
    """
    VideoReformatter().reformat(
        VideoFrame(16, 16, pixel_format), format="rgb24", src_colorspace=BT709, dst_colorspace=BT601
    )
