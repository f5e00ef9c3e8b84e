"""`apr train sft`: a recipe and its rows to a checkpoint."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from apr_plugin import terminal
from apr_plugin.errors import AprError, require
from apr_plugin.files import read_regular
from apr_plugin.training.loading import RowLoader
from apr_plugin.training.recipe_file import RecipeError
from apr_plugin.training.rows import Row, RowError, RowSet, read_rows, tokens_of
from apr_plugin.training.sft.recipe import Recipe, StudentSettings
from apr_plugin.training.student import Student

RUN = "run.json"
"""In the folder of a run: what it is, so that another run is not continued by mistake."""

FINAL = "final"
"""Folder of the trained checkpoint."""

STATE = "trainer_state.json"
"""What a trainer writes last into a checkpoint."""


@dataclass
class Checked:
    """Rows that can be rebuilt, and those that can't."""

    rows: RowSet
    bad: list[str] = field(default_factory=list)
    """What is wrong, a line for each trajectory or row."""


def run_sft(recipe: Recipe, out: Path) -> Path:
    """Train.

    A folder that already has a checkpoint of the same recipe and rows is continued.

    Args:
        recipe: What is trained and how; it names its rows.
        out: Folder of the run.

    Returns:
        The folder of the trained checkpoint.

    Raises:
        AprError: nothing can be trained; the message says why.
    """
    for module in ("torch", "trl", "datasets"):
        require(module, "train")
    recipe.check_trainer()
    first = os.environ.get("RANK", "0") == "0"
    console = terminal.console(stderr=True)
    console.quiet = not first
    if recipe.stages:
        from apr_plugin.training.sft.staging import run_stages

        return run_stages(recipe, out.expanduser(), console, first=first)
    if recipe.rows is None:
        raise RecipeError("the recipe names no rows; name them with --rows, or as `rows:` in the recipe")
    rows = read_rows(recipe.rows)
    with console.status("reading the student's processor …"):
        student = student_of(recipe.student)
    checked = rows_for(student, rows, recipe, recipe.rows, console)
    out = out.expanduser()
    _claim(out, recipe, first)
    if (out / FINAL / "config.json").is_file():
        console.print(f"{out / FINAL}: this run is finished; nothing was trained", soft_wrap=True)
        return out / FINAL
    return _train(recipe, checked, student, out, console)


def _train(recipe: Recipe, checked: Checked, student: Student, out: Path, console: Console) -> Path:
    with console.status("loading TRL and the model …"):
        from apr_plugin.training.profile import WriteProfile, profile_of_rows
        from apr_plugin.training.sft.finishing import StopAtNan, save_final
        from apr_plugin.training.sft.learner import sizes
        from apr_plugin.training.sft.trainer import make_trainer, processes

        trainer = make_trainer(recipe, checked.rows, student, out, percepts=percepts_of(recipe))
    trainer.add_callback(StopAtNan())
    profile = profile_of_rows(checked.rows.of("train"))
    if profile is not None:
        trainer.add_callback(WriteProfile(profile.file))
    found = last_checkpoint(out)
    counts, train = sizes(trainer.model), checked.rows.of("train")
    console.print(
        f"{len(train):,} rows with {tokens_of(train):,} tokens (the longest {max(row.tokens for row in train):,}), "
        f"{len(checked.rows.of('validation')):,} rows for validation; "
        f"{counts['trained']:,} of {counts['all']:,} parameters are trained; {processes()} "
        f"process{'es' if processes() > 1 else ''}, {trainer.args.gradient_accumulation_steps} forwards a step each",
        soft_wrap=True,
    )
    if found is not None:
        console.print(f"continuing from {found}", soft_wrap=True)
    began = time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=None if found is None else str(found))
    except RuntimeError as error:
        advice = (
            f"the longest row has {max(row.tokens for row in train):,} tokens: make rows with a smaller "
            "--context-tokens, set trainer.activation_checkpointing, train adapters (learn.what: lora), or shard the "
            "model (docs/training.md)"
        )
        check_memory(error, advice, out)
        raise
    folder = save_final(trainer, recipe, student, checked, out, time.monotonic() - began, profile)
    console.print(f"{folder}: trained; its README.md says how", soft_wrap=True)
    return folder


def rows_for(student: Student, rows: RowSet, recipe: Recipe, path: str, console: Console) -> Checked:
    """Rows that a student can be trained on.

    Args:
        student: The student.
        rows: The rows of a file.
        recipe: Says what happens to rows that can't be rebuilt.
        path: The file, for messages.
        console: Shows progress.

    Raises:
        RowError: they were made for another student, or can't be rebuilt.
    """
    _check_student(rows, student, path)
    checked = check_rows(rows, RowLoader(student, other_versions=recipe.other_versions), console)
    _report_bad(checked, recipe, console)
    return checked


def student_of(settings: StudentSettings) -> Student:
    """The student of a recipe.

    Raises:
        AprError: it can't be read, or is of no family that can be trained.
    """
    return Student.from_pretrained(
        settings.pretrained,
        revision=settings.revision,
        context_tokens=settings.context_tokens,
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
        dtype=settings.dtype,
    )


def check_memory(error: RuntimeError, advice: str, out: Path) -> None:
    """Say what to do, if an error of torch is that memory ran out.

    Raises:
        AprError: it is.
    """
    if "out of memory" in str(error).lower():
        told = f"out of memory: {str(error).splitlines()[0]}; {advice}. What was saved is in {out}"
        raise AprError(told) from error


