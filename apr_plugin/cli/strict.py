"""`apr strict`: a finished run under both parsings, as far as its trajectories and the harness's samples tell."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from apr_plugin.errors import AprError
from apr_plugin.harnesses.lmms_eval.samples import read_samples
from apr_plugin.loop.card import CARD_FILE, Card, CardError
from apr_plugin.loop.strict import StrictEnding, StrictOutcome, strict_outcome
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.runs.finding import trajectory_files
from apr_plugin.runs.scores import Score
from apr_plugin.terminal import console, plain, print_exact

SHOWN = 20
"""Most questions that are listed one by one; `--json` prints all."""

_MEANING = {
    StrictEnding.SAME: "strict parsing takes every turn, and the same answer or none",
    StrictEnding.WRONG: "its answer counts as wrong, or it has none",
    StrictEnding.OTHER: "another answer, which the harness did not score",
    StrictEnding.UNKNOWN: "a turn counts otherwise; what would have followed is not known",
}


@dataclass(frozen=True)
class _Read:
    """One question of the run."""

    task: str
    doc_id: str
    repeat: int
    answered: bool
    """Whether the run has an answer, in whatever form."""
    valid: bool
    outcome: StrictOutcome


@dataclass(frozen=True)
class TaskScores:
    """The scores of one task under both parsings: means over all its questions, in [0, 1]."""

    questions: int
    harness: float
    """The score that the harness computed."""
    strict_least: float
    """The score with strict parsing, if every question whose score is not known scores 0."""
    strict_most: float
    """The same, if every such question scores 1."""


def run_strict(path: Path, samples: Path | None, as_json: bool) -> None:
    """Parse the trajectories again and print what is known.

    Raises:
        AprError: there is no trajectory, there are several configurations, a line is damaged, or the samples are of
            another run.
    """
    reads, config_hash, parsing = _read_run(path)
    found = read_samples(samples if samples is not None else path) if samples is not None or path.is_dir() else {}
    by_task: dict[str, list[_Read]] = {}
    for read in reads:
        by_task.setdefault(read.task, []).append(read)
    scores = {task: _scores(questions, found.get(task, {}), task) for task, questions in sorted(by_task.items())}
    if as_json:
        print_exact(json.dumps(_as_json(reads, scores, config_hash, parsing), indent=1))
    else:
        _print(
            console(),
            reads,
            scores,
            f"{len(reads)} questions, configuration {config_hash or 'unknown'}, made with parsing={parsing}",
        )


def _read_run(path: Path) -> tuple[list[_Read], str, str]:
    """Every question once, with its last trajectory; also the configuration's hash and its `parsing`."""
    found: dict[tuple[str, str, str, int], _Read] = {}
    runs: dict[str, Path] = {}
    for file in trajectory_files(path):
        config = _config(file)
        forced_call, room = config.get("budget", {}).get("on_last_turn", "force") != "fail", _room(config)
        for trajectory in Trajectory.iterate(file):
            runs.setdefault(trajectory.config_hash, file)
            question, outcome = trajectory.question, strict_outcome(trajectory, forced_call=forced_call, room=room)
            found[question.key] = _Read(
                question.task,
                question.doc_id,
                question.repeat,
                trajectory.answer is not None,
                trajectory.answer_valid,
                outcome,
            )
    if not found:
        raise AprError(f"{path} holds no finished trajectories")
    if len(runs) > 1:
        folders = ", ".join(sorted({str(file.parent) for file in runs.values()}))
        raise AprError(
            f"{path} holds {len(runs)} configurations; give the folder of one ({folders}), and its samples "
            "with --samples"
        )
    ((config_hash, file),) = runs.items()
    return list(found.values()), config_hash, str(_config(file).get("parsing", "repair"))


def _config(file: Path) -> dict[str, Any]:
    """The configuration in the folder of a trajectory file; empty if there is none.

    There is none for `apr ask --save` and for a run of an earlier release.
    """
    try:
        card = Card.read(file.with_name(CARD_FILE))
    except CardError:
        return {}
    return card.config.model_dump(mode="json") | {"policy": card.policy}


