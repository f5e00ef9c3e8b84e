"""The statistics of a comparison's arms: how right each is, how two differ, overall and in each duration bucket.

Every function takes the questions to count (`keys`), by default all that are compared. A question without a score
counts as wrong there; `Comparison.common` has those for which every arm has a score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from apr_plugin.compare.joined import Arm, Comparison
from apr_plugin.compare.power import Power, power_of
from apr_plugin.compare.stats import Interval, Paired, holm, mean, paired, proportion
from apr_plugin.runs.opened import Key


def clusters_of(comparison: Comparison, keys: Sequence[Key]) -> list[str]:
    """The video of each question."""
    return [comparison.cluster(key) for key in keys]


def buckets_of(comparison: Comparison, keys: Sequence[Key] | None = None) -> dict[str, list[Key]]:
    """The questions of each duration bucket, in the order in which the buckets first appear."""
    found: dict[str, list[Key]] = {}
    for key in comparison.keys if keys is None else keys:
        found.setdefault(comparison.bucket(key), []).append(key)
    return found


def accuracy(comparison: Comparison, arm: Arm, keys: Sequence[Key] | None = None) -> Interval | None:
    """The share of questions that the arm answered rightly (`joined.RIGHT`); `None` without questions."""
    keys = comparison.keys if keys is None else keys
    return proportion([arm.outcome(key).right for key in keys], clusters_of(comparison, keys))


def score(comparison: Comparison, arm: Arm, keys: Sequence[Key] | None = None) -> Interval | None:
    """The arm's mean score; where every score is 0 or 1 it is the accuracy, with its interval."""
    keys = comparison.keys if keys is None else keys
    scores = [arm.outcome(key).score for key in keys]
    if all(value in (0.0, 1.0) for value in scores):
        return accuracy(comparison, arm, keys)
    return mean(scores, clusters_of(comparison, keys), (0.0, 1.0))


def differences(comparison: Comparison, a: Arm, b: Arm, keys: Sequence[Key] | None = None) -> Paired | None:
    """Right answers of `a` against those of `b`, question by question; `None` without questions."""
    return _paired(comparison, *_right(comparison, a, b, keys))


def score_differences(comparison: Comparison, a: Arm, b: Arm, keys: Sequence[Key] | None = None) -> Paired | None:
    """Scores of `a` against those of `b`, question by question; `None` without questions."""
    return _paired(comparison, *_scores(comparison, a, b, keys))


@dataclass(frozen=True)
class BucketDifference:
    """Two arms in one duration bucket."""

    name: str
    n: int
    """Questions."""
    paired: Paired
    p_holm: float
    """`paired.p_read`, adjusted for the number of buckets."""


def differences_by_bucket(
    comparison: Comparison, a: Arm, b: Arm, keys: Sequence[Key] | None = None
) -> list[BucketDifference]:
    """Right answers of `a` against those of `b` in each duration bucket."""
    buckets = buckets_of(comparison, keys)
    found = [(name, differences(comparison, a, b, of_bucket)) for name, of_bucket in buckets.items()]
    known = [(name, result) for name, result in found if result is not None]
    adjusted = holm([result.p_read for _, result in known])
    return [
        BucketDifference(name, result.n, result, 1.0 if p is None else p)
        for (name, result), p in zip(known, adjusted, strict=True)
    ]


def power_between(
    comparison: Comparison, a: Arm, b: Arm, keys: Sequence[Key] | None = None, *, scores: bool = False
) -> Power | None:
    """How many questions the observed difference needs, and which difference these questions could have shown.

    Args:
        comparison: The arms' comparison.
        a: One arm.
        b: The other.
        keys: The questions to count.
        scores: Take scores instead of right answers.
    """
    keys, ours, theirs = (_scores if scores else _right)(comparison, a, b, keys)
    return power_of(ours, theirs, clusters_of(comparison, keys))


Columns = tuple[Sequence[Key], list[float], list[float]]


def _right(comparison: Comparison, a: Arm, b: Arm, keys: Sequence[Key] | None) -> Columns:
    keys = comparison.keys if keys is None else keys
    ours, theirs = ([float(arm.outcome(key).right) for key in keys] for arm in (a, b))
    return keys, ours, theirs


def _scores(comparison: Comparison, a: Arm, b: Arm, keys: Sequence[Key] | None) -> Columns:
    keys = comparison.keys if keys is None else keys
    ours, theirs = ([arm.outcome(key).score for key in keys] for arm in (a, b))
    return keys, ours, theirs


def _paired(comparison: Comparison, keys: Sequence[Key], ours: list[float], theirs: list[float]) -> Paired | None:
    return paired(ours, theirs, clusters_of(comparison, keys))
