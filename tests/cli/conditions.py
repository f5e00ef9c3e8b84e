"""Runs `apr` commands under conditions that users meet.

The conditions: nobody reads the output, the disk is full, the locale is ASCII, colours are on.

The input is JSON, `{"environment": {…}, "warm": [[…], …], "cases": [{"arguments": […], "condition": …}, …]}`. The
output for each case is `{"status", "out", "err"}` (bytes as Latin-1). The commands in "warm" are run first, so that
their modules are loaded. Each case runs in a process forked from this one; one that hangs is ended by SIGALRM after
`LIMIT_S`.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from apr_plugin.cli import main

LIMIT_S = 120


def _stream(fd: int, encoding: str, errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(fd, "w", closefd=False)), encoding, errors, line_buffering=errors != "strict"
    )


def _become(condition: str, out: int, err: int) -> None:
    """The standard streams as Python sets them up when it starts."""
    if condition == "full":
        out = os.open("/dev/full", os.O_WRONLY)
    if condition == "closed":
        reading, out = os.pipe()
        os.close(reading)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    encoding = "ascii" if condition == "ascii" else "utf-8"
    sys.stdout, sys.stderr = _stream(1, encoding, "strict"), _stream(2, encoding, "backslashreplace")
    if condition == "none":
        os.close(1)
        sys.stdout = None  # type: ignore[assignment]
    if condition == "colours":
        os.environ["FORCE_COLOR"] = "1"


def command_status(arguments: list[str]) -> int:
    """Run a command in this process, and return the status with which `apr` would end."""
    sys.argv = ["apr", *arguments]
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001 - what a user would see
        traceback.print_exc()
        return 99
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    return 0


def warm_up(commands: list[list[str]]) -> None:
    """Run commands in this process, so that the processes forked from it have the modules."""
    kept = sys.argv, os.dup(1), os.dup(2)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        for command in commands:
            command_status(command)
    sys.argv = kept[0]
    os.dup2(kept[1], 1)
    os.dup2(kept[2], 2)


def run(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run one command."""
    files = [os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC) for name in ("out", "err")]
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        signal.alarm(LIMIT_S)
        _become(case["condition"], *files)
        status = 99
        try:
            status = command_status(case["arguments"])
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for file in files:
        os.close(file)
    out, err = ((folder / name).read_bytes().decode("latin-1") for name in ("out", "err"))
    return {"status": status, "out": out, "err": err}


if __name__ == "__main__":
    order = json.load(sys.stdin)
    os.environ.update(order["environment"])
    warm_up(order["warm"])
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps([run(case, Path(scratch)) for case in order["cases"]]))
