"""`apr` as a user runs it, without the wait: `run(…)` forks a process that has loaded the commands.

To start Python and load the commands takes longer than most of them. The program in this file reads orders, each a
line of JSON, `{"arguments": […], "cwd": FOLDER, "environment": {…}, "out": FILE, "err": FILE}`, runs each in a process
of its own, and writes its status as a line. `test_terminal.py` and `test_ctrl_c` start Python itself.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LIMIT_S = 120


@functools.cache
def _warm() -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    scratch = tempfile.TemporaryDirectory()
    atexit.register(scratch.cleanup)
    atexit.register(process.kill)
    return process, Path(scratch.name)


def run(
    *arguments: str | Path, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run one command and wait for it.

    Args:
        arguments: Its words, without `apr`.
        cwd: Its folder.
        environment: All of its environment variables; otherwise those of this process.
    """
    process, scratch = _warm()
    assert process.stdin is not None and process.stdout is not None
    words = [str(word) for word in arguments]
    order = {"arguments": words, "cwd": str(cwd or Path.cwd()), "environment": dict(environment or os.environ)}
    out, err = scratch / "out", scratch / "err"
    process.stdin.write(json.dumps(order | {"out": str(out), "err": str(err)}) + "\n")
    process.stdin.flush()
    status = int(process.stdout.readline())
    return subprocess.CompletedProcess(words, status, out.read_bytes(), err.read_bytes())


def _obey(order: dict[str, Any]) -> int:
    """Run the command in a child process, and return its status."""
    from conditions import command_status

    if (child := os.fork()) != 0:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 99
    try:
        signal.alarm(LIMIT_S)
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["environment"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for fd, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
        status = command_status(order["arguments"])
    finally:
        os._exit(status)


def _main() -> None:
    from conditions import warm_up

    warm_up([["tasks"], ["doctor", "--fast"], ["show", "/nowhere"], ["ask", "/nowhere", "q", "-m", "policy=guess"]])
    for line in sys.stdin:
        print(_obey(json.loads(line)), flush=True)


if __name__ == "__main__":
    _main()
