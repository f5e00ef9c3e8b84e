"""The tables of the benchmark of distillation, and their statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.distillation_measures import ESTIMATORS
from benchmarks.grpo_learning_report import interval

Range = tuple[float, float, float]
"""A value and its 95% interval."""

VALUES = {"loss": "loss", "distill/kl_top_k": "top-K KL", "grad_norm": "length of the gradient"}
"""What is shown of steps."""


def fifths(steps: Sequence[Mapping[str, float]], value: str) -> tuple[float, float]:
    """Means of the first and the last fifth of the steps."""
    n = max(1, len(steps) // 5)
    of = [step[value] for step in steps]
    return float(np.mean(of[:n])), float(np.mean(of[-n:]))


def falls(runs: Sequence[Mapping[str, Any]], value: str) -> dict[str, Range]:
    """`first`, `last` and `change` of a value over the seeds of an estimator."""
    pairs = [fifths(run["steps"], value) for run in runs]
    return {
        "first": interval([first for first, _ in pairs]),
        "last": interval([last for _, last in pairs]),
        "change": interval([last - first for first, last in pairs]),
    }


def kl_of(sums: Sequence[Mapping[str, Sequence[float]]]) -> Range:
    """The mean over tokens, of one student or of several together, with an interval over films by bootstrap."""
    return _bootstrap([_table(one, sorted(sums[0])) for one in sums], [])


def kl_change(before: Mapping[str, Sequence[float]], after: Sequence[Mapping[str, Sequence[float]]]) -> Range:
    """How much it changed, paired by film; several students after are averaged."""
    films = sorted(before)
    return _bootstrap([_table(one, films) for one in after], [_table(before, films)])


def _table(sums: Mapping[str, Sequence[float]], films: Sequence[str]) -> Any:
    """Sums and numbers of tokens, shape (films, 2); a film without a learned token has none."""
    return np.array([sums.get(film, (0.0, 0)) for film in films], dtype=float)


def _bootstrap(after: Sequence[Any], before: Sequence[Any], draws: int = 2000) -> Range:
    def value(at: Any) -> float:
        means = [
            float(np.mean([of[at][:, 0].sum() / of[at][:, 1].sum() for of in side])) if side else 0.0
            for side in (after, before)
        ]
        return means[0] - means[1]

    n = len(after[0])
    chance = np.random.default_rng(0)
    drawn = [value(chance.integers(0, n, n)) for _ in range(draws)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return value(np.arange(n)), float(low), float(high)


def text(found: Range, digits: int = 3, sign: str = "") -> str:
    """A value and its interval."""
    value, low, high = (f"{one:{sign}.{digits}g}" for one in found)
    return f"{value} ({low} to {high})" if math.isfinite(found[1]) else value


def show(found: Mapping[str, Any]) -> None:
    """Print the tables."""
    by = {name: [run for run in found["runs"] if run["estimator"] == name] for name in ESTIMATORS}
    steps, seeds = len(by["top_k"][0]["steps"]), len(by["top_k"])
    print(f"{steps} steps, {seeds} seeds; fifths of {max(1, steps // 5)} steps\n")
    print("| estimator | of a step | first fifth | last fifth | change |\n|---|---|---|---|---|")
    for name, runs in by.items():
        for value, title in VALUES.items():
            of = falls(runs, value)
            cells = [text(of["first"]), text(of["last"]), text(of["change"], sign="+")]
            print(f"| {name} | {title} | {' | '.join(cells)} |")
    before = found["before"]
    print("\n| | held-out reverse KL, nats a token | change | greedy reward | sampled reward |\n|---|---|---|---|---|")
    rewards = [f"{before['reward'][way]['reward']:.3f}" for way in ("greedy", "sampled")]
    print(f"| student before | {text(kl_of([before['kl']]))} | | {' | '.join(rewards)} |")
    for name, runs in by.items():
        sums = [run["kl"] for run in runs]
        after = [text(interval([run["reward"][way]["reward"] for run in runs])) for way in ("greedy", "sampled")]
        change = text(kl_change(before["kl"], sums), sign="+")
        print(f"| after, {name} | {text(kl_of(sums))} | {change} | {' | '.join(after)} |")
    rewards = [f"{found['teacher']['after'][way]['reward']:.3f}" for way in ("greedy", "sampled")]
    print(f"| teacher | | | {' | '.join(rewards)} |")
    _show_variance(found["variance"], "before training")
    _show_variance(found["variance_after"], "after training with top_k, seed 0")
    print(f"\nCPU s: {found['cpu_s']}; wall s of this call: {found['wall_s_of_this_call']}; load: {found['load']}")


def _show_variance(of: Mapping[str, Any], when: str) -> None:
    print(f"\n{of['rollouts']} rollouts of {of['trajectories']} trajectories, {when}\n")
    print("| gradient | top_k | sampled | sampled / top_k |\n|---|---|---|---|")
    for label, key, ratio in (
        ("variance (trace)", "variance", "variance_ratio"),
        ("variance / squared mean", "noise_to_signal", "noise_ratio"),
    ):
        ranges = [of[name][key] for name in ESTIMATORS] + [of[ratio]]
        print(f"| {label} | {' | '.join(map(_known, ranges))} |")
    print(f"\ncosine of the two mean gradients: {of['cosine_of_means']:.3f}")


def _known(one: Mapping[str, float | None]) -> str:
    value, low, high = (math.nan if (of := one[name]) is None else of for name in ("value", "low", "high"))
    return "not known" if math.isnan(value) else text((value, low, high))
