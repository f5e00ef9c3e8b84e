"""The funnel: every question and every trajectory leaves with the reason why it is kept or dropped.

`manifest.jsonl` has a line for each attempt, and one for each question without an attempt:

    {"schema": "apr.manifest", "version": 1, "task": "…", "split": "…", "id": "…", "attempt": 0,
     "source": "…", "videos": ["/…/a.mp4"], "file": "trajectories/<hash>/<task>.jsonl", "offset": 0,
     "config_hash": "…", "kept": true, "stage": "kept", "reason": "kept", "detail": "", "score": 1.0,
     "ratings": [5, 4, 5], "turns": 3}

`stage` is where it left: `question`, `episode`, `outcome`, `audit`, or `kept`. `file` is relative to the folder, and
`offset` is where its line begins, in bytes; both are null for a question without an attempt. What trains on this data
reads it with `kept`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from apr_plugin.errors import AprError
from apr_plugin.loop.card import Card
from apr_plugin.loop.files import lines
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.terminal import one_line
from apr_plugin.training.synthesis.audit import THRESHOLD, VERDICTS, Verdicts, judge_audit
from apr_plugin.training.synthesis.contamination import Checked
from apr_plugin.training.synthesis.folder import AUDIT, MANIFEST, Place, places, questions_of, read_at
from apr_plugin.training.synthesis.outcome import OutcomeRules, judge_outcome
from apr_plugin.training.synthesis.questions import TrainingQuestion

SCHEMA = "apr.manifest"
VERSION = 1

STAGES = ("question", "episode", "outcome", "audit", "kept")

REASONS = {
    "contaminated": "it comes from a benchmark's own videos",
    "not_asked": "it was not asked yet",
    "unknown_question": "its question is not in questions.jsonl, or was changed there",
    "version_1": "it is of version 1, whose prompts can't be rebuilt",
    "media_unreadable": "its video could not be read",
    "policy_unavailable": "the teacher could not be reached",
    "cancelled": "the run was stopped",
    "error": "something else failed",
    "no_answer": "no answer",
    "wrong_form": "the answer has a wrong form",
    "wrong": "the answer is wrong",
    "low_iou": "the IoU is too low",
    "inaccurate": "the number is not close enough",
    "nothing_to_rate": "no step could be rated",
    "unsupported": "a step does not follow",
    "nonsense_verdict": "a verdict was nonsense",
    "not_audited": "not every step was rated",
    "kept": "kept",
}
"""Each reason in words."""


@dataclass(frozen=True)
class Entry:
    """One line of the manifest."""

    task: str
    split: str
    id: str
    attempt: int | None
    """Counted from 0; `None` for a question without an attempt."""
    source: str
    videos: tuple[str, ...]
    """Paths."""
    file: str | None
    """Of the trajectory, relative to the folder."""
    offset: int | None
    """Where its line begins, in bytes."""
    config_hash: str
    kept: bool
    stage: str
    """One of `STAGES`."""
    reason: str
    """One of `REASONS`."""
    detail: str = ""
    score: float | None = None
    """Of the answer, in [0, 1]."""
    ratings: tuple[int | None, ...] = ()
    """Of the rated turns."""
    turns: int = 0

    @property
    def document(self) -> tuple[str, str, str]:
        """The question, for all of its attempts."""
        return (self.task, self.split, self.id)

    def to_json(self) -> str:
        """One line."""
        return json.dumps({"schema": SCHEMA, "version": VERSION} | asdict(self))


@dataclass
class Funnel:
    """What became of every question and trajectory."""

    entries: list[Entry]
    problems: list[str] = field(default_factory=list)
    """Lines that could not be read."""
    audit: str = ""
    """The judge's hash; empty if the audit was left out."""

    @property
    def kept(self) -> list[Entry]:
        """What is kept."""
        return [entry for entry in self.entries if entry.kept]

    def rows(self) -> list[tuple[str, str, int, int]]:
        """The table: (stage, reason, questions, trajectories), in order.

        Questions are counted where their last attempt left, or where one was kept.
        """
        attempts = Counter((entry.stage, entry.reason) for entry in self.entries if entry.attempt is not None)
        last: dict[tuple[str, str, str], Entry] = {}
        for entry in self.entries:
            if entry.document not in last or not last[entry.document].kept:
                last[entry.document] = entry
        questions = Counter((entry.stage, entry.reason) for entry in last.values())
        order = {reason: number for number, reason in enumerate(REASONS)}
        found = sorted(
            attempts.keys() | questions.keys(), key=lambda key: (STAGES.index(key[0]), order.get(key[1], len(order)))
        )
        return [(*key, questions[key], attempts[key]) for key in found]

    def left(self) -> list[tuple[str, int, int]]:
        """How many are left after each stage: (name, questions, trajectories)."""
        after = [
            ("all", lambda entry: True),
            ("explored", lambda entry: entry.stage != "question"),
            ("ended", lambda entry: entry.stage not in ("question", "episode")),
            ("right", lambda entry: entry.stage in ("audit", "kept")),
            ("kept", lambda entry: entry.kept),
        ]  # type: list[tuple[str, Callable[[Entry], bool]]]
        found = []
        for name, passes in after:
            chosen = [entry for entry in self.entries if passes(entry)]
            found.append(
                (
                    name,
                    len({entry.document for entry in chosen}),
                    sum(entry.attempt is not None for entry in chosen),
                )
            )
        return found


