"""The other side of `isolated`: a process that opens files and reads them for its parent, within a memory limit.

    python -m apr_plugin.media.worker

Speaks on standard input and output. A message is a 4-byte length, a JSON object of that many bytes, then the bytes of the arrays it announces under
`blobs`. Only JSON and raw samples cross the pipe, so that a file that takes this process over can't do the same to its parent.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from apr_plugin.media.errors import MediaError
from apr_plugin.media.local import LocalFile
from apr_plugin.media.reader import PROGRESS

BEAT_S = 0.5
"""Seconds between two signs of life while packets are being decoded."""


def send(pipe: BinaryIO, message: dict[str, Any], blobs: Sequence[np.ndarray[Any, Any]] = ()) -> None:
    """Write one message."""
    head = json.dumps(message | {"blobs": [[str(b.dtype), list(b.shape)] for b in blobs]}).encode()
    pipe.write(struct.pack(">I", len(head)))
    pipe.write(head)
    for blob in blobs:
        pipe.write(np.ascontiguousarray(blob).reshape(-1).view(np.uint8).data)
    pipe.flush()


def main() -> None:
    """Serve requests until standard input ends."""
    limit = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    if limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the messages
    file: LocalFile | None = None
    while head := requests.read(4):
        (length,) = struct.unpack(">I", head)
        request = json.loads(requests.read(length))
        done: list[tuple[dict[str, Any], list[np.ndarray[Any, Any]]]] = []

        def work(request: dict[str, Any] = request, done: list[Any] = done) -> None:
            nonlocal file
            try:
                if file is None or file.path != request["path"]:
                    if file is not None:
                        file.close()
                    file = LocalFile(request["path"], workers=request["workers"])
                done.append(answer(file, request))
            except MediaError as error:
                done.append(({"error": type(error).__name__, "path": error.path, "stage": error.stage, "reason": error.reason}, []))
            except TimeoutError:
                done.append(({"error": "MediaTimeout", "path": request["path"], "stage": request["do"], "reason": "it took too long"}, []))
            except MemoryError:
                done.append(
                    ({"error": "MediaDecodeError", "path": request["path"], "stage": request["do"], "reason": "it needs too much memory"}, [])
                )
            except Exception as error:  # noqa: BLE001 - goes back to the parent as a typed error
                reason = f"{type(error).__name__}: {error}"
                done.append(({"error": "MediaDecodeError", "path": request["path"], "stage": request["do"], "reason": reason}, []))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        beat, packets = time.monotonic(), PROGRESS.packets
        while thread.is_alive():
            thread.join(0.05)
            if thread.is_alive() and time.monotonic() - beat >= BEAT_S and packets != PROGRESS.packets:
                send(replies, {"beat": PROGRESS.packets})
                beat, packets = time.monotonic(), PROGRESS.packets
        send(replies, *done[0])


def answer(file: LocalFile, request: dict[str, Any]) -> tuple[dict[str, Any], list[np.ndarray[Any, Any]]]:
    """Carry out one request."""
    deadline = time.monotonic() + request["timeout_s"]
    match request["do"]:
        case "open":
            return {"info": file.info.to_json()}, []
        case "frames":
            pictures = file.frames(request["times_s"], request["max_pixels"], request["mode"], deadline, None)
            effort = pictures.effort
            reply = {"times_s": pictures.times_s, "missing_s": pictures.missing_s, "keyframes": pictures.keyframes}
            return reply | {"packets": effort.packets, "decode_s": effort.decode_s}, [pictures.images]
        case _:
            sound = file.audio(request["start_s"], request["end_s"], deadline, None)
            return {"padded_s": sound.padded_s, "packets": sound.effort.packets, "decode_s": sound.effort.decode_s}, [sound.samples]


if __name__ == "__main__":
    main()
