"""What the boards share: a run's questions joined to the annotations, answers as a board may read them, the files."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from apr_plugin.errors import AprError
from apr_plugin.loop.question import QuestionKind
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.report.cleaning import clean, code
from apr_plugin.runs.opened import Run
from apr_plugin.tasks.common.catalogue import File, Source, sources
from apr_plugin.tasks.common.rows import unreadable
from apr_plugin.terminal import one_line, plain, quoted

Row = Mapping[str, Any]

_LONGEST_REPLY = 500


@dataclass
class Submission:
    """What a board gets."""

    board: str
    """The board's own name."""
    file: str
    """Name of its file."""
    content: Any
    """JSON values, or a text."""
    how: list[str]
    """How it is sent and scored; paragraphs of Markdown."""
    notes: list[str] = field(default_factory=list)
    """What is missing or doubtful, one sentence each."""
    more: dict[str, Any] = field(default_factory=dict)
    """Further files by name."""


@dataclass
class Asked:
    """One question of the board's set."""

    row: Row
    """Its row of the annotations, or what is known of it; empty where nothing is."""
    trajectory: Trajectory | None
    """`None` where the run was not asked it."""
    logged: Row = field(default_factory=dict)
    """Its line in lmms-eval's samples; empty where there is none."""

    @property
    def letter(self) -> str:
        """The label of the answered option; empty where there is none, or an answer of another form."""
        found = self.trajectory
        if found is None or found.answer is None or found.question.kind is not QuestionKind.MCQ:
            return ""
        labels = {option.label for option in found.question.options}
        return found.answer if found.answer_valid and found.answer in labels else ""

    @property
    def reply(self) -> str:
        """The answer for a board that reads replies: the label, or what was written instead of one; may be empty."""
        found = self.trajectory
        return self.letter or ("" if found is None or found.answer is None else plain(found.answer, _LONGEST_REPLY))


def pick_tasks(run: Run, wanted: Sequence[str], board: str) -> list[str]:
    """Those of the wanted tasks that the run has, in their order.

    Raises:
        AprError: it has none of them; the message names the tasks that it has.
    """
    has = sorted({key[0] for key in (*run.keys, *run.without_trajectory)})
    found = [task for task in wanted if task in has]
    if not found:
        there = ", ".join(quoted(task, 60) for task in has[:10]) or "no question at all"
        raise AprError(f"{run.folder}: the run has no question of {board} ({', '.join(wanted)}); it has: {there}")
    return found


def trajectories(run: Run, task: str) -> dict[str, Trajectory]:
    """The first answer to each question of a task, by doc id, in order."""
    keys = sorted((key for key in run.keys if key[0] == task and key[3] == 0), key=lambda key: doc_order(key[2]))
    return {key[2]: run[key] for key in keys}


def doc_order(doc_id: str) -> tuple[int, int, str]:
    """Sorts doc ids as numbers where they are numbers."""
    return (0, int(doc_id), "") if doc_id.isdecimal() and len(doc_id) < 20 else (1, 0, doc_id)


def logged(run: Run, task: str) -> dict[str, Row]:
    """The lines of lmms-eval's samples of a task, by doc id; the newest evaluation counts."""
    found: dict[str, Row] = {}
    for evaluation in reversed(run.evaluations):
        file = evaluation.samples.get(task)
        if file is None:
            continue
        with file.open("rb") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                    found[str(row["doc_id"])] = row
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue  # `open_run` has said it
    return found


def documents(task: str, annotations: Path | None) -> list[Row] | str:
    """The rows of a task's annotations by doc id, or why they are not here.

    Nothing is fetched from the network.

    Args:
        task: A task with a `Source`.
        annotations: The official file; without it those below `APR_DATA` or in the hub's cache.

    Raises:
        AprError: the file can't be read, or is not the benchmark's.
    """
    source: Source = sources()[task]
    if annotations is not None:
        if not annotations.is_file():
            raise AprError(f"--annotations {annotations}: no such file")
        if len(source.files) > 1:
            raise AprError(
                f"--annotations {annotations}: {source.title} has {len(source.files)} files; put them into "
                f"{source.home} instead"
            )
        source = replace(source, folder=str(annotations.absolute().parent), files=(File(annotations.name),))
    absent = [file for file in source.files if source.local_file(file) is None]
    if absent:
        command = absent[0].how_to_get(source.home)
        return f"the annotations of {source.title} are not on this machine; get them with: {command}"
    return list(source.documents(measure=False))


