"""Duration buckets, and aggregation of counts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

OTHER = "other"
"""The bucket of a question whose duration is unknown (its video is missing) or outside every bin."""


@dataclass(frozen=True)
class Bins:
    """Half-open bins [start, end) of durations."""

    edges_s: tuple[float, ...]
    """Edges in seconds, ascending; the last may be `math.inf`."""

    names: tuple[str, ...]
    """The name of each bin, one fewer than edges; it is part of a metric's name."""

    def __post_init__(self) -> None:
        if len(self.names) != len(self.edges_s) - 1 or list(self.edges_s) != sorted(set(self.edges_s)):
            raise ValueError(
                f"{len(self.edges_s)} rising edges need {len(self.edges_s) - 1} names, not {len(self.names)}"
            )

    @classmethod
    def of_minutes(cls, *edges: float) -> Bins:
        """Bins named by their edges in minutes: `of_minutes(0, 20, 40, inf)` is `0-20min`, `20-40min`, `over_40min`."""
        names = tuple(f"over_{a:g}min" if math.isinf(b) else f"{a:g}-{b:g}min" for a, b in pairwise(edges))
        return cls(tuple(60.0 * edge for edge in edges), names)

    def name(self, seconds: float | None) -> str:
        """The bin of a duration in seconds; `OTHER` if it is unknown or in no bin."""
        if seconds is None:
            return OTHER
        return next(
            (name for name, (a, b) in zip(self.names, pairwise(self.edges_s), strict=True) if a <= seconds < b), OTHER
        )


def count(items: Sequence[Any]) -> int:
    """Aggregation of the metrics `n`, `n_<bucket>`: the number of answers.

    For YAML: `!function apr_plugin.tasks.common.count`.
    """
    return len(items)


Grouped = tuple[Sequence[str], float]
"""One answer's group, from the outermost level inwards, and its score."""


def macro_mean(items: Sequence[Grouped]) -> float | None:
    """Aggregation over groups of equal weight: the mean over groups of the mean of each; groups may be nested.

    `[(["a"], 1), (["a"], 0), (["b"], 1)]` is (0.5 + 1) / 2. A group without answers has no weight.
    """
    leaf, groups = _split(items)
    means = [mean for group in groups.values() if (mean := macro_mean(group)) is not None]
    means += [sum(leaf) / len(leaf)] if leaf else []
    return sum(means) / len(means) if means else None


def macro_stderr(items: Sequence[Grouped]) -> float | None:
    """Standard error of `macro_mean`; answers are drawn within groups, the groups are fixed.

    It is `None` if a group has a single answer.
    """
    variance = _variance(items)
    return None if variance is None else math.sqrt(variance)


def _variance(items: Sequence[Grouped]) -> float | None:
    leaf, groups = _split(items)
    variances = [_variance(group) for group in groups.values()]
    variances += [statistics.variance(leaf) / len(leaf) if len(leaf) > 1 else None] if leaf else []
    known = [variance for variance in variances if variance is not None]
    return sum(known) / len(known) ** 2 if known and len(known) == len(variances) else None


def _split(items: Sequence[Grouped]) -> tuple[list[float], dict[str, list[Grouped]]]:
    """The scores at this level, and the rest by their outermost group."""
    leaf = [score for path, score in items if not path]
    groups: dict[str, list[Grouped]] = {}
    for path, score in items:
        if path:
            groups.setdefault(path[0], []).append((path[1:], score))
    return leaf, groups
