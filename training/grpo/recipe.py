"""A recipe of GRPO: student, questions, rollouts, rewards, credit and TRL's settings, in one YAML file.

    student: {pretrained: out/final, context_tokens: 65536}
    questions: [questions.jsonl]
    generations: 8
    questions_per_step: 32
    trainer: {max_steps: 150, learning_rate: 1.0e-6}

`trainer` takes the fields of TRL's `GRPOConfig`, except for those that this package decides (`OURS`). Paths are
relative to the working folder, as on the command line.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from apr_plugin.errors import AprError
from apr_plugin.files import read_regular
from apr_plugin.loop.budget import Budget
from apr_plugin.loop.policy import Sampling
from apr_plugin.loop.profiles import WireName
from apr_plugin.loop.wires import wire_of
from apr_plugin.training.grpo.credit import CreditSettings
from apr_plugin.training.grpo.groups import GroupSettings
from apr_plugin.training.grpo.rewards import RewardSettings
from apr_plugin.training.grpo.served.settings import RolloutSettings
from apr_plugin.training.grpo.settings import GrpoSettings
from apr_plugin.training.recipe_file import RecipeError, check_names, load_recipe, refuse_ours
from apr_plugin.training.sft.recipe import LearnSettings, StudentSettings

FOLDER = Path(__file__).resolve().parent.parent / "recipes" / "grpo"
"""The recipes of this package; they are named without their ending."""

_ROWS = "a forward is one row, or as many as `forward.token_budget` allows"
_VLLM = "turns are sampled from the model that is trained, in its own process, or by the servers of `rollouts`"

OURS = {
    "output_dir": "it is --out",
    "per_device_train_batch_size": _ROWS,
    "per_device_eval_batch_size": "there is no evaluation while training; use `apr eval`",
    "eval_strategy": "there is no evaluation while training; use `apr eval`",
    "gradient_accumulation_steps": _ROWS,
    "generation_batch_size": "it is questions_per_step times generations",
    "steps_per_generation": "it is `updates_per_rollout`",
    "num_generations": "it is `generations`",
    "temperature": "it is `sampling.temperature`",
    "max_completion_length": "it is `sampling.max_new_tokens`",
    "top_p": "turns are sampled from the whole distribution",
    "top_k": "turns are sampled from the whole distribution",
    "min_p": "turns are sampled from the whole distribution",
    "repetition_penalty": "turns are sampled from the whole distribution",
    "generation_kwargs": "turns are sampled by policy=hf",
    "scale_rewards": "it is `groups.scale_rewards`",
    "reward_weights": "they are in `reward`",
    "multi_objective_aggregation": "a trajectory has one reward",
    "sync_ref_model": "the reference of `beta` stays the student as it was",
    "top_entropy_quantile": "its threshold would be that of one row",
    "entropy_coef": "its mean would be that of one row",
    "use_adaptive_entropy": "its mean would be that of one row",
    "mask_truncated_completions": "a turn that is cut off is a turn like any other",
    "router_aux_loss_coef": "its mean would be that of one row",
    "use_vllm": _VLLM,
    "use_transformers_paged": _VLLM,
    "use_transformers_continuous_batching": _VLLM,
    "log_completions": "trajectories are kept as `samples` says",
    "shuffle_dataset": "questions are drawn anew in each pass, from `trainer.seed`",
    "remove_unused_columns": "an element is the number of a question",
    "ignore_data_skip": "a continued run goes on with the next questions",
    "auto_find_batch_size": "a group of trajectories can't be cut",
    "model_init_kwargs": "they are the fields of `student`",
    "trust_remote_code": "code that comes with a checkpoint is never run",
    "resume_from_checkpoint": "a run continues by itself in its folder",
}
"""Fields of `GRPOConfig` that a recipe can't set, and why."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Range = tuple[int, int]
"""The least and the greatest value; both can be drawn."""


