"""FSDP2 on the CPU, for what processes of `torchrun` do.

accelerate shards on GPUs only and silently takes DDP on the CPU; here it is told that two processes on the CPU are
processes that shard. Everything after that is its own code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

LAYERS = ["Qwen2_5OmniDecoderLayer", "Qwen2_5OmniVisionBlock", "Qwen2_5OmniAudioEncoderLayer"]

SHARDED = "sharded"
"""A file in the folder of a run whose weights were seen to be sharded."""


def shard(making: Any) -> None:
    """Let the next runs be sharded, and check after each of their steps that they are, the towers too.

    Args:
        making: The module whose `make_trainer` the runs call.
    """
    import transformers
    from accelerate import FullyShardedDataParallelPlugin, PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.tensor import DTensor

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

    def checked(*args: Any, **more: Any) -> Any:
        trainer = make(*args, **more)
        trainer.add_callback(Checked())
        return trainer

    transformers.Trainer.create_accelerator_and_postprocess = sharding
    trainers._accelerate_shards = lambda: True
    making.make_trainer = checked
