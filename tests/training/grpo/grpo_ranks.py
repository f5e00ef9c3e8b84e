"""What each process of `torchrun` does in `test_grpo_processes.py`: runs of GRPO, with DDP or FSDP2.

    torchrun --nproc-per-node 2 grpo_ranks.py ddp RECIPE OUT fsdp RECIPE OUT

accelerate shards on GPUs only and silently takes DDP on the CPU; here it is told that two processes on the CPU are
processes that shard. Everything after that is its own code. A run checks that its weights really are sharded.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)

from grpo_making import LISTENS, LOOKS, WATCHES, said, scripted  # noqa: E402

from apr_plugin.policies.hf import sample  # noqa: E402
from apr_plugin.training.grpo.recipe import GrpoRecipe, read_recipe  # noqa: E402
from apr_plugin.training.grpo.running import run_grpo  # noqa: E402
from apr_plugin.training.student import Student  # noqa: E402

SHARDED = "sharded"
"""A file in the folder of a run whose weights were seen to be sharded."""

LAYERS = ["Qwen2_5OmniDecoderLayer", "Qwen2_5OmniVisionBlock", "Qwen2_5OmniAudioEncoderLayer"]


def says(name: str, repeat: int) -> list[str]:
    """Ragged turns: one question has pictures, sound and clips in some trajectories; `silent` is always wrong."""
    ends = "B" if name == "silent" else "AB"[repeat % 2]
    looks = {"sound": [LOOKS[0], LISTENS, WATCHES], "long": [LOOKS[1], WATCHES], "silent": [LOOKS[1]]}[name]
    return [*looks[: 1 + repeat % 2 * 2], said(type="answer", content=ends)]


def run(recipe: GrpoRecipe, out: Path) -> None:
    """Train with scripted draws."""
    draw: Any = sample._draw
    sample._draw = scripted(Student.from_pretrained(recipe.student.pretrained), recipe, says)
    try:
        run_grpo(recipe, out)
    finally:
        sample._draw = draw


def shard() -> None:
    """Let the next run be sharded, and check after each of its steps that it is."""
    import transformers
    from accelerate import FullyShardedDataParallelPlugin, PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.tensor import DTensor

    from apr_plugin.training.grpo import making
    from apr_plugin.training.sft import trainer as trainers

    plain, make = transformers.Trainer.create_accelerator_and_postprocess, making.make_trainer

    def sharding(self: Any) -> None:
        plain(self)
        state = self.accelerator.state
        state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP  # of which every new state is made
        state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=LAYERS
        )
        self.is_fsdp_enabled = True

    class Checked(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
            Path(args.output_dir, SHARDED).touch()

    def checked(*args: Any) -> Any:
        trainer = make(*args)
        trainer.add_callback(Checked())
        return trainer

    transformers.Trainer.create_accelerator_and_postprocess = sharding
    trainers._accelerate_shards = lambda: True
    making.make_trainer = checked


if __name__ == "__main__":
    sharding = False
    for way, recipe, out in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3], strict=True):
        if way == "fsdp" and not sharding:
            shard()
            sharding = True
        run(read_recipe(recipe), Path(out))
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
