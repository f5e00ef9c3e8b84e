"""A staged run: one trainer after another, each from the weights (and the optimizer) of the one before.

    OUT/01-captions/   checkpoints, packs.txt, measured.jsonl, final/
    OUT/02-agent/      …
    OUT/final/         the last stage's

The same command continues: finished stages are not trained again, and the others from their last checkpoint. A stage
whose gate was not reached keeps its checkpoint, and the run ends with an error.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from apr_plugin.errors import AprError
from apr_plugin.files import read_regular
from apr_plugin.models.profile import profile_of_checkpoint
from apr_plugin.training.profile import Carried, WriteProfile, profile_of_rows
from apr_plugin.training.recipe_file import RecipeError
from apr_plugin.training.rows import read_rows
from apr_plugin.training.sft.mixes import Mix, Source, made, of_rows, shares_told
from apr_plugin.training.sft.recipe import LengthSettings, Recipe, SourceSettings, StageSettings
from apr_plugin.training.sft.running import (
    FINAL,
    check_memory,
    claim_folder,
    last_checkpoint,
    percepts_of,
    rows_for,
    student_of,
)
from apr_plugin.training.student import Student

PACKS = "packs.txt"
"""In the folder of a stage: packs of each stretch of its mix (`mixes.Mix`)."""


Watch = Callable[[Any, StageSettings, int, int], None]
"""Adds callbacks to the trainer of a stage; it gets the stage's least and largest number of steps."""


def run_stages(
    recipe: Recipe,
    out: Path,
    console: Console,
    *,
    first: bool = True,
    stop_after: str | None = None,
    go_on: bool = False,
    watch: Watch | None = None,
) -> Path:
    """Train all stages of a recipe.

    Args:
        recipe: It has stages.
        out: Folder of the run.
        console: Where progress is told.
        first: Whether this is the first process.
        stop_after: The stage after which nothing more is trained.
        go_on: Whether a stage that missed its gate before may be as long again, each time that it is started.
        watch: Adds callbacks to each trainer.

    Returns:
        The folder of the trained checkpoint; that of a stage if the run ends before the last.

    Raises:
        GateMissed: a stage did not reach its gate.
        AprError: nothing can be trained; the message says why.
    """
    told = recipe.model_dump(mode="json", exclude={"about", "percepts", "bad_rows"})
    files = {source.rows for stage in recipe.stages for source in stage.mix if source.rows}
    told["row_files"] = {file: hashlib.sha256(read_rows_bytes(file)).hexdigest()[:16] for file in sorted(files)}
    claim_folder(out, told, first)
    if (out / FINAL / "config.json").is_file():
        console.print(f"{out / FINAL}: this run is finished; nothing was trained", soft_wrap=True)
        return out / FINAL
    before: Path | None = None
    for number, stage in enumerate(recipe.stages, 1):
        folder = out / f"{number:02}-{stage.name}"
        _stage(recipe, stage, folder, before, console, first, go_on, watch)
        before = folder
        if stage.name == stop_after and stage is not recipe.stages[-1]:
            return folder / FINAL
    assert before is not None
    if first:
        part = out / f"{FINAL}.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(before / FINAL, part)
        part.replace(out / FINAL)
    console.print(f"{out / FINAL}: trained; its README.md says how", soft_wrap=True)
    return out / FINAL


def read_rows_bytes(file: str) -> bytes:
    """The bytes of a file of rows.

    Raises:
        AprError: it can't be read.
    """
    try:
        return read_regular(Path(file))
    except (OSError, ValueError) as error:
        raise AprError(f"{file}: cannot read rows: {getattr(error, 'strerror', None) or error}") from error


def recipe_of(recipe: Recipe, stage: StageSettings, pretrained: str | None = None) -> Recipe:
    """The recipe of one stage: its own settings in place of the run's, rates multiplied, from the stage before."""
    trainer = recipe.trainer | stage.trainer
    # The default is SFTConfig's own.
    trainer["learning_rate"] = stage.rate * float(trainer.get("learning_rate", 2e-5))
    student = recipe.student
    if pretrained is not None:
        student = student.model_copy(update={"pretrained": pretrained, "revision": None})
    return recipe.model_copy(
        update={
            "student": student,
            "stages": (),
            "weights": stage.weights or recipe.weights,
            "rates": tuple(
                rate.model_copy(update={"learning_rate": rate.learning_rate * stage.rate}) for rate in recipe.rates
            ),
            "rows_per_step": stage.rows_per_step or recipe.rows_per_step,
            "forward": recipe.forward.model_copy(
                update={"token_budget": stage.token_budget or recipe.forward.token_budget}
            ),
            "trainer": trainer,
        }
    )


def sources_of(recipe: Recipe, mix: tuple[SourceSettings, ...], student: Student, console: Console) -> list[Source]:
    """The sources of a mix.

    Raises:
        AprError: rows can't be read or are for another student, or a maker refuses its arguments.
    """
    found: list[Source] = []
    for source in mix:
        if source.made is not None:
            found.append(made(source.made, source.share, student, source.seed, source.given))
            continue
        rows = rows_for(student, read_rows(str(source.rows)), recipe, str(source.rows), console)
        found.append(of_rows(source.title, source.share, rows.rows.require().of("train"), source.seed))
    for number, one in enumerate(found):
        twice = sum(other.name == one.name for other in found[:number])
        one.title = f"{one.name} ({twice + 1})" if twice else one.name
    return found


