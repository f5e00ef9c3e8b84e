"""What each process of `torchrun` does in `test_two_processes.py`: train recipes, with DDP, then with FSDP2.

    torchrun --nproc-per-node 2 ranks.py ddp RECIPE OUT fsdp RECIPE OUT

With `fsdp-without-dummies` in place of `fsdp` both processes die: they wait for different modules.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

torch.set_num_threads(1)

from accelerate.state import AcceleratorState  # noqa: E402
from sharding import shard  # noqa: E402

from apr_plugin.training.sft import trainer as trainers  # noqa: E402
from apr_plugin.training.sft.dummies import Dummies  # noqa: E402
from apr_plugin.training.sft.recipe import read_recipe  # noqa: E402
from apr_plugin.training.sft.running import run_sft  # noqa: E402

if __name__ == "__main__":
    for way, recipe, out in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3], strict=True):
        if way != "ddp":
            shard(trainers)
        if way == "fsdp-without-dummies":
            Dummies.complete = lambda self, examples: list(examples)  # type: ignore[method-assign]
        run_sft(read_recipe(recipe), Path(out))
        AcceleratorState._reset_state(reset_partial_state=True)
