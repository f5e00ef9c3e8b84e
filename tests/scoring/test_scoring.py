"""Pure scoring functions: spans, options, numbers, intervals and paired tests."""

from __future__ import annotations

import itertools
import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_plugin.scoring.answers import match_option, parse_number
from apr_plugin.scoring.intervals import MAX_SPANS, merge, parse_spans, parse_time, set_iou, valid_span
from apr_plugin.scoring.statistics import mcnemar, wilson_interval

ANY = st.one_of(st.floats(), st.integers(-10, 100).map(float))
SPANS = st.lists(st.tuples(ANY, ANY), max_size=8)


@given(SPANS, SPANS)
def test_iou_stays_in_0_1_and_is_symmetric(a: list[tuple[float, float]], b: list[tuple[float, float]]) -> None:
    iou = set_iou(a, b)
    assert 0 <= iou <= 1
    assert iou == pytest.approx(set_iou(b, a), abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=1, max_size=8))
def test_iou_with_itself_is_one_and_merge_keeps_the_seconds(spans: list[tuple[int, int]]) -> None:
    seconds = set().union(*(range(start, end) for start, end in spans))
    assert set_iou(spans, spans) == (1.0 if seconds else 0.0)
    merged = merge(spans)
    assert sum(end - start for start, end in merged) == len(seconds)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(merged))


@pytest.mark.parametrize(
    ("predicted", "true", "iou"),
    [
        ([[0, 100], [900, 810]], [[10, 20]], 0.10),  # the published scorer gives 1.00
        ([[0, 100], [900, 801]], [[10, 20]], 0.10),  # and 10.0 here
        ([[0, 100]], [[10, 20]], 0.10),
        ([[0, 10]], [[5, 15]], 1 / 3),
        ([[0, 5], [5, 10]], [[0, 10]], 1.0),
        ([[0, 10], [0, 10], [2, 3]], [[0, 10]], 1.0),
        ([[-5, 10]], [[0, 10]], 0.0),
        ([[float("nan"), 10]], [[0, 10]], 0.0),
        ([[0, float("inf")]], [[0, 10]], 0.0),
        ([], [[0, 10]], 0.0),
        ([], [], 0.0),
        ([[5, 5]], [[5, 5]], 0.0),
    ],
)
def test_iou_values(predicted: list[list[float]], true: list[list[float]], iou: float) -> None:
    assert set_iou([tuple(s) for s in predicted], [tuple(s) for s in true]) == pytest.approx(iou)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("[[1.5, 4]]", [(1.5, 4)]),
        ("[1.5, 4]", [(1.5, 4)]),
        (" [[1, 2], [3, 4.5]] ", [(1, 2), (3, 4.5)]),
        ("[[4, 1]]", [(4, 1)]),
        ("from 1:02 to 1:15.5", [(62, 75.5)]),
        ("62s-75s", [(62, 75)]),
        ("62.5 seconds to 75 seconds", [(62.5, 75)]),
        ("10 – 20 and then 30 until 40", [(10, 20), (30, 40)]),  # noqa: RUF001
        ("between 3 and 5", [(3, 5)]),
        ("1:01:01 to 1:01:02.5", [(3661, 3662.5)]),
        ("[]", []),
        ("", []),
        ("no idea", []),
        ("at 12 seconds", []),
        ('[["1", "0:02"]]', [(1, 2)]),
        ('[["1", "b"]]', []),
        ("[[1, 2, 3]]", []),
        ("[[true, 2]]", []),
        ("{}", []),
        ("null", []),
        (json.dumps([[0, 1]] * MAX_SPANS), [(0, 1)] * MAX_SPANS),
        (json.dumps([[0, 1]] * (MAX_SPANS + 1)), []),
        ("1-2, " * (MAX_SPANS + 1), []),
    ],
)
def test_parse_spans(text: str, spans: list[tuple[float, float]]) -> None:
    assert parse_spans(text) == spans


