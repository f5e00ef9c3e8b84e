"""Ranked moment retrieval against values computed by hand, and its properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_plugin.scoring.intervals import Span
from apr_plugin.scoring.retrieval import MAP_THRESHOLDS, MAX_PREDICTIONS, average_precisions, moment_metrics

TRUE: list[Span] = [(0.0, 10.0), (20.0, 60.0)]


def test_thresholds() -> None:
    assert MAP_THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def test_average_precision_by_hand() -> None:
    # In order of confidence: the second span exactly; half of the first; the first exactly.
    ranked = [(0, 10, 0.2), (20, 60, 0.9), (0, 5, 0.8)]
    found = average_precisions(ranked, TRUE)
    assert found[0] == 1.0  # at 0.5 half of the first span is right, so that recall is 1 at rank 2
    assert found[1:] == pytest.approx([(1 + 2 / 3) / 2] * 9)  # above 0.5 only the exact span is right, at rank 3


def test_precision_is_interpolated() -> None:
    # Wrong, right, right: precision 1/2, then 2/3. The first counts with 2/3, because a higher recall reaches that.
    assert average_precisions([(80, 90), (0, 10), (20, 60)], TRUE, [0.5]) == pytest.approx([2 / 3])


def test_a_true_span_is_taken_once() -> None:
    assert average_precisions([(0, 10), (0, 10), (20, 60)], TRUE, [0.5]) == pytest.approx([(1 + 2 / 3) / 2])
    # The second takes the other true span, which it also fits.
    assert average_precisions([(20, 60), (20, 58)], [(20, 60), (20, 50)], [0.5]) == [1.0]


def test_no_more_than_ten_predictions_count() -> None:
    wrong = [(80.0, 90.0)] * MAX_PREDICTIONS
    assert average_precisions([*wrong, (0, 10, 5.0)], [(0, 10)], [0.5]) == [0.0]
    assert average_precisions([*wrong[1:], (0, 10, 5.0)], [(0, 10)], [0.5]) == [1.0]


def test_metrics_by_hand() -> None:
    predictions = [
        [(20, 60, 0.9), (0, 5, 0.8), (0, 10, 0.7)],  # AP 1 at 0.5, 5/6 above
        [(10, 34, 1.0)],  # IoU with (10, 40): 24/30 = 0.8
        [],
    ]
    truths: list[list[Span]] = [TRUE, [(10, 40)], [(0, 150)]]
    assert moment_metrics(predictions, truths) == pytest.approx(
        {
            "map": ((1 + 9 * 5 / 6) / 10 + 0.7 + 0) / 3,  # 0.8 reaches seven of the ten thresholds
            "map_0.5": 2 / 3,
            "map_0.75": (5 / 6 + 1 + 0) / 3,
            "map_short": (1 / 2 + 9 / 3)
            / 10,  # the first question with (0, 10) alone: it is found at rank 2, and above 0.5 at rank 3
            "map_middle": 0.7,
            "map_long": (1 + 0) / 2,
            "r1_best_0.5": 2 / 3,
            "r1_best_0.7": 2 / 3,
        }
    )


def test_r1_takes_the_first_listed_not_the_most_certain() -> None:
    assert moment_metrics([[(80, 90, 0.1), (0, 10, 0.9)]], [[(0, 10)]])["r1_best_0.5"] == 0.0


NUMBER = st.floats() | st.integers(-5, 150).map(float)
WINDOWS = st.lists(st.tuples(NUMBER, NUMBER, NUMBER), max_size=14)
TRUTH = st.tuples(st.integers(0, 70), st.integers(1, 80)).map(lambda pair: (float(pair[0]), float(pair[0] + pair[1])))


@given(st.lists(st.tuples(WINDOWS, st.lists(TRUTH, min_size=1, max_size=5)), min_size=1, max_size=4))
def test_whatever_is_predicted_stays_in_0_1(
    questions: list[tuple[list[tuple[float, float, float]], list[Span]]],
) -> None:
    found = moment_metrics([windows for windows, _ in questions], [true for _, true in questions])
    assert all(0 <= value <= 1 for value in found.values())
    assert found["map"] <= found["map_0.5"] + 1e-9


@given(st.lists(TRUTH, min_size=1, max_size=5, unique=True))
def test_the_truth_itself_scores_one(true: list[Span]) -> None:
    assert moment_metrics([true], [true])["map"] == 1.0


@pytest.mark.parametrize(("predictions", "truths"), [([], []), ([[]], [])])
def test_lists_that_do_not_match_are_an_error(predictions: list[list[Span]], truths: list[list[Span]]) -> None:
    with pytest.raises(ValueError, match="predictions for"):
        moment_metrics(predictions, truths)
