"""`apr train recipe`: the small agent from nothing, by one command.

    OUT/run.json       what the run is made of
    OUT/start/         the model with random weights
    OUT/synthesis/     filmed worlds, a teacher's trajectories, rows (synthesizing)
    OUT/stages/        a staged run of `apr train sft` (training.sft.staging)
    OUT/reinforcement/ runs of `apr train grpo` by rule of credit and seed (reinforcing)
    OUT/final/         the trained checkpoint with its profile and card

The same command continues: what is finished is skipped, and a stage that missed its gate is trained on.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from rich.console import Console

from apr_plugin import terminal
from apr_plugin.errors import AprError, require
from apr_plugin.tasks.needle.make import NeedleSpec
from apr_plugin.training.recipe_file import RecipeError, load_recipe
from apr_plugin.training.sft.recipe import Recipe
from apr_plugin.training.sft.running import FINAL, claim_folder
from apr_plugin.training.tiny import synthesizing
from apr_plugin.training.tiny.model import Size
from apr_plugin.training.tiny.reinforcing import ReinforcementSettings, Rule, reinforce
from apr_plugin.training.tiny.synthesizing import SynthesisSettings, film_worlds, make_trajectories
from apr_plugin.training.tiny.worlds import meets

FOLDER = Path(__file__).resolve().parent.parent / "recipes" / "made"
"""The recipes of models that are made from nothing."""

START = "start"
STAGES = "stages"
LIKE = "like.json"
"""Keeps how long the last stage is, once it was decided by what another run spent."""

FEWER = ("per_kind", "count")
"""Arguments of measures that say how much is measured."""


class StartSettings(BaseModel):
    """The model before training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    """Of its weights, and of the episodes from which its tokenizer learns words."""
    size: Size = Size()
    """Its widths and depths."""
    one_turn: int | None = Field(default=None, ge=1, le=1000)
    """Frames that a passive rival is shown in its one turn; `None`: the model is an agent."""


class AsMuchAs(BaseModel):
    """How much training a rival gets, against a run that was made before (`--like`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: Literal["flops", "tokens"] = "flops"
    """What is counted (`training.tiny.spending`)."""
    factor: float = Field(default=1.0, ge=1)
    """Times what the other run spent."""


class FirstStages(BaseModel):
    """Stages of another recipe with which a rival begins, so that both learn to see in the same way."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    """The other recipe; what this one's `training` leaves out is as there."""
    stages: tuple[str, ...] = Field(min_length=1)
    """Names of its stages."""
    divide: float = Field(default=1.0, ge=1)
    """Divides their lengths."""

    def before(self, training: dict[str, Any]) -> dict[str, Any]:
        """A recipe of `apr train sft` that begins with these stages.

        Raises:
            RecipeError: there is no such recipe or stage.
        """
        base = read_made(self.recipe).training
        stages = {stage["name"]: stage for stage in base["stages"]}
        if unknown := [name for name in self.stages if name not in stages]:
            raise RecipeError(f"first.stages: {self.recipe} has no stage {unknown[0]!r}; it has {', '.join(stages)}")
        found = [self._divided(stages[name]) for name in self.stages]
        trainer = base.get("trainer", {}) | training.get("trainer", {})
        return base | training | {"trainer": trainer, "stages": [*found, *training["stages"]]}

    def _divided(self, stage: dict[str, Any]) -> dict[str, Any]:
        def length(given: dict[str, Any]) -> dict[str, Any]:
            return {unit: math.ceil(value / self.divide) for unit, value in given.items()}

        shorter = stage | {"length": length(stage["length"])}
        if "gate" in stage:
            shorter["gate"] = stage["gate"] | {"at_most": length(stage["gate"]["at_most"])}
        return shorter


