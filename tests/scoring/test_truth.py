"""`score` by hand, for every kind and rule."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_plugin.scoring.intervals import set_iou
from apr_plugin.scoring.truth import Evidence, Rules, Truth, score, spans_text

HULL, BEST = Rules(spans="hull"), Rules(spans="best")
RELATIVE = Rules(number="relative")
EXACT, NORMALISED = Rules(text="exact"), Rules(text="normalised")
NOTHING = Rules()


@pytest.mark.parametrize(
    ("answer", "right", "kind", "rules", "wanted"),
    [
        ("B", "B", "mcq", NOTHING, 1),
        ("A", "B", "mcq", NOTHING, 0),
        ("b", "B", "mcq", NOTHING, 0),
        (" B ", "B", "mcq", NOTHING, 1),
        ("A", ("B", "A"), "mcq", NOTHING, 1),
        ("[[2, 6]]", "[[2, 6]]", "grounding", NOTHING, 1),
        ("[[2, 4], [5, 6]]", "[[2, 6]]", "grounding", NOTHING, 0.75),
        ("[[2, 4], [5, 6]]", "[[2, 6]]", "grounding", HULL, 0.5),  # its longest span
        ("[[0, 1], [2, 6]]", "[[2, 6]]", "grounding", HULL, 1),
        ("[[0, 1], [2, 6]]", "[[0, 1], [10, 14]]", "grounding", BEST, 0),
        ("[[0, 1], [10, 14]]", "[[0, 1], [10, 18]]", "grounding", BEST, 0.5),
        ("[[0, 5]]", ("[[0, 10]]", "[[0, 5]]"), "grounding", NOTHING, 1),
        ("from 2 to 6 seconds", "[[2, 6]]", "grounding", HULL, 1),
        ("[[6, 2]]", "[[2, 6]]", "grounding", NOTHING, 0),
        ("3", "3", "number", NOTHING, 1),
        ("3.001", "3", "number", NOTHING, 1),
        ("4", "3", "number", NOTHING, 0),
        ("5", "4", "number", RELATIVE, 0.6),
        ("four", "4", "number", RELATIVE, 1),
        ("4", ("3", "4"), "number", NOTHING, 1),
        ("a  Red car", "A red car", "free_form", NORMALISED, 1),
        ("a  Red car", "A red car", "free_form", EXACT, 0),
        ("A red car", "A red car", "free_form", EXACT, 1),
        ("A red car", "A red car", "free_form", NOTHING, None),
        (None, "B", "mcq", NOTHING, 0),
        (None, "[[2, 6]]", "grounding", BEST, 0),
        (None, "3", "number", RELATIVE, 0),
    ],
)
def test_by_hand(
    answer: str | None, right: str | tuple[str, ...], kind: str, rules: Rules, wanted: float | None
) -> None:
    got = score(answer, Truth(right), kind, rules)
    assert got is wanted is None or got == pytest.approx(wanted)


def test_what_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="no kind of question 'essay'"):
        score("B", Truth("B"), "essay")
    with pytest.raises(ValueError, match="not a number"):
        score("3", Truth("many"), "number")
    assert score("B", Truth(()), "mcq") == 0


_SPANS = st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 1e5)).map(lambda pair: (min(pair), max(pair))), max_size=5)


@given(_SPANS, _SPANS)
def test_spans_are_written_so_that_they_are_read_as_they_were(
    predicted: list[tuple[float, float]], true: list[tuple[float, float]]
) -> None:
    assert score(spans_text(predicted), Truth(spans_text(true)), "grounding") == set_iou(predicted, true)


@given(
    st.text(max_size=40) | st.sampled_from(["[" * 5000, "9" * 5000, "[[1e999, 2]]", "nan"]),
    st.sampled_from(["mcq", "grounding", "number", "free_form"]),
    st.sampled_from([NOTHING, HULL, BEST, RELATIVE, NORMALISED]),
)
def test_whatever_is_answered_scores_between_0_and_1(answer: str, kind: str, rules: Rules) -> None:
    got = score(answer, Truth({"grounding": "[[2, 6]]", "number": "3"}.get(kind, "B")), kind, rules)
    assert got is None if kind == "free_form" and rules.text is None else got is not None and 0 <= got <= 1


def test_evidence_of_one_video() -> None:
    truth = Truth("B", (Evidence(1, 2), Evidence(5, 4), Evidence(3, 4, video=1), Evidence(math.nan, 1), Evidence(7, 8)))
    assert truth.spans() == [(1, 2), (7, 8)] and truth.spans(1) == [(3, 4)] and truth.spans(2) == []
