"""Runs `apr vlmeval` and `apr` commands without the wait: it loads VLMEvalKit once, then forks for each order.

Loading takes up to a minute. It is loaded as `apr vlmeval` does it, and what that changed in the process is written to
the file `loaded.json` in the folder that is the only argument.

An order is a line of JSON on standard input, `{"commands": [[…], …], "folder": FOLDER, "environment": {…}, "setup":
FILE}`. FILE is a Python file that is run first, to put small local data in the place of VLMEvalKit's downloads. The
commands run one after the other in one new process. FOLDER gets, for the N-th, `N.out` (both streams) and `N.status`,
and `ended` at the end.
"""

from __future__ import annotations

import json
import logging
import os
import random
import runpy
import ssl
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


def state() -> dict[str, Any]:
    """What an import must not change."""
    return {
        "tls": ssl._create_default_https_context is ssl.create_default_context,
        "gradients": torch.is_grad_enabled(),
        "torch": [torch.initial_seed(), torch.get_rng_state().tolist()],
        "numpy": np.random.get_state()[1].tolist(),
        "random": repr(random.getstate()),
        "environment": {key: value for key, value in os.environ.items() if not key.startswith("VLMEVAL")},
        "path": list(sys.path),
        "handlers": [repr(handler) for handler in logging.getLogger().handlers],
        "disabled": logging.root.manager.disable,
        "digits": sys.get_int_max_str_digits(),
        "pixels": Image.MAX_IMAGE_PIXELS,
    }


def load(folder: Path) -> None:
    torch.manual_seed(7)  # another state than VLMEvalKit's
    before = state()
    assert "vlmeval" not in sys.modules
    from apr_plugin.harnesses.vlmeval.host import load_host

    host = load_host()
    report = {"before": before, "after": state(), "host": host.version, "packaged": host.packaged}
    (folder / "loaded.json").write_text(json.dumps(report))


def run(command: list[str]) -> int:
    sys.argv = ["apr", *command]
    try:
        if command[0] == "vlmeval":
            from apr_plugin.cli.vlmeval import main

            sys.argv = command
            main()
        else:
            from apr_plugin.cli import main as apr

            apr()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001 - what a user would see
        traceback.print_exc()
        return 99
    return 0


def obey(order: dict[str, Any]) -> None:
    folder = Path(order["folder"])
    os.environ.update(order["environment"])
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if order.get("setup"):
        runpy.run_path(order["setup"])
    for number, command in enumerate(order["commands"]):
        file = os.open(folder / f"{number}.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
        status = run(command)
        sys.stdout.flush()
        sys.stderr.flush()
        (folder / f"{number}.status").write_text(str(status))


def main() -> None:
    load(Path(sys.argv[1]))
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                obey(order)
                threading._shutdown()  # what a process waits for when it ends
            except BaseException:  # noqa: BLE001
                traceback.print_exc()
                os._exit(99)
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        place = Path(order["folder"]) / "ended"
        place.with_suffix(".new").write_text(str(ended))
        place.with_suffix(".new").replace(place)


if __name__ == "__main__":
    main()
