"""The other side of `isolated`: a process that opens files and reads them for its parent, within a memory limit.

`isolated` starts it. It uses the socket that is its standard input. A message is a 4-byte length, a JSON object of that
many bytes, then the bytes of the arrays that the object announces under `blobs`. Only JSON and raw samples are sent, so
that a file that takes over this process can't take over its parent. While the worker is busy it sends a beat at
intervals, as long as there is progress: packets are decoded, or the file is read.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from apr_plugin.media.errors import MediaError, MediaOpenError
from apr_plugin.media.framing import LENGTH
from apr_plugin.media.local import LocalFile

BEAT_S = 0.5
"""Seconds between two beats."""

_TICK_S = 0.02
_READ_TWICE = (
    2  # a request that has read this many times the size of its file without decoding a packet is in an endless loop
)
_SPARE_CPU_S = 10.0


def send(pipe: socket.socket, message: dict[str, Any], blobs: Sequence[np.ndarray[Any, Any]] = ()) -> None:
    """Write one message."""
    head = json.dumps(message | {"blobs": [[str(b.dtype), list(b.shape)] for b in blobs]}).encode()
    pipe.sendall(LENGTH.pack(len(head)) + head)
    for blob in blobs:
        pipe.sendall(np.ascontiguousarray(blob).reshape(-1).view(np.uint8).data)


def receive(pipe: socket.socket) -> dict[str, Any] | None:
    """The next request, or `None` if the parent has ended."""

    def take(count: int) -> bytes:
        data = b""
        while len(data) < count and (part := pipe.recv(count - len(data))):
            data += part
        return data

    head = take(LENGTH.size)
    body = take(LENGTH.unpack(head)[0]) if len(head) == LENGTH.size else b""
    return json.loads(body) if body else None


class Life:
    """Tells whether there is progress while a request is carried out."""

    def __init__(self, path: str, packets: Callable[[], int]) -> None:
        self._count = packets
        try:
            self._most = _READ_TWICE * os.stat(path).st_size  # noqa: PTH116 - any name, even an impossible one
        except (OSError, ValueError):
            self._most = 0
        self._first = self._bytes = _bytes_read()
        self._packets = packets()

    def moved(self) -> bool:
        """Whether packets were decoded, or more of the file was read, since the last call."""
        packets, count = self._count(), _bytes_read()
        moved = packets != self._packets or (count != self._bytes and count - self._first < self._most)
        if packets != self._packets:
            self._first = count
        self._packets, self._bytes = packets, count
        return moved


def _bytes_read() -> int:
    """Number of bytes that this process has read, if the system gives it."""
    try:
        with open("/proc/self/io", "rb") as file:  # noqa: PTH123 - read twice a second
            return int(file.readline().split()[1])
    except (OSError, ValueError, IndexError):
        return 0


class Server:
    """Answers requests one after the other; the file of the last request stays open."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._file: LocalFile | None = None

    def packets(self) -> int:
        """Number of decoded packets of the current file."""
        return self._file.progress.packets if self._file is not None else 0

    def answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[np.ndarray[Any, Any]]]:
        """Carry out one request; every failure becomes an answer."""
        try:
            return self._answer(request)
        except MediaError as error:
            return {"error": type(error).__name__, "stage": error.stage, "reason": error.reason}, []
        except TimeoutError:
            return _error("MediaTimeout", request, "it took too long")
        except MemoryError:
            self._file = None
            return _error("MediaDecodeError", request, "it needs too much memory")
        except Exception as error:  # noqa: BLE001 - goes back to the parent as a typed error
            return _error("MediaDecodeError", request, f"{type(error).__name__}: {error}")

    def _answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[np.ndarray[Any, Any]]]:
        deadline = time.monotonic() + request["timeout_s"]
        self._limit(0)
        file = self._open(request)
        match request["do"]:
            case "open":
                return {"info": file.info.to_json(), "version": file.version}, []
            case "frames":
                width, height = request["size"]
                self._limit(3 * (width * height * 3) * len(request["times_s"]))  # as decoded, as stacked, as sent
                pictures = file.frames(request["times_s"], (width, height), request["mode"], deadline, None)
                effort = pictures.effort
                reply = {"times_s": pictures.times_s, "missing_s": pictures.missing_s, "keyframes": pictures.keyframes}
                return reply | {"packets": effort.packets, "decode_s": effort.decode_s}, [pictures.images]
            case _:
                sound = file.audio(request["start_s"], request["end_s"], deadline, None)
                return {
                    "padded_s": sound.padded_s,
                    "packets": sound.effort.packets,
                    "decode_s": sound.effort.decode_s,
                }, [sound.samples]

    def _open(self, request: dict[str, Any]) -> LocalFile:
        version = tuple(request["version"]) if request["version"] else None
        file = self._file
        if file is None or file.path != request["path"] or version != file.version:
            self._file = None
            if file is not None:
                file.close()
            file = self._file = LocalFile(request["path"], workers=request["workers"], memory=self._memory)
            if version is not None and version != file.version:
                raise MediaOpenError(file.path, "open", "the file has changed since it was opened")
        return file

    def _limit(self, more: int) -> None:
        if self._memory:
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            wanted = self._memory + more
            resource.setrlimit(
                resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
            )


def _error(kind: str, request: dict[str, Any], reason: str) -> tuple[dict[str, Any], list[np.ndarray[Any, Any]]]:
    return {
        "error": kind,
        "stage": {"frames": "decode frames", "audio": "decode audio"}.get(request["do"], request["do"]),
        "reason": reason,
    }, []


def _limit_cpu(seconds: float) -> None:
    """Let the system end this process if it is still busy after so many seconds of CPU time.

    This works even if the parent has ended.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    wanted = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def main(memory: int) -> None:
    """Serve requests until the parent ends.

    Args:
        memory: Bytes of address space in addition to the requested pictures; 0 for no limit.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at the terminal is for the parent
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe = socket.socket(fileno=os.dup(0))
    pipe.setblocking(True)
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)  # code that reads standard input must not take a message
    server = Server(memory)
    try:
        pipe.sendall(b"ready")
        while (request := receive(pipe)) is not None:
            send(pipe, {"beat": 0})
            _limit_cpu((request["timeout_s"] + _SPARE_CPU_S) * (request["workers"] + 1))
            done: list[tuple[dict[str, Any], list[np.ndarray[Any, Any]]]] = []
            finished = threading.Event()

            def work(
                request: dict[str, Any] = request, done: list[Any] = done, finished: threading.Event = finished
            ) -> None:
                done.append(server.answer(request))
                finished.set()

            threading.Thread(target=work, daemon=True).start()
            life, beat = Life(request["path"], server.packets), time.monotonic()
            while not finished.wait(_TICK_S):
                # A parent sends nothing between request and answer, so it has ended.
                if select.select([pipe], [], [], 0)[0]:
                    os._exit(0)
                if time.monotonic() - beat >= BEAT_S:
                    beat = time.monotonic()
                    if life.moved():
                        send(pipe, {"beat": 1})
            send(pipe, *done[0])
    except OSError:
        pass  # the parent has ended
    finally:
        os._exit(0)  # without waiting for a thread that is stuck in libav
