"""Decimals of any length: the text that Python writes for a float is read as the same float, in every form in which a
number is read."""

# ruff: noqa: RUF001 - signs that models write

from __future__ import annotations

import json
import time
from collections.abc import Callable
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from apr_plugin.loop.answer import canonical_answer
from apr_plugin.loop.question import Question, QuestionKind
from apr_plugin.scoring.answers import exact_number, match_option, mean_relative_accuracy, parse_number
from apr_plugin.scoring.intervals import parse_spans

SECONDS = st.floats(0, allow_nan=False, allow_infinity=False) | st.floats(0, 10_000)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


def exact(number: float) -> str:
    """All digits of the float, without an exponent: `0.1000000000000000055511151231257827…`."""
    return f"{Decimal(number):f}"


def plain(number: float) -> str:
    """The shortest digits that give this float, without an exponent."""
    return f"{Decimal(repr(number)):f}"


def grouped(number: float) -> str:
    """Digits with separators between thousands: `1,234.5`."""
    return f"{Decimal(repr(number)):,f}"


WRITTEN = [repr, exact, plain]
SPANS = [
    "From {} to {} seconds",
    "from {} to {}",
    "{} - {}",
    "{} – {}",
    "{}s-{}s",
    "{} seconds until {} seconds",
    "between {} and {}",
    "The event happens in the {} - {} seconds.",
    "starts at {} and ends at {}",
    "Start: {}, end: {}",
    "starts at {}s and ends at {}s.",
    "It is at [{}, {}].",
    "[{}, {}]",
    "[[{}, {}]]",
    "({}, {})",
    "it is ({}, {})",
    "{}, {}",
    '["{}", "{}"]',
    '["from {} to {}"]',
    '{{"start": {}, "end": {}}}',
    '{{"start": "{}", "end": "{}s"}}',
    "从{}秒到{}秒",
    "<answer>{} to {}</answer>",
]


@given(SECONDS, SECONDS, st.sampled_from(WRITTEN), st.sampled_from(SPANS))
@example(10.1, 33.730000000000004, repr, "From {} to {} seconds")
@example(5e-324, 1.7976931348623157e308, repr, "{} - {}")
@example(5e-324, 1.7976931348623157e308, exact, "from {} to {}")
def test_a_span_of_any_floats_reads_back(
    start: float, end: float, write: Callable[[float], str], template: str
) -> None:
    assert parse_spans(template.format(write(start), write(end))) == [(start, end)]


@given(SECONDS, SECONDS)
def test_thousands_set_apart_read_back(start: float, end: float) -> None:
    assert parse_spans(f"from {grouped(start)} to {grouped(end)} seconds") == [(start, end)]
    assert parse_number(grouped(start)) == start


SMALL = st.floats(0, 59.999, exclude_max=True)


@given(st.integers(0, 59), SMALL, st.sampled_from(WRITTEN))
@example(1, 33.730000000000004, repr)
def test_a_fraction_of_a_clock_or_of_smaller_units_reads_back(
    minutes: int, second: float, write: Callable[[float], str]
) -> None:
    words, wanted = write(second), 60 * minutes + second
    assert parse_spans(f"from {minutes} min {words} s to {minutes} minutes {words} seconds") == [(wanted, wanted)]
    assert parse_spans(f"from 2h{minutes}m{words}s to 3h{minutes}m{words}s") == [
        (7200 + 60 * minutes + second, 10800 + 60 * minutes + second)
    ]
    whole, _, fraction = plain(second).partition(".")
    if whole:
        clock = f"{minutes}:{whole:0>2}.{fraction or '0'}"
        assert parse_spans(f"from {clock} to 1:{clock.rjust(5, '0') if minutes > 9 else '0' + clock}") == [
            (wanted, (60 + minutes) * 60 + second)
        ]
        assert parse_spans(json.dumps([clock, clock])) == [(wanted, wanted)]


@given(st.floats(0, 1e300), st.sampled_from([("min", 60), ("hours", 3600), ("m", 60)]), st.sampled_from(WRITTEN))
def test_a_number_of_larger_units_reads_back(
    number: float, unit: tuple[str, int], write: Callable[[float], str]
) -> None:
    name, seconds = unit
    assert parse_spans(f"from {write(number)} {name} to {write(number)} {name}") == [
        (number * seconds, number * seconds)
    ]


@given(
    NUMBERS,
    st.sampled_from(WRITTEN),
    st.sampled_from(["{}", "It is {}.", "**{}** metres", "about {} m", '{{"answer": {}}}', '{{"answer": "{}"}}']),
)
@example(33.730000000000004, repr, "It is {}.")
@example(1e200, repr, '{{"answer": {}}}')
@example(5e-324, exact, "It is {}.")
@example(-1.7976931348623157e308, exact, "It is {}.")
def test_a_number_answer_reads_back(number: float, write: Callable[[float], str], template: str) -> None:
    text = template.format(write(number))
    assert parse_number(text) == number
    assert mean_relative_accuracy(text, number) == 1.0
    assert exact_number(text, number) == 1.0


@given(NUMBERS)
def test_a_canonical_number_reads_back(number: float) -> None:
    question = Question(text="How many metres?", kind=QuestionKind.NUMBER)
    written = canonical_answer(question, repr(number))
    assert isinstance(written, str) and parse_number(written) == number


@pytest.mark.parametrize(
    "text",
    ["9" * 200_000, "0." + "3" * 200_000, ("1" * 309 + "." + "2" * 1100 + " ") * 150, "." * 200_000, ".1" * 100_000,
    "1e" * 100_000, "1e1" * 60_000,
     "1,000" * 40_000, "1." * 100_000, "1:02." + "3" * 200_000, ("7" * 400 + " to ") * 500,
     "[" + "1" * 200_000 + ", 2]", "1 e5 to " * 25_000],
    ids=lambda text: f"{text[:8]}-{len(text)}",
)  # fmt: skip
def test_very_long_digits_are_cheap(text: str) -> None:
    began = time.process_time()
    for hostile in (text, f"from {text} to 5", f'{{"answer": "{text}"}}'):
        parse_spans(hostile)
        parse_number(hostile)
    assert time.process_time() - began < 3.0


@given(
    NUMBERS,
    NUMBERS,
    st.sampled_from(WRITTEN),
    st.sampled_from(["{}", "{}.", "The answer is {}.", "**{}**", "B. {}", "(B) {}", '{{"answer": "{}"}}']),
)
@example(33.730000000000004, 33.73, repr, "The answer is {}.")
@example(0.0, 1.0, exact, "**{}**")
def test_an_option_that_is_a_number_is_named_by_it(
    number: float, other: float, write: Callable[[float], str], template: str
) -> None:
    # A statement of an answer is read up to 400 characters.
    if len(write(number)) < 380 and write(number) != write(other):
        assert match_option(template.format(write(number)), [("A", write(other)), ("B", write(number))]) == "B"
