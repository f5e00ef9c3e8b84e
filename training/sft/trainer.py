"""TRL's SFTTrainer on rows: the arguments that it needs for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from apr_plugin.models.batch import Example
from apr_plugin.training.loading import RowCollator, RowLoader
from apr_plugin.training.recipe_file import RecipeError
from apr_plugin.training.rows import Row, RowSet
from apr_plugin.training.sft.dummies import Dummies
from apr_plugin.training.sft.head import read_only_labels
from apr_plugin.training.sft.learner import choose_weights, load_learner, lora_config
from apr_plugin.training.sft.mixes import Mix
from apr_plugin.training.sft.packs import packs
from apr_plugin.training.sft.pictures import batch_attention
from apr_plugin.training.sft.rates import carry_over, groups_of, optimizer_of
from apr_plugin.training.sft.recipe import RateSettings, Recipe
from apr_plugin.training.sft.resuming import OwnNames
from apr_plugin.training.sft.weights import Weighing, mean_one
from apr_plugin.training.student import Student


class RowTrainer(OwnNames, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose head reads only the positions that have labels, and that continues from its own weights.

    Args:
        args: As for SFTTrainer.
        rates: Learning rates of some parameters.
        carried: A file with the state of another optimizer, whose moments are taken over.
        more: As for SFTTrainer.
    """

    optimizer: Any

    def __init__(
        self, *args: Any, rates: Sequence[RateSettings] = (), carried: Path | None = None, **more: Any
    ) -> None:
        self.rates = tuple(rates)
        self.carried = carried
        super().__init__(*args, **more)
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        read_only_labels(model, right_padded=True)
        batch_attention(model)

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimizer of the recipe's rates; without any, TRL's own."""
        if self.optimizer is not None:
            return self.optimizer
        if not self.rates:
            super().create_optimizer(model)
        else:
            self.optimizer = self._with_rates(self.model if model is None else model)
        if self.carried is not None:
            carry_over(self.optimizer, torch.load(self.carried, map_location="cpu", weights_only=True))
        return self.optimizer

    def _with_rates(self, model: Any) -> Any:
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        plain, muon = groups_of(
            trained,
            self.rates,
            learning_rate=self.args.learning_rate,
            weight_decay=self.args.weight_decay,
            decays=frozenset(self.get_decay_parameter_names(model)),
        )
        if muon and sharded(self.args):
            raise RecipeError("rates: Muon takes whole matrices, and the weights are sharded; take optimizer: adamw")
        kind, given = self.get_optimizer_cls_and_kwargs(self.args, model)
        if not isinstance(kind, type) or {"params", "model", "optimizer_dict"} & given.keys():
            raise RecipeError(f"rates: trainer.optim={self.args.optim} groups parameters itself; take adamw_torch")
        return optimizer_of(plain, muon, lambda groups: kind(groups, **given))

    def get_batch_samples(self, *args: Any, **more: Any) -> Any:
        """The batches of a step; weights of tokens have a mean of 1 over them."""
        batches, count = super().get_batch_samples(*args, **more)
        mean_one(batches, lambda sums: self.accelerator.gather(sums.to(self.args.device)))
        return batches, count

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **more: Any) -> Any:
        """TRL's loss; in evaluation the weights of a batch have a mean of 1."""
        if not model.training:
            mean_one([inputs], lambda sums: sums)
        return super().compute_loss(model, inputs, *args, **more)


class PackCollator:
    """From elements of `pack_dataset`, or numbers of packs of a mix, to the arguments of `forward`.

    Args:
        collator: Makes a batch.
        weighing: Gives the weights of tokens; default: none.
        mix: Gives the packs.
    """

    def __init__(self, collator: RowCollator, weighing: Weighing | None = None, mix: Mix | None = None) -> None:
        self.collator = collator
        self.weighing = weighing
        self.mix = mix

    def __call__(self, elements: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One batch of the rows of these packs."""
        rows = [row for element in elements for row in self._rows(element)]
        return self.collator.batch([self._example(row, source) for row, source in rows])

    def _rows(self, element: dict[str, Any]) -> Sequence[tuple[Row | Example, str]]:
        if self.mix is not None:
            return self.mix[element["pack"]]
        rows = [Row.model_validate_json(text) for text in element["rows"]]
        return [(row, row.source) for row in rows]

    def _example(self, row: Row | Example, source: str) -> Example:
        example = row if isinstance(row, Example) else self.collator.loader.example(row)
        if self.weighing is None or example.weights is not None:
            return example
        return self.weighing(example, source)


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
    return _trainer(recipe, student, args, pack_dataset(train), pack_dataset(held) if held else None, percepts=percepts)


def make_stage_trainer(
    recipe: Recipe,
    mix: Mix,
    student: Student,
    out: Path,
    steps: int,
    *,
    percepts: Any = None,
    carried: Path | None = None,
) -> RowTrainer:
    """The trainer of a stage, ready for `train()`.

    Args:
        recipe: What is trained and how, with the settings of the stage.
        mix: Its rows; its length is set.
        student: Reads the rows.
        out: Folder of checkpoints and logs.
        steps: Steps of the optimizer.
        percepts: The cache of decoded pictures and sound.
        carried: The state of the optimizer of the stage before.

    Raises:
        AprError: see `make_trainer`.
    """
    forwards = forwards_per_step(recipe, mix)
    mix.length = steps * forwards * processes()
    staged = {"max_steps": steps, "train_sampling_strategy": "sequential", "save_strategy": "steps", "save_steps": 200}
    args = _arguments(recipe, out, 1, recipe.rows_per_step, False, forwards=forwards, **staged)
    numbers = Dataset.from_dict({"pack": range(mix.length)})
    return _trainer(recipe, student, args, numbers, None, percepts=percepts, carried=carried, mix=mix)


def forwards_per_step(recipe: Recipe, mix: Mix) -> int:
    """Forwards of one process in each step."""
    return max(1, round(recipe.rows_per_step / mix.pack_rows / processes()))


def _trainer(
    recipe: Recipe,
    student: Student,
    args: SFTConfig,
    train: Any,
    held: Any,
    *,
    percepts: Any = None,
    carried: Path | None = None,
    mix: Mix | None = None,
) -> RowTrainer:
    weighing = None if recipe.weights is None else Weighing(recipe.weights, student)
    model = load_learner(recipe.student)
    choose_weights(model, recipe.learn)
    loader = RowLoader(student, percepts=percepts, other_versions=recipe.other_versions)
    # With a mask TRL counts the tokens. Padded on the right, nothing that has a label can see padding, so `sdpa` needs
    # none.
    collator = RowCollator(
        loader,
        side="right",
        mask=True,
        complete=Dummies(student).complete if sharded(args) else None,
        distinct=recipe.forward.distinct_pictures,
    )
    trainer = RowTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=held,
        data_collator=PackCollator(collator, weighing, mix),
        processing_class=student.encoder.processor,
        peft_config=lora_config(model, recipe.learn.lora) if recipe.learn.what == "lora" else None,
        rates=recipe.rates,
        carried=carried,
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


def _arguments(
    recipe: Recipe, out: Path, packed: int, rows: int, held: bool, *, forwards: int | None = None, **staged: Any
) -> SFTConfig:
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
        **staged,
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
            gradient_accumulation_steps=forwards or max(1, round(per_step)),
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
