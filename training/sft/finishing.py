"""The end of training: a stop at a loss that is no number, the checkpoint's folder, and its model card."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from transformers import TrainerCallback

from apr_plugin.errors import AprError
from apr_plugin.training.profile import Carried
from apr_plugin.training.sft.card import card_of, card_page
from apr_plugin.training.sft.learner import load_learner
from apr_plugin.training.sft.recipe import LearnSettings, Recipe, StudentSettings
from apr_plugin.training.student import Student

if TYPE_CHECKING:
    from apr_plugin.training.sft.running import Checked
    from apr_plugin.training.sft.trainer import RowTrainer

ADAPTER = "adapter"
"""Folder of trained adapters, beside the checkpoint into which they are merged."""


class TrainingStopped(AprError):
    """Training was stopped because it can't go on."""


class StopAtNan(TrainerCallback):  # type: ignore[misc]
    """Stop when the loss or the gradient is no finite number; weights after that step would be worthless."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Look at what is logged."""
        for name in ("loss", "grad_norm"):
            value = (logs or {}).get(name)
            if isinstance(value, (int, float)) and not math.isfinite(value):
                raise TrainingStopped(
                    f"step {state.global_step}: {name} is {value}; training stopped. Lower trainer.learning_rate, or "
                    f"set trainer.max_grad_norm. The last checkpoint before is in {args.output_dir}"
                )


def save_final(
    trainer: RowTrainer,
    recipe: Recipe,
    student: Student,
    checked: Checked,
    out: Path,
    seconds: float,
    profile: Carried | None = None,
) -> Path:
    """Write the trained checkpoint with its card, see `save_trained`.

    Args:
        trainer: After training.
        recipe: Its recipe.
        student: Its student, whose processor is saved too.
        checked: Its rows.
        out: Folder of the run.
        seconds: How long training took.
        profile: What the checkpoint carries.

    Raises:
        AprError: it can't be written.
    """

    def card() -> tuple[dict[str, Any], str]:
        data = card_of(trainer, recipe, student, checked, seconds, profile)
        return data, card_page(data)

    return save_trained(trainer, recipe, student, card, out, profile)


class Trained(Protocol):
    """What a recipe has to tell of the weights that are saved."""

    @property
    def student(self) -> StudentSettings:
        """The checkpoint that was trained."""
        ...

    @property
    def learn(self) -> LearnSettings:
        """Which weights were trained."""
        ...


def save_trained(
    trainer: Any,
    recipe: Trained,
    student: Student,
    card: Callable[[], tuple[dict[str, Any], str]],
    out: Path,
    profile: Carried | None = None,
) -> Path:
    """Write the trained checkpoint: an ordinary folder for transformers, vLLM and `policy=hf`.

    Adapters are kept in `adapter/`, and merged into the checkpoint. The folder appears when it is complete.

    Args:
        trainer: After training.
        recipe: Its recipe.
        student: Its student, whose processor is saved too.
        card: Gives the model card, as data and as a page; called in the first process.
        out: Folder of the run.
        profile: What the checkpoint carries, and its adapters.

    Raises:
        AprError: it can't be written.
    """
    import torch

    part, final = out / "final.part", out / "final"
    state = trainer.accelerator.get_state_dict(trainer.model)  # whole, on the first process, also of a sharded model
    if trainer.is_world_process_zero():
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            model = trainer.accelerator.unwrap_model(trainer.model)
            if recipe.learn.what == "lora":
                model.save_pretrained(out / ADAPTER, state_dict=state, safe_serialization=True)
                if profile is not None:
                    profile.file.write(out / ADAPTER)
                model, state = _merged(recipe, out / ADAPTER)
            dtype = _dtype(recipe)
            cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
            was = model.config.dtype
            model.config.dtype = dtype
            model.save_pretrained(part, state_dict=cast, safe_serialization=True)
            model.config.dtype = was
            student.encoder.processor.save_pretrained(part)
            if profile is not None:
                profile.file.write(part)
            data, page = card()
            (part / "training.json").write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
            (part / "README.md").write_text(page)
            part.replace(final)
        except (OSError, RuntimeError) as error:
            if not isinstance(error, OSError) and not isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            raise AprError(
                f"{final}: cannot write the trained checkpoint: {error}; the last one of training is in {out}, and the "
                "same command continues from it"
            ) from error
    trainer.accelerator.wait_for_everyone()
    return final


def _merged(recipe: Trained, adapter: Path) -> tuple[Any, Any]:
    """The checkpoint with the adapters merged into it, loaded again, whole."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_learner(recipe.student), str(adapter)).merge_and_unload()
    return model, model.state_dict()


def _dtype(recipe: Trained) -> Any:
    """The type in which the student's own checkpoint is stored."""
    import torch
    import transformers

    from apr_plugin.models.checkpoint import checkpoint_source

    config = transformers.AutoConfig.from_pretrained(
        checkpoint_source(recipe.student.pretrained, "hf"), revision=recipe.student.revision, trust_remote_code=False
    )
    stored = getattr(getattr(config, "thinker_config", config), "dtype", None) or config.dtype
    return stored if isinstance(stored, torch.dtype) else getattr(torch, str(stored or recipe.student.dtype))
