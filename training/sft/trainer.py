"""TRL's SFTTrainer on rows: the arguments that it needs for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from apr_plugin.training.loading import RowCollator, RowLoader
from apr_plugin.training.recipe_file import RecipeError
from apr_plugin.training.rows import Row, RowSet
from apr_plugin.training.sft.dummies import Dummies
from apr_plugin.training.sft.head import read_only_labels
from apr_plugin.training.sft.learner import choose_weights, load_learner, lora_config
from apr_plugin.training.sft.packs import packs
from apr_plugin.training.sft.recipe import Recipe
from apr_plugin.training.sft.resuming import OwnNames
from apr_plugin.training.student import Student


class RowTrainer(OwnNames, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose head reads only the positions that have labels, and that continues from its own weights."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        read_only_labels(self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model)


class PackCollator:
    """From elements of `pack_dataset` to the arguments of `forward`."""

    def __init__(self, collator: RowCollator) -> None:
        self.collator = collator

    def __call__(self, elements: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One batch of the rows of these packs."""
        return self.collator([Row.model_validate_json(row) for element in elements for row in element["rows"]])


def pack_dataset(made: Sequence[Sequence[Row]]) -> Dataset:
    """Packs as a table: an element is a pack, its rows are JSON."""
    return Dataset.from_list([{"rows": [row.model_dump_json() for row in pack]} for pack in made])


def make_trainer(recipe: Recipe, rows: RowSet, student: Student, out: Path, *, percepts: Any = None) -> RowTrainer:
    """The trainer of a recipe, ready for `train()`.

    Args:
        recipe: What is trained and how.
        rows: Its rows; the validation part, if there is one, is evaluated after each epoch.
        student: Reads the rows.
        out: Folder of checkpoints and logs.
        percepts: The cache of decoded pictures and sound.

    Raises:
        AprError: the checkpoint can't be loaded, or a field of the recipe does not fit the machine.
    """
    recipe.check_trainer()
    train = packs(rows.require().of("train"), recipe.forward.token_budget, recipe.forward.seed)
    held = packs(rows.of("validation"), recipe.forward.token_budget, recipe.forward.seed)
    args = _arguments(recipe, out, len(train), sum(len(pack) for pack in train), bool(held))
    model = load_learner(recipe.student)
    choose_weights(model, recipe.learn)
    loader = RowLoader(student, percepts=percepts, other_versions=recipe.other_versions)
    # With a mask TRL counts the tokens; one without padding makes no mask of tokens times tokens. Padded on the left,
    # the labels of all rows are at the end.
    collator = RowCollator(
        loader, side="left", mask=True, complete=Dummies(student).complete if sharded(args) else None
    )
    trainer = RowTrainer(
        model=model,
        args=args,
        train_dataset=pack_dataset(train),
        eval_dataset=pack_dataset(held) if held else None,
        data_collator=PackCollator(collator),
        processing_class=student.encoder.processor,
        peft_config=lora_config(model, recipe.learn.lora) if recipe.learn.what == "lora" else None,
    )
    keep_positions(trainer)
    return trainer


def processes() -> int:
    """Number of processes that train together, as torchrun and accelerate say."""
    import os

    return int(os.environ.get("WORLD_SIZE", "1"))


def sharded(args: Any) -> bool:
    """Whether weights are sharded over processes, as the arguments of a trainer or `accelerate launch` say."""
    return bool(args.fsdp) or args.deepspeed is not None or _accelerate_shards()


def _accelerate_shards() -> bool:
    """Whether `accelerate launch` was told to shard."""
    import os

    return any(
        os.environ.get(name, "").lower() in ("1", "true")
        for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    )


def _arguments(recipe: Recipe, out: Path, packed: int, rows: int, held: bool) -> SFTConfig:
    world = processes()
    per_step = recipe.rows_per_step * packed / rows / world
    if recipe.forward.token_budget is None and recipe.rows_per_step % world:
        raise RecipeError(
            f"rows_per_step is {recipe.rows_per_step}, which {world} processes can't share equally; take a multiple"
        )
    given = {
        "save_strategy": "epoch",
        "logging_steps": 1,
        "report_to": "none",
        "eval_strategy": "epoch" if held else "no",
        **recipe.trainer,
    }
    if not held:
        given["eval_strategy"] = "no"
    if recipe.student.dtype == "float32" and not (given.get("bf16") or given.get("fp16")):
        given["bf16"] = False  # TRL's default is true
    try:
        return SFTConfig(
            output_dir=str(out),
            per_device_train_batch_size=1,
            per_device_eval_batch_size=1,
            gradient_accumulation_steps=max(1, round(per_step)),
            max_length=None,
            remove_unused_columns=False,
            prediction_loss_only=True,
            dataset_kwargs={"skip_prepare_dataset": True},
            **given,
        )
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        raise RecipeError(f"recipe: trainer: {str(error).splitlines()[0]}") from error


def keep_positions(trainer: Any) -> None:
    """Keep FSDP2 from rounding positions to the type that it computes in.

    FSDP2 casts every input with a fraction to its compute type. Positions of clips of Qwen3-Omni have fractions, and
    bfloat16 can't tell 1,000 from 1,003. Pictures and sound are cast by the model itself.
    """
    plugin: Any = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    policy = getattr(plugin, "mixed_precision_policy", None)
    if policy is not None and hasattr(policy, "cast_forward_inputs"):
        plugin.mixed_precision_policy = replace(policy, cast_forward_inputs=False)