def find_audit(out: Path, judge: str = "") -> str:
    """The hash of the judge whose verdicts are used.

    Args:
        out: The folder.
        judge: A hash, or the beginning of one; needed if several judges rated this folder.

    Raises:
        AprError: there is none, or there are several.
    """
    found = sorted(path.parent.name for path in (out / AUDIT).glob(f"*/{VERDICTS}"))
    chosen = [name for name in found if name.startswith(judge)]
    if len(chosen) == 1:
        return chosen[0]
    if not found:
        raise AprError(
            f"{out}: nothing was audited; run: apr train audit {out} --judge MODEL_ARGS, or leave the audit out with "
            "--without-audit"
        )
    raise AprError(f"{out}: choose one of the judges {', '.join(found)} with --judge-hash")


def build(
    out: Path,
    *,
    audit: str | None,
    threshold: int = THRESHOLD,
    rules: OutcomeRules | None = None,
    contamination: Checked | None = None,
    on_read: Callable[[], None] | None = None,
) -> Funnel:
    """Decide about every question and every trajectory of a folder.

    Args:
        out: The folder.
        audit: The judge's hash (`find_audit`); `None` leaves the audit out.
        threshold: Least rating of every rated turn.
        rules: Thresholds of the outcome.
        contamination: The questions that are refused (`contamination.check`).
        on_read: Called each time that a trajectory is read (twice for each), for progress.

    Raises:
        AprError: the folder can't be read.
    """
    asked = {one.key: one for one in questions_of(out)}
    verdicts = None if audit is None else Verdicts(out / AUDIT / audit)
    refused = contamination.refused if contamination is not None else {}
    problems: list[str] = []
    entries: list[Entry] = []
    for place, trajectory in read_at(places(out, problems, on_read)):
        one = asked.get(place.key[:3])
        decided = _decide(trajectory, one, verdicts, threshold, rules)
        if one is not None and one.key in refused:
            decided = {"stage": "question", "reason": "contaminated", "detail": refused[one.key].detail}
        entries.append(_entry(out, place, trajectory, one, decided))
        if on_read is not None:
            on_read()
    explored = {entry.document for entry in entries}
    for one in asked.values():
        if one.key not in explored:
            decided = {"stage": "question", "reason": "not_asked"}
            if one.key in refused:
                decided = {"stage": "question", "reason": "contaminated", "detail": refused[one.key].detail}
            videos = tuple(ref.path for ref in one.question.videos)
            entries.append(Entry(*one.key, None, one.source, videos, None, None, "", False, **decided))
    entries.sort(key=lambda entry: (*entry.document, entry.attempt or 0, entry.config_hash))
    return Funnel(entries, problems + (verdicts.problems if verdicts is not None else []), audit or "")


def _entry(
    out: Path, place: Place, trajectory: Trajectory, one: TrainingQuestion | None, decided: Mapping[str, Any]
) -> Entry:
    task, split, doc_id, attempt = place.key
    return Entry(
        task,
        split,
        doc_id,
        attempt,
        "" if one is None else one.source,
        tuple(ref.path for ref in trajectory.question.videos),
        place.file.relative_to(out).as_posix(),
        place.offset,
        place.config_hash,
        decided["stage"] == "kept",
        turns=len(trajectory.turns),
        **decided,
    )


def _decide(
    trajectory: Trajectory,
    one: TrainingQuestion | None,
    verdicts: Verdicts | None,
    threshold: int,
    rules: OutcomeRules | None,
) -> dict[str, Any]:
    if trajectory.stop_reason.failed:
        return _left("episode", str(trajectory.stop_reason), trajectory.stop_detail)
    if trajectory.budget is None:
        return _left("episode", "version_1")
    if one is None or not _same(one, trajectory):
        return _left("episode", "unknown_question")
    outcome = judge_outcome(trajectory, one.truth, rules, exact=one.exact)
    if not outcome.right:
        return _left("outcome", outcome.reason, outcome.detail, score=outcome.score)
    if verdicts is None:
        return _left("kept", "kept", score=outcome.score)
    audited = judge_audit(trajectory, verdicts.of(trajectory), threshold)
    if not audited.passed:
        return _left("audit", audited.reason, audited.detail, score=outcome.score, ratings=audited.ratings)
    return _left("kept", "kept", score=outcome.score, ratings=audited.ratings)


