"""Evaluations in processes of their own: one model each, as lmms-eval's command line does it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def evaluate(arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> int:
    """Run `apr eval` and wait for it. Its progress and errors are shown; what else it prints goes to a file.

    Args:
        arguments: Options of lmms-eval.
        log: What lmms-eval prints, such as its table.
        environment: Variables to add.

    Returns:
        Its exit status: 0 done, 1 a failed run, 2 wrong usage, 3 unanswered questions, 130 stopped.
    """
    command = [sys.executable, "-m", "apr_plugin", "eval", *arguments]
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, env=os.environ | dict(environment or {}), check=False)
    return done.returncode
