"""A recipe of on-policy distillation: that of GRPO, with a teacher and another loss.

    student: {pretrained: sft/final}
    teacher: {pretrained: Qwen/Qwen2.5-Omni-7B}
    questions: [questions.jsonl]
    distill: {top_k: 32, weighting: none}
    trainer: {max_steps: 150, learning_rate: 1.0e-6}

Questions, budgets, sampling, forwards and samples are those of `training.grpo.recipe`. Nothing is chosen by its reward,
so `credit`, `groups` and the loss of TRL can't be set; rewards are computed and logged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from apr_plugin.training.grpo.recipe import GrpoRecipe
from apr_plugin.training.recipe_file import load_recipe, refuse_ours
from apr_plugin.training.sft.recipe import StudentSettings

FOLDER = Path(__file__).resolve().parent.parent / "recipes" / "distill"
"""The recipes of this package; they are named without their ending."""

_LOSS = "the loss is the reverse KL to the teacher; see `distill`"

OURS = {
    "beta": "the teacher is the reference",
    "loss_type": _LOSS,
    "epsilon": _LOSS,
    "epsilon_high": _LOSS,
    "delta": _LOSS,
    "importance_sampling_level": _LOSS,
    "off_policy_mask_threshold": _LOSS,
    "num_iterations": "each row is learned once, because the loss clips nothing",
}
"""Fields of `GRPOConfig` that a recipe of distillation can't set in addition, and why."""


class TeacherSettings(BaseModel):
    """The checkpoint that is learned from. It is not trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pretrained: str
    """Its folder, or its name on the hub; the folder of a whole Omni model gives its Thinker."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The weights in memory; a checkpoint that is stored in bfloat16 loses nothing in it."""
    attn_implementation: str | None = None
    """`sdpa`, `flash_attention_2`, …; default: what transformers chooses."""


class DistillSettings(BaseModel):
    """The loss."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    top_k: int = Field(default=32, ge=2)
    """The teacher's likeliest tokens at each position (K), on which both distributions are renormalised."""
    estimator: Literal["top_k", "sampled"] = "top_k"
    """`top_k`: the reverse KL on that support. `sampled`: its estimate by the sampled token alone."""
    weighting: Literal["none", "turn_entropy"] = "none"
    """How much a turn counts: `turn_entropy` multiplies by its mean entropy over that of all turns of the question, as
    TAURA does with advantages (arXiv 2606.19341, eq. 4); the mean over the turns of a question is one."""
    special_tokens: Literal["masked", "learned"] = "masked"
    """Whether positions at which the student wrote a special token, such as the end of the turn, are learned. The
    placeholders of media never are. The teacher's opinion on ending a turn earlier is learned in any case."""


class DistillRecipe(GrpoRecipe):
    """A training run."""

    teacher: TeacherSettings
    """What is learned from."""
    distill: DistillSettings = DistillSettings()
    """The loss."""

    @field_validator("trainer")
    @classmethod
    def _fields_of_distillation(cls, given: dict[str, Any]) -> dict[str, Any]:
        refuse_ours(given, OURS)
        return given

    @model_validator(mode="after")
    def _nothing_of_rewards(self) -> Self:
        for name in ("credit", "groups"):
            if name in self.model_fields_set:
                raise ValueError(
                    f"{name}: distillation learns from every trajectory, whatever its reward; leave it out"
                )
        return self

    def teacher_settings(self) -> StudentSettings:
        """The teacher as a checkpoint to load; it reads pictures as the student does."""
        student = self.student
        return StudentSettings(
            **self.teacher.model_dump(),
            context_tokens=student.context_tokens,
            min_pixels=student.min_pixels,
            max_pixels=student.max_pixels,
        )


def read_recipe(name: str, **changes: Any) -> DistillRecipe:
    """Read a recipe; see `training.grpo.recipe.read_recipe`.

    Raises:
        RecipeError: it can't be read, or a field is wrong.
    """
    return load_recipe(DistillRecipe, name, FOLDER, changes)