def _room(config: Mapping[str, Any]) -> int | None:
    """The longest prompt in tokens; `None` if there is no limit, or if the run's strict parsing already obeyed it."""
    limits = [config.get("budget", {}).get("prompt_tokens"), (config.get("policy") or {}).get("context_tokens")]
    known = [limit for limit in limits if isinstance(limit, int)]
    return min(known) if known and config.get("parsing") != "strict" else None


def _scores(reads: Sequence[_Read], samples: Mapping[str, Score], task: str) -> TaskScores | None:
    """The task's means, or `None` if not every question has a score that belongs to it."""
    if any(read.repeat for read in reads) or any(read.doc_id not in samples for read in reads):
        return None
    least = most = harness = 0.0
    for read in reads:
        sample = samples[read.doc_id]
        if (sample.answered and not read.answered) or (read.valid and not sample.answered):
            raise AprError(
                f"the samples of {task} are of another run: doc {read.doc_id} has an answer in only one of "
                "them; give its own with --samples"
            )
        if sample.value is None:
            return None
        harness += sample.value
        if read.outcome.ending is StrictEnding.SAME and read.valid:
            least, most = least + sample.value, most + sample.value
        elif read.outcome.ending in (StrictEnding.OTHER, StrictEnding.UNKNOWN):
            most += 1
    n = len(reads)
    return TaskScores(n, harness / n, least / n, most / n)


def _as_json(
    reads: Sequence[_Read], scores: Mapping[str, TaskScores | None], config_hash: str, parsing: str
) -> dict[str, Any]:
    questions = [
        {"task": read.task, "doc_id": read.doc_id, "repeat": read.repeat} | dataclasses.asdict(read.outcome)
        for read in reads
    ]
    counts = {ending: sum(read.outcome.ending is ending for read in reads) for ending in StrictEnding}
    tasks = {task: dataclasses.asdict(found) if found else None for task, found in scores.items()}
    return {"config_hash": config_hash, "parsing": parsing, "counts": counts, "scores": tasks, "questions": questions}


def _print(out: Console, reads: Sequence[_Read], scores: Mapping[str, TaskScores | None], title: str) -> None:
    counts = Counter(read.outcome.ending for read in reads)
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("with strict parsing", "questions", ""):
        table.add_column(name, justify="right" if name == "questions" else "left")
    for ending in StrictEnding:
        table.add_row(ending, str(counts[ending]), _MEANING[ending])
    out.print(table)
    changed = [read for read in reads if read.outcome.turn is not None]
    for read in changed[:SHOWN]:
        line = f"{read.task} doc {read.doc_id}, turn {read.outcome.turn}: {read.outcome.ending}: {read.outcome.why}"
        out.print(Text(plain(line, 300)))
    if len(changed) > SHOWN:
        out.print(f"and {len(changed) - SHOWN} more (--json prints all)", style="dim")
    if any(scores.values()):
        _print_scores(out, scores)
    for task in (task for task, found in scores.items() if found is None):
        out.print(
            f"{task}: no scores: not every question has one in lmms-eval's samples (--log_samples), or it was "
            "asked more than once"
        )


def _print_scores(out: Console, scores: Mapping[str, TaskScores | None]) -> None:
    table = Table(title="mean score", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("task", no_wrap=True)
    for name in ("questions", "as the harness\nscored it", "strict,\nat least", "strict,\nat most"):
        table.add_column(name, justify="right", no_wrap=True)
    for task, found in scores.items():
        if found is not None:
            numbers = (found.harness, found.strict_least, found.strict_most)
            table.add_row(Text(plain(task, 80)), str(found.questions), *(f"{number:.4f}" for number in numbers))
    out.print(table)
    out.print(
        "The two bounds differ by the questions that ended as other or unknown, which count 0 or 1; only a run "
        "with parsing=strict gives their score. "
        "With strict parsing a question without an answer in the requested form scores 0, even if the "
        "harness's scorer guesses for it.",
        style="dim",
    )
