"""Temporal IoU in its variants, precision and recall: values by hand, and properties against counted whole seconds."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_plugin.scoring.intervals import (
    Span,
    best_iou,
    hull_iou,
    length,
    merge,
    overlap,
    recall_at,
    recalls,
    set_iou,
    set_precision_recall,
    valid_span,
)

ANY = st.one_of(st.floats(), st.integers(-10, 100).map(float))
SPAN = st.tuples(ANY, ANY)
SPANS = st.lists(SPAN, max_size=8)
WHOLE = st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda pair: (float(min(pair)), float(max(pair))))
EXPLOIT = [(0.0, 100.0), (900.0, 810.0)]
"""It scores 1.00 in a published scorer: the reversed span takes 90 seconds off the union."""


def seconds(spans: list[Span]) -> set[int]:
    return set().union(*(range(int(start), int(end)) for start, end in spans))


@given(SPANS, SPANS)
def test_every_score_stays_in_0_1(a: list[Span], b: list[Span]) -> None:
    iou = set_iou(a, b)
    assert 0 <= iou <= 1
    assert iou == pytest.approx(set_iou(b, a), abs=1e-9)
    assert 0 <= best_iou(a, b) <= 1
    assert all(0 <= share <= 1 for share in set_precision_recall(a, b))
    assert all(0 <= hull_iou(x, y) <= 1 for x in a for y in b)


@given(st.lists(WHOLE, max_size=6), st.lists(WHOLE, max_size=6))
def test_set_scores_count_seconds(a: list[Span], b: list[Span]) -> None:
    predicted, true = seconds(a), seconds(b)
    assert set_iou(a, b) == pytest.approx(len(predicted & true) / max(len(predicted | true), 1))
    precision, recall = set_precision_recall(a, b)
    assert precision == pytest.approx(len(predicted & true) / max(len(predicted), 1))
    assert recall == pytest.approx(len(predicted & true) / max(len(true), 1))


@given(WHOLE, st.lists(WHOLE, min_size=1, max_size=6))
def test_hull_and_best_agree_with_set_where_there_is_one_span(predicted: Span, true: list[Span]) -> None:
    assert hull_iou(predicted, true[0]) == pytest.approx(set_iou([predicted], true[:1]))
    assert best_iou([predicted, *true], true) == max(hull_iou(predicted, span) for span in true)


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=1, max_size=8))
def test_merge_keeps_the_seconds(spans: list[Span]) -> None:
    merged = merge(spans)
    assert length(merged) == len(seconds(spans))
    assert all(a[1] < b[0] for a, b in itertools.pairwise(merged))
    assert overlap(merged, merged) == length(merged)
    assert set_iou(spans, spans) == (1.0 if seconds(spans) else 0.0)


@pytest.mark.parametrize(
    ("predicted", "true", "iou"),
    [
        (EXPLOIT, [(10, 20)], 0.10),
        ([(0, 100), (900, 801)], [(10, 20)], 0.10),  # 10.0 in the published scorer
        ([(0, 100)], [(10, 20)], 0.10),
        ([(0, 10)], [(5, 15)], 1 / 3),
        ([(0, 5), (5, 10)], [(0, 10)], 1.0),
        ([(0, 10), (0, 10), (2, 3)], [(0, 10)], 1.0),
        ([(0, 10), (30, 40)], [(5, 10), (30, 50)], 15 / 30),
        ([(-5, 10)], [(0, 10)], 0.0),
        ([(float("nan"), 10)], [(0, 10)], 0.0),
        ([(0, float("inf"))], [(0, 10)], 0.0),
        ([], [(0, 10)], 0.0),
        ([], [], 0.0),
        ([(5, 5)], [(5, 5)], 0.0),
    ],
)
def test_set_iou_values(predicted: list[Span], true: list[Span], iou: float) -> None:
    assert set_iou(predicted, true) == pytest.approx(iou)


@pytest.mark.parametrize(
    ("predicted", "true", "iou"),
    [
        ((0, 10), (5, 15), 1 / 3),
        ((0, 10), (10, 20), 0.0),
        ((0, 10), (90, 100), 0.0),
        ((0, 100), (10, 20), 0.10),
        ((900, 810), (810, 900), 0.0),
        ((-5, 10), (0, 10), 0.0),
        ((float("nan"), 10), (0, 10), 0.0),
        ((0, float("inf")), (0, 10), 0.0),
        ((5, 5), (5, 5), 0.0),
        (None, (0, 10), 0.0),
    ],
)
def test_hull_iou_values(predicted: Span | None, true: Span, iou: float) -> None:
    assert hull_iou(predicted, true) == pytest.approx(iou)


def test_best_iou_takes_the_first_prediction_only() -> None:
    true = [(0.0, 10.0), (20.0, 40.0)]
    assert best_iou([(20, 30)], true) == 0.5
    assert best_iou([(50, 60), (0, 10), (20, 40)], true) == 0.0
    assert best_iou([(900, 810), (0, 10)], true) == 0.0
    assert best_iou([], true) == 0.0 and best_iou([(0, 10)], []) == 0.0


def test_precision_and_recall_by_hand() -> None:
    assert set_precision_recall([(0, 10), (5, 15)], [(10, 20)]) == (pytest.approx(5 / 15), pytest.approx(5 / 10))
    assert set_precision_recall([], [(10, 20)]) == (0.0, 0.0)
    assert set_precision_recall([(10, 20)], []) == (0.0, 0.0)
    assert set_precision_recall(EXPLOIT, [(10, 20)]) == (pytest.approx(0.1), 1.0)


def test_recalls_name_their_variant() -> None:
    assert recalls(0.5, "hull") == {"iou_hull": 0.5, "r1_hull_0.3": 1.0, "r1_hull_0.5": 1.0, "r1_hull_0.7": 0.0}
    assert recall_at(hull_iou((0, 3), (0, 10)), 0.3) == 1.0


@pytest.mark.parametrize(
    ("span", "valid"), [((0, 0), True), ((1, 2), True), ((2, 1), False), ((-1, 2), False), ((0, float("nan")), False)]
)
def test_valid_span(span: Span, valid: bool) -> None:
    assert valid_span(span) is valid
