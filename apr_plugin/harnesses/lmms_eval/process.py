"""Evaluations in processes of their own: one model each, as the harness's command line does it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_POLL_S = 0.05
"""Well within `interrupt.SAME_PRESS_S`, so that a Ctrl-C that is passed on is the same press."""


def evaluate(arguments: Sequence[str], log: Path | None = None, command: str = "eval") -> int:
    """Run `apr eval` and wait for it. Its progress and errors are shown.

    Args:
        arguments: Options of the harness.
        log: A file for what else it prints, such as lmms-eval's table; without it that is shown too.
        command: `eval`, or `vlmeval` for VLMEvalKit.

    Returns:
        Its exit status: 0 done, 1 a failed run, 2 wrong usage, 3 unanswered questions, 130 stopped; negative if a
        signal ended it.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the evaluation was told, has saved what is done, and has ended.
    """
    words = [sys.executable, "-m", "apr_plugin", command, *arguments]
    if log is None:
        return _waited(subprocess.Popen(words))
    with log.open("w") as file:
        return _waited(subprocess.Popen(words, stdout=file))


def _waited(process: subprocess.Popen[bytes]) -> int:
    """Wait without `subprocess.run`, which kills the process 0.25 s after Ctrl-C: an engine needs longer to end."""
    try:
        while process.poll() is None:
            time.sleep(_POLL_S)
    except BaseException:
        process.send_signal(signal.SIGINT)  # a terminal has told it already, `kill -INT` has not
        process.wait()
        raise
    return int(process.returncode)
