"""Reads a file in a separate process, which can crash, hang or use too much memory without harm to this one."""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apr_plugin.media.errors import MediaDecodeError, MediaError, MediaOpenError, MediaTimeout, MediaWorkerKilled, words
from apr_plugin.media.framing import LENGTH
from apr_plugin.media.index import reading_through_s
from apr_plugin.media.info import MediaInfo
from apr_plugin.media.lending import stop_if_due
from apr_plugin.media.local import Mode, Pictures, Size, Sound
from apr_plugin.media.reader import Effort

READY = b"ready"
"""What a worker sends after it has started."""

STALL_S = 6.0
"""A worker that sends no sign of progress for this long is killed."""

START_S = 60.0
"""Longest time for a worker to start, before it opens any file; it is long because machines may be very busy."""

MEMORY_BYTES = 4 << 30
"""Address space of a worker, in addition to the requested pictures."""

IDLE_WORKERS = 2
"""Number of idle workers that are kept for the next look."""

KILLS = 0
"""Number of workers in this process that died or had to be killed; the fuzz report counts them."""

OPEN_TIMEOUT_S = 8.0
"""Longest time for opening, once the worker has started."""

# A worker is told to stop by itself this long before the deadline, or a tenth of the time left if that is less.
_GRACE_S = 1.0
_DEATHS = 2  # workers that died on one request: the file is at fault, or there is no memory
_DEATHS_UNSEEN = 4  # the same, including workers that died while they started
_ERRORS: dict[str, type[MediaError]] = {
    kind.__name__: kind for kind in (MediaOpenError, MediaDecodeError, MediaTimeout)
}
_LARGEST_HEAD = 16 << 20
_LARGEST_BLOB = 64 << 30
_ROOT = str(Path(__file__).resolve().parents[2])
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[2]); from apr_plugin.media.worker import main; "
    "main(int(sys.argv[1]))"
)
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)

_idle: list[_Worker] = []
_all: set[_Worker] = set()
_lock = threading.Lock()


class _Died(Exception):
    """The worker ended, or sent something that is not an answer."""


class _Worker:
    """A process and the socket to it.

    Raises:
        OSError: the process can't be started.
    """

    def __init__(self) -> None:
        self.path = ""
        self.heard = False
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                path = [os.path.abspath(place) for place in ([] if _ROOT in sys.path else [_ROOT]) + sys.path if place]  # noqa: PTH100
                # Both reserve address space for every core.
                self.process = subprocess.Popen(
                    [_python(), "-S", "-P", "-c", _START, str(MEMORY_BYTES), json.dumps(path)],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=os.environ
                    | {
                        "OPENBLAS_NUM_THREADS": "1",
                        "MALLOC_ARENA_MAX": "4",
                    },
                )
        except BaseException:
            ours.close()
            raise
        self.socket = ours
        with _lock:
            _all.add(self)

    def start(self, until: float, cancelled: threading.Event | None) -> None:
        """Wait until the worker has loaded its libraries; if that takes long, the file is not the reason.

        Raises:
            TimeoutError: the wait took too long, or was cancelled.
            _Died: the process ended.
        """
        self._move(memoryview(bytearray(len(READY))), until, cancelled, sending=False, stall_s=START_S)

    def ask(
        self, request: dict[str, Any], until: float, cancelled: threading.Event | None
    ) -> tuple[dict[str, Any], list[np.ndarray[Any, Any]]]:
        """Send a request and wait for its answer, as long as the worker makes progress.

        Raises:
            TimeoutError: there was no sign of life, the answer was too late, or the read was cancelled.
            _Died: the process ended.
        """
        body = json.dumps(request).encode()
        self.heard = False
        self._move(memoryview(LENGTH.pack(len(body)) + body), until, cancelled, sending=True)
        while True:
            (length,) = LENGTH.unpack(self._take(LENGTH.size, until, cancelled))
            self.heard = True
            if length > _LARGEST_HEAD:
                raise _Died
            message = json.loads(bytes(self._take(length, until, cancelled)))
            if "beat" not in message:
                break
        blobs = []
        for dtype, shape in message["blobs"]:
            if dtype not in ("uint8", "float32") or min(shape) < 0 or math.prod(shape) > _LARGEST_BLOB:
                raise _Died
            blob = np.empty(shape, dtype)
            self._move(blob.reshape(-1).view(np.uint8).data, until, cancelled, sending=False)
            blobs.append(blob)
        return message, blobs

    def _take(self, count: int, until: float, cancelled: threading.Event | None) -> bytearray:
        data = bytearray(count)
        self._move(memoryview(data), until, cancelled, sending=False)
        return data

    def _move(
        self,
        view: memoryview,
        until: float,
        cancelled: threading.Event | None,
        sending: bool,
        stall_s: float | None = None,
    ) -> None:
        """Send or receive all of `view`."""
        stall_s = STALL_S if stall_s is None else stall_s
        at, stalled = 0, time.monotonic() + stall_s
        while at < len(view):
            left = min(until, stalled) - time.monotonic()
            if left <= 0 or (cancelled is not None and cancelled.is_set()):
                raise TimeoutError
            self.socket.settimeout(min(0.1, left))
            try:
                part = view[at : at + (1 << 20)]
                moved = self.socket.send(part, _NO_SIGNAL) if sending else self.socket.recv_into(part)
            except TimeoutError:
                continue
            except OSError as error:
                raise _Died from error
            if moved == 0:
                raise _Died
            at, stalled = at + moved, time.monotonic() + stall_s

    def kill(self, patience_s: float = 0.0) -> str:
        """End the process if it does not end by itself; return how it ended, in words."""
        ended: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            ended = self.process.wait(patience_s)
        self.process.kill()
        # A process that waits for a disk dies later; `subprocess` collects it then.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2.0)
        self.socket.close()
        with _lock:
            _all.discard(self)
        return (
            f"with signal {-ended}"
            if ended is not None and ended < 0
            else f"with status {ended}"
            if ended is not None
            else "when it was killed"
        )