class BudgetDraws(_Part):
    """What varies from group to group, so that a model learns to obey the limits that it is told."""

    frames: Range | None = None
    """Most frames of one look; the data of arXiv 2606.19341 has 30 to 60."""
    clip_s: Range | None = None
    """Most seconds of one clip; there 30 to 60. Shorter clips give more turns (`Budget.turns_for`)."""
    audio_s: Range | None = None
    """Most seconds of sound in one look; there 150 to 300."""
    turns: Range | None = None
    """Turns, where all films of the question together are shorter than `short_s`; for longer ones they follow from
    `budget`. The paper's rule gives 5 to 10 for films under 300 s."""
    short_s: float = Field(default=300.0, gt=0)
    """What is short, in seconds."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("frames", "clip_s", "audio_s", "turns"):
            if (given := getattr(self, name)) is not None and not 1 <= given[0] <= given[1]:
                raise ValueError(f"{name}: [{given[0]}, {given[1]}] is no range of whole numbers from 1")
        return self


class SamplingSettings(_Part):
    """How the turns of rollouts are sampled: from the model's whole distribution."""

    temperature: float = Field(default=1.0, gt=0, le=10)
    """Log-probabilities and entropies are of the distribution at this temperature."""
    max_new_tokens: int = Field(default=4096, ge=1)
    """Longest turn."""
    concurrency: int = Field(default=8, ge=1)
    """Episodes at once in each process; as many turns are written together."""
    kv_cache_gb: float = Field(default=4.0, ge=0)
    """GiB for the kept beginnings of prompts; 0 keeps nothing. They are dropped after each step."""
    tolerance: float | None = Field(default=None, gt=0)
    """Most that a log-probability may differ between sampling and training, in nats, before training stops: weights or
    prompts would not be those that were sampled with. Default: 1e-3 in float32, no limit otherwise, because rounding to
    bfloat16 differs by more; the largest difference is always logged."""

    def policy(self) -> Sampling:
        """The same for the policy."""
        return Sampling(temperature=self.temperature, max_new_tokens=self.max_new_tokens)


class ForwardSettings(_Part):
    """What goes through the model at once."""

    token_budget: int | None = Field(default=None, ge=1)
    """Most tokens of one forward, padding included: rows of similar length share it. Default: one unpadded row."""
    reduce_each: bool = False
    """Whether gradients are reduced over processes after every forward, not only after the last one of a step. FSDP
    then never holds whole gradients: less memory, more communication. The sums are the same."""
    rebalance: bool = True
    """Whether rows travel to processes that have fewer tokens, with their pictures as bytes; false where sending them
    costs more than waiting (`balance/seconds`). The sums are the same."""


class SampleSettings(_Part):
    """Trajectories that are kept to be looked at, each time as a run folder for `apr show`."""

    every: int = Field(default=10, ge=1)
    """After how many steps."""
    trajectories: int = Field(default=8, ge=0)
    """How many, of the first process; 0 keeps none."""


