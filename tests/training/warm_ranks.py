"""Runs the processes of `torchrun` without the wait: it loads torch, TRL and the trainers once, then forks them.

Loading takes 12 s of CPU time a process, longer than most of what the processes do.

An order is a line of JSON on standard input, `{"script": FILE, "arguments": […], "out": FILE, "port": PORT}`. Two
processes run the script as `torchrun --nproc-per-node 2` starts it. Both write to `out`; a line on standard output has
the statuses with which they ended. When one fails, the other is ended, as torchrun does it.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import sys
import traceback
from typing import Any

import torch

torch.set_num_threads(1)

import grpo_making  # noqa: E402, F401
import sharding  # noqa: E402, F401
import transformers  # noqa: E402
import trl  # noqa: E402, F401

import apr_plugin.training.distill.running  # noqa: E402
import apr_plugin.training.grpo.running  # noqa: E402
import apr_plugin.training.sft.running  # noqa: E402, F401

RANKS = 2


def _be(rank: int, order: dict[str, Any]) -> int:
    """Be one of the processes."""
    file = os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for fd, place in ((0, os.open(os.devnull, os.O_RDONLY)), (1, file), (2, file)):
        os.dup2(place, fd)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": order["port"], "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS}
    place |= {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
    os.environ.update({name: str(value) for name, value in place.items()})
    sys.argv = [order["script"], *order["arguments"]]
    try:
        runpy.run_path(order["script"], run_name="__main__")
    except BaseException:  # noqa: BLE001 - what a user would see
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _run(order: dict[str, Any]) -> list[int]:
    """Start the processes and wait for them."""
    running = {}
    for rank in range(RANKS):
        if (child := os.fork()) == 0:
            os._exit(_be(rank, order))
        running[child] = rank
    ended = [0] * RANKS
    while running:
        child, status = os.wait()
        ended[running.pop(child)] = status = os.waitstatus_to_exitcode(status)
        if status != 0:
            for other in running:
                os.kill(other, signal.SIGKILL)
    return ended


def _main() -> None:
    transformers.Trainer  # noqa: B018 - it is loaded when it is first named
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


if __name__ == "__main__":
    _main()