def steps_of(length: LengthSettings, step_rows: float, row_tokens: float) -> int:
    """A length in steps.

    Args:
        length: The length.
        step_rows: Rows of an average step.
        row_tokens: Tokens of an average row.
    """
    if length.steps is not None:
        return length.steps
    rows = length.rows if length.rows is not None else int(length.tokens or 0) / row_tokens
    return max(1, math.ceil(rows / step_rows))


def _stage(
    recipe: Recipe,
    stage: StageSettings,
    folder: Path,
    before: Path | None,
    console: Console,
    first: bool,
    go_on: bool,
    watch: Watch | None,
) -> None:
    if (folder / FINAL / "config.json").is_file():
        console.print(f"stage {stage.name}: finished before", soft_wrap=True)
        return
    own = recipe_of(recipe, stage, None if before is None else str(before / FINAL))
    with console.status("loading TRL and the model …"):
        from apr_plugin.training.sft.finishing import StopAtNan, save_trained
        from apr_plugin.training.sft.gates import Gate
        from apr_plugin.training.sft.stage_card import stage_card, stage_page
        from apr_plugin.training.sft.trainer import forwards_per_step, make_stage_trainer, processes

        student = student_of(own.student)
        sources = sources_of(own, stage.mix, student, console)
        folder.mkdir(parents=True, exist_ok=True)
        mix = Mix(sources, own.forward.token_budget, own.forward.seed, counts=folder / PACKS, writes=first)
        step_rows = mix.pack_rows * forwards_per_step(own, mix) * processes()
        least = steps_of(stage.length, step_rows, mix.row_tokens)
        most = least if stage.gate is None else steps_of(stage.gate.at_most, step_rows, mix.row_tokens)
        if most < least:
            raise RecipeError(f"stage {stage.name}: gate.at_most is {most} steps, and its length {least}")
        found = last_checkpoint(folder)
        if go_on and stage.gate is not None:
            most *= 1 + _step(found) // most
        advice = {"advice": "The same command trains it as long again"} if go_on else {}
        gate = None if stage.gate is None else Gate(stage.name, stage.gate, student, least, most, folder, **advice)
        ended = gate is not None and found is not None and gate.reached_at == _step(found)
        carried = None
        if found is None and before is not None and stage.optimizer == "keep":
            carried = _optimizer_of(before)
        trainer = make_stage_trainer(
            own, mix, student, folder, _step(found) if ended else most, percepts=percepts_of(own), carried=carried
        )
    trainer.add_callback(StopAtNan())
    profile = _profile(own, sources)
    if profile is not None:
        trainer.add_callback(WriteProfile(profile.file))
    if gate is not None and not ended:
        trainer.add_callback(gate)
    if watch is not None:
        watch(trainer, stage, least, most)
    console.print(
        f"stage {stage.name}: {shares_told(sources)}; rows of {mix.row_tokens:.0f} tokens, {step_rows:.0f} a step; "
        f"{least:,} steps" + (f", at most {most:,}" if gate is not None else ""),
        soft_wrap=True,
    )
    if found is not None:
        console.print(f"continuing from {found}", soft_wrap=True)
    began = time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=None if found is None else str(found))
    except RuntimeError as error:
        check_memory(error, "take a smaller token_budget", folder)
        raise
    if gate is not None:
        gate.require()
    told = [] if before is None else json.loads((before / FINAL / "training.json").read_text("utf-8"))["stages"]

    def card() -> tuple[dict[str, Any], str]:
        seconds = time.monotonic() - began
        measured = gate.lines() if gate else []
        data = stage_card(trainer, recipe, stage, student, mix, told, measured, seconds, profile)
        return data, stage_page(data)

    save_trained(trainer, own, student, card, folder, profile)


def _profile(recipe: Recipe, sources: list[Source]) -> Carried | None:
    """The profile of most rows of files. Without any, the one of the checkpoint that is trained.

    Where other rows are made, the checkpoint's goes first: they are made for the form in which it is asked.
    """
    rows = [row for source in sources for row in source.rows]
    found = profile_of_rows(rows) if rows else None
    if found is not None and all(source.rows for source in sources):
        return found
    file = profile_of_checkpoint(recipe.student.pretrained, "hf", recipe.student.revision)
    return found if file is None else Carried(file, "of the checkpoint that was trained")


def _step(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def _optimizer_of(folder: Path) -> Path:
    """The state of the optimizer at the end of a stage.

    Raises:
        AprError: the stage left none.
    """
    found = last_checkpoint(folder)
    if found is None or not (found / "optimizer.pt").is_file():
        raise AprError(
            f"{folder}: it has no checkpoint with the optimizer's state, which the next stage is to keep; set "
            "`optimizer: fresh` there, or let checkpoints be saved (trainer.save_strategy)"
        )
    return found / "optimizer.pt"
