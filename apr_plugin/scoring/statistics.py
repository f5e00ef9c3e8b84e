"""Confidence intervals and paired tests for counts of right answers. Pure functions."""

from __future__ import annotations

import math


def wilson_interval(right: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a share, by default at 95% (E. B. Wilson, JASA 22, 1927).

    Unlike the normal approximation, it stays in [0, 1] and has a width above 0 at 0 or n right answers.
    """
    if n == 0:
        return 0.0, 1.0
    share = right / n
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided McNemar test: the probability of a split at least this uneven if two arms are equally good.

    Args:
        only_a: Questions that only the first arm answered rightly.
        only_b: Questions that only the second arm answered rightly.
    """
    n = only_a + only_b
    if n == 0:
        return 1.0
    # Whole numbers do not overflow with thousands of questions.
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / (1 << n)
    return min(1.0, 2 * tail)
