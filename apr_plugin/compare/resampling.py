"""Resampling of clusters: the bootstrap of ratios, and the sign-flip test. Pure functions over sums of clusters.

The interval is the percentile bootstrap, expanded for few clusters (T. Hesterberg, What Teachers Should Know about the
Bootstrap, arXiv 1411.5279): the plain percentile interval is as narrow as one with z in place of t, and n in place of
n - 1. Resamples are seeded, and don't depend on the order of the questions or on the names of the clusters.

Measured on 1,000 simulated data sets of 1 to 11 questions for each video, the 95% interval holds the true value this
often:

| videos | share of 0.5 | share of 0.9 | skewed cost |
|---|---|---|---|
| 5 | 0.94 | 0.96 | 0.88 |
| 12 | 0.95 | 0.90 | 0.91 |
| 30 | 0.95 | 0.92 | 0.92 |
| 100 | 0.96 | 0.94 | 0.93 |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_plugin.errors import require

Array = NDArray[np.float64]

LEVEL = 0.95
"""Confidence level of every interval."""

RESAMPLES = 4999
"""Resamples of a bootstrap, and draws of a permutation test that is not exact."""

LEAST_RESAMPLES = 1999
"""Resamples of a bootstrap over very many clusters: more would take seconds and change it by about 2% of its width."""

SEED = 0
"""Of all resamples."""

_NUMBERS = 2_500_000
"""Numbers that one bootstrap draws at most, if it can do so with `LEAST_RESAMPLES`."""

_BATCH = 1_000_000
"""Numbers that are drawn at once at most, which bounds the memory."""

_EXACT = 12
"""Clusters up to which all arrangements of signs are tried."""

Bounds = tuple[float, float]
"""The smallest and the largest value that a question can have."""


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's interval of a share (E. B. Wilson, JASA 22, 1927).

    Args:
        hits: How often it was so.
        n: Of how many, at least 1.
    """
    require("statsmodels", "report")
    from statsmodels.stats.proportion import proportion_confint  # type: ignore[import-untyped]

    low, high = proportion_confint(hits, n, alpha=1 - LEVEL, method="wilson")
    return max(0.0, float(low)), min(1.0, float(high))


def index_of(clusters: Sequence[str] | None, n: int) -> tuple[NDArray[np.intp], int]:
    """The number of each question's cluster, and how many there are."""
    if clusters is None:
        return np.arange(n), n
    if len(clusters) != n:
        raise ValueError(f"{n} values and {len(clusters)} clusters: each value needs one")
    numbers = {name: number for number, name in enumerate(sorted(set(clusters)))}
    return np.array([numbers[name] for name in clusters], dtype=np.intp), len(numbers)


def summed(index: NDArray[np.intp], values: Array, m: int) -> Array:
    """The sum of each cluster's values."""
    return np.bincount(index, weights=values, minlength=m).astype(float)


Bounded = tuple[float, float | None, float | None]
"""Value, low, high."""


def ratios(columns: Array, bounds: Bounds | None) -> list[Bounded]:
    """Ratios of sums over clusters.

    Args:
        columns: Shape (quantities, 2, clusters): tops and bottoms.
        bounds: As for `mean`.
    """
    require("scipy", "report")
    m = columns.shape[2]
    values = columns[:, 0].sum(axis=1) / columns[:, 1].sum(axis=1)
    found: list[Bounded] = [(float(value), None, None) for value in values]
    if m < 2:
        return found
    with np.errstate(divide="ignore", invalid="ignore"):
        each = columns[:, 0] / columns[:, 1]
    scale = np.maximum(1.0, np.abs(values))
    equal = np.all(np.abs(each - values[:, None]) <= 1e-12 * scale[:, None], axis=1)
    for number in np.flatnonzero(equal):
        found[number] = _no_spread(float(values[number]), m, bounds)
    varied = np.flatnonzero(~equal)
    if len(varied):
        lows, highs = _bootstrap(columns[varied])
        for number, low, high in zip(varied, lows, highs, strict=True):
            bounded = [float(bound) if math.isfinite(bound) else None for bound in (low, high)]
            found[number] = (float(values[number]), bounded[0], bounded[1])
    return found


def _no_spread(value: float, m: int, bounds: Bounds | None) -> Bounded:
    if bounds is None:
        return value, value, value
    _, unseen = wilson(0, m)
    return value, value - unseen * (value - bounds[0]), value + unseen * (bounds[1] - value)


def _bootstrap(columns: Array) -> tuple[Array, Array]:
    from scipy import stats  # type: ignore[import-untyped]

    m = columns.shape[2]
    # each in an order of its own: neither that of the questions nor the other quantities must matter
    columns = np.array([pair[:, np.lexsort(pair)] for pair in columns])
    t = stats.t.ppf((1 - LEVEL) / 2, m - 1) * math.sqrt(m / (m - 1))
    settings: dict[str, Any] = {
        "confidence_level": 1 - 2 * float(stats.norm.cdf(t)),
        "method": "percentile",
        "n_resamples": min(RESAMPLES, max(LEAST_RESAMPLES, _NUMBERS // m)),
        "vectorized": True,
        "batch": max(1, _BATCH // m),
        "rng": np.random.default_rng(SEED),
    }
    with np.errstate(invalid="ignore"):
        if len(columns) == 1:
            found = stats.bootstrap(tuple(columns[0]), _ratio, paired=True, **settings)
        else:  # one set of resamples for all quantities: how often each cluster was drawn, times the sums
            tops, bottoms = columns[:, 0].T, columns[:, 1].T

            def statistic(drawn: NDArray[np.intp], axis: int = -1) -> Array:
                rows = drawn.reshape(-1, m)
                places = rows + m * np.arange(len(rows))[:, None]
                times = np.bincount(places.ravel(), minlength=rows.size).reshape(rows.shape).astype(float)
                return _divided(times @ tops, times @ bottoms).T.reshape(-1, *drawn.shape[:-1])

            found = stats.bootstrap((np.arange(m),), statistic, **settings)
    interval = found.confidence_interval
    return np.atleast_1d(interval.low), np.atleast_1d(interval.high)


def _ratio(tops: Array, bottoms: Array, axis: int = -1) -> Array:
    return _divided(tops.sum(axis=axis), bottoms.sum(axis=axis))


def _divided(tops: Array, bottoms: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bottoms > 0, tops / bottoms, np.where(tops > 0, np.inf, -np.inf))


def sign_flip(sums: Array) -> float:
    """The p of the sum, if each number is as likely to have the other sign."""
    require("scipy", "report")
    from scipy import stats

    moved = np.sort(sums[sums != 0])  # a flip of 0 changes nothing
    m = len(moved)
    if m < 2:
        return 1.0  # both arrangements of the one are as extreme
    if m <= _EXACT:
        found = stats.permutation_test(
            (moved,), lambda drawn, axis: drawn.sum(axis=axis), permutation_type="samples", vectorized=True
        )
        return float(found.pvalue)
    rng = np.random.default_rng(SEED)
    found = stats.monte_carlo_test(
        np.ones(m),
        lambda size: 2.0 * rng.integers(0, 2, size=size, dtype=np.int8) - 1.0,
        lambda signs, axis=-1: signs @ moved,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH // m),
    )
    return float(found.pvalue)
