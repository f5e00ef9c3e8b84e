"""Writes imported trajectories as a run that `open_run` reads: card, trajectories, truths, scores.

Everything is written into a folder beside the wanted one, which is then renamed: a stopped import leaves no half run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apr_plugin import __version__
from apr_plugin.errors import AprError
from apr_plugin.files import read_regular
from apr_plugin.loop.card import CARD_FILE, IMPORTED
from apr_plugin.loop.config import hash_of
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.runs.foreign.found import About, Found
from apr_plugin.runs.foreign.records import Left, Unmapped
from apr_plugin.runs.scores import REPEAT
from apr_plugin.runs.scores_written import write_scores
from apr_plugin.runs.store import TrajectoryStore
from apr_plugin.runs.truths import DocKey, write_truths
from apr_plugin.scoring.text import NO_ANSWER
from apr_plugin.scoring.truth import Truth

VERSION = 1
"""Of the card and of `import.json`."""

RECORD = "import.json"
"""Its name in the run's folder: what was read, when it is complete."""

NO_TIME = "00000000_000000"
"""In the names of the scores' files, where the record does not say when it was evaluated."""

ALWAYS_ABSENT = ("prompts", "log-probabilities")
"""What no imported run has: its prompts can't be rebuilt."""


@dataclass
class Written:
    """What came of an import."""

    folder: Path
    """The run."""
    config_hash: str
    """Names its configuration."""
    tasks: dict[str, int] = field(default_factory=dict)
    """Task -> trajectories."""
    left: dict[str, int] = field(default_factory=dict)
    """Reason -> records that were left out for it."""
    named: list[str] = field(default_factory=list)
    """The first of them, with place and reason."""
    absent: dict[str, int] = field(default_factory=dict)
    """What was not recorded -> in how many trajectories."""
    scored: int = 0
    """Trajectories with a score."""
    notes: list[str] = field(default_factory=list)
    """What differs from a run of this package."""
    already: bool = False
    """Whether the same import was there already."""


def digest(file: Path) -> str:
    """SHA-256 of a file, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def identity(format_name: str, sources: Sequence[Mapping[str, Any]], options: Mapping[str, str]) -> str:
    """16 hex digits that name what is imported: the files' contents, and how they are read."""
    read = [one["sha256"] for one in sources]
    return hash_of({"imported": format_name, "sources": read, "options": dict(options), "version": VERSION})


