"""Intervals and paired tests over questions, clustered by video. Pure functions; scipy and statsmodels do the work.

Questions about one video are not independent: a video that is hard to read makes all of its questions hard. So wherever
a video has several questions, intervals come from resampling whole videos, and tests flip whole videos.

The interval of a mean, a difference or a ratio is the bootstrap over clusters that `resampling` explains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from apr_plugin.compare.resampling import Array, Bounds, index_of, ratios, sign_flip, summed, wilson
from apr_plugin.errors import require


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval."""

    value: float
    low: float | None
    """`None` where the data can't say: there is only one video, or the interval has no finite bound."""
    high: float | None
    n: int
    """Questions."""

    def to_dict(self) -> dict[str, Any]:
        """`value`, `low`, `high` and `n`, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Paired:
    """Two arms over the same questions.

    The p to read is `p_read`: where videos have several questions, `p_clustered`, because McNemar's test takes all
    questions for independent, and its `p` is too small if they are not.
    """

    n: int
    """Questions."""
    only_a: int
    """Questions in which `a` is greater: with 0 and 1, those that only `a` answered rightly."""
    only_b: int
    diff: Interval
    """Mean of `a` - `b`, by the bootstrap over clusters."""
    p: float
    """Two-sided."""
    test: str
    """Which test `p` is of."""
    p_clustered: float | None = None
    """The sign-flip test over clusters, where `p` takes questions for independent and some cluster has several."""

    @property
    def p_read(self) -> float:
        """The p to report."""
        return self.p if self.p_clustered is None else self.p_clustered

    @property
    def test_read(self) -> str:
        """Which test `p_read` is of."""
        return self.test if self.p_clustered is None else SIGN_FLIP

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)


MCNEMAR = "exact McNemar"
SIGN_FLIP = "sign-flip permutation over videos"


def proportion(right: Sequence[bool], clusters: Sequence[str] | None = None) -> Interval | None:
    """The share of right answers.

    Wilson's interval (E. B. Wilson, JASA 22, 1927) if no cluster has more than one question, else the bootstrap over
    clusters.

    Args:
        right: Whether each question was answered rightly.
        clusters: The video of each question; without it questions are independent.

    Returns:
        The share, or `None` without questions. One cluster of several questions has no interval.
    """
    if not right:
        return None
    if _several(clusters):
        return mean([float(value) for value in right], clusters, (0.0, 1.0))
    hits = sum(map(bool, right))
    return Interval(hits / len(right), *wilson(hits, len(right)), len(right))


def mean(
    values: Sequence[float | None], clusters: Sequence[str] | None = None, bounds: Bounds | None = None
) -> Interval | None:
    """The mean over questions, with the bootstrap interval over clusters.

    Where all clusters have the same mean, the data shows no spread. With `bounds` the interval is then as wide as it is
    for a share of which no exception was seen: with m clusters, Wilson's upper bound of 0 in m for the weight of what
    may still be at either bound. Without `bounds`, it is empty (low = high = value).

    Args:
        values: One for each question; `None` and values that are not finite are left out.
        clusters: The video of each question; without it questions are independent.
        bounds: The smallest and largest value that a question can have, where there are such.

    Returns:
        The mean, or `None` without values. With one cluster, `low` and `high` are `None`.
    """
    return means({"": values}, clusters, bounds)[""]


def means(
    columns: Mapping[str, Sequence[float | None]],
    clusters: Sequence[str] | None = None,
    bounds: Bounds | None = None,
) -> dict[str, Interval | None]:
    """The means of several quantities over the same questions, as `mean` gives each; much faster for many."""
    found: dict[str, Interval | None] = dict.fromkeys(columns)
    index, m = index_of(clusters, max(map(len, columns.values()), default=0))
    groups: dict[bytes, list[tuple[str, Array, Array, int]]] = {}
    for name, column in columns.items():
        values = np.array([math.nan if value is None else value for value in column], dtype=float)
        known = np.isfinite(values)
        if not known.any():
            continue
        tops, bottoms = summed(index[known], values[known], m), summed(index[known], np.ones(known.sum()), m)
        groups.setdefault((bottoms > 0).tobytes(), []).append((name, tops, bottoms, int(known.sum())))
    for present, group in groups.items():
        chosen = np.frombuffer(present, dtype=bool)
        columns_of = np.array([(tops[chosen], bottoms[chosen]) for _, tops, bottoms, _ in group])
        for (name, *_, n), interval in zip(group, ratios(columns_of, bounds), strict=True):
            value, low, high = interval
            found[name] = Interval(value, low, high, n)
    return found


def ratio(tops: Sequence[float], bottoms: Sequence[float], clusters: Sequence[str] | None = None) -> Interval | None:
    """The sum of `tops` over the sum of `bottoms`, with the bootstrap interval over clusters.

    A resample whose sum of `bottoms` is not positive counts as an infinite ratio. Where these reach into the interval,
    it has no finite bound on that side (`None`).

    Returns:
        The ratio, or `None` without questions or where the sum of `bottoms` is not positive.
    """
    index, m = index_of(clusters, len(tops))
    if m == 0 or not sum(bottoms) > 0:
        return None
    sums = [summed(index, np.array(values, dtype=float), m) for values in (tops, bottoms)]
    ((value, low, high),) = ratios(np.array([sums]), None)
    return Interval(value, low, high, len(tops))


def paired(a: Sequence[float], b: Sequence[float], clusters: Sequence[str] | None = None) -> Paired | None:
    """Compare two arms question by question.

    If all values are 0 or 1, `p` is the exact McNemar test. Else it is the sign-flip test over clusters: the difference
    of each cluster is as likely to be positive as negative if the arms are equally good. That test is exact where at
    most 12 clusters differ; else `resampling.RESAMPLES` arrangements of signs are drawn.

    Args:
        a: The first arm's score of each question.
        b: The second arm's, in the same order.
        clusters: The video of each question; without it questions are independent.

    Returns:
        The comparison, or `None` without questions.

    Raises:
        ValueError: the lengths differ, or a value is not finite.
    """
    require("statsmodels", "report")
    from statsmodels.stats.contingency_tables import mcnemar  # type: ignore[import-untyped]

    first, second = np.array(a, dtype=float), np.array(b, dtype=float)
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} values against {len(second)}: pairs need as many of both")
    if not len(first):
        return None
    values = np.concatenate((first, second))
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite")
    differences = first - second
    shares = bool(((values >= 0) & (values <= 1)).all())
    diff = mean(differences.tolist(), clusters, (-1.0, 1.0) if shares else None)
    assert diff is not None
    index, m = index_of(clusters, len(first))
    of_clusters = summed(index, differences, m)
    only_a, only_b = int((first > second).sum()), int((second > first).sum())
    if not np.isin(values, (0.0, 1.0)).all():
        return Paired(len(first), only_a, only_b, diff, sign_flip(of_clusters), SIGN_FLIP)
    both = int(((first == 1) & (second == 1)).sum())
    table = [[both, only_a], [only_b, len(first) - both - only_a - only_b]]
    clustered = sign_flip(of_clusters) if _several(clusters) else None
    p = float(mcnemar(table, exact=True).pvalue)
    return Paired(len(first), only_a, only_b, diff, p, MCNEMAR, clustered)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Adjust p-values for their number (S. Holm, Scand. J. Statist. 6, 1979); `None` is kept, and not counted."""
    require("statsmodels", "report")
    from statsmodels.stats.multitest import multipletests  # type: ignore[import-untyped]

    known = [p for p in ps if p is not None]
    adjusted = iter(multipletests(known, method="holm")[1].tolist() if known else ())
    return [None if p is None else next(adjusted) for p in ps]


def _several(clusters: Sequence[str] | None) -> bool:
    """Whether a cluster has more than one question."""
    return clusters is not None and len(set(clusters)) < len(clusters)
