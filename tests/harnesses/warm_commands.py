"""Runs `apr` and `lmms-eval` commands without the wait: it loads lmms-eval once, then forks for each order.

Loading takes longer than most commands, and so does reading lmms-eval's own list of tasks, which is kept too.

An order is a line of JSON on standard input, `{"commands": [[…], …], "folder": FOLDER, "environment": {…}}`. Its
commands run one after the other in one new process, which ends like any other. FOLDER gets `pid`, for the N-th command
`N.out`, `N.err` and `N.status`, and `ended` when the process has ended in any way.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import lmms_eval.__main__
import lmms_eval.cli.dispatch
import lmms_eval.evaluator
from task_list import keep_task_list

import apr_plugin.cli.evaluate
import apr_plugin.harnesses.lmms_eval.model  # noqa: F401
from apr_plugin.cli import main


def _put(path: Path, words: object) -> None:
    """Write the whole file or nothing, because another process waits for it."""
    path.with_suffix(".new").write_text(str(words))
    path.with_suffix(".new").replace(path)


def _next_order() -> dict[str, Any] | None:
    """Return the order in a child process; return `None` in the parent, after the last order."""
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        folder = Path(order["folder"])
        if os.fork() == 0:  # waits for the command and reports how it ended
            command = os.fork()
            if command == 0:
                os.environ.update(order["environment"])
                return order
            _put(folder / "pid", command)
            _put(folder / "ended", os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]))
            os._exit(0)
    return None


def _run(command: list[str]) -> int:
    if command[0] == "sh":
        return os.system(command[1])
    ours = command[0] != "lmms-eval"
    sys.argv = ["apr", *command] if ours else command
    try:
        main() if ours else lmms_eval.cli.dispatch.main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001 - what a user would see
        traceback.print_exc()
        return 99
    return 0


def _run_all(commands: list[list[str]], folder: Path) -> None:
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, command in enumerate(commands):
        sys.stdout.flush()
        sys.stderr.flush()
        for fd, name in ((1, "out"), (2, "err")):
            file = os.open(folder / f"{number}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, fd)
            os.close(file)
        status = _run(command)
        sys.stdout.flush()
        sys.stderr.flush()
        _put(folder / f"{number}.status", status)


def _main() -> None:
    keep_task_list()
    for name in ("nltk", "pytablewriter"):  # lmms-eval loads them when it makes its table of results
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # otherwise each command collects what it inherits: lmms-eval calls `gc.collect` several times
    if (order := _next_order()) is not None:
        _run_all(order["commands"], Path(order["folder"]))


if __name__ == "__main__":
    _main()
