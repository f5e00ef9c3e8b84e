"""`join`: the same questions as several arms answered them, in one place.

An arm is a finished run of ours, the samples of another lmms-eval model, or rows that somebody else published. A
question that an arm was to answer and has no score for counts as wrong in its headline; the questions that every arm
has a score for are the common subset.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from apr_plugin.errors import AprError
from apr_plugin.files import check_regular
from apr_plugin.loop.text import printable
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.runs.opened import Key, Run
from apr_plugin.runs.rows import question_row
from apr_plugin.runs.scores import Evaluation, read_samples
from apr_plugin.scoring.truth import Truth
from apr_plugin.terminal import one_line, quoted

Status = Literal["scored", "failed", "missing"]
"""`failed`: the arm could not answer (no media, no server). `missing`: there is no answer or no score of it."""

RIGHT = 0.5
"""A score of at least this counts as right: an exact match, or for time spans and numbers half of the full score."""


@dataclass(frozen=True)
class Outcome:
    """One question as one arm answered it."""

    key: Key
    """Task, split, doc id and repeat."""
    status: Status
    """Whether it has a score, and if not, why."""
    score: float
    """In [0, 1]; 0 without a score."""
    answer: str | None = None
    """In canonical form, where it is known."""
    bucket: str | None = None
    """The group of durations that the task puts it in."""
    kind: str = ""
    """`mcq`, `grounding`, `number` or `free_form`; empty where it is not known."""
    video: str = ""
    """Names the first video; questions about one video form a cluster. Empty where it is not known."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """The columns of `runs.rows.QUESTION`, for an arm that has trajectories; else empty."""

    @property
    def right(self) -> bool:
        """Whether it counts as right (`RIGHT`)."""
        return self.score >= RIGHT


@dataclass
class Arm:
    """One way of answering, with what came of it."""

    name: str
    """Unique within a comparison."""
    kind: str
    """`agent`, `passive`, `blind`, `single_frame`, `shuffled`, `oracle`, `lmms` or `rows`."""
    outcomes: dict[Key, Outcome]
    """By question."""
    run: Run | None = None
    """Its trajectories and card, where it has them."""
    about: dict[str, Any] = field(default_factory=dict)
    """Where it comes from: model_args, folder, file, model."""
    notes: list[str] = field(default_factory=list)
    """What is incomplete or doubtful, one sentence each."""
    task_versions: dict[str, str] = field(default_factory=dict)
    """The version of each task by which it was scored, where that is known."""

    def trajectory(self, key: Key) -> Trajectory | None:
        """The trajectory of a question, read from disk; `None` where there is none."""
        return self.run[key] if self.run is not None and key in self.run else None

    def outcome(self, key: Key) -> Outcome:
        """What came of a question; `missing` where the arm does not have it."""
        return self.outcomes.get(key) or Outcome(key, "missing", 0.0)


@dataclass
class Comparison:
    """Several arms over the same questions; the first arm is the one that the others are compared with."""

    arms: list[Arm]
    """At least one, in the order in which they were named."""
    keys: list[Key]
    """Every question that is compared, in order of task, split and doc id."""
    truths: dict[Key, Truth]
    """What is right, where a task says it."""
    notes: list[str]
    """What was left out or is doubtful, one sentence each."""

    @property
    def common(self) -> list[Key]:
        """The questions for which every arm has a score."""
        return [key for key in self.keys if all(arm.outcome(key).status == "scored" for arm in self.arms)]

    def bucket(self, key: Key) -> str:
        """The duration bucket of a question, from the first arm that knows it; `all` where none does."""
        return next((found for arm in self.arms if (found := arm.outcome(key).bucket)), "all")

    def kind(self, key: Key) -> str:
        """The kind of a question, from the first arm that knows it."""
        return next((found for arm in self.arms if (found := arm.outcome(key).kind)), "")

    def cluster(self, key: Key) -> str:
        """Names the video of a question; where no arm knows it, the question itself."""
        found = next((found for arm in self.arms if (found := arm.outcome(key).video)), "")
        return found or "/".join(map(str, key))


def arm_of_run(name: str, run: Run, *, only: Evaluation | None = None) -> Arm:
    """An arm from a finished run of this package.

    Args:
        name: What it is called in the comparison.
        run: From `open_run`.
        only: Leave out questions that this evaluation did not score, for example those of an earlier `--limit`.
    """
    outcomes: dict[Key, Outcome] = {}
    asked = None if only is None else _asked(run, only)
    kind, old = "", 0
    made_elsewhere, absent = "", Counter[str]()
    for trajectory in run:
        key = trajectory.question.key
        kind = kind or trajectory.arm
        if trajectory.imported is not None:
            made_elsewhere = trajectory.imported.format
            absent.update(map(str, trajectory.imported.absent))
        else:
            old += trajectory.budget is None
        score = run.scores.get(key)
        if asked is not None and key not in asked:
            continue
        row = question_row(trajectory, score)
        status: Status = "scored"
        if trajectory.stop_reason.failed:
            status = "failed"
        elif row["score"] is None:
            status = "missing"
        videos = trajectory.question.videos
        outcomes[key] = Outcome(
            key,
            status,
            float(row["score"]) if status == "scored" else 0.0,
            trajectory.answer,
            row["bucket"],
            row["kind"],
            videos[0].path if videos else "",
            row,
        )
    for key in run.without_trajectory:
        outcomes.setdefault(key, Outcome(key, "missing", 0.0))
    about = {"folder": str(run.folder), "config_hash": run.config_hash}
    versions = {task: version for one in reversed(run.evaluations) for task, version in one.versions.items()}
    notes = [f"{name}: {problem}" for problem in run.problems]
    if old:
        notes.append(f"{name}: {old} of its trajectories are of version 1; their prompts can't be rebuilt")
    if made_elsewhere:
        about["imported"] = made_elsewhere
        lacks = ", ".join(f"{figure.replace('_', ' ')} ({count} of {len(run)})" for figure, count in absent.items())
        notes.append(
            f"{name}: it was made elsewhere and imported (format {made_elsewhere}); not recorded: {lacks or 'nothing'}"
        )
    return Arm(name, kind or "agent", outcomes, run, about, notes, versions)


def _asked(run: Run, evaluation: Evaluation) -> set[Key]:
    """The questions of an evaluation: those that it scored, and as many more as it asked and could not log.

    lmms-eval asks the first questions of a task, so the others are the first that have no score.
    """
    asked = {key for key, score in run.scores.items() if score.evaluation == evaluation.time}
    for task, count in evaluation.asked.items():
        lacking = count - sum(key[0] == task for key in asked)
        if lacking > 0:
            asked |= set(sorted((key for key in run.keys if key[0] == task and key not in asked), key=_order)[:lacking])
    return asked


def arm_of_samples(name: str, evaluation: Evaluation, model: str = "") -> Arm:
    """An arm from the samples files that lmms-eval wrote for any model (`--log_samples`)."""
    about = {"model": model, "folder": str(evaluation.folder), "time": evaluation.time}
    arm = Arm(name, "lmms", {}, None, about, task_versions=dict(evaluation.versions))
    for task, file in evaluation.samples.items():
        for doc_id, score in read_samples(file, lambda said: arm.notes.append(one_line(said))):
            key = (printable(task), printable(evaluation.splits.get(task, "")), doc_id, 0)
            value = score.value
            arm.outcomes[key] = Outcome(
                key,
                "failed" if score.request_failed else "missing" if value is None else "scored",
                0.0 if score.request_failed else value or 0.0,
                None,
                score.buckets[0] if score.buckets else None,
            )
    return arm


def arm_of_rows(name: str, file: Path) -> Arm:
    """An arm from per-question rows that somebody else published, as JSON Lines.

    Each line is an object with `task`, `doc_id` and `score` (from 0 to 1), and where they are known `split`, `answer`,
    `bucket`, `video`. Fields of other names are ignored.

    Raises:
        AprError: the file can't be read, or a line is no such object; names the line.
    """
    arm = Arm(name, "rows", {}, None, {"file": str(file)})
    try:
        check_regular(file)
        with file.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    outcome = _row(line, f"{file}, line {number}")
                    if outcome.key in arm.outcomes:
                        raise AprError(f"{file}, line {number}: doc {outcome.key[2]} of {outcome.key[0]} comes twice")
                    arm.outcomes[outcome.key] = outcome
    except OSError as error:
        raise AprError(f"{file}: cannot read these rows: {error.strerror or error}") from error
    if not arm.outcomes:
        raise AprError(f"{file}: it holds no rows; each line is an object with task, doc_id and score")
    return arm


def _row(line: str, where: str) -> Outcome:
    try:
        data = json.loads(line)
        task, doc_id, score = data["task"], data["doc_id"], data["score"]
        split = data.get("split") or ""
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AprError(
            f"{where}: no row ({type(error).__name__}: {one_line(str(error), 100)}); it must be an object with task, "
            "doc_id and score"
        ) from error
    if isinstance(doc_id, float) and doc_id.is_integer():  # a table with gaps writes whole numbers as 17.0
        doc_id = int(doc_id)
    if not isinstance(task, str) or not isinstance(doc_id, str | int):
        raise AprError(
            f"{where}: task={quoted(task, 60)}, doc_id={quoted(doc_id, 60)}: they must be the name of a task and a "
            "whole number or a text"
        )
    if not isinstance(score, int | float) or not 0 <= score <= 1:  # not NaN, which is neither
        raise AprError(f"{where}: score={quoted(score, 60)}: it must be a number from 0 to 1")
    key = (printable(task), printable(str(split)), printable(str(doc_id)), 0)
    text = {name: printable(str(data[name])) for name in ("answer", "bucket", "video") if data.get(name) is not None}
    return Outcome(key, "scored", float(score), text.get("answer"), text.get("bucket"), "", text.get("video", ""))


def join(arms: Sequence[Arm]) -> Comparison:
    """Put arms beside each other.

    The questions are those of all arms that were to answer them all; where the arms' sets differ, the questions of the
    first arm that at least one other arm has too. Rows without a split are matched to the only split of their task.

    Raises:
        AprError: there is no arm, two arms have one name, or no question is common to the first and any other arm.
    """
    if not arms:
        raise AprError("there is nothing to compare")
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise AprError(f"two arms are called {next(name for name in names if names.count(name) > 1)!r}")
    notes: list[str] = []
    first, *others = arms
    if not first.outcomes:
        raise AprError(f"{first.name}: it has no questions")
    splits: dict[str, set[str]] = {}
    for arm in arms:
        for task, split, _, _ in arm.outcomes:
            if split:
                splits.setdefault(task, set()).add(split)
    for arm in arms:
        _fill_splits(arm, splits)
    keys = set(first.outcomes)
    for arm in others:
        shared = keys & set(arm.outcomes)
        if not shared:
            raise AprError(
                f"{arm.name} and {first.name} have no question in common: {_tasks(arm)} against {_tasks(first)}"
            )
    compared = set(first.outcomes) if not others else {k for k in keys if any(k in arm.outcomes for arm in others)}
    for arm in others:
        missing, extra = len(compared - set(arm.outcomes)), len(set(arm.outcomes) - compared)
        if missing and not extra and missing == len(compared) - len(arm.outcomes):
            notes.append(
                f"{arm.name} lacks {missing} of the {len(compared)} questions; they count as wrong in its headline"
            )
        elif missing:
            notes.append(
                f"{arm.name} lacks {missing} of the {len(compared)} questions and has {extra} others, left out"
            )
        elif extra:
            notes.append(f"{extra} questions of {arm.name} are not among those of {first.name}; left out")
    if left := len(keys - compared):
        notes.append(f"{left} questions of {first.name} are in no other arm; left out")
    truths: dict[Key, Truth] = {}
    for arm in arms:
        if arm.run is not None:
            for key in compared:
                truth = arm.run.truths.get(key[:3])
                if truth is not None:
                    truths.setdefault(key, truth)
    notes += _versions(arms)
    return Comparison(list(arms), sorted(compared, key=_order), truths, notes)


def _fill_splits(arm: Arm, splits: Mapping[str, Iterable[str]]) -> None:
    filled: dict[Key, Outcome] = {}
    for key, outcome in arm.outcomes.items():
        known = sorted(splits.get(key[0], ()))
        new = (key[0], known[0], key[2], key[3]) if not key[1] and len(known) == 1 else key
        if new in filled or (new != key and new in arm.outcomes):
            raise AprError(f"{arm.name}: doc {key[2]} of {key[0]} comes twice, with its split and without")
        filled[new] = outcome if new == key else Outcome(**{**outcome.__dict__, "key": new})
    arm.outcomes = filled


def _versions(arms: Sequence[Arm]) -> Iterator[str]:
    """What differs between the arms' cards that should not: versions of packages and of trajectories."""
    cards = {arm.name: arm.run.card for arm in arms if arm.run is not None}
    for package in sorted({name for card in cards.values() for name in _mapping(card.get("versions"))}):
        found = {name: _mapping(card.get("versions")).get(package) for name, card in cards.items()}
        known = {name: version for name, version in found.items() if version is not None}
        if len(set(known.values())) > 1:
            told = ", ".join(f"{name} {version}" for name, version in known.items())
            yield f"the arms were made with different versions of {package}: {told}"
    for task in sorted({key[0] for arm in arms for key in arm.outcomes}):
        found = {arm.name: arm.task_versions.get(task) for arm in arms}
        known = {name: version for name, version in found.items() if version is not None}
        if len(set(known.values())) > 1:
            told = ", ".join(f"{name} {version}" for name, version in known.items())
            yield f"the arms were scored by different versions of the task {task}: {told}"
    for name, card in cards.items():
        if not card:
            yield f"{name}: its card is missing, so its configuration can't be compared"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _tasks(arm: Arm) -> str:
    tasks = sorted({f"{key[0]} ({key[1]})" if key[1] else key[0] for key in arm.outcomes})
    return f"{len(arm.outcomes)} questions of {', '.join(tasks[:3])}{', …' if len(tasks) > 3 else ''}"


def _order(key: Key) -> tuple[Any, ...]:
    task, split, doc_id, repeat = key
    number = doc_id.isdecimal() and len(doc_id) < 20  # Python reads no number of more than 4,300 digits
    return task, split, (0, int(doc_id), "") if number else (1, 0, doc_id), repeat