def check_rows(rows: RowSet, loader: RowLoader, console: Console) -> Checked:
    """Rebuild the last row of each trajectory without decoding: its line, card and videos are there and unchanged.

    Args:
        rows: The rows.
        loader: Rebuilds them.
        console: Shows progress.

    Returns:
        The rows of trajectories that are whole, and what is wrong with the others.
    """
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows.rows:
        groups.setdefault((row.file, row.start), []).append(row)
    good, bad = [], []
    with Progress(console=console, transient=True) as bar:
        for group in bar.track(groups.values(), description="checking rows"):
            try:
                loader.check(max(group, key=lambda row: row.turn))
            except AprError as error:
                where = "" if str(error).startswith(group[0].file) else f"{group[0].file}, byte {group[0].start}: "
                bad.append(f"{where}{error} ({len(group)} rows)")
            else:
                good += group
    order = {id(row): number for number, row in enumerate(rows.rows)}
    good.sort(key=lambda row: order[id(row)])
    return Checked(RowSet(good, rows.dropped, rows.about), bad)


def last_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint in a folder that was written completely; `None` if there is none."""
    steps = []
    for folder in out.glob("checkpoint-*"):
        number = folder.name.removeprefix("checkpoint-")
        if not number.isdecimal():
            continue
        try:
            json.loads(read_regular(folder / STATE))
        except (OSError, ValueError):
            continue  # the process was killed while it wrote
        steps.append((int(number), folder))
    return max(steps)[1] if steps else None


def percepts_of(recipe: Recipe) -> Any:
    """The recipe's cache of decoded pictures and sound; `None`: it has none."""
    if recipe.percepts.folder is None:
        return None
    from apr_plugin.training.percepts import PerceptCache

    return PerceptCache(Path(recipe.percepts.folder).expanduser(), most_bytes=round(recipe.percepts.gigabytes * 1e9))


def _check_student(rows: RowSet, student: Student, path: str) -> None:
    about: Any = rows.about.get("student")
    made_for = about.get("digest") if isinstance(about, dict) else None
    if made_for is not None and made_for != student.digest:
        raise RowError(
            f"{path}: the rows were made for a student that reads prompts differently "
            f"({terminal.quoted(about.get('name', ''), 80)}, {made_for}), and {student.name} is {student.digest}; make "
            "them again with `apr train rows --student`"
        )
    longest = max(rows.rows, key=lambda row: row.tokens)
    if longest.tokens > student.context_tokens:
        raise RowError(
            f"{longest.where}: the row has {longest.tokens:,} tokens, and the student's context is "
            f"{student.context_tokens:,}; make the rows again with this context"
        )


def _report_bad(checked: Checked, recipe: Recipe, console: Console) -> None:
    if not checked.bad:
        return
    for line in checked.bad[:10]:
        console.print(f"  {terminal.one_line(line)}", soft_wrap=True)
    if len(checked.bad) > 10:
        console.print(f"  … and {len(checked.bad) - 10} more")
    if recipe.bad_rows == "stop":
        raise RowError(
            f"{len(checked.bad)} trajectories can't be rebuilt (the first: {terminal.one_line(checked.bad[0])}); mend "
            "them, or leave them out with `bad_rows: skip`"
        )
    terminal.warn(f"{len(checked.bad)} trajectories can't be rebuilt; their rows are left out")
    checked.rows.require()


def _claim(out: Path, recipe: Recipe, first: bool) -> None:
    """Write into the folder what it is for, or compare; see `claim_folder`."""
    assert recipe.rows is not None
    told = recipe.model_dump(mode="json", exclude={"about", "rows", "percepts", "bad_rows"})
    told["rows"] = hashlib.sha256(read_regular(Path(recipe.rows))).hexdigest()[:16]
    claim_folder(out, told, first)


def claim_folder(out: Path, told: dict[str, Any], first: bool) -> None:
    """Write into a run's folder what it is for, or compare.

    Args:
        out: The folder.
        told: What decides the run, as JSON values.
        first: Whether this is the first process, which writes.

    Raises:
        AprError: it belongs to a run with other settings, or can't be written.
    """
    file = out / RUN
    try:
        if file.exists():
            was = json.loads(read_regular(file))
            changed = _changed(was, told)
            if changed:
                raise AprError(
                    f"{out}: a run with other settings was begun here ({', '.join(changed)} changed); name another "
                    "folder, or remove this one"
                )
        elif first:
            if out.exists() and any(out.iterdir()):
                raise AprError(f"{out}: it is not empty, and is no folder of a training run; name another")
            out.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            part.write_text(json.dumps(told, indent=2) + "\n")
            part.replace(file)
    except (OSError, ValueError) as error:
        raise AprError(f"{file}: cannot use it: {getattr(error, 'strerror', None) or error}") from error


def _changed(was: Any, now: Any, head: str = "") -> Sequence[str]:
    """The paths of fields that differ."""
    if isinstance(was, dict) and isinstance(now, dict):
        names = sorted({*was, *now})
        return [path for name in names for path in _changed(was.get(name), now.get(name), f"{head}.{name}".strip("."))]
    if isinstance(was, float) and isinstance(now, float) and math.isclose(was, now):
        return []
    return [] if json.dumps(was) == json.dumps(now) else [head]
