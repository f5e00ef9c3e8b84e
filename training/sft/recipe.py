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

STAGED = {
    "max_steps": "it is the stage's `length`",
    "num_train_epochs": "it is the stage's `length`",
    "train_sampling_strategy": "the order of a stage's rows is that of its mix",
    "eval_strategy": "a stage is measured by its `gate`",
}
"""Further ones that a recipe with stages can't set, and why."""


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
    distinct_pictures: bool = False
    """Whether equal pictures of a forward go through the vision tower once. Loss and gradients are the same; it saves
    time where many looks show the same, and costs nothing else."""


class RateSettings(_Part):
    """The learning rate of some parameters."""

    match: str
    """A pattern of their names, as in file names: `*.visual.patch_embed.*`."""
    learning_rate: float = Field(gt=0)
    """In place of `trainer.learning_rate`; the schedule multiplies it as well."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Of all of them; default: as in `trainer.weight_decay`, with norms and biases left out."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`adamw`: the trainer's own (`trainer.optim`, by default AdamW). `muon`: Muon for the matrices among them
    (arXiv 2502.16982); other parameters go on to the next rate."""


class SourceSettings(_Part):
    """One source of rows in a mix; it has either `rows` or `made`."""

    rows: str | None = None
    """A file of `apr train rows`: turns, chats, or both. Its rows for training are taken."""
    made: str | None = None
    """The name of a maker of rows (`training.named`)."""
    share: float = Field(default=1.0, gt=0)
    """Its share of the rows, beside those of the other sources."""
    seed: int = 0
    """Of the order of its rows, or of what is made."""
    given: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the maker."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.rows is None) == (self.made is None):
            raise ValueError("a source has either `rows`, a file, or `made`, the name of a maker of rows")
        if self.given and self.made is None:
            raise ValueError("`given` are arguments of a maker of rows")
        return self

    @property
    def title(self) -> str:
        """Its name in counts."""
        return self.made or Path(str(self.rows)).stem


class LengthSettings(_Part):
    """How long a stage is: one of the three."""

    steps: int | None = Field(default=None, ge=1)
    """Steps of the optimizer."""
    rows: int | None = Field(default=None, ge=1)
    """About so many rows, in whole steps."""
    tokens: int | None = Field(default=None, ge=1)
    """About so many tokens of rows, in whole steps, from the average length of the first rows."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sum(value is not None for value in (self.steps, self.rows, self.tokens)) != 1:
            raise ValueError("a length has one of steps, rows and tokens")
        return self


class GateSettings(_Part):
    """What must be reached before the next stage."""

    measure: str
    """The name of a measure (`training.named`): it plays or scores held-out examples and gives numbers."""
    reach: dict[str, float] = Field(min_length=1)
    """The least value of each number that counts."""
    every: int = Field(default=100, ge=1)
    """Steps between measurements."""
    at_most: LengthSettings
    """When to give up: the run stops there with an error that has the last numbers."""
    given: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the measure."""


class StageSettings(_Part):
    """A part of a staged run: its own mix, length and rates. It begins with the weights of the one before."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")
    """Its name in folders and messages."""
    mix: tuple[SourceSettings, ...] = Field(min_length=1)
    """Where its rows come from."""
    length: LengthSettings
    """How long it is; with a gate, how long it is at least."""
    gate: GateSettings | None = None
    """It ends at the first measurement, after its length, that reaches all of this."""
    rate: float = Field(default=1.0, gt=0)
    """It multiplies all learning rates."""
    optimizer: Literal["keep", "fresh"] = "keep"
    """Whether the optimizer's moments are those of the stage before, or begin anew."""
    weights: str | None = None
    """The weigher of this stage, in place of the recipe's."""
    rows_per_step: int | None = Field(default=None, ge=1)
    """In place of the recipe's."""
    token_budget: int | None = Field(default=None, ge=1)
    """In place of `forward.token_budget`."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Fields of `SFTConfig` in place of the recipe's: a schedule, above all. A schedule's end is the stage's (with a
    gate, `at_most`)."""

    @field_validator("trainer")
    @classmethod
    def _fields(cls, given: dict[str, Any]) -> dict[str, Any]:
        refuse_ours(given, OURS | STAGED)
        return given


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
    weights: str | None = None
    """The name of a weigher of target tokens (`training.named`); default: each counts the same."""
    rates: tuple[RateSettings, ...] = ()
    """Learning rates of some parameters; the first whose pattern matches a name is taken."""
    stages: tuple[StageSettings, ...] = ()
    """Parts of the run with mixes of their own, in place of `rows`."""
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

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.stages:
            if self.rows is not None:
                raise ValueError("with stages, rows are named in their mixes, and not as `rows`")
            refuse_ours(self.trainer, STAGED)
        names = [stage.name for stage in self.stages]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"stages: two are called {min(twice)!r}")
        if self.learn.what == "lora" and self.stages:
            raise ValueError("stages train whole weights (learn.what: full), not adapters")
        if self.trainer.get("loss_type", "nll") != "nll" and (self.weights or any(s.weights for s in self.stages)):
            raise ValueError("weights of tokens need trainer.loss_type: nll")
        return self

    def check_trainer(self) -> None:
        """Compare the names in `trainer` with the installed TRL.

        Raises:
            AprError: TRL is not installed, or has no such field.
        """
        for given in (self.trainer, *(stage.trainer for stage in self.stages)):
            check_names(given, "SFTConfig")


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