def _python() -> str:
    """The Python interpreter to run, even if this one is embedded in another program."""
    beside = Path(sys.exec_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    if sys.executable and "python" in Path(sys.executable).name.lower():
        return sys.executable
    return str(beside) if beside.exists() else shutil.which(beside.name) or sys.executable or "python3"


def _borrow(path: str) -> tuple[_Worker, bool]:
    """A worker, preferably one that has the file open already; and whether it was used before."""
    while True:
        with _lock:
            worker = next((w for w in reversed(_idle) if w.path == path), _idle[-1] if _idle else None)
            if worker is not None:
                _idle.remove(worker)
        if worker is None:
            return _Worker(), False
        if worker.process.poll() is None:
            return worker, True
        worker.kill()


def _give_back(worker: _Worker) -> None:
    with _lock:
        _idle.append(worker)
        surplus = [_idle.pop(0) for _ in range(len(_idle) - IDLE_WORKERS)]
    for unused in surplus:
        unused.kill()


def close_workers(path: str | None = None) -> None:
    """End the idle workers, or only those that have the file `path` open."""
    with _lock:
        ending = [worker for worker in _idle if path in (None, worker.path)]
        for worker in ending:
            _idle.remove(worker)
    for worker in ending:
        worker.kill()


@atexit.register
def _end_all() -> None:
    for worker in list(_all):
        worker.kill()


def _forget_workers() -> None:
    """Forget the workers in a forked process, because they belong to the parent."""
    global _lock
    _lock = threading.Lock()
    for worker in _all:
        worker.socket.close()
        worker.process.returncode = 0  # it is not a child of this process, so nobody waits for it
    _idle.clear()
    _all.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)


