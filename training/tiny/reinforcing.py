"""Reinforcement of the small agent on filmed worlds, after its stages: whole episodes, one rule of credit, one gate.

    OUT/reinforcement/taura-1/            the rule of credit and the seed
        run.json, before.json             what it is made of; what the checkpoint scored before
        training/                         a run of `apr train grpo`
        gate.json                         the scores before and after, and whether the weights are kept
        final/                            the trained checkpoint, or the one before if the gate fell

Runs of other rules and seeds begin with the same checkpoint and ask about the same worlds.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from rich.console import Console

from apr_plugin import terminal
from apr_plugin.files import read_regular
from apr_plugin.models.profile import profile_of_checkpoint
from apr_plugin.training.grpo.recipe import GrpoRecipe
from apr_plugin.training.named import named
from apr_plugin.training.recipe_file import RecipeError, refuse_ours
from apr_plugin.training.sft.recipe import StudentSettings
from apr_plugin.training.sft.running import FINAL, claim_folder, student_of
from apr_plugin.training.tiny.prompts import PROFILE

FOLDER = "reinforcement"
TRAINING = "training"
BEFORE, GATE = "before.json", "gate.json"

Rule = Literal["grpo", "taura", "empg", "shuffled"]
"""Rules of credit; `grpo` gives every turn the same."""

OURS = {
    "student": "it is the checkpoint of the last stage",
    "questions": "they are about the worlds that are filmed",
    "credit": "its rule is `reinforcement.credit`",
    "seed": "it is `reinforcement.seed`",
}
"""Fields of a recipe of `apr train grpo` that `settings` can't have, and why."""


class GateOfReinforcement(BaseModel):
    """What must not fall."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    measure: str = "needle_agent"
    """The name of a measure (`training.named`)."""
    given: dict[str, Any] = Field(default_factory=dict)
    """Its arguments. Its worlds should not be those by which stages were ended."""
    mean_of: tuple[str, ...] = Field(default=("glyph", "when", "order"), min_length=1)
    """The numbers whose mean counts."""
    may_fall: float = Field(default=0.0, ge=0)
    """By how much it may be lower than before."""


class ReinforcementSettings(BaseModel):
    """The last part of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    credit: Rule = "grpo"
    """Which turn gets how much."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the rollouts, the order of questions, and `shuffled`."""
    gate: GateOfReinforcement = GateOfReinforcement()
    """When the trained weights are kept."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """A recipe of `apr train grpo`, without `OURS`. Prompts, limits and the longest turn are those of the small agent
    unless it says otherwise."""

    @field_validator("settings")
    @classmethod
    def _fields(cls, given: dict[str, Any]) -> dict[str, Any]:
        refuse_ours(given, OURS)
        return given

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.credit}-{self.seed}"

    def recipe(self, student: Path, questions: Path) -> GrpoRecipe:
        """What `apr train grpo` takes.

        Args:
            student: The checkpoint that is trained.
            questions: The file of questions.

        Raises:
            RecipeError: a field is wrong.
        """
        given = dict(self.settings)
        given["sampling"] = {"max_new_tokens": PROFILE.sampling.max_new_tokens} | given.get("sampling", {})
        given["trainer"] = given.get("trainer", {}) | {"seed": self.seed}
        form = {
            "wire": PROFILE.wire,
            "frame_references": PROFILE.frame_references,
            "frame_times": PROFILE.frame_times,
            "budget": PROFILE.limits.model_dump(),
        }
        ours = {
            "student": {"pretrained": str(student)},
            "questions": [str(questions)],
            "credit": {"rule": "none" if self.credit == "grpo" else self.credit, "seed": self.seed},
            "seed": self.seed,
        }
        try:
            return GrpoRecipe.model_validate(form | given | ours)
        except ValueError as error:
            raise RecipeError(f"reinforcement.settings: {terminal.one_line(str(error), 400)}") from error

    def shrunk(self, factor: float, fewer: tuple[str, ...]) -> ReinforcementSettings:
        """Fewer steps, and a gate that measures less and asks nothing.

        Args:
            factor: Divides the numbers.
            fewer: Arguments of measures that say how much is measured.
        """
        trainer = self.settings.get("trainer", {})
        steps = {"max_steps": max(1, round(trainer["max_steps"] / factor))} if "max_steps" in trainer else {}
        settings = self.settings | {"trainer": trainer | steps}
        given = {name: max(1, round(n / factor)) if name in fewer else n for name, n in self.gate.given.items()}
        gate = self.gate.model_copy(update={"given": given, "may_fall": 1.0})
        return self.model_copy(update={"settings": settings, "gate": gate})


def reinforce(out: Path, settings: ReinforcementSettings, student: Path, questions: Path, console: Console) -> Path:
    """Train, measure, and keep the better of before and after.

    Args:
        out: Folder of the run.
        settings: How.
        student: The checkpoint that is trained.
        questions: The file of questions.
        console: Shows progress.

    Returns:
        The folder of the checkpoint.

    Raises:
        AprError: nothing can be trained, or the folder is of other settings.
    """
    recipe = settings.recipe(student, questions)
    folder = out / FOLDER / settings.name
    claim_folder(folder, settings.model_dump(mode="json") | {"student": str(student)}, True)
    if (folder / FINAL / "config.json").is_file():
        console.print(f"{folder / FINAL}: trained before", soft_wrap=True)
        return folder / FINAL
    before = _scores(folder / BEFORE, settings.gate, student, console)
    from apr_plugin.training.grpo.running import run_grpo

    trained = run_grpo(recipe, folder / TRAINING)
    after = _scores(folder / "after.json", settings.gate, trained, console)
    was, now = (fmean(scores[name] for name in settings.gate.mean_of) for scores in (before, after))
    kept = now >= was - settings.gate.may_fall
    _write(folder / GATE, {"before": before, "after": after, "mean_before": was, "mean_after": now, "kept": kept})
    console.print(
        f"reinforcement {settings.name}: mean of {', '.join(settings.gate.mean_of)} {was:.3f} before, {now:.3f} after; "
        + ("the trained weights are kept" if kept else "it fell, so the weights before are kept"),
        soft_wrap=True,
    )
    part = folder / f"{FINAL}.part"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(trained if kept else student, part)
    own = profile_of_checkpoint(str(student), "hf")
    if own is not None:  # rollouts are sampled; the agent is asked as before
        own.write(part)
    part.replace(folder / FINAL)
    return folder / FINAL


def _scores(file: Path, gate: GateOfReinforcement, checkpoint: Path, console: Console) -> dict[str, float]:
    """What a checkpoint scores by itself; measured once."""
    if file.is_file():
        found: dict[str, float] = json.loads(read_regular(file))
        return found
    import torch

    from apr_plugin.training.sft.learner import load_learner

    wanted = StudentSettings(pretrained=str(checkpoint))
    try:
        measure = named("measures", gate.measure)(student=student_of(wanted), **gate.given)
    except TypeError as error:
        raise RecipeError(f"reinforcement.gate: measure {gate.measure}: {error}") from error
    with console.status(f"measuring {checkpoint} …"), torch.no_grad():
        scores = {name: float(value) for name, value in measure(load_learner(wanted).eval()).items()}
    if unknown := set(gate.mean_of) - set(scores):
        raise RecipeError(
            f"reinforcement.gate: measure {gate.measure} gives {', '.join(sorted(scores))}, and not "
            f"{', '.join(sorted(unknown))}"
        )
    _write(file, scores)
    return scores


def _write(file: Path, data: dict[str, Any]) -> None:
    part = file.with_name(f"{file.name}.part")
    part.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    part.replace(file)
