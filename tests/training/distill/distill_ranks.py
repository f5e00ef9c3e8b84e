"""What each process of `torchrun` does in `test_distillation_runs.py`: runs of distillation, with DDP or FSDP2.

torchrun --nproc-per-node 2 distill_ranks.py ddp RECIPE OUT fsdp RECIPE OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)

from grpo_making import LISTENS, LOOKS, WATCHES, said, scripted  # noqa: E402
from sharding import shard  # noqa: E402

from apr_plugin.policies.hf import sample  # noqa: E402
from apr_plugin.training.distill import making  # noqa: E402
from apr_plugin.training.distill.recipe import DistillRecipe, read_recipe  # noqa: E402
from apr_plugin.training.distill.running import run_distill  # noqa: E402
from apr_plugin.training.student import Student  # noqa: E402


def says(name: str, repeat: int) -> list[str]:
    """Ragged turns, with pictures, sound and clips in some trajectories only; all answers are equal."""
    looks = {"sound": [LOOKS[0], LISTENS, WATCHES], "long": [LOOKS[1]]}[name]
    return [*looks[: 1 + repeat % 2 * 2], said(type="answer", content="B")]


def run(recipe: DistillRecipe, out: Path) -> None:
    """Train with scripted draws."""
    draw: Any = sample._draw
    sample._draw = scripted(Student.from_pretrained(recipe.student.pretrained), recipe, says)
    try:
        run_distill(recipe, out)
    finally:
        sample._draw = draw


if __name__ == "__main__":
    sharding = False
    for way, recipe, out in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3], strict=True):
        if way == "fsdp" and not sharding:
            shard(making)
            sharding = True
        run(read_recipe(recipe), Path(out))
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