def earlier(out: Path) -> Written | None:
    """The import that is in a folder; `None` if there is none."""
    try:
        data = json.loads(read_regular(out / RECORD))
        return Written(
            out,
            str(data["config_hash"]),
            tasks=_counts(data["tasks"]),
            left=_counts(data["left"]),
            named=[str(one) for one in data["named"]],
            absent=_counts(data["absent"]),
            scored=int(data["scored"]),
            notes=[str(note) for note in data["notes"]],
            already=True,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _counts(given: Mapping[str, Any]) -> dict[str, int]:
    return {str(name): int(count) for name, count in given.items()}


class Writer:
    """Writes one run.

    Args:
        out: The run's folder, which is not there or empty, or holds an earlier import.
        config_hash: From `identity`.
    """

    def __init__(self, out: Path, config_hash: str) -> None:
        self.done = Written(out, config_hash)
        self._place = out.parent / f".{out.name}.importing"
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._splits: dict[str, str] = {}
        self._truths: dict[DocKey, Truth] = {}
        self._keys: set[tuple[str, str, str, int]] = set()
        self._counted: Counter[str] = Counter()
        try:
            shutil.rmtree(self._place, ignore_errors=True)  # of an import that was killed
            self._place.mkdir(parents=True)
            self._store = TrajectoryStore(self._place / "trajectories", config_hash, {})
            self._store.folder.mkdir(parents=True)
        except OSError as error:
            raise AprError(f"{out}: cannot write there: {error.strerror or error}") from error

    def add(self, found: Found) -> None:
        """Write one trajectory.

        Raises:
            Left: there is one of the same question already.
            AprError: it can't be written.
        """
        made = found.trajectory.model_copy(update={"config_hash": self.done.config_hash})
        if not made.question_hash:
            made = made.model_copy(update={"question_hash": _question_hash(made)})
        key = made.question.key
        if key in self._keys:
            raise Left(Unmapped.TWICE, f"{key[0]} doc {key[2]} repeat {key[3]}")
        kept, line = made.loadable()
        try:
            with self._store.path(key[0]).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise AprError(f"{self.done.folder}: cannot write there: {error.strerror or error}") from error
        self._keys.add(key)
        self.done.tasks[key[0]] = self.done.tasks.get(key[0], 0) + 1
        self._count(kept, found)

    def _count(self, kept: Trajectory, found: Found) -> None:
        task, split, doc_id, repeat = kept.question.key
        absent = [] if kept.imported is None else [str(figure) for figure in kept.imported.absent]
        usages = [turn.usage for turn in kept.turns]
        absent += ["tokens"] * (not usages or any(one.prompt_tokens is None for one in usages))
        absent += ["score"] * (found.score is None and not kept.stop_reason.failed)
        absent += ["truth"] * (found.truth is None) + ["video"] * (not kept.question.videos)
        self._counted.update([*absent, *ALWAYS_ABSENT])
        if found.truth is not None:
            self._truths[task, split, doc_id] = found.truth
        if found.score is None and not found.metrics:
            return
        self.done.scored += found.score is not None
        self._splits[task] = split
        row: dict[str, Any] = {"doc_id": doc_id, REPEAT: repeat, "filtered_resps": [kept.answer or NO_ANSWER]}
        row |= {"target": " or ".join(found.truth.answers)} if found.truth is not None else {}
        # `Score.value` is a number called `score`, or the only one whose name ends in `_score`.
        row |= {name: value for name, value in found.metrics.items() if name not in row and "score" not in name}
        self._rows.setdefault(task, []).append(row | ({} if found.score is None else {"score": found.score}))

    def finish(self, format_name: str, sources: Sequence[Mapping[str, Any]], about: About) -> Written:
        """Write card and scores, and give the folder its name.

        Raises:
            AprError: it can't be written.
        """
        done = self.done
        done.absent = dict(sorted(self._counted.items()))
        done.notes = list(dict.fromkeys(about.notes))
        if about.model == "":
            done.notes.append("the record does not name the model")
        model = {"model": about.model} if about.model else {}
        card = {
            "schema": IMPORTED,
            "version": VERSION,
            "config_hash": done.config_hash,
            "config": {"recorded": about.configuration},
            "policy": {"name": f"imported:{format_name}"} | model,
            "imported": {
                "by": f"apr-plugin {__version__}",
                "format": format_name,
                "program": about.program,
                "evaluated": about.time,
                "sources": list(sources),
                "trajectories": sum(done.tasks.values()),
                "left_out": done.left,
                "not_recorded": done.absent,
                "notes": done.notes,
            },
        }
        run = {"config_hash": done.config_hash}
        config = {"model": "apr", "harness": about.program, "resolved_cli_args": {"apr_run": run}}
        try:
            (self._store.folder / CARD_FILE).write_text(_json(card), "utf-8")
            write_truths(self._store.folder, self._truths)
            if self._rows:
                write_scores(
                    self._place,
                    about.time or NO_TIME,
                    self._rows,
                    splits=self._splits,
                    metrics={task: about.metrics.get(task, {}) for task in self._rows},
                    config=config,
                    versions={
                        task: version for task in self._rows if (version := about.versions.get(task)) is not None
                    },
                    asked=done.tasks,
                )
            record = {"schema": IMPORTED, "version": VERSION, "config_hash": done.config_hash, "tasks": done.tasks}
            record |= {"left": done.left, "named": done.named, "absent": done.absent, "scored": done.scored}
            (self._place / RECORD).write_text(_json(record | {"notes": done.notes}), "utf-8")
            self._take_place()
        except OSError as error:
            raise AprError(f"{done.folder}: cannot write there: {error.strerror or error}") from error
        return done

    def _take_place(self) -> None:
        for path in self._place.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        out, old = self.done.folder, self._place.with_suffix(".replaced")
        if out.exists() and any(out.iterdir()):
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
        self._place.rename(out)
        shutil.rmtree(old, ignore_errors=True)

    def discard(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self._place, ignore_errors=True)


def _question_hash(trajectory: Trajectory) -> str:
    """Like `Question.content_hash`, without a look at the videos: their paths are those of another machine."""
    question = trajectory.question
    seen = question.model_dump(mode="json", include={"text", "kind", "options", "answer_hint"})
    seen["videos"] = [ref.path for ref in question.videos]
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:16]


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2, sort_keys=True) + "\n"


def first(items: Iterable[str], most: int = 20) -> list[str]:
    """The first of them, and how many more there are."""
    listed = list(items)
    return listed[:most] + ([f"and {len(listed) - most:,} more"] if len(listed) > most else [])
