"""What each process of `torchrun` does in `test_two_processes.py`: one step on two rows, with DDP or FSDP2.

    torchrun --nproc-per-node 2 ranks.py RECIPE OUT

Without torchrun it is the one process to compare with. It writes the loss and the parameters after the step.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

torch.set_num_threads(1)

from apr_plugin.training.sft.recipe import read_recipe  # noqa: E402
from apr_plugin.training.sft.running import run_sft  # noqa: E402

if __name__ == "__main__":
    for recipe, out in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        run_sft(read_recipe(recipe), Path(out))
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
