"""Confidence intervals of shares, and paired tests."""

from __future__ import annotations

import pytest

from apr_plugin.scoring.statistics import mcnemar, wilson_interval


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
        (0, 0, 0.0, 1.0),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_wilson(right: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(right, n) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (0, 5, 0.0625),
        (1, 9, 0.021484375),
        (9, 1, 0.021484375),
        (0, 10, 0.001953125),
        (3, 4, 1.0),
    ],
)
def test_mcnemar(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar(only_a, only_b) == pytest.approx(p)


def test_mcnemar_of_many_does_not_overflow() -> None:
    assert 0 <= mcnemar(900, 1200) < 1e-9
