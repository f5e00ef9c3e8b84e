"""`open_run(DIR)`: a finished run from disk: its card, its trajectories, and a harness's scores for each question.

    run = open_run("out")              # lmms-eval's --output_path, a folder of trajectories, or of one configuration
    for trajectory in run: ...         # one at a time
    run.frame()                        # a pandas DataFrame, a row per question

Only files are loaded: no policy, no harness. Whatever is cut off, damaged or missing is in `run.problems`, and is
logged as a warning.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr_plugin.errors import AprError, require
from apr_plugin.files import read_regular
from apr_plugin.loop.text import printable
from apr_plugin.loop.trajectory import DamagedLine, Trajectory, TrajectoryError
from apr_plugin.runs.finding import CARDS, FoundRun, card_problem, find_runs, newlines
from apr_plugin.runs.meter import TokensSpent, tokens_spent
from apr_plugin.runs.rows import QUESTION, TURN, WHOLE, question_row, turn_rows
from apr_plugin.runs.scores import Evaluation, Score, find_evaluations, read_samples
from apr_plugin.runs.truths import DocKey, read_truths
from apr_plugin.scoring.truth import Truth
from apr_plugin.terminal import one_line, quoted

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped]

Key = tuple[str, str, str, int]
"""Task, split, doc id and repeat, which identify a question within a run (`Question.key`)."""

_NAMED = 5
"""Most questions that one sentence names; the attributes have all of them."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Line:
    """Where a question's trajectory is, and what its score must agree with."""

    file: Path
    start: int
    """Offset in the file, in bytes."""
    failed: bool
    answered: bool
    """Whether there is an answer, in whatever form."""
    valid: bool
    tokens: TokensSpent | None