def _left(stage: str, reason: str, detail: str = "", **more: Any) -> dict[str, Any]:
    return {"stage": stage, "reason": reason, "detail": one_line(detail, 500)} | more


def _same(one: TrainingQuestion, trajectory: Trajectory) -> bool:
    """Whether the trajectory is about this question, as far as its line tells; a replay checks the video itself."""
    mine, its = one.question, trajectory.question
    return (mine.text, mine.kind, mine.options, mine.answer_hint) == (its.text, its.kind, its.options, its.answer_hint)


def write_manifest(out: Path, funnel: Funnel) -> Path:
    """Write `manifest.jsonl`; the whole file is replaced.

    Raises:
        AprError: it can't be written.
    """
    path, fresh = out / MANIFEST, out / f"{MANIFEST}.writing"
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.writelines(f"{entry.to_json()}\n" for entry in funnel.entries)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        raise AprError(f"{path}: cannot write it: {error.strerror or error}") from error
    return path


def read_manifest(out: Path) -> list[Entry]:
    """The lines of a folder's manifest.

    Raises:
        AprError: there is none, a line is wrong, or a newer release wrote it.
    """
    path = out / MANIFEST
    if not path.is_file():
        raise AprError(f"{out}: there is no {MANIFEST}; run: apr train funnel {out}")
    found = []
    for number, _, line in lines(path):
        try:
            data = json.loads(line)
            if data.pop("schema") != SCHEMA:
                raise ValueError(f"this is not an {SCHEMA} line")
            if data.pop("version") > VERSION:
                raise AprError(f"{path}: its version is newer than {VERSION}; upgrade apr-plugin")
            found.append(Entry(**data | {"videos": tuple(data["videos"]), "ratings": tuple(data["ratings"])}))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise AprError(
                f"{path}, line {number}: {one_line(str(error), 200)}; write it again with: apr train funnel {out}"
            ) from error
    return found


def _kept_entries(out: Path) -> list[Entry]:
    entries = [entry for entry in read_manifest(out) if entry.kept]
    if not entries:
        raise AprError(
            f"{out / MANIFEST}: nothing is kept, so there is nothing to train on; see: apr train funnel {out}"
        )
    return entries


def kept(out: Path) -> Iterator[tuple[Entry, Trajectory, Card]]:
    """The trajectories to train on, each with its line of the manifest and the card of its run.

    Raises:
        AprError: nothing is kept, a file has changed since the manifest was written, or a card can't be read.
    """
    cards: dict[Path, Card] = {}
    for entry in _kept_entries(out):
        assert entry.file is not None and entry.offset is not None and entry.attempt is not None
        file = out / entry.file
        place = Place(file, entry.offset, entry.config_hash, (*entry.document, entry.attempt), False)
        for _, trajectory in read_at([place]):
            if file.parent not in cards:
                cards[file.parent] = Card.read(file.parent)
            yield entry, trajectory, cards[file.parent]


@dataclass(frozen=True)
class KeptFile:
    """What is kept of one trajectory file, for the questions of one source."""

    file: Path
    card: Path
    """The folder of its run's card."""
    source: str
    """The data set of its questions; empty if they name none."""
    keys: frozenset[tuple[str, str, str, int]]
    """The questions' keys, with the attempt."""


def kept_files(out: Path) -> list[KeptFile]:
    """What is kept, by file and source: what the builder of rows takes.

    Raises:
        AprError: nothing is kept, or the manifest can't be read.
    """
    found: dict[tuple[Path, str], set[tuple[str, str, str, int]]] = {}
    for entry in _kept_entries(out):
        assert entry.file is not None and entry.attempt is not None
        found.setdefault((out / entry.file, entry.source), set()).add((*entry.document, entry.attempt))
    return [KeptFile(file, file.parent, source, frozenset(keys)) for (file, source), keys in found.items()]


def explain(entries: Iterable[Entry]) -> Sequence[str]:
    """A sentence for each reason, most frequent first, for a message about an empty result."""
    counts = Counter(entry.reason for entry in entries if not entry.kept)
    return [f"{number:,}: {REASONS.get(reason, reason)}" for reason, number in counts.most_common()]
