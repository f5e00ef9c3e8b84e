"""Reading a file in a process of its own, which may die, hang or swell without harm to this one."""

from __future__ import annotations

import contextlib
import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from apr_plugin.media.errors import MediaDecodeError, MediaError, MediaOpenError, MediaTimeout, MediaWorkerKilled
from apr_plugin.media.info import MediaInfo
from apr_plugin.media.local import Mode, Pictures, Sound
from apr_plugin.media.reader import Effort

STALL_S = 8.0
"""A worker that decodes no packet for this long is killed."""

MEMORY_BYTES = 4 << 30
"""Address space of a worker."""

IDLE_WORKERS = 2
"""Workers kept for the next file."""

KILLS = 0
"""Workers that had to be killed or died, in this process; the fuzz report counts them."""

_ERRORS: dict[str, type[MediaError]] = {kind.__name__: kind for kind in (MediaOpenError, MediaDecodeError, MediaTimeout)}
_LARGEST_HEAD = 16 << 20
_LARGEST_BLOB = 4 << 30
_idle: list[_Worker] = []
_idle_lock = threading.Lock()


class _Died(Exception):
    """The worker ended in the middle of a message."""


class _Worker:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "apr_plugin.media.worker", str(MEMORY_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )

    def ask(self, request: dict[str, Any], until: float, cancelled: threading.Event | None) -> tuple[dict[str, Any], list[np.ndarray[Any, Any]]]:
        """Send a request and wait for its answer, patiently while the worker makes progress.

        Raises:
            TimeoutError: no sign of life, too late, or cancelled.
            _Died: the process ended.
        """
        assert self.process.stdin is not None
        body = json.dumps(request).encode()
        try:
            self.process.stdin.write(struct.pack(">I", len(body)) + body)
        except OSError as error:
            raise _Died from error
        while True:
            (length,) = struct.unpack(">I", self._read(4, until, cancelled))
            if length > _LARGEST_HEAD:
                raise _Died
            message = json.loads(bytes(self._read(length, until, cancelled)))
            if "beat" not in message:
                break
        blobs = []
        for dtype, shape in message["blobs"]:
            if dtype not in ("uint8", "float32") or np.prod(shape, dtype=object) > _LARGEST_BLOB:
                raise _Died
            blob = np.empty(shape, dtype)
            raw = self._read(blob.nbytes, until, cancelled)
            blob.reshape(-1).view(np.uint8)[:] = np.frombuffer(raw, np.uint8)
            blobs.append(blob)
        return message, blobs

    def _read(self, count: int, until: float, cancelled: threading.Event | None) -> bytearray:
        assert self.process.stdout is not None
        handle = self.process.stdout.fileno()
        data = bytearray(count)
        view, at, stalled = memoryview(data), 0, time.monotonic() + STALL_S
        while at < count:
            now = time.monotonic()
            if now >= min(until, stalled) or (cancelled is not None and cancelled.is_set()):
                raise TimeoutError
            if not select.select([handle], [], [], min(0.1, max(0.0, min(until, stalled) - now)))[0]:
                continue
            got = os.readv(handle, [view[at : at + (1 << 20)]])
            if got == 0:
                raise _Died
            at, stalled = at + got, time.monotonic() + STALL_S
        return data

    def kill(self) -> str:
        """End the process; returns how it ended, in words."""
        ended = self.process.poll()
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return f"with signal {-ended}" if ended is not None and ended < 0 else f"with status {ended}" if ended is not None else "when it was killed"


def _borrow() -> _Worker:
    with _idle_lock:
        while _idle:
            worker = _idle.pop()
            if worker.process.poll() is None:
                return worker
    return _Worker()


def _give_back(worker: _Worker) -> None:
    with _idle_lock:
        if len(_idle) < IDLE_WORKERS:
            _idle.append(worker)
            return
    worker.kill()


class IsolatedFile:
    """The same reads as `LocalFile`, each carried out by a worker process.

    Raises:
        MediaOpenError: the file can't be used.
        MediaWorkerKilled: the worker died or had to be killed; the next read gets a new one.
    """

    def __init__(self, path: str, workers: int, timeout_s: float) -> None:
        self.path, self.workers = path, workers
        reply, _ = self._ask({"do": "open"}, timeout_s, None)
        self.info = MediaInfo.from_json(reply["info"])

    def close(self) -> None:
        """Nothing is held between reads."""

    def frames(self, times_s: Sequence[float], max_pixels: int | None, mode: Mode, deadline: float, cancelled: threading.Event | None) -> Pictures:
        """See `LocalFile.frames`."""
        request = {"do": "frames", "times_s": list(times_s), "max_pixels": max_pixels, "mode": mode}
        reply, (images,) = self._ask(request, deadline - time.monotonic(), cancelled)
        return Pictures(images, tuple(reply["times_s"]), tuple(reply["missing_s"]), reply["keyframes"], Effort(reply["packets"], reply["decode_s"]))

    def audio(self, start_s: float, end_s: float, deadline: float, cancelled: threading.Event | None) -> Sound:
        """See `LocalFile.audio`."""
        reply, (samples,) = self._ask({"do": "audio", "start_s": start_s, "end_s": end_s}, deadline - time.monotonic(), cancelled)
        return Sound(samples, reply["padded_s"], Effort(reply["packets"], reply["decode_s"]))

    def _ask(self, request: dict[str, Any], timeout_s: float, cancelled: threading.Event | None) -> tuple[dict[str, Any], list[np.ndarray[Any, Any]]]:
        global KILLS
        worker = _borrow()
        request = request | {"path": self.path, "workers": self.workers, "timeout_s": timeout_s}
        try:
            reply, blobs = worker.ask(request, time.monotonic() + timeout_s + 1.0, cancelled)
        except BaseException as error:
            how = worker.kill()
            if cancelled is not None and cancelled.is_set():
                raise TimeoutError from None
            if isinstance(error, TimeoutError | _Died | ValueError | KeyError):
                KILLS += 1
                why = (
                    f"it decoded nothing for {STALL_S:g} s or took longer than {timeout_s:.0f} s" if isinstance(error, TimeoutError) else "it crashed"
                )
                raise MediaWorkerKilled(self.path, str(request["do"]), f"the process that read it ended {how}: {why}") from None
            raise
        _give_back(worker)
        if "error" in reply:
            raise _ERRORS.get(reply["error"], MediaDecodeError)(reply["path"], reply["stage"], reply["reason"])
        return reply, blobs
