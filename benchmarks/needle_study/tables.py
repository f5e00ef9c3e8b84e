"""The tables of the study: each is a function of arms that were run, with the intervals and tests of `compare`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from apr_plugin.compare import aiming, cost, pairs
from apr_plugin.compare.joined import Arm, Comparison
from apr_plugin.compare.ladder import RUNGS, ladder
from apr_plugin.compare.stats import Interval, ratio
from apr_plugin.report.tables import COSTS, Table, amount, p_value, share
from apr_plugin.runs.opened import Key
from apr_plugin.tasks.needle.make import BUCKETS
from apr_plugin.training.fork_command import trajectories_of
from apr_plugin.training.forks import LeftOut, Measured, analyse, evidence_pivot, measure
from apr_plugin.training.synthesis.outcome import OutcomeRules
from apr_plugin.training.tiny.spending import Spent, spent_by_stage, total
from benchmarks.needle_study.transfer import Case, case_of

COSTLY = ("turns", "frames", "visual_tokens", "prompt_tokens", "completion_tokens", "model_s", "media_s")
"""Quantities of the table of costs."""


def cell(interval: Interval | None) -> str:
    """An estimate with its interval."""
    return share(None if interval is None else interval.to_dict(), 2)


def number(interval: Interval | None) -> str:
    """An estimate of any size, without its interval."""
    return amount(None if interval is None else interval.to_dict())


def kinds_of(comparison: Comparison) -> dict[str, list[Key]]:
    """The questions of each kind of the benchmark."""
    found: dict[str, list[Key]] = {}
    for key in comparison.keys:
        found.setdefault(key[0].removeprefix("apr_needle_"), []).append(key)
    return found


def _buckets(comparison: Comparison) -> list[str]:
    there = pairs.buckets_of(comparison)
    return [name for name in BUCKETS if name in there] + sorted(set(there) - set(BUCKETS))


def scores(comparison: Comparison) -> list[Table]:
    """For each kind, the mean score of each arm in each bucket; for time spans the IoU, and the share from 0.5 on."""
    found, buckets = [], _buckets(comparison)
    for kind, keys in kinds_of(comparison).items():
        measures: list[tuple[str, Callable[..., Interval | None]]] = [
            ("mean IoU" if kind == "when" else "accuracy", pairs.score)
        ]
        measures += [("share with IoU >= 0.5", pairs.accuracy)] if kind == "when" else []
        for name, of in measures:
            rows = []
            for arm in comparison.arms:
                cells = [of(comparison, arm, [key for key in keys if comparison.bucket(key) == one]) for one in buckets]
                rows.append((arm.name, *map(cell, cells), cell(of(comparison, arm, keys))))
            found.append(Table(f"{kind}: {name}, {len(keys)} questions", ("arm", *buckets, "all"), tuple(rows)))
    return found


def looks(comparison: Comparison) -> list[Table]:
    """Where arms looked, which right answers their looks support, and the ladder from blind to oracle."""
    columns = ("hit", "coverage", "looks_to_hit", "wasted", "repeats", "no_look", "supported", "unsupported")
    rows = []
    for arm in comparison.arms:
        known = aiming.aims(comparison, arm)
        if not known:
            continue
        summary = aiming.summarise(comparison, arm, known)
        right = [key for key in known if arm.outcome(key).right]
        unseen = ratio(
            [float(not known[key].hit) for key in right], [1.0] * len(right), pairs.clusters_of(comparison, right)
        )
        rows.append((arm.name, *(cell(summary[name]) for name in columns), cell(unseen)))
    headings = ("arm", *(name.replace("_", " ") for name in columns), "unsupported, of right answers")
    return [Table("Where they looked, of questions with known evidence", headings, tuple(rows))]


def ladders(comparison: Comparison) -> list[Table]:
    """The ladder of each agent: blind, passive, agent, oracle, and the share of what aiming can bring."""
    rows = []
    for arm in comparison.arms:
        if arm.kind == "agent":
            steps = ladder(comparison, agent=arm.name)
            shares = (steps.realised, steps.realised_over_passive)
            rows.append((arm.name, *(cell(steps.rungs[rung]) for rung in RUNGS), *map(cell, shares)))
    return [Table("From blind to oracle", ("agent", *RUNGS, "realised", "realised over passive"), tuple(rows))]


def costs(comparison: Comparison) -> list[Table]:
    """What a question costs in each bucket, and how it grows with an hour of video."""
    buckets, found = _buckets(comparison), []
    arms = [arm for arm in comparison.arms if arm.run is not None]
    rows_of = {arm.name: cost.rows_of(comparison, arm) for arm in arms}
    of_bucket = {arm.name: cost.costs_by_bucket(comparison, arm, rows=rows_of[arm.name]) for arm in arms}
    grows = {arm.name: cost.slopes(comparison, arm, rows=rows_of[arm.name]) for arm in arms}
    for quantity in COSTLY:
        rows = []
        for arm in arms:
            cells = [of_bucket[arm.name][name][quantity] for name in buckets]
            if any(value is not None for value in cells):
                rows.append((arm.name, *map(number, cells), cell(grows[arm.name][quantity])))
        found.append(
            Table(f"Cost of a question: {COSTS[quantity]}", ("arm", *buckets, "per hour of video"), tuple(rows))
        )
    return found


def scaling(comparison: Comparison, sweep: Mapping[str, Any]) -> list[Table]:
    """What an agent reaches with each budget of turns, and how many turns it takes."""
    kinds = kinds_of(comparison)
    rows = []
    for arm in comparison.arms:
        spent = cost.costs(comparison, arm)
        of_kinds = [cell(pairs.score(comparison, arm, keys)) for keys in kinds.values()]
        quantities = (spent["turns"], spent["frames"], spent["completion_tokens"])
        rows.append((str(sweep["values"][arm.name]), *of_kinds, *map(number, quantities)))
    # A last call for the answer comes after the last turn, and counts as taken.
    headings = ("turns allowed", *kinds, "turns taken, with a last call", "frames", "written tok.")
    return [Table("Test-time scaling", headings, tuple(rows))]


def ablations(comparison: Comparison) -> list[Table]:
    """Each variant of an agent against the agent as it is, which is the first arm."""
    kinds, (own, *_) = kinds_of(comparison), comparison.arms
    rows = []
    for arm in comparison.arms:
        spent = cost.costs(comparison, arm)
        difference = None if arm is own else pairs.score_differences(comparison, arm, own)
        cells = [cell(pairs.score(comparison, arm, keys)) for keys in kinds.values()]
        cells += [number(spent[name]) for name in ("prompt_tokens", "visual_tokens", "model_s", "media_s")]
        cells += ["", ""] if difference is None else [cell(difference.diff), p_value(difference.p_read)]
        rows.append((arm.name, *cells))
    headings = ("variant", *kinds, *(COSTS[name] for name in ("prompt_tokens", "visual_tokens", "model_s", "media_s")))
    return [Table("Ablations", (*headings, f"score minus {own.name}", "p"), tuple(rows))]


def entropies(folders: Mapping[str, Path]) -> list[Table]:
    """Whether the turn whose look first showed the evidence is an uncertain one (`training.forks`).

    Args:
        folders: The run of each agent.
    """
    found = []
    for name, folder in folders.items():
        measured: list[Measured] = []
        pivots: list[int] = []
        left: dict[str, int] = {}
        for line in trajectories_of(folder, OutcomeRules(), []):
            one = measure(line.trajectory)
            pivot = None if line.truth is None else evidence_pivot(line.trajectory, line.truth)
            if one is not LeftOut.FAILED and not line.right:
                one = LeftOut.WRONG
            if isinstance(one, LeftOut) or pivot is None:
                reason = str(one) if isinstance(one, LeftOut) else "no look at the evidence"
                left[reason] = left.get(reason, 0) + 1
                continue
            measured.append(one)
            pivots.append(pivot)
        told = ", ".join(f"{reason} {count}" for reason, count in sorted(left.items())) or "none"
        title = f"Entropy at the pivotal turn, {name}: {len(measured)} right trajectories; left out: {told}"
        rows = analyse(measured, pivots).rows() if measured else []
        cells = tuple((label, cell(part), cell(minus), str(lone or "")) for label, part, minus, lone in rows)
        found.append(Table(title, ("turns", "above their mean", "pivotal minus these", "unmatched"), cells))
    return found


def transfer(comparison: Comparison, cases: Sequence[Case]) -> list[Table]:
    """The mean score of each arm for each case, over all kinds of question."""
    of_case = {
        case.name: [key for key in comparison.keys if case_of(comparison.cluster(key)) == case.name] for case in cases
    }
    rows = [
        (
            arm.name,
            *(cell(pairs.score(comparison, arm, keys)) for keys in of_case.values()),
            cell(pairs.score(comparison, arm)),
        )
        for arm in comparison.arms
    ]
    return [
        Table(
            "Lengths and chapters that training has not met: mean score",
            ("arm", *(case.told for case in cases), "all"),
            tuple(rows),
        )
    ]


def training(runs: Mapping[str, Path]) -> list[Table]:
    """What training cost, against the first run (`training.tiny.spending`)."""
    sums: dict[str, Spent] = {name: total(spent_by_stage(folder)) for name, folder in runs.items()}
    first = next(iter(sums.values()))
    rows = [
        (
            name,
            f"{one.tokens / 1e6:.2f}",
            f"{one.flops / 1e12:.1f}",
            f"{one.cpu_seconds:,.0f}",
            f"{one.tokens / first.tokens:.2f}",
            f"{one.flops / first.flops:.2f}",
        )
        for name, one in sums.items()
    ]
    return [
        Table(
            "Training",
            ("model", "million tokens", "TFLOPs", "CPU s", "tokens, times the first", "FLOPs, times the first"),
            tuple(rows),
        )
    ]


def arm_named(comparison: Comparison, name: str) -> Arm:
    """The arm of this name."""
    return next(arm for arm in comparison.arms if arm.name == name)
