"""The folder of a synthesis run, and reading its trajectories.

    OUT/questions.jsonl             the questions with their truths (`questions.py` has the fields), paths absolute
    OUT/trajectories/<hash>/        one configuration of a teacher: card.json and a file for each task
    OUT/audit/<hash>/               one judge: judge.json and verdicts.jsonl
    OUT/manifest.jsonl              what is kept and why the rest is not (`funnel.py`)
    OUT/funnel.md .png .svg         the same as a table and a plot

Several teachers may write to one folder; each has its own configuration hash.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from apr_plugin.errors import AprError
from apr_plugin.loop.trajectory import DamagedLine, Trajectory, TrajectoryError
from apr_plugin.runs.finding import find_runs
from apr_plugin.terminal import one_line
from apr_plugin.training.synthesis.questions import DocKey, TrainingQuestion, read_questions

QUESTIONS = "questions.jsonl"
TRAJECTORIES = "trajectories"
AUDIT = "audit"
MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class Place:
    """Where a trajectory is, and the few facts that a filter needs before it reads it again."""

    file: Path
    offset: int
    """Where its line begins, in bytes."""
    config_hash: str
    key: tuple[str, str, str, int]
    failed: bool


def add_questions(out: Path, questions: Sequence[TrainingQuestion]) -> None:
    """Write the questions into the folder, in addition to those that it has; the file is replaced as a whole.

    Raises:
        AprError: the folder can't be written, or has a different question under the same task, split and id.
    """
    file = out / QUESTIONS
    lines: dict[DocKey, str] = {one.key: one.to_json() for one in questions_of(out)} if file.exists() else {}
    before = len(lines)
    for one in questions:
        line = one.to_json()
        if lines.setdefault(one.key, line) != line:
            raise AprError(
                f"{file}: it has another question, answer or video under {'/'.join(filter(None, one.key))}; choose "
                "another folder"
            )
    if before == len(lines) and file.exists():
        return
    fresh = file.with_suffix(".writing")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with fresh.open("w", encoding="utf-8") as opened:
            opened.writelines(f"{line}\n" for line in lines.values())
            opened.flush()
            os.fsync(opened.fileno())
        fresh.replace(file)
    except OSError as error:
        raise AprError(f"{out}: cannot write there: {error.strerror or error}") from error


def questions_of(out: Path) -> list[TrainingQuestion]:
    """The questions of a synthesis folder.

    Raises:
        AprError: it is none, or its file can't be read.
    """
    file = out / QUESTIONS
    if not file.is_file():
        raise AprError(f"{out}: there is no {QUESTIONS}; make the trajectories with: apr train synthesize --out {out}")
    return read_questions(file)


def places(out: Path, problems: list[str] | None = None, on_read: Callable[[], None] | None = None) -> list[Place]:
    """Every trajectory of a folder, each attempt once: the last line of it that did not fail.

    Args:
        out: The folder.
        problems: Gets a sentence for each line or file that can't be read.
        on_read: Called for each line, for progress.

    Raises:
        AprError: a newer release wrote a line.
    """
    folder = out / TRAJECTORIES
    found: dict[tuple[str, tuple[str, str, str, int]], Place] = {}

    def damaged(start: int, end: int, error: DamagedLine) -> None:
        if problems is not None:
            problems.append(one_line(f"{error}; left out"))

    for run in find_runs(folder) if folder.is_dir() else ():
        for file in run.files:
            for start, _, trajectory in Trajectory.iterate_with_places(file, damaged):
                key = (trajectory.config_hash, trajectory.question.key)
                failed = trajectory.stop_reason.failed
                if on_read is not None:
                    on_read()
                if key not in found or found[key].failed or not failed:
                    found[key] = Place(file, start, *key, failed)
    return list(found.values())


def read_at(where: Iterable[Place]) -> Iterator[tuple[Place, Trajectory]]:
    """Read trajectories again, one at a time.

    Raises:
        TrajectoryError: a file has changed since `places`.
    """
    for place in where:
        try:
            with place.file.open("rb") as file:
                file.seek(place.offset)
                trajectory = Trajectory.from_json(file.readline().decode("utf-8", "replace"), str(place.file))
        except (OSError, DamagedLine) as error:
            raise TrajectoryError(
                f"{place.file}: it has changed since it was read first ({error}); run it again"
            ) from error
        if (trajectory.config_hash, trajectory.question.key) != (place.config_hash, place.key):
            raise TrajectoryError(f"{place.file}: it has changed since it was read first; run it again")
        yield place, trajectory