class Run:
    """A run as its files contain it.

    It is made by `open_run`. Iterating gives its trajectories, each question once, read from disk one at a time.
    """

    def __init__(self, found: FoundRun, evaluations: Sequence[Evaluation]) -> None:
        self.folder = found.folder
        """Where the trajectories are."""
        self.config_hash = found.config_hash
        """The configuration's hash."""
        self.problems: list[str] = []
        """What is cut off, damaged or missing, one sentence for each."""
        self.card: Mapping[str, Any] = self._read_card()
        """The card that was written when the run began; empty if it is missing."""
        self.evaluations = list(evaluations)
        """The harness's evaluations of this run, the newest first."""
        self.scores: dict[Key, Score] = {}
        """The harness's score of each answer that was logged."""
        self.without_trajectory: list[Key] = []
        """Questions that have a score but no trajectory."""
        self.truths: dict[DocKey, Truth] = read_truths(found.folder)
        """What is right, by task, split and doc id, where the task says it."""
        self._lines: dict[Key, _Line] = {}
        for file in found.files:
            self._read_lines(file)
        self._join()

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[Trajectory]:
        return (self[key] for key in self._lines)

    def __contains__(self, key: object) -> bool:
        return key in self._lines

    def __getitem__(self, key: Key) -> Trajectory:
        """The trajectory of one question.

        Raises:
            KeyError: the run has no such question.
            TrajectoryError: its file has changed since the run was opened.
        """
        line = self._lines[key]
        try:
            with line.file.open("rb") as file:
                file.seek(line.start)
                trajectory = Trajectory.from_json(file.readline().decode("utf-8", "replace"), str(line.file))
        except (OSError, DamagedLine) as error:
            raise TrajectoryError(
                f"{line.file}: it has changed since the run was opened ({error}); open it again"
            ) from error
        if trajectory.question.key != key:
            raise TrajectoryError(f"{line.file}: it has changed since the run was opened; open it again")
        return trajectory

    @property
    def keys(self) -> list[Key]:
        """The questions that have a trajectory, in the order of the files."""
        return list(self._lines)

    @property
    def trajectories(self) -> list[Trajectory]:
        """All trajectories, in memory; if there are many, iterate over the run instead."""
        return list(self)

    @property
    def failed(self) -> list[Key]:
        """Questions that could not be answered; a harness counts them as wrong."""
        return [key for key, line in self._lines.items() if line.failed]

    @property
    def without_score(self) -> list[Key]:
        """Questions that have a trajectory but no score."""
        return [key for key in self._lines if key not in self.scores]

    @property
    def metrics(self) -> dict[str, Mapping[str, float]]:
        """Task -> metric -> what the harness reported for the whole task.

        The values are of the newest evaluation that has the task.
        """
        return {
            task: values for evaluation in reversed(self.evaluations) for task, values in evaluation.metrics.items()
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """One question at a time, with the columns of `rows.QUESTION` and `metric.NAME`."""
        return (question_row(trajectory, self.scores.get(trajectory.question.key)) for trajectory in self)

    def turn_rows(self) -> Iterator[dict[str, Any]]:
        """One turn at a time, with the columns of `rows.TURN`."""
        return (row for trajectory in self for row in turn_rows(trajectory))

    def frame(self) -> DataFrame:
        """A pandas DataFrame with a row for each question (`rows`).

        Raises:
            MissingExtra: pandas is not installed.
        """
        return _frame(self.rows(), QUESTION)

    def turns(self) -> DataFrame:
        """A pandas DataFrame with a row for each turn (`turn_rows`).

        Raises:
            MissingExtra: pandas is not installed.
        """
        return _frame(self.turn_rows(), TURN)

    def __repr__(self) -> str:
        return (
            f"<Run {self.config_hash}: {len(self)} questions, {len(self.scores)} scores, {len(self.problems)} "
            f"problems, in {self.folder}>"
        )

    def _say(self, problem: str) -> None:
        self.problems.append(one_line(problem))
        _log.warning("%s", self.problems[-1])

    def _read_card(self) -> Mapping[str, Any]:
        for name in CARDS:
            path = self.folder / name
            if not path.exists():
                continue
            try:
                card = json.loads(read_regular(path))
                if isinstance(card, dict):
                    if (problem := card_problem(path, card, self.config_hash)) is not None:
                        self._say(problem)
                    return card
                raise ValueError("it is not a JSON object")
            except (OSError, ValueError, RecursionError) as error:
                self._say(f"{path}: cannot read the card: {getattr(error, 'strerror', None) or error}")
                return {}
        self._say(f"{self.folder}: the card ({' or '.join(CARDS)}) is missing")
        return {}

    def _read_lines(self, file: Path) -> None:
        """Record where each question's trajectory is.

        If there are several, the last one that did not fail counts, as for a resumed run.
        """
        others = 0

        def damaged(start: int, end: int, error: DamagedLine) -> None:
            self._say(f"{error}; left out")

        for start, _, trajectory in Trajectory.iterate_with_places(file, damaged):
            if trajectory.config_hash != self.config_hash:
                others += 1
                continue
            key, failed = trajectory.question.key, trajectory.stop_reason.failed
            if key not in self._lines or self._lines[key].failed or not failed:
                self._lines[key] = _Line(
                    file,
                    start,
                    failed,
                    trajectory.answer is not None,
                    trajectory.answer_valid,
                    tokens_spent(trajectory),
                )
        if others:
            self._say(f"{file}: {_count(others, 'line')} of another configuration; left out")
        with file.open("rb") as tail:
            size = tail.seek(0, 2)
            tail.seek(max(0, size - 1))
            if size and tail.read(1) != b"\n":
                self._say(f"{file}: its last line is incomplete (the run was killed, or is still writing); left out")
        if re.search(r"\.rank\d+$", file.stem):
            self._say(
                f"{file}: the file of one rank, which was not merged (the rank was killed, or is still running); "
                "it is read"
            )
        aside = file.with_name(f"{file.name}.damaged")
        if aside.exists():
            self._say(f"{aside}: {_count(newlines(aside), 'damaged line')} that a resumed run moved there")

    def _join(self) -> None:
        splits: dict[str, set[str]] = {}
        for task, split, _, _ in self._lines:
            splits.setdefault(task, set()).add(split)
        stale: dict[Key, str] = {}
        together: dict[Key, None] = {}
        orphans: dict[Key, None] = {}
        for evaluation in self.evaluations:
            for task, file in evaluation.samples.items():
                known = splits.get(printable(task), {""})
                split = evaluation.splits.get(task) or (next(iter(known)) if len(known) == 1 else "")
                if not split and len(known) > 1:
                    self._say(
                        f"{file}: nothing says which of the splits {', '.join(sorted(known))} its questions "
                        "are of; left out"
                    )
                    continue
                twice: list[Key] = []
                seen: set[Key] = set()
                for doc_id, score in read_samples(file, self._say):
                    key = (printable(task), printable(split), doc_id, score.repeat)
                    twice += [key] if key in seen else []
                    seen.add(key)
                    line = self._lines.get(key)
                    if line is None:
                        orphans[key] = None
                    elif not evaluation.is_of_first(task, score):
                        together[key] = None
                    elif not _agree(score, line):
                        stale.setdefault(key, evaluation.time)
                    elif key not in self.scores or key in twice:
                        self.scores[key] = score
                if twice:
                    self._say(
                        f"{file}: {_count(len(twice), 'question')} in it more than once ({_named(twice)}); "
                        "the last counts"
                    )
        self.without_trajectory = list(orphans)
        if together:
            self._say(
                f"{_count(len(together), 'question')} with one score for several answers, which is joined to "
                f"none of them: {_named(together)}"
            )
        if old := [key for key in stale if key not in self.scores]:
            self._say(f"{_count(len(old), 'score')} of another answer than the trajectory's, left out: {_named(old)}")
        if orphans:
            self._say(f"{_count(len(orphans), 'question')} with a score and without a trajectory: {_named(orphans)}")
        if self._lines and not any(evaluation.samples for evaluation in self.evaluations):
            self._say("no scores: no samples files of lmms-eval (--output_path with --log_samples) belong to this run")
        elif missing := self.without_score:
            first = (
                " (of several answers to a question lmms-eval logs the score of the first)"
                if any(key[3] for key in missing)
                else ""
            )
            self._say(f"{_count(len(missing), 'question')} without a score{first}: {_named(missing)}")


def open_run(
    folder: str | Path, *, config: str | None = None, latest: bool = False, results: str | Path | None = None
) -> Run:
    """Open a finished run, or as much as there is of a run that is still going on.

    Args:
        folder: The folder of one configuration (`…/trajectories/<hash>`), a folder of trajectories, or the output
            folder of lmms-eval; or one file.
        config: The configuration's hash or the beginning of it, if the folder has several.
        latest: If it has several, take the one that was evaluated last.
        results: The output folder of lmms-eval, if the trajectories are elsewhere and its results don't name them.

    Raises:
        AprError: there is no run, or there are several configurations and none was chosen; the message names them.
        TrajectoryError: a file can't be read, or was written by a newer release.
    """
    root = Path(folder).expanduser()
    notes: list[str] = []
    places = [Path(results).expanduser()] if results is not None else _beside(root)
    if results is not None and not places[0].is_dir():
        raise AprError(f"results={places[0]}: no such folder")
    evaluations = [evaluation for place in places for evaluation in find_evaluations(place, notes.append)]
    found = find_runs(root) or _where_results_say(evaluations)
    if not found:
        raise AprError(
            f"{root}: it holds no trajectories of a run, and no results of lmms-eval that say where they are"
        )
    chosen = _choose(root, found, evaluations, config, latest)
    own = [evaluation for evaluation in evaluations if evaluation.config_hash == chosen.config_hash]
    unnamed = [evaluation for evaluation in evaluations if evaluation.config_hash is None]
    if unnamed and (results is not None or len(find_runs(_home(chosen))) == 1):  # they can't belong to another run
        own = sorted([*own, *unnamed], key=lambda evaluation: evaluation.time, reverse=True)
        unnamed = []
    run = Run(chosen, own)
    for note in notes:
        run._say(note)
    if unnamed:
        times = ", ".join(evaluation.time for evaluation in unnamed)
        run._say(
            f"evaluations that don't say which configuration they are of, left out: {times} (name their "
            "folder: results=DIR)"
        )
    return run


def _beside(root: Path) -> list[Path]:
    """Where results of lmms-eval may be: in the folder itself, or above its folder `trajectories`.

    `apr eval` makes `trajectories` in its output folder.
    """
    folder = root.absolute()
    for inner in (folder, folder.parent, folder.parent.parent):
        if inner.name == "trajectories":
            return [inner.parent]
    return [folder] if folder.is_dir() else []


def _home(found: FoundRun) -> Path:
    """The folder in which the store keeps the folders of all configurations."""
    return found.folder.parent if found.folder.name == found.config_hash else found.folder


def _where_results_say(evaluations: Sequence[Evaluation]) -> list[FoundRun]:
    folders = dict.fromkeys(evaluation.run_folder for evaluation in evaluations if evaluation.run_folder is not None)
    return [found for folder in folders if folder.is_dir() for found in find_runs(folder)]


def _choose(
    root: Path, found: Sequence[FoundRun], evaluations: Sequence[Evaluation], config: str | None, latest: bool
) -> FoundRun:
    fitting = [one for one in found if config is None or one.config_hash.startswith(config)]
    if latest and len(fitting) > 1:
        for evaluation in evaluations:
            if hit := [one for one in fitting if one.config_hash == evaluation.config_hash]:
                fitting = hit
                break
    if len(fitting) == 1:
        return fitting[0]
    there = "; ".join(f"{one.config_hash or 'without a name'} ({one.about}, in {one.folder})" for one in found)
    if not fitting:
        raise AprError(f"{root}: no configuration begins with {quoted(config)}; there are: {there}")
    raise AprError(
        f"{root} holds {len(fitting)} configurations; choose one with config=HASH, or open its folder: {there}"
    )


def _agree(score: Score, line: _Line) -> bool:
    """Whether a score can belong to this trajectory's answer."""
    if (score.answered and not line.answered) or (line.valid and not score.answered):
        return False
    return score.tokens is None or line.tokens is None or score.tokens == line.tokens


def _frame(rows: Iterator[dict[str, Any]], columns: Sequence[str]) -> DataFrame:
    require("pandas", "report")
    import pandas

    listed = list(rows)
    names = dict.fromkeys([*columns, *(name for row in listed for name in row)])
    frame = pandas.DataFrame(listed, columns=list(names))
    return frame.astype({name: "Int64" for name in WHOLE if name in names})


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _named(keys: Any) -> str:
    listed = list(keys)
    words = [
        f"{task} doc {doc_id}" + (f" repeat {repeat}" if repeat else "") for task, _, doc_id, repeat in listed[:_NAMED]
    ]
    return ", ".join(words) + (f" and {len(listed) - _NAMED:,} more" if len(listed) > _NAMED else "")
