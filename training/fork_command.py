"""What `apr train forks` does, with what it prints."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.progress import Progress
from rich.table import Table

from apr_plugin import terminal
from apr_plugin.compare.joined import RIGHT
from apr_plugin.compare.stats import Interval
from apr_plugin.errors import UNANSWERED, AprError, require
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.runs.arguments import parse_model_args
from apr_plugin.runs.meter import run_sync
from apr_plugin.runs.opened import open_run
from apr_plugin.runs.settings import read_settings
from apr_plugin.scoring.truth import Truth
from apr_plugin.training.fork_judging import FORK_PROMPT, Picks, open_picks, pick_forks
from apr_plugin.training.forks import Forks, LeftOut, Measured, agreement, analyse, evidence_pivot, measure
from apr_plugin.training.synthesis.folder import QUESTIONS, places, questions_of, read_at
from apr_plugin.training.synthesis.judge import Judge, Tally
from apr_plugin.training.synthesis.outcome import OutcomeRules, judge_outcome
from apr_plugin.training.synthesis.verdict import Pick

SCHEMA = "apr.forks"
VERSION = 1

FORKS = "forks.json"
"""The file with the result."""

PAPER = 0.792
"""The share that arXiv 2606.19341 reports in appendix C, for its own model on Video-MME; n is not stated."""

_Id = tuple[str, tuple[str, str, str, int]]
"""Configuration and question of a trajectory."""


@dataclass
class Seen:
    """What one reading of the trajectories found."""

    total: int = 0
    left_out: Counter[LeftOut] = field(default_factory=Counter)
    measured: dict[_Id, Measured] = field(default_factory=dict)
    """The right trajectories whose entropies count."""
    read: dict[_Id, Callable[[], Trajectory]] = field(default_factory=dict)
    """Reads one of them again."""
    evidence: dict[_Id, int] = field(default_factory=dict)
    """The first turn that showed evidence, where the truth says where it is."""
    has_evidence: int = 0
    """Measured trajectories whose truth says where the evidence is."""
    problems: list[str] = field(default_factory=list)


def run_forks(
    path: Path,
    judge: str = "",
    out: Path | None = None,
    *,
    top_k: bool = False,
    rules: tuple[float, float] = (0.5, 0.5),
) -> int:
    """Find the pivotal turns of the right trajectories and compare their entropy; returns the exit status.

    Args:
        path: A folder of `apr train synthesize`, a finished run, or a file of trajectories.
        judge: model_args of the judge; without one, only evidence says which turn is pivotal.
        out: Where picks and result go; by default the folder `forks` beside the trajectories.
        top_k: Whether entropies over the likeliest tokens are taken, too.
        rules: Least IoU and relative accuracy of an answer that counts as right.

    Raises:
        AprError: nothing can be counted, the trajectories can't be read, or the folder can't be written.
    """
    require("scipy", "report")
    require("statsmodels", "report")
    path, console = path.expanduser(), terminal.console()
    out = out.expanduser() if out is not None else (path if path.is_dir() else path.parent) / "forks"
    seen = _read(path, OutcomeRules(*rules), top_k)
    for problem in seen.problems:
        terminal.warn(problem)
    picks, tally = (dict[_Id, int](), None) if not judge or not seen.measured else _picked(seen, judge, out)
    found = {
        name: analyse([seen.measured[key] for key in pivots], list(pivots.values()))
        for name, pivots in (("judge", picks), ("evidence", seen.evidence))
        if pivots
    }
    agree = agreement(picks, seen.evidence, {key: one.video for key, one in seen.measured.items()})
    _print_counts(seen)
    if not found:
        raise AprError(f"{path}: no trajectory can be counted: {_why(seen, judge)}")
    for name, forks in found.items():
        console.print(_table(name, forks))
    if agree is not None:
        console.print(f"the judge chose the turn that showed the evidence first: {interval_cell(agree)} of {agree.n:,}")
    console.print(f"the paper reports {PAPER:.1%} for its own model, without n, interval or control")
    _write(out, path, seen, found, agree, tally, top_k)
    console.print(f"{out / FORKS}", soft_wrap=True)
    if tally is not None and tally.unreachable:
        terminal.complain(
            f"the judge could not be reached {tally.unreachable:,} times: {tally.why}; the same command continues"
        )
        return UNANSWERED
    return 0


def _read(path: Path, rules: OutcomeRules, top_k: bool) -> Seen:
    seen = Seen()
    with Progress(console=terminal.console(stderr=True), transient=True) as bar:
        task = bar.add_task("trajectories", total=None)
        for line in trajectories_of(path, rules, seen.problems):
            trajectory, read, right, truth = line.trajectory, line.read, line.right, line.truth
            bar.advance(task)
            seen.total += 1
            one = measure(trajectory, top_k=top_k)
            if one is not LeftOut.FAILED and not right:
                one = LeftOut.NOT_SCORED if right is None else LeftOut.WRONG
            if isinstance(one, LeftOut):
                seen.left_out[one] += 1
                continue
            key = (trajectory.config_hash, trajectory.question.key)
            seen.measured[key], seen.read[key] = one, read
            if truth is not None and truth.evidence:
                seen.has_evidence += 1
                if (pivot := evidence_pivot(trajectory, truth)) is not None:
                    seen.evidence[key] = pivot
    return seen


@dataclass(frozen=True)
class Line:
    """A trajectory with what is known of it."""

    trajectory: Trajectory
    read: Callable[[], Trajectory]
    """Reads it again."""
    right: bool | None
    """Whether its answer is right; `None`: nothing says it."""
    truth: Truth | None
    folder: Path
    """Where its card is."""


def trajectories_of(path: Path, rules: OutcomeRules, problems: list[str]) -> Iterator[Line]:
    """Every trajectory of a synthesis folder, a run or a file, read from disk one at a time.

    Args:
        path: The folder or file.
        rules: What counts as right, where the task's own scorer does not say it.
        problems: Gets a sentence for each line that can't be read.
    """
    if (path / QUESTIONS).is_file():
        asked = {one.key: one for one in questions_of(path)}
        for place, trajectory in read_at(places(path, problems)):
            one = asked.get(place.key[:3])
            right = None if one is None else judge_outcome(trajectory, one.truth, rules, exact=one.exact).right
            truth = None if one is None else one.truth
            yield Line(trajectory, partial(_again, place), right, truth, place.file.parent)
        return
    run = open_run(path)
    problems += run.problems
    for trajectory in run:
        key = trajectory.question.key
        score, truth = run.scores.get(key), run.truths.get(key[:3])
        right = None if truth is None else judge_outcome(trajectory, truth, rules).right
        if score is not None and score.value is not None:  # the task's own scorer knows better
            right = score.value >= RIGHT
        yield Line(trajectory, partial(run.__getitem__, key), right, truth, run.folder)


def _again(place: Any) -> Trajectory:
    return next(trajectory for _, trajectory in read_at([place]))


def _picked(seen: Seen, arguments: str, out: Path) -> tuple[dict[_Id, int], Tally]:
    settings = read_settings(parse_model_args(arguments))
    found: dict[_Id, int] = {}
    try:
        judge = Judge(settings.policy, settings.config.sampling, FORK_PROMPT)
        picks: Picks = open_picks(out, judge)
        seen.problems += picks.problems
        for problem in picks.problems:
            terminal.warn(problem)
        with Progress(console=terminal.console(stderr=True), transient=True) as bar:
            task = bar.add_task("judged", total=len(seen.read))

            def picked(trajectory: Trajectory, pick: Pick | None) -> None:
                if pick is not None and pick.turn is not None:
                    found[trajectory.config_hash, trajectory.question.key] = pick.turn
                bar.advance(task)

            work = pick_forks(list(seen.read.values()), judge, picks, concurrency=settings.concurrency, on_pick=picked)
            tally = run_sync(work)
    finally:
        settings.policy.close()
    terminal.console().print(
        f"judge {judge.hash}: {tally.asked:,} trajectories judged, {tally.known:,} known from an earlier run, "
        f"{tally.nonsense:,} nonsense replies",
        soft_wrap=True,
    )
    if tally.prompt_tokens:
        terminal.console().print(
            f"{tally.prompt_tokens:,} prompt tokens, {tally.completion_tokens:,} completion tokens"
        )
    return {key: found[key] for key in seen.measured if key in found}, tally


def _print_counts(seen: Seen) -> None:
    left = ", ".join(f"{reason} {count:,}" for reason, count in seen.left_out.most_common())
    terminal.console().print(
        f"{len(seen.measured):,} of {seen.total:,} trajectories are right and have entropies"
        + (f"; left out: {left}" if left else "")
        + f"; {seen.has_evidence:,} have evidence, which {len(seen.evidence):,} showed",
        soft_wrap=True,
    )


def _why(seen: Seen, judge: str) -> str:
    if not seen.total:
        return "there are none"
    if seen.measured:
        who = "the judge chose no turn" if judge else "name a judge with --judge"
        return f"no look of the {len(seen.measured):,} right ones is known to show evidence, and {who}"
    most = seen.left_out.most_common(1)[0][0]
    return {
        LeftOut.NO_ENTROPIES: "the engine gave no entropies (policy=hf gives them over the whole vocabulary)",
        LeftOut.TOP_K: "their entropies are over the likeliest tokens only; --entropies top_k takes them as they are",
        LeftOut.WRONG: "no answer is right",
        LeftOut.NOT_SCORED: "nothing says which answers are right (no questions.jsonl, truths or scores beside them)",
    }.get(most, f"most are left out as {most}")


def _table(name: str, forks: Forks) -> Table:
    title = f"pivotal turn by {name}: {forks.trajectories:,} trajectories, {forks.turns:.1f} turns each"
    table = Table(title, "above its trajectory's mean", "pivotal minus these", "unmatched", box=box.SIMPLE)
    for label, share, difference, unmatched in forks.rows():
        table.add_row(label, interval_cell(share), interval_cell(difference), f"{unmatched:,}" if unmatched else "")
    return table


def interval_cell(interval: Interval | None) -> str:
    """An estimate with its interval, for a cell of a table."""
    if interval is None:
        return ""
    if interval.low is None or interval.high is None:
        return f"{interval.value:.3f} (no interval)"
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _write(
    out: Path,
    path: Path,
    seen: Seen,
    found: Mapping[str, Forks],
    agree: Interval | None,
    tally: Tally | None,
    top_k: bool,
) -> None:
    data = {
        "schema": SCHEMA,
        "version": VERSION,
        "trajectories": str(path),
        "entropies": "top_k" if top_k else "full",
        "read": seen.total,
        "counted": len(seen.measured),
        "left_out": {str(reason): count for reason, count in sorted(seen.left_out.items())},
        "judge": None if tally is None else vars(tally),
        "pivots": {name: forks.to_dict() for name, forks in found.items()},
        "agreement": None if agree is None else agree.to_dict(),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / FORKS).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise AprError(f"{out}: cannot write there: {error.strerror or error}") from error