class MadeRecipe(BaseModel):
    """A model that is made and trained by one command."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: StartSettings = StartSettings()
    """The model before training."""
    evaluation: tuple[NeedleSpec, ...] = Field(min_length=1)
    """Sets that training must not meet."""
    synthesis: SynthesisSettings | None = None
    """A teacher's trajectories on real files; a mix of a stage names their rows as `rows: synthesis`."""
    training: dict[str, Any]
    """A recipe of `apr train sft` with stages, without its student."""
    reinforcement: ReinforcementSettings | None = None
    """What follows the stages; it asks about the worlds of `synthesis`."""
    first: FirstStages | None = None
    """Stages of another recipe that come before its own."""
    as_much_as: AsMuchAs = AsMuchAs()
    """With `--like RUN`, the last stage is at least as long that the whole run spends this."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.reinforcement is not None and self.synthesis is None:
            raise ValueError("reinforcement: it asks about the worlds of `synthesis`, which is missing")
        return self

    def staged(self, start: Path, shrink: float = 1.0) -> Recipe:
        """The recipe of the stages.

        Args:
            start: Folder of the model before training, within that of the run.
            shrink: See `shrunk`.

        Raises:
            RecipeError: a field is wrong.
        """
        try:
            training = self.training if self.first is None else self.first.before(self.training)
            recipe = Recipe.model_validate({**training, "student": {"pretrained": str(start)}})
        except ValueError as error:
            raise RecipeError(f"training: {terminal.one_line(str(error), 400)}") from error
        if not recipe.stages:
            raise RecipeError("training.stages: a recipe of a made model has stages")
        if self.synthesis is None and needs_synthesis(recipe):
            raise RecipeError("training.stages: a mix has `rows: synthesis`, and the recipe has no `synthesis`")
        recipe = _with_rows(recipe, start.parent / synthesizing.FOLDER / synthesizing.ROWS)
        return recipe if shrink == 1 else shrunk(recipe, shrink)

    def shrunk(self, factor: float) -> MadeRecipe:
        """The same with less synthesis and reinforcement; stages are shrunk by `staged`."""
        changes: dict[str, Any] = {}
        if self.synthesis is not None:
            changes["synthesis"] = self.synthesis.shrunk(factor)
        if self.reinforcement is not None:
            changes["reinforcement"] = self.reinforcement.shrunk(factor, FEWER)
        return self.model_copy(update=changes)


def needs_synthesis(recipe: Recipe) -> bool:
    """Whether a mix names the rows of `synthesis`."""
    return any(source.rows == synthesizing.FOLDER for stage in recipe.stages for source in stage.mix)


def _with_rows(recipe: Recipe, rows: Path) -> Recipe:
    """The same with the file of `synthesis` where a mix names it."""
    stages = [
        stage.model_copy(
            update={
                "mix": tuple(
                    source.model_copy(update={"rows": str(rows)}) if source.rows == synthesizing.FOLDER else source
                    for source in stage.mix
                )
            }
        )
        for stage in recipe.stages
    ]
    return recipe.model_copy(update={"stages": tuple(stages)})


def shrunk(recipe: Recipe, factor: float) -> Recipe:
    """The same stages in a fraction of their length: a trial of the whole way, whose result is not worth keeping.

    Lengths, warm-up, steps between checkpoints, and what is measured are divided by the factor. A stage ends after its
    length, where its gate measures and asks for nothing.
    """
    least = {"steps": 2, "rows": 1, "tokens": 1}
    stages = []
    for stage in recipe.stages:
        given = stage.model_dump()
        given["length"] = {
            unit: max(least[unit], math.ceil(value / factor)) for unit, value in given["length"].items() if value
        }
        given["trainer"] = _fewer(stage.trainer, factor)
        if stage.gate is not None:
            measured = {
                name: max(2, round(value / factor)) if name in FEWER else value
                for name, value in stage.gate.given.items()
            }
            given["gate"] |= {"reach": dict.fromkeys(stage.gate.reach, 0.0), "given": measured}
            given["gate"] |= {"at_most": given["length"], "every": 10**9}
        stages.append(given)
    trainer = _fewer(recipe.trainer, factor) | {"logging_steps": 1}
    return Recipe.model_validate(recipe.model_dump() | {"stages": stages, "trainer": trainer})


def _fewer(trainer: dict[str, Any], factor: float) -> dict[str, Any]:
    """Its numbers of steps divided."""
    return trainer | {
        name: math.ceil(trainer[name] / factor) for name in ("warmup_steps", "save_steps") if name in trainer
    }


def read_made(name: str) -> MadeRecipe:
    """Read a recipe: its file, or the name of one of this package's.

    Raises:
        RecipeError: it can't be read, or a field is wrong.
    """
    return load_recipe(MadeRecipe, name, FOLDER, {})


def check_apart(recipe: MadeRecipe) -> int:
    """Check that training worlds are none of the evaluation's.

    Returns:
        How many worlds were compared.

    Raises:
        AprError: some are.
    """
    for spec in recipe.evaluation:
        if found := meets(spec):
            raise AprError(
                f"the set of seed {spec.seed} has {len(found)} worlds that training uses too (the first: {found[0]}); "
                "evaluate on a set of another seed"
            )
    return sum(len(spec.buckets) * spec.videos_per_bucket for spec in recipe.evaluation)


def run_recipe(
    name: str,
    out: Path,
    *,
    shrink: float = 1.0,
    stop_after: str | None = None,
    trained: Path | None = None,
    credit: Rule | None = None,
    seed: int | None = None,
    like: Path | None = None,
) -> Path:
    """Make and train the model of a recipe.

    With a rule of credit or a seed, the reinforcement is one more beside that of the recipe, from the same checkpoint
    and about the same worlds; `OUT/final` is left as it is.

    Args:
        name: The recipe.
        out: Folder of the run; a run that was begun there goes on.
        shrink: Divides the length of everything.
        stop_after: The last stage that is trained now; there is no reinforcement then.
        trained: A checkpoint in place of that of the stages, which are left out.
        credit: The rule of the reinforcement, in place of the recipe's.
        seed: Its seed, in place of the recipe's.
        like: Folder of another run of this kind: this one spends at least as much (`MadeRecipe.as_much_as`), before
            lengths are divided.

    Returns:
        The folder of the checkpoint.

    Raises:
        GateMissed: a stage did not reach its gate.
        AprError: nothing can be trained; the message says why.
    """
    for module in ("torch", "trl", "datasets"):
        require(module, "train")
    made, out = read_made(name), out.expanduser()
    recipe = made.staged(out / START, shrink)
    made = made if shrink == 1 else made.shrunk(shrink)
    recipe.check_trainer()
    names = [stage.name for stage in recipe.stages]
    if stop_after is not None and stop_after not in names:
        raise RecipeError(f"there is no stage {terminal.quoted(stop_after, 60)}; there are {', '.join(names)}")
    other = {key: value for key, value in (("credit", credit), ("seed", seed)) if value is not None}
    if (other or trained is not None) and made.reinforcement is None:
        raise RecipeError("the recipe has no `reinforcement`, which a rule of credit, a seed or a checkpoint is for")
    console = terminal.console(stderr=True)
    start = made.start.model_dump(mode="json", exclude_none=True)
    told: dict[str, Any] = {"start": start, "shrink": float(shrink)}
    claim_folder(out, told | ({} if trained is None else {"from": str(trained.expanduser().absolute())}), True)
    if (out / FINAL / "config.json").is_file() and not other:
        console.print(f"{out / FINAL}: this run is finished; nothing was trained", soft_wrap=True)
        return out / FINAL
    console.print(f"{check_apart(made):,} worlds of evaluation sets, none of which training can meet", soft_wrap=True)
    if trained is not None:
        reached = trained.expanduser().absolute()
    else:
        _start(made, out / START, console)
        if like is not None or (out / LIKE).exists():
            from apr_plugin.training.tiny.spending import lengthened

            unit, factor = made.as_much_as.unit, made.as_much_as.factor
            longer = lengthened(made.staged(out / START), out / LIKE, like, unit, factor, console)
            recipe = longer if shrink == 1 else shrunk(longer, shrink)
        if made.synthesis is not None and any(source.rows for stage in recipe.stages for source in stage.mix):
            make_trajectories(out, made.synthesis, out / START, console)
        reached = _train(recipe, out, console, stop_after)
        if stop_after is not None and (stop_after != names[-1] or made.reinforcement is not None):
            console.print(f"stopped after {stop_after}: {reached}; the same command without it goes on", soft_wrap=True)
            return reached
    if made.reinforcement is not None and made.synthesis is not None:
        questions = film_worlds(out, made.synthesis, console)
        reached = reinforce(out, made.reinforcement.model_copy(update=other), reached, questions, console)
    return reached if other else _finish(reached, out, console)


def _train(recipe: Recipe, out: Path, console: Console, stop_after: str | None) -> Path:
    from apr_plugin.training.sft.staging import run_stages
    from apr_plugin.training.sft.telling import spent, teller

    trained = run_stages(
        recipe, out / STAGES, console, stop_after=stop_after, go_on=True, watch=teller(recipe, console)
    )
    for folder in sorted((out / STAGES).glob("*-*")):
        cost = spent(folder)
        console.print(
            f"{folder.name}: {cost['tokens']:,.0f} tokens, {cost['seconds']:,.0f} seconds, "
            f"{cost['cpu_seconds']:,.0f} CPU seconds",
            soft_wrap=True,
        )
    return trained


def _finish(trained: Path, out: Path, console: Console) -> Path:
    part = out / f"{FINAL}.part"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(trained, part)
    part.replace(out / FINAL)
    console.print(f"{out / FINAL}: trained; run it with policy=hf,pretrained={out / FINAL}", soft_wrap=True)
    return out / FINAL


def _start(made: MadeRecipe, folder: Path, console: Console) -> None:
    if folder.exists():
        return
    from apr_plugin.training.tiny.start import make_start

    with console.status("making the model …"):
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        made_with = made.start
        make_start(part, size=made_with.size, seed=made_with.seed, one_turn=made_with.one_turn).replace(folder)
    console.print(f"{folder}: a model with random weights and its tokenizer", soft_wrap=True)
