"""A recipe: everything that a training run is made of, in one YAML file.

    student: {pretrained: Qwen/Qwen2.5-Omni-7B, context_tokens: 65536}
    rows: rows.jsonl
    learn: {what: full, towers: frozen}
    rows_per_step: 64
    trainer: {num_train_epochs: 2, learning_rate: 1.0e-5}

`trainer` takes the fields of TRL's `SFTConfig`, except for those that this package decides (`OURS`). Paths are relative
to the working folder, as on the command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from apr_plugin.training.recipe_file import check_names, load_recipe, refuse_ours

FOLDER = Path(__file__).resolve().parent.parent / "recipes"
"""The recipes of this package; they are named without their ending."""

OURS = {
    "output_dir": "it is --out",
    "per_device_train_batch_size": "a forward is one row, or as many as `forward.token_budget` allows",
    "per_device_eval_batch_size": "a forward is one row, or as many as `forward.token_budget` allows",
    "gradient_accumulation_steps": "it follows from `rows_per_step` and the number of processes",
    "max_length": "rows are never truncated; the longest is `student.context_tokens`",
    "remove_unused_columns": "rows are references and have no such columns",
    "dataset_kwargs": "rows are made before training",
    "packing": "a forward is one row, or several padded ones",
    "padding_free": "a forward is one row, or several padded ones",
    "assistant_only_loss": "only the turn of a row has labels",
    "completion_only_loss": "only the turn of a row has labels",
    "dataset_text_field": "rows hold no text",
    "chat_template_path": "prompts are those that the policy saw",
    "eos_token": "a turn ends as the student's tokenizer says",
    "model_init_kwargs": "they are the fields of `student`",
    "trust_remote_code": "code that comes with a checkpoint is never run",
    "resume_from_checkpoint": "a run continues by itself in its folder",
    "prediction_loss_only": "the validation part gives a loss only",
}
"""Fields of `SFTConfig` that a recipe can't set, and why."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StudentSettings(_Part):
    """The checkpoint that is trained."""

    pretrained: str
    """Its folder, or its name on the hub; the folder of a whole Omni model gives its Thinker."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    context_tokens: int | None = Field(default=None, ge=1)
    """The longest row; default: the positions that it was made for."""
    min_pixels: int | None = Field(default=None, ge=1)
    """As in `apr train rows`: smaller pictures are enlarged to this."""
    max_pixels: int | None = Field(default=None, ge=1)
    """Larger ones are scaled down to this."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The weights in memory. With `trainer: {bf16: true}` float32 weights are computed with in bfloat16 (mixed
    precision); in bfloat16 the optimizer's steps are rounded, which only LoRA, whose own weights stay float32,
    avoids."""
    attn_implementation: str | None = None
    """`sdpa`, `flash_attention_2`, …; default: what transformers chooses."""


class LoraSettings(_Part):
    """Low-rank adapters (arXiv 2106.09685) on the language model's linear layers."""

    r: int = Field(default=64, ge=1)
    """Rank."""
    alpha: int = Field(default=128, ge=1)
    """Scale: the adapter's output is multiplied by alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the adapter's input."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of the layers that get one, within the language model."""


class LearnSettings(_Part):
    """Which weights are trained."""

    what: Literal["full", "lora"] = "full"
    """All weights of the language model, or adapters."""
    towers: Literal["frozen", "projector", "trained"] = "frozen"
    """Vision and audio towers: as they are; only their last layers, which lead into the language model; or whole."""
    lora: LoraSettings = LoraSettings()
    """The adapters."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.what == "lora" and self.towers != "frozen":
            raise ValueError("adapters are trained with towers: frozen only; take what: full to train towers")
        return self


class ForwardSettings(_Part):
    """What goes through the model at once."""

    token_budget: int | None = Field(default=None, ge=1)
    """Most tokens of one forward, padding included: rows of similar length share it. Default: one unpadded row, which
    is the cheapest for long rows and needs no more memory than the longest."""
    seed: int = 0
    """It draws which rows share a forward."""


class PerceptSettings(_Part):
    """The cache of decoded pictures and sound."""

    folder: str | None = None
    """Where it is; default: no cache."""
    gigabytes: float = Field(default=50, gt=0)
    """Its size; what was not used for longest goes first."""


class Recipe(_Part):
    """A training run."""

    student: StudentSettings
    """What is trained."""
    rows: str | None = None
    """The file that `apr train rows` wrote; `--rows` names another."""
    learn: LearnSettings = LearnSettings()
    """Which weights."""
    rows_per_step: int = Field(default=64, ge=1)
    """Rows of one optimizer step over all processes. With a token budget it is about so many."""
    forward: ForwardSettings = ForwardSettings()
    """What goes through the model at once."""
    percepts: PerceptSettings = PerceptSettings()
    """The cache of what was decoded."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """What happens if a row can't be rebuilt (a video is gone or has changed, a line is damaged): nothing is trained,
    or training goes without it. Rows are checked before training."""
    other_versions: bool = False
    """Whether pictures of another release of PyAV than the trajectory's are taken."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Fields of TRL's `SFTConfig`."""
    about: dict[str, str] = Field(default_factory=dict)
    """Notes: the source of the numbers, what was run, memory."""

    @field_validator("trainer")
    @classmethod
    def _fields(cls, given: dict[str, Any]) -> dict[str, Any]:
        refuse_ours(given, OURS)
        return given

    def check_trainer(self) -> None:
        """Compare the names in `trainer` with the installed TRL.

        Raises:
            AprError: TRL is not installed, or has no such field.
        """
        check_names(self.trainer, "SFTConfig")


def read_recipe(name: str, **changes: Any) -> Recipe:
    """Read a recipe.

    Args:
        name: Its file, or the name of one of this package's.
        changes: Fields that replace the file's: `rows="rows.jsonl"`; `None` changes nothing; the fields of a mapping
            are replaced one by one: `student={"pretrained": "tiny"}`.

    Raises:
        RecipeError: it can't be read, or a field is wrong.
    """
    return load_recipe(Recipe, name, FOLDER, changes)
