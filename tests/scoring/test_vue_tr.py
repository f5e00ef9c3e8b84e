"""VUE-TR against values computed by hand; the comparison with the official script is in `docs/scoring.md`."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_plugin.scoring.intervals import Span
from apr_plugin.scoring.vue_tr import Query, iou_area, score, score_query, share_area, widen


def query(
    query_id: int, *spans: Span, duration: str = "short", form: str = "phrase", modality: str = "vision"
) -> Query:
    return Query(query_id, spans, duration, form, modality)


def test_widen() -> None:
    assert widen([(1.2, 3.1), (4, 5), (-0.5, 0.5), (float("nan"), 3), (0, float("inf"))]) == [(1, 4), (4, 5), (-1, 1)]


@pytest.mark.parametrize(
    ("predicted", "true", "iou", "precision", "recall", "plain"),
    [
        ([(10.4, 19.5)], [(10, 20)], 1.0, 1.0, 1.0, 0.91),
        ([(0, 10)], [(5, 15)], 1 / 3, 1 / 2, 1 / 2, 1 / 3),
        ([(0, 5), (10, 15)], [(0, 10)], 1 / 3, 1 / 2, 1 / 2, 1 / 3),
        ([], [(0, 10)], 0.0, None, 0.0, 0.0),
        ([(5, 5)], [(0, 10)], 0.0, None, 0.0, 0.0),
        # A reversed span covers nothing for IoU; the official script swaps its ends for precision and recall.
        ([(0, 100), (900, 810)], [(10, 20)], 0.1, 10 / 190, 1.0, 0.1),
        ([(20, 10)], [(10, 20)], 0.0, 1.0, 1.0, 0.0),
        # Overlapping spans count once for IoU, and twice for precision and recall.
        ([(0, 10), (0, 10)], [(0, 10)], 1.0, 1.0, 2.0, 1.0),
        ([(0, 10), (5, 15)], [(0, 20)], 0.75, 1.0, 1.0, 0.75),
        # A start before the video counts here, but in no other measure.
        ([(-2, 8)], [(0, 8)], 0.8, 0.8, 1.0, 0.0),
        ([(float("nan"), 10)], [(0, 10)], 0.0, None, 0.0, 0.0),
    ],
)
def test_one_query(
    predicted: list[Span], true: list[Span], iou: float, precision: float | None, recall: float, plain: float
) -> None:
    found = score_query(predicted, true)
    assert (
        found.iou == pytest.approx(iou)
        and found.recall == pytest.approx(recall)
        and found.plain_iou == pytest.approx(plain)
    )
    assert found.precision is None if precision is None else found.precision == pytest.approx(precision)


def test_a_query_without_true_seconds() -> None:
    assert score_query([], []) == (1.0, None, None, 0.0)
    assert score_query([], [], version=2) == (1.0, 1.0, None, 0.0)
    assert score_query([(1, 2)], []) == (0.0, 0.0, None, 0.0)


@pytest.mark.parametrize(
    ("values", "above", "from_"),
    [
        # IoU 1 is above every threshold but 1: 99 full steps and half a step. A share >= t holds at 1 too.
        ([1.0], 0.995, 1.0),
        ([0.0], 0.0, 0.005),
        # 0.5 is above 0 ... 0.49: fifty thresholds, of which the first has half the weight; from 0 ... 0.50 fifty-one.
        ([0.5], 0.495, 0.505),
        ([1.0, 0.0], 0.4975, 0.5025),
        ([2.0], 1.0, 1.0),
        ([], None, None),
    ],
)
def test_areas(values: Sequence[float], above: float | None, from_: float | None) -> None:
    assert iou_area(values) == (None if above is None else pytest.approx(above))
    assert share_area(values) == (None if from_ is None else pytest.approx(from_))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_the_area_is_the_mean_to_a_hundredth(values: list[float]) -> None:
    mean = sum(values) / len(values)
    found, least = iou_area(values), share_area(values)
    assert found is not None and least is not None
    assert mean - 0.01 <= found <= least <= mean + 0.01


def test_table_by_hand() -> None:
    queries = [
        query(1, (0, 10)),  # answered exactly
        query(2, (0, 10), duration="long", form="keyword", modality="audio"),  # answered with half
        query(3, (0, 10), duration="long"),  # answered with nothing
        query(4, (0, 10), modality="vision+audio"),  # no prediction
    ]
    table = score(queries, {1: [(0, 10)], 2: [(0.5, 4.5)], 3: []})
    overall = table["overall"]
    assert (overall.queries, overall.answered) == (4, 3)
    assert overall.iou == pytest.approx((0.995 + 0.495 + 0) / 3)
    assert overall.iou_all == pytest.approx((0.995 + 0.495 + 0) / 4)
    assert overall.precision == pytest.approx(1.0)  # over two queries, because the third predicted nothing
    assert overall.recall == pytest.approx((1 + 0.505 + 0.005) / 3)
    assert overall.recall_all == pytest.approx((1 + 0.505 + 2 * 0.005) / 4)
    assert overall.miou == pytest.approx((1 + 0.4 + 0) / 3)
    assert overall.miou_all == pytest.approx((1 + 0.4 + 0) / 4)
    long = table["long"]
    assert (long.queries, long.answered) == (2, 2) and long.iou == long.iou_all == pytest.approx(0.495 / 2)
    unanswered = table["vision+audio"]
    assert (unanswered.queries, unanswered.answered, unanswered.iou, unanswered.miou, unanswered.iou_all) == (
        1,
        0,
        None,
        None,
        0.0,
    )
    none = table["ultra-long"]
    assert (none.queries, none.iou_all, none.precision) == (0, None, None)
    assert list(table) == ["overall", "ultra-short", "short", "medium", "long", "ultra-long", "keyword", "phrase",
        "sentence", "vision", "audio",
                           "vision+audio"]  # fmt: skip


SPANS = st.lists(st.tuples(st.floats(), st.floats()) | st.tuples(st.floats(0, 99), st.floats(0, 99)), max_size=6)


@given(st.lists(SPANS, min_size=1, max_size=6))
def test_whatever_is_predicted_stays_in_0_1(answers: list[list[Span]]) -> None:
    cell = score([query(i, (10.0, 20.0), (30.0, 50.0)) for i in range(len(answers))], dict(enumerate(answers)))[
        "overall"
    ]
    for value in (cell.precision, cell.recall, cell.iou, cell.iou_all, cell.recall_all, cell.miou, cell.miou_all):
        assert value is None or 0 <= value <= 1