def test_spans_that_are_no_numbers_come_back_for_the_message() -> None:
    (start, end), *_ = parse_spans("[[NaN, Infinity]]")
    assert math.isnan(start) and end == math.inf and not valid_span((start, end))
    assert parse_spans(f"[[0, 1{'0' * 400}]]") == [(0.0, math.inf)]


@given(st.text(max_size=300) | st.text("0123456789:.-to s[],", max_size=300))
def test_reading_any_text_never_raises(text: str) -> None:
    assert isinstance(parse_spans(text), list)
    number = parse_number(text)
    assert number is None or math.isfinite(number)
    assert match_option(text, [("A", "a man"), ("B", "b")]) in ("A", "B", None)


@pytest.mark.parametrize(
    "text",
    ["1:" * 100_000, "1 " * 100_000, "9" * 200_000, "1:00 - " * 30_000, "[" * 200_000, "1" + " " * 200_000 + "-", "A" + " " * 200_000, "((" * 100_000,
     "1" + ",000" * 50_000, "answer is " * 20_000, "the " * 50_000],
)  # fmt: skip
def test_no_text_is_slow(text: str) -> None:
    began = time.perf_counter()
    parse_spans(text)
    parse_number(text)
    match_option(text, [("A", "x"), ("B", "y")])
    assert time.perf_counter() - began < 1.0


def test_parse_time() -> None:
    assert parse_time("83.5") == 83.5 and parse_time("1:23.5") == 83.5 and parse_time("1:01:23.5") == 3683.5
    with pytest.raises(ValueError):
        parse_time("soon")


OPTIONS = [("A", "A red car"), ("B", "The blue one"), ("C", "Nobody."), ("D", "same"), ("E", "same")]


@pytest.mark.parametrize(
    ("content", "label"),
    [
        ("B", "B"), ("b", "B"), ("(B)", "B"), ("B.", "B"), ("b)", "B"), ("B. The blue one", "B"), ("B) because", "B"), ("B: it is", "B"),
        ("Answer: B", "B"), ("The answer is B.", "B"), ("the correct answer is (b)", "B"), ("Option C", "C"), ("**B**", "B"), ("`B`", "B"),
        ("the BLUE one.", "B"), ("A red car", "A"), ("nobody", "C"), (" \n B \n", "B"),
        ("A man walks, so B", None), ("A man", None), ("I think so", None), ("same", None), ("F", None), ("", None), ("B, C", None), ("AB", None),
        ("a blue one", None), ("Because", None),
    ],
)  # fmt: skip
def test_match_option(content: str, label: str | None) -> None:
    assert match_option(content, OPTIONS) == label


@pytest.mark.parametrize(("content", "label"), [("2", "2"), ("2.", "2"), ("2. two", "2"), ("1.5 metres", None), ("3:15", None), ("22", None)])
def test_match_option_with_numbers_as_labels(content: str, label: str | None) -> None:
    assert match_option(content, [(str(n), f"text {n}") for n in range(1, 5)]) == label


@pytest.mark.parametrize(
    ("content", "number"),
    [
        ("5", 5), ("-2.5", -2.5), ("1,000", 1000), ("1,234,567.5", 1234567.5), ("there are 3 of them", 3), ("three", 3), ("Twelve.", 12), (".5", 0.5),
        ("5, yes 5.0", 5), ("2 of 3", None), ("", None), ("many", None), ("one or two", None), ("1" + ",000" * 300, None), ("+7", 7),
    ],
)  # fmt: skip
def test_parse_number(content: str, number: float | None) -> None:
    assert parse_number(content) == number


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (0, 0, 0.0, 1.0), (1, 1, 0.2065, 1.0)],
)
def test_wilson(right: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(right, n) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"), [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625), (1, 9, 0.021484375), (9, 1, 0.021484375), (0, 10, 0.001953125), (3, 4, 1.0)]
)
def test_mcnemar(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar(only_a, only_b) == pytest.approx(p)


def test_mcnemar_of_many_does_not_overflow() -> None:
    assert 0 <= mcnemar(900, 1200) < 1e-9
