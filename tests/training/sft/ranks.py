"""What each process of `torchrun` does in `test_two_processes.py`: train recipes, with DDP or with FSDP2.

    torchrun --nproc-per-node 2 ranks.py ddp RECIPE OUT fsdp RECIPE OUT

accelerate shards on GPUs only and silently takes DDP on the CPU; here it is told that two processes on the CPU are
processes that shard. Everything after that is its own code. A run checks that its weights really are sharded.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)

import transformers  # noqa: E402
from accelerate import FullyShardedDataParallelPlugin, PartialState  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402
from accelerate.utils import DistributedType  # noqa: E402

from apr_plugin.training.sft import trainer as trainers  # noqa: E402
from apr_plugin.training.sft.dummies import Dummies  # noqa: E402
from apr_plugin.training.sft.recipe import read_recipe  # noqa: E402
from apr_plugin.training.sft.running import run_sft  # noqa: E402

LAYERS = ["Qwen2_5OmniDecoderLayer", "Qwen2_5OmniVisionBlock", "Qwen2_5OmniAudioEncoderLayer"]
_plain = transformers.Trainer.create_accelerator_and_postprocess


def _sharding(self: Any) -> None:
    _plain(self)
    state = self.accelerator.state
    state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP  # of which every new state is made
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=LAYERS
    )
    self.is_fsdp_enabled = True


class Checked(transformers.TrainerCallback):
    """After each step: the weights are sharded, of the towers too."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        from torch.distributed.tensor import DTensor

        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())


if __name__ == "__main__":
    make = trainers.make_trainer
    for way, recipe, out in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3], strict=True):
        if way == "ddp":
            transformers.Trainer.create_accelerator_and_postprocess = _plain
            trainers._accelerate_shards = lambda: False
        else:
            transformers.Trainer.create_accelerator_and_postprocess = _sharding
            trainers._accelerate_shards = lambda: True

            def checked(*args: Any, **more: Any) -> Any:
                trainer = make(*args, **more)
                trainer.add_callback(Checked())
                return trainer

            trainers.make_trainer = checked
        if way == "fsdp-without-dummies":
            Dummies.complete = lambda self, examples: list(examples)  # type: ignore[method-assign]
        run_sft(read_recipe(recipe), Path(out))
        AcceleratorState._reset_state(reset_partial_state=True)
