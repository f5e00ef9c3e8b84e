"""Numbers in digits and in words: the whole number or none, never a part of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_plugin.scoring.answers import parse_number

UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def in_words(number: int, hyphen: str, joined: str, a: bool = False) -> str:
    """A number from 0 to 999,999 as it is written in English.

    Args:
        number: The number.
        hyphen: Text between tens and units.
        joined: Text between hundreds and the rest.
        a: Whether it begins with "a hundred" in place of "one hundred".
    """
    if number >= 1000:
        rest = in_words(number % 1000, hyphen, joined) if number % 1000 else ""
        small = joined if 0 < number % 1000 < 100 else " "
        words = in_words(number // 1000, hyphen, joined) + " thousand" + (small + rest if rest else "")
    elif number >= 100:
        words = f"{UNITS[number // 100]} hundred" + (
            joined + in_words(number % 100, hyphen, joined) if number % 100 else ""
        )
    elif number >= 20:
        words = TENS[number // 10 - 2] + (hyphen + UNITS[number % 10] if number % 10 else "")
    else:
        words = UNITS[number]
    return "a" + words[3:] if a and words.startswith(("one hundred", "one thousand")) else words


NUMBERS = st.integers(0, 130) | st.integers(0, 999_999) | st.integers(1, 999).map(lambda n: n * 1000)
SIMPLE = st.sampled_from(
    [
        "{}",
        "{}.",
        "There are {} people.",
        "**{}**",
        "The answer is {}",
        "about {} of them",
        "({})",
        '{{"answer": "{}"}}',
    ]
)
ANY = st.sampled_from(
    [
        "{}",
        "{} or so",
        "no more than {}",
        "the {} men",
        "over {}-plus",
        "{} and a half",
        "{} thirds",
        "{} point five",
        "{}-storey",
        "every {}th",
        "{} of the two hundred",
        "one of the {}",
        "{}, {}",
        "{} to {}",
        "{}ish",
        "half of {}",
        "{} dozen",
        "{} hundred",
        "minus {}",
        "{} 5",
        "5 {}",
        "{}-first",
    ]
)


@given(
    NUMBERS,
    st.sampled_from(["-", " ", "\u2011", "\u2010"]),
    st.sampled_from([" ", " and "]),
    st.booleans(),
    SIMPLE,
    st.sampled_from([str, str.upper, str.title]),
)
def test_a_number_in_words_is_that_number(
    number: int, hyphen: str, joined: str, a: bool, template: str, case: object
) -> None:
    assert callable(case)
    words = case(in_words(number, hyphen, joined, a))
    assert parse_number(template.format(words)) == number


@given(
    NUMBERS,
    st.sampled_from(["-", " ", ", ", "", " - ", "\n"]),
    st.sampled_from([" ", " and ", ", ", ", and ", "-and-", " & ", "\n"]),
    ANY,
)
def test_a_phrase_with_a_number_in_words_is_never_a_piece_of_it(
    number: int, hyphen: str, joined: str, template: str
) -> None:
    if template.endswith(("{}th", "{}ish")):
        hyphen, joined = "-", " "
    words = in_words(number, hyphen, joined)
    whole = {number, -number, number * 12, number * 100}
    assert parse_number(template.format(words, words)) in {*whole, None}


@given(
    st.integers(0, 10**9), st.sampled_from(["{:,}", "{}", "{}.0", "{:.3f}", "\u2212{}", "-{:,}", "minus {}", "{:e}"])
)
def test_a_number_in_digits_is_that_number(number: int, form: str) -> None:
    written = form.format(number)
    sign = -1 if form[0] in "\u2212-m" else 1
    wanted = float(f"{number:e}") if "e}" in form else float(number)
    assert parse_number(f"It is {written}.") == sign * wanted


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("no one", None),
        ("nobody", None),
        ("No one is there.", None),
        ("one", 1),
        ("only one", 1),
        ("There is one.", 1),
        ("the red one", None),
        ("this one", None),
        ("3, the one on the left is red", 3),
        ("one of 3", None),
        ("5 of the two hundred", None),
        ("one of the two hundred", None),
        ("two and a half", None),
        ("half a dozen", None),
        ("a dozen", 12),
        ("dozens", None),
        ("hundreds", None),
        ("twenty-first", None),
        ("two thirds", None),
        ("two-storey", None),
        ("2 hundred", 200),
        ("1.5 million", 1_500_000),
        ("2 hundred and five", None),
        ("two 5", None),
        ("12 thousand", 12_000),
        ("nineteen ninety-nine", None),
        ("three (3)", 3),
        ("three (4)", None),
        ("two seconds", 2),
        ("one hundred, and five", None),
        ("fourty-two", 42),
        ("2:30", None),
        ("5:05", None),
        ("1/2", None),
        ("5/5", None),
        ("2^3", None),
        ("1e1", 10),
        ("1 000", None),
        ("1,5", None),
        ("1.234.567", None),
        ("1" * 60, float("1" * 60)),
        ("1" * 310, None),
        ("1" * 1900, None),
        ("3万", None),
        ("1½", None),
        ("½", None),
        ("\uff15", 5),
        ("\u22125", -5),
        ("-5", -5),
        ("minus five", -5),
        ("3-5", None),
        ("3\u20135", None),
        ("about " * 500 + "5", None),
        ("5. " + "so " * 2000, 5),
        ("x" * 1999 + "12345", None),
        ('{"answer": "twenty-one", "confidence": 0.9}', 21),
        ("ten thousands", None),
        ("eleven hundred", None),
    ],
)
def test_the_number_or_none(text: str, number: float | None) -> None:
    assert parse_number(text) == number