class GrpoRecipe(_Part):
    """A training run."""

    student: StudentSettings
    """What is trained: usually a checkpoint of `apr train sft`."""
    questions: list[str] = Field(default_factory=list)
    """JSON Lines files (docs/training.md), or `needle:FOLDER`; `--questions` names others."""
    unreadable: Literal["stop", "skip"] = "stop"
    """What happens before training if a question's film can't be opened: nothing is trained, or training goes without
    it. A film that breaks later ends its trajectory only."""
    longest_s: float | None = Field(default=None, gt=0)
    """Questions whose films together last longer are left out; the paper trains on films under 300 s."""
    generations: int = Field(default=8, ge=2)
    """Trajectories of each question (G)."""
    questions_per_step: int = Field(default=32, ge=1)
    """Questions of one rollout, over all processes, without those of `groups.oversample`."""
    updates_per_rollout: int = Field(default=1, ge=1)
    """Optimizer steps over which the turns of a rollout are spread; all of them in one step by default."""
    budget: Budget = Budget()
    """Limits of an episode."""
    draws: BudgetDraws = BudgetDraws()
    """Which of them vary."""
    wire: WireName = "apr"
    """The form of prompts, see docs/wires.md."""
    frame_references: bool | None = None
    """Whether shown frames have names; default: as the wire does."""
    frame_times: bool | None = None
    """Whether the label of a frame with a name has its time; default: as the wire does."""
    parsing: Literal["repair", "strict"] = "repair"
    """How turns are read."""
    system_prompt: str | None = None
    """A file with instructions, in place of the default ones."""
    sampling: SamplingSettings = SamplingSettings()
    """How turns are sampled."""
    rollouts: RolloutSettings = RolloutSettings()
    """Where they are sampled: in the trainer's processes, or by vLLM servers."""
    reward: RewardSettings = RewardSettings()
    """What is rewarded."""
    groups: GroupSettings = GroupSettings()
    """Which groups are learned from, and how rewards are compared."""
    credit: CreditSettings = CreditSettings()
    """Which turn gets how much."""
    learn: LearnSettings = LearnSettings()
    """Which weights."""
    forward: ForwardSettings = ForwardSettings()
    """What goes through the model at once."""
    samples: SampleSettings = SampleSettings()
    """What is kept to be looked at."""
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    """Of the rollouts. The order of questions is drawn from `trainer.seed`."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Fields of TRL's `GRPOConfig`. With `beta` above 0, TRL's KL term to a reference is added for each trained token:
    the student as it was before training, or with adapters the model without them."""
    about: dict[str, str] = Field(default_factory=dict)
    """Notes: the source of the numbers, what was run, memory."""

    @field_validator("trainer")
    @classmethod
    def _fields(cls, given: dict[str, Any]) -> dict[str, Any]:
        refuse_ours(given, OURS)
        return given

    @field_validator("reward", "groups", "credit", mode="before")
    @classmethod
    def _settings(cls, given: Any, info: Any) -> Any:
        kind: type[GrpoSettings] = cls.model_fields[info.field_name].annotation  # type: ignore[assignment]
        if isinstance(given, kind):
            return given
        try:
            return kind.of(given, info.field_name)
        except AprError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _check(self) -> Self:
        beta = self.trainer.get("beta", 0.0)
        if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0 <= beta < math.inf:
            raise ValueError(f"trainer: beta={beta!r}: it must be a number of at least 0")
        if wire_of(self.wire, self.frame_references, self.frame_times).references and self.parsing == "strict":
            raise ValueError("parsing: strict parsing reads no names of frames, which this wire has")
        return self

    @property
    def sampled_questions(self) -> int:
        """Questions of one rollout, those of `groups.oversample` included."""
        return max(self.questions_per_step, round(self.questions_per_step * self.groups.oversample))

    @property
    def tolerance(self) -> float | None:
        """`sampling.tolerance`, or its default."""
        exact = self.student.dtype == "float32" and not (self.trainer.get("bf16") or self.trainer.get("fp16"))
        return self.sampling.tolerance or (1e-3 if exact else None)

    def instructions(self) -> str | None:
        """The text of `system_prompt`; `None` for the default instructions.

        Raises:
            RecipeError: its file can't be read.
        """
        if self.system_prompt is None:
            return None
        try:
            return read_regular(Path(self.system_prompt).expanduser()).decode("utf-8")
        except (OSError, ValueError) as error:
            raise RecipeError(
                f"recipe: system_prompt: {self.system_prompt}: cannot read it: "
                f"{getattr(error, 'strerror', None) or error}"
            ) from error

    def check_trainer(self) -> None:
        """Compare the names in `trainer` with the installed TRL.

        Raises:
            AprError: TRL is not installed, or has no such field.
        """
        check_names(self.trainer, "GRPOConfig")


def read_recipe(name: str, **changes: Any) -> GrpoRecipe:
    """Read a recipe.

    Args:
        name: Its file, or the name of one of this package's.
        changes: Fields that replace the file's; `None` and an empty list change nothing; the fields of a mapping are
            replaced one by one: `student={"pretrained": "tiny"}`.

    Raises:
        RecipeError: it can't be read, or a field is wrong.
    """
    return load_recipe(GrpoRecipe, name, FOLDER, changes)
