"""Runs `apr eval` for the arms of the study, each in a process that is forked from one with everything imported.

It is the command itself (`cli.evaluate.run_eval`: lmms-eval, its tasks, its files), without the seconds that importing
lmms-eval takes for each arm. The policies of this study are known there.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PRELOADED = ("benchmarks.needle_study.forked",)


def evaluate(arguments: Sequence[str], log: Path) -> int:
    """Run it, write its output to a file, and return its exit status (`compare.running.Evaluate`).

    Args:
        arguments: Options of `apr eval`.
        log: Gets what lmms-eval prints.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    process = context.Process(target=_run, args=(list(arguments), str(log), dict(os.environ)))
    process.start()
    try:
        process.join()
    except BaseException:
        process.terminate()
        process.join()
        raise
    return int(process.exitcode or 0)


def _run(arguments: Sequence[str], log: str, environment: Mapping[str, str]) -> None:
    from apr_plugin.cli.evaluate import run_eval
    from benchmarks.needle_study import preloaded

    os.environ.clear()
    os.environ.update(environment)
    preloaded.register()
    with Path(log).open("w") as file:
        os.dup2(file.fileno(), 1)
        sys.exit(run_eval(arguments))
