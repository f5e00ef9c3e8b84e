"""Frames by decord, for parity with harnesses that sample with it; headers and sound are read as in `LocalFile`.

decord is unmaintained and slower for this use. It reads the whole file to open it, counts frames instead of trusting
time stamps, and reads some files wrong that libav reads right: `docs/media.md` lists them.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from apr_plugin.errors import require
from apr_plugin.media.errors import MediaDecodeError, MediaOpenError, words
from apr_plugin.media.local import LocalFile, Mode, Pictures, Size
from apr_plugin.media.opening import PIXELS_HERE, descriptor
from apr_plugin.media.reader import Effort

_SIZES = 2  # readers kept open, one for each size of frames: decord scales while it decodes


class DecordFile(LocalFile):
    """A file whose frames are decoded by decord.

    It has no keyframe mode: every frame is the exact one, as decord counts frames.

    Raises:
        MissingExtra: decord is not installed.
        MediaOpenError: the file can't be used.
    """

    def __init__(self, path: str) -> None:
        require("decord", "decord")
        super().__init__(path, workers=1, max_pixels=PIXELS_HERE)  # decord has no such limit
        if self.info.mirrored:
            raise MediaOpenError(
                path, "open", "its pictures have to be mirrored, which decord can't do; read it with decoder=pyav"
            )
        self._turn = threading.Lock()
        self._lead_s = self._first_picture_s() if self.info.has_video else 0.0
        self._by_size: OrderedDict[tuple[int, int], Any] = OrderedDict()

    def _first_picture_s(self) -> float:
        """Time of the first picture, in seconds of the video: 0 unless the sound begins earlier."""
        container = self._container()
        try:
            stream = container.streams[self.info.video_stream or 0]
            return float((stream.start_time or 0) * (stream.time_base or 0)) - self.info.start_s
        finally:
            container.close()

    def _open_with(self, decord: Any, size: tuple[int, int]) -> Any:
        """Open exactly the file that was checked.

        With the file's own name, decord could open another file, or read the name as an address.
        """
        with descriptor(self.path, self.version) as fd:
            return decord.VideoReader(f"/dev/fd/{fd}", ctx=decord.cpu(0), width=size[0], height=size[1], num_threads=1)

    def close(self) -> None:
        """Close the file."""
        with self._turn:
            self._by_size.clear()
        super().close()

    def frames(
        self, times_s: Sequence[float], size: Size, mode: Mode, deadline: float, cancelled: threading.Event | None
    ) -> Pictures:
        """See `LocalFile.frames`; the deadline is checked only before decoding."""
        import decord

        if time.monotonic() > deadline or (cancelled is not None and cancelled.is_set()):
            raise TimeoutError
        began = time.perf_counter()
        try:
            with self._turn:
                reader = self._by_size.get(size) or self._open_with(decord, size)
                self._by_size[size] = reader
                self._by_size.move_to_end(size)
                if len(self._by_size) > _SIZES:
                    self._by_size.popitem(last=False)
                starts = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(np.float64)
                starts += self._lead_s - starts[0]  # decord may count from the first picture or not
                # decord gives times as 32-bit floats: after two hours they are half a millisecond apart.
                slack = float(np.spacing(np.float32(starts[-1])))
                chosen = np.maximum(
                    np.searchsorted(starts, np.asarray(times_s) + max(1e-6, slack), side="right") - 1, 0
                )
                images = reader.get_batch(chosen.tolist()).asnumpy()
        except (decord.DECORDError, RuntimeError, IndexError, OSError) as error:
            raise MediaDecodeError(self.path, "decode frames with decord", words(error).splitlines()[0]) from error
        times = tuple(max(0.0, float(starts[i])) for i in chosen)
        return Pictures(images, times, (), 0, Effort(0, time.perf_counter() - began))