def join(rows: Sequence[Row], found: Mapping[str, Trajectory], lines: Mapping[str, Row], title: str) -> list[Asked]:
    """Each row of the annotations with its answer.

    A run of lmms-eval's own task, or of another copy, may count its documents otherwise; so a row whose question is not
    the trajectory's is looked for by its text and its video.

    Raises:
        AprError: a question of the run is nowhere in the annotations: they are of another version.
    """
    taken: dict[int, str] = {}
    by_text: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        by_text.setdefault(_plain(str(row.get("question", ""))), []).append(number)
    for doc_id, trajectory in found.items():
        number = int(doc_id) if doc_id.isdecimal() and len(doc_id) < 10 else -1
        if not (0 <= number < len(rows) and _same(rows[number], trajectory)):
            number = next(
                (at for at in _candidates(trajectory, by_text) if at not in taken and _same(rows[at], trajectory)), -1
            )
        if number < 0:
            raise AprError(
                f"{title}: doc {doc_id} ({quoted(one_line(trajectory.question.text, 80))}) is not in the annotations; "
                "they are of another version than the run's (--annotations FILE names another)"
            )
        taken[number] = doc_id
    return [
        Asked(
            row,
            found[taken[number]] if number in taken else None,
            lines.get(taken[number], {}) if number in taken else {},
        )
        for number, row in enumerate(rows)
    ]


def _candidates(trajectory: Trajectory, by_text: Mapping[str, list[int]]) -> Iterator[int]:
    words = _plain(trajectory.question.text)
    for text, numbers in by_text.items():
        if _holds(text, words) or _holds(words, text):
            yield from numbers


def _same(row: Row, trajectory: Trajectory) -> bool:
    """Whether a row asks what was asked, about the same video where both name one."""
    if unreadable(row) is not None:
        return True  # it was asked as a question that can't be read
    asked, words = _plain(str(row.get("question", ""))), _plain(trajectory.question.text)
    if not (_holds(asked, words) or _holds(words, asked)):  # a row may have the options too, a prompt subtitles
        return False
    videos, own = trajectory.question.videos, row.get("apr_videos") or []
    return not videos or not own or Path(videos[0].path).stem == Path(str(own[0])).stem


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _holds(text: str, words: str) -> bool:
    """Whether a text has these words, whole."""
    return bool(words) and words in text and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


def tally(asked: Sequence[Asked], official: int = 0) -> list[str]:
    """What a reader of the file has to know of its questions: how many have no answer, and why."""
    n = len(asked)
    failed = Counter(
        str(one.trajectory.stop_reason) for one in asked if one.trajectory and one.trajectory.stop_reason.failed
    )
    without = sum(1 for one in asked if one.trajectory and one.trajectory.answer is None) - failed.total()
    other = sum(
        1 for one in asked if one.trajectory and one.trajectory.answer is not None and not one.trajectory.answer_valid
    )
    absent = sum(1 for one in asked if one.trajectory is None)
    notes = [f"{n - absent} of {n} questions were asked"]
    if official and n != official:
        notes.append(f"the official set has {official} questions, this file {n}")
    if absent:
        notes.append(
            f"{absent} questions were not asked; they are written without an answer and are no part of a full score"
        )
    if failed:
        reasons = ", ".join(f"{reason} {count}" for reason, count in failed.most_common())
        notes.append(f"{failed.total()} questions could not be answered ({reasons}); written without an answer")
    if without > 0:
        notes.append(f"{without} questions ended without an answer")
    if other:
        notes.append(f"{other} answers have another form than the question asks for")
    if any(one.trajectory is not None and one.trajectory.question.repeat for one in asked):
        notes.append("questions were asked several times; the first answer to each is written")
    return notes


def write(made: Submission, out: Path, run: Run) -> tuple[Path, ...]:
    """Write the files and the README.

    Raises:
        AprError: they can't be written.
    """
    files = {out: made.content} | {out.with_name(name): content for name, content in made.more.items()}
    readme = out.with_name(f"{out.stem}.README.md")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            path.write_text(content if isinstance(content, str) else _json(content), encoding="utf-8")
        readme.write_text(_readme(made, out, run), encoding="utf-8")
    except OSError as error:
        raise AprError(f"{out}: cannot write it: {error.strerror or error}") from error
    return (*files, readme)


def _json(content: Any) -> str:
    """JSON in ASCII, so that no reader meets a character that it can't take."""
    return json.dumps(clean(content, secrets=True), indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def _readme(made: Submission, out: Path, run: Run) -> str:
    policy = run.card.get("policy") if isinstance(run.card.get("policy"), Mapping) else {}
    about = [str(value) for value in (policy.get("model") or policy.get("pretrained"), policy.get("name")) if value]  # type: ignore[union-attr]
    lines = [
        f"# {made.board}",
        "",
        f"File {code(out.name)}, from run {code(run.config_hash or 'without a name')} "
        f"({code(' '.join(about)[:200] or 'policy unknown')}).",
        "",
        "## What is in it",
        "",
        *(f"- {plain(note)}" for note in made.notes),
        "",
        "## How to send it",
        "",
    ]
    return "\n".join([*lines, *(f"{paragraph}\n" for paragraph in made.how)])
