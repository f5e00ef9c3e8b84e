"""Two processes that compute credit together with gloo; `test_credit_processes.py` starts this file.

Both are forks of one process that has loaded torch, so that it is loaded once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from apr_plugin.training.grpo.across import TorchProcesses
from apr_plugin.training.grpo.credit import RULES, CreditSettings, credit
from apr_plugin.training.grpo.turns import Turns


def run(rank: int, folder: str) -> None:
    """Join the other process, take every second turn, and write the credit of each rule to `rank.npz`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    data = np.load(Path(folder) / "turns.npz")
    own = data["rank"] == rank
    arrays = {name: data[name][own] for name in data.files if name not in ("rank", "advantages")}
    turns = Turns(**arrays, groups=2, trajectories=4)
    across = TorchProcesses()
    found = {}
    for rule in RULES:
        done = credit(turns, data["advantages"][own], CreditSettings(rule=rule, seed=1), across, step=2)
        found |= {f"{rule}.weights": done.weights, f"{rule}.advantages": done.advantages}
        found[f"{rule}.mean"] = np.array(done.metrics["mean"])
    np.savez(Path(folder) / f"{rank}.npz", **found)
    dist.destroy_process_group()


if __name__ == "__main__":
    children = []
    for rank in range(2):
        if (child := os.fork()) == 0:
            run(rank, sys.argv[1])
            os._exit(0)
        children.append(child)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