class IsolatedFile:
    """The same reads as `LocalFile`, each done by a worker process.

    Raises:
        MediaOpenError: the file can't be used.
        MediaWorkerKilled: two workers died one after the other, or one had to be killed; the next read starts a new
            one.
    """

    def __init__(self, path: str, workers: int, deadline: float | None = None) -> None:
        self.path = path
        self.workers = workers
        self._version: list[int] | None = None
        at_most_s = OPEN_TIMEOUT_S + reading_through_s(path)
        if deadline is None:
            deadline = time.monotonic() + START_S + at_most_s
        reply, _ = self._ask({"do": "open"}, deadline, None, at_most_s=at_most_s)
        try:
            self.info = MediaInfo.from_json(reply["info"])
            self._version = reply["version"]
        except (KeyError, TypeError, ValueError) as error:
            raise self._nonsense("open") from error

    def close(self) -> None:
        """End the idle workers that have the file open; the next read starts a new one."""
        close_workers(self.path)

    def frames(
        self, times_s: Sequence[float], size: Size, mode: Mode, deadline: float, cancelled: threading.Event | None
    ) -> Pictures:
        """See `LocalFile.frames`."""
        request = {"do": "frames", "times_s": [float(t) for t in times_s], "size": size, "mode": mode}
        reply, blobs = self._ask(request, deadline, cancelled)
        try:
            (images,) = blobs
            shown, missing = tuple(map(float, reply["times_s"])), tuple(map(float, reply["missing_s"]))
            if images.ndim != 4 or images.dtype != np.uint8 or len(images) != len(shown):
                raise ValueError
            return Pictures(
                images, shown, missing, int(reply["keyframes"]), Effort(int(reply["packets"]), float(reply["decode_s"]))
            )
        except (KeyError, TypeError, ValueError) as error:
            raise self._nonsense("decode frames") from error

    def audio(self, start_s: float, end_s: float, deadline: float, cancelled: threading.Event | None) -> Sound:
        """See `LocalFile.audio`."""
        reply, blobs = self._ask({"do": "audio", "start_s": float(start_s), "end_s": float(end_s)}, deadline, cancelled)
        try:
            (samples,) = blobs
            if samples.ndim != 1 or samples.dtype != np.float32:
                raise ValueError
            return Sound(samples, float(reply["padded_s"]), Effort(int(reply["packets"]), float(reply["decode_s"])))
        except (KeyError, TypeError, ValueError) as error:
            raise self._nonsense("decode audio") from error

    def _nonsense(self, stage: str) -> MediaWorkerKilled:
        close_workers(self.path)
        return MediaWorkerKilled(self.path, stage, "the process that read it sent an invalid answer")

    def _ask(
        self, request: dict[str, Any], deadline: float, cancelled: threading.Event | None, at_most_s: float = math.inf
    ) -> tuple[dict[str, Any], list[np.ndarray[Any, Any]]]:
        """Have a worker carry out a request until the deadline, and for at most `at_most_s` of work.

        If that worker dies, another one tries once more.

        Raises:
            TimeoutError: no worker had started by the deadline, or the read was cancelled.
            MediaError: the error that the worker reports for the file, or the loss of the worker.
        """
        global KILLS
        request = request | {"path": self.path, "workers": self.workers, "version": self._version}
        deaths, seen = 0, 0
        while True:
            stop_if_due(deadline, cancelled)
            try:
                worker, used = _borrow(self.path)
            except OSError as error:
                raise MediaWorkerKilled(
                    self.path, str(request["do"]), f"no process could be started to read it: {words(error)}"
                ) from error
            allowed_s = at_most_s
            try:
                if not used:
                    worker.start(deadline, cancelled)
                now = time.monotonic()
                allowed_s = min(deadline - now, at_most_s)
                request["timeout_s"] = max(0.0, allowed_s - min(_GRACE_S, allowed_s / 10))
                reply, blobs = worker.ask(request, now + allowed_s, cancelled)
            except BaseException as error:
                how = worker.kill(0.5 if isinstance(error, _Died) else 0.0)
                if used and isinstance(error, _Died) and not worker.heard:
                    continue  # it had ended before it read the request
                if isinstance(error, _Died):  # the file is at fault, or the system killed it for its memory
                    deaths, seen = deaths + 1, seen + worker.heard
                    if seen < _DEATHS and deaths < _DEATHS_UNSEEN:
                        with _lock:
                            KILLS += 1
                        continue
                raise self._ended(error, how, deaths, str(request["do"]), allowed_s, cancelled) from error
            worker.path = self.path
            _give_back(worker)
            if "error" in reply:
                raise _ERRORS.get(str(reply["error"]), MediaDecodeError)(
                    self.path, str(reply.get("stage")), str(reply.get("reason"))
                )
            return reply, blobs

    def _ended(
        self, error: BaseException, how: str, deaths: int, do: str, timeout_s: float, cancelled: threading.Event | None
    ) -> BaseException:
        """The exception for a read that has lost its worker."""
        global KILLS
        if cancelled is not None and cancelled.is_set():
            return TimeoutError()
        if not isinstance(error, TimeoutError | _Died | ValueError | KeyError | TypeError | MemoryError):
            return error
        with _lock:
            KILLS += 1
        stage = {"frames": "decode frames", "audio": "decode audio"}.get(do, do)
        late = f"it made no progress for {STALL_S:g} s, or took longer than {timeout_s:.1f} s"
        killed = (
            "it was killed, as the system does when memory is short"
            if how == f"with signal {signal.SIGKILL.value}"
            else "it crashed"
        )
        why = late if isinstance(error, TimeoutError) else killed
        again = f", and {deaths - 1} before it died too" if deaths > 1 else ""
        return MediaWorkerKilled(self.path, stage, f"the process that read it ended {how}{again}: {why}")
