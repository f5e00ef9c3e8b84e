"""The one number that a text names, in digits or in English words; never a part of a longer number. Pure functions.

A text is split into numbers and words. A grammar reads consecutive words that belong to one number. If something looks
like a number but can't be read ("twenty-first", "two and a half", "1/2", "2:30"), the whole text names no number.
"""

# ruff: noqa: RUF001 - full-width and other signs that models write

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

_UNITS = [
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
_TENS = {
    "twenty": 20,
    "thirty": 30,
    "forty": 40,
    "fourty": 40,
    "fifty": 50,
    "sixty": 60,
    "seventy": 70,
    "eighty": 80,
    "ninety": 90,
}
_SMALL = {
    **{word: value for value, word in enumerate(_UNITS)},
    **_TENS,
    **{tens + _UNITS[unit]: value + unit for tens, value in _TENS.items() for unit in range(1, 10)},  # "twentyone"
}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_BIG = {"hundred": 100, "dozen": 12, **_SCALES}
_VAGUE = {"hundreds", "dozens", "thousands", "millions", "billions"}
_FRACTIONS = {"half", "halves", "third", "thirds", "quarter", "quarters", "point", "percentile"}
_ORDINALS = set(
    [
        "first",
        "second",
        "third",
        "fourth",
        "fifth",
        "sixth",
        "seventh",
        "eighth",
        "ninth",
        "tenth",
        "eleventh",
        "twelfth",
        "thirteenth",
        "fourteenth",
        "fifteenth",
        "sixteenth",
        "seventeenth",
        "eighteenth",
        "nineteenth",
        "twentieth",
        "thirtieth",
        "fortieth",
        "fiftieth",
        "sixtieth",
        "seventieth",
        "eightieth",
        "ninetieth",
        "hundredth",
        "thousandth",
        "millionth",
    ]
)
_POINTERS = {
    "the",
    "this",
    "that",
    "these",
    "those",
    "no",
    "any",
    "every",
    "each",
    "which",
    "another",
    "a",
    "an",
    "some",
    "last",
    "first",
    "other",
}
"""Words before "one" that make it a pronoun: "no one", "the red one"."""

_NAMING = {
    "is",
    "are",
    "was",
    "were",
    "be",
    "equals",
    "number",
    "answer",
    "count",
    "total",
    "only",
    "just",
    "exactly",
    "about",
    "of",
    "there",
}
"""Words that lead to a number: after them "one" is a number, whatever comes before."""

_DIGITS = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(rf"(?:{_DIGITS})(?:[eE][-+]?\d{{1,3}})?")
_SIGNS = str.maketrans(
    {
        "\u2212": "-",
        "\ufe63": "-",
        "\uff0d": "-",
        "\u2010": "-",
        "\u2011": "-",
        "\u2013": "-",
        "\uff0b": "+",
        "\u00a0": " ",
    }
)
_TOKEN = re.compile(
    r"(?P<digits>(?:\d[\d,.]{0,1500}+(?<=\d)|\d[\d,.]{0,1500}(?<=\d)|\.\d{1,1500})(?:[eE][-+]?\d{1,9})?)"
    r"|(?P<word>[^\W\d_]{1,400}(?:['’][^\W\d_]{1,9})?)"
    r"|(?P<mark>[^\s])"
)
_BROKEN = re.compile(
    r"(?<=\d)\s?(?:[:/^*\u00d7\u00f7\u2044]\s?\d"
    r"|[\u00bc-\u00be\u2150-\u215e\u5341\u767e\u5343\u4e07\u842c\u5104\u4ebf])"
    r"|\d \d{3}(?!\d)"
)
"""Digits that are a part of something else: a clock, a fraction, a power, thousands set apart by blanks, a Chinese
multiple."""

_DERIVED = re.compile(rf"(?:{'|'.join([*_SMALL, *_BIG])})(?:ths?|ish|fold|s|some)")
"""Words derived from a number word: "twenty oneish" is not twenty."""

_GLUED = re.compile(rf"(?>{'|'.join(sorted([*_SMALL, *_BIG, 'and'], key=len, reverse=True))}){{2,}}+")
"""Number words written as one: "twohundred" can't be read."""

MAX_NUMBER_CHARS = 2000
"""A number is searched for in the sentences within this many characters at the beginning."""


@dataclass(frozen=True)
class _Token:
    word: str
    """The token in lower case; for a number, its digits."""

    number: float | None
    """The value of digits; NaN for words."""

    joined: bool
    """Whether there is nothing but a blank or a hyphen between it and the token before."""

    glued: bool
    """Whether that is a hyphen."""


class _Unreadable(ValueError):
    """Text that looks like a number but can't be read as one."""


def read_number(text: str) -> float | None:
    """The one number that a text names, or `None` if it names none or several, or one that can't be read.

    The same number may be named more than once. Thousands separators count (`1,000` is 1000), as do `-`, U+2212,
    "minus" and "negative" before a number. English number words of any size count. "no one" and "the red one" name no
    number.
    """
    if len(text) > MAX_NUMBER_CHARS:  # whole sentences, so that no number is cut
        text = text[: max(text.rfind(end, 0, MAX_NUMBER_CHARS) for end in (". ", "! ", "? ", "\n")) + 1]
    text = text.translate(_SIGNS)
    if _BROKEN.search(text):
        return None
    tokens = _tokens(text)
    try:
        found = {number for number in _numbers(tokens) if math.isfinite(number)}
    except _Unreadable:
        return None
    return found.pop() if len(found) == 1 else None


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    end = 0
    for match in _TOKEN.finditer(text):
        between, before = text[end : match.start()], text[end - 1 : end]
        if match["mark"]:
            if match["mark"] != "-":
                tokens.append(_Token(match["mark"], None, joined=False, glued=False))
                end = match.end()
            continue
        glued = end > 0 and between == "-" and (before.isalnum())
        joined = glued or (end > 0 and not between.strip())
        sign = -1.0 if between.endswith("-") and not glued else 1.0
        if match["digits"]:
            whole = _NUMBER.fullmatch(match["digits"])
            value = sign * float(match["digits"].replace(",", "")) if whole else math.nan
            tokens.append(_Token(match["digits"], value, joined, glued))
        else:
            tokens.append(_Token(match["word"].casefold(), None, joined, glued))
        end = match.end()
    return tokens


def _numbers(tokens: list[_Token]) -> Iterator[float]:
    """Every number that is named.

    Raises:
        _Unreadable: one of the numbers can't be read.
    """
    at, named_to = 0, -1
    digits = any(token.number is not None for token in tokens)
    while at < len(tokens):
        token = tokens[at]
        if token.number is None and token.word not in _SMALL and not _begins_with_scale(tokens, at):
            if _GLUED.fullmatch(token.word):
                raise _Unreadable
            if (
                token.word == "half"
                and _word(tokens, at + 1) in ("a", "dozen")
                and _word(tokens, at + 2) in ("dozen", "of", "")
            ):
                raise _Unreadable
            at += 1
            continue
        begin = at
        phrase, at = _phrase(tokens, at)
        if _foreign(tokens, begin, at):
            if named_to >= 0 and not any(
                token.word.isalpha() and token.word != "and" for token in tokens[named_to:begin]
            ):
                raise _Unreadable  # "twenty, one-plus"
            continue  # "two-storey", "one-way": an adjective
        if phrase == ["one"] and _is_pronoun(tokens, begin, digits=digits):
            continue
        value = token.number if len(phrase) == 1 and token.number is not None else _value(phrase, token.number)
        if math.isnan(value):
            raise _Unreadable
        if at < len(tokens) and tokens[at].joined and _DERIVED.fullmatch(tokens[at].word):
            raise _Unreadable
        if (
            _word(tokens, at) in _FRACTIONS | _ORDINALS
            and tokens[at].joined
            and not (_word(tokens, at) == "second" and not tokens[at].glued)
        ):
            raise _Unreadable
        if _word(tokens, at) == "and" and (
            _word(tokens, at + 1) in ("half", "quarter")
            or (_word(tokens, at + 1) == "a" and _word(tokens, at + 2) in _FRACTIONS)
        ):
            raise _Unreadable
        named_to = at
        yield -value if _word(tokens, begin - 1) in ("minus", "negative") else value


def _begins_with_scale(tokens: list[_Token], at: int) -> bool:
    """Whether "a hundred", "a dozen" begins here."""
    return tokens[at].word in ("a", "an") and _word(tokens, at + 1) in _BIG and tokens[at + 1].joined


def _phrase(tokens: list[_Token], at: int) -> tuple[list[str], int]:
    """The words in a row that belong to one number, and where they end."""
    first = tokens[at]
    words = ["one" if first.word in ("a", "an") else "#" if first.number is not None else first.word]
    at += 1
    while at < len(tokens) and tokens[at].joined:
        word = tokens[at].word
        if word in _BIG or (word in _SMALL and words[-1] != "#"):
            words.append(word)
        elif (
            word == "and"
            and words[-1] in _BIG
            and words[-1] != "dozen"
            and at + 1 < len(tokens)
            and tokens[at + 1].joined
        ):
            if tokens[at + 1].word not in _SMALL and not _begins_with_scale(tokens, at + 1):
                break
            if tokens[at + 1].word in ("a", "an"):
                raise _Unreadable
        elif (
            tokens[at].number is not None
            or word in _VAGUE
            or _GLUED.fullmatch(word)
            or (word in _SMALL and words[-1] == "#")
        ):
            raise _Unreadable  # "two 5", "ten thousands": numbers are not written like this
        else:
            break
        at += 1
    return words, at


def _foreign(tokens: list[_Token], begin: int, end: int) -> bool:
    """Whether a hyphen connects the words `begin` to `end` with others."""
    after = end < len(tokens) and tokens[end].glued and tokens[end].word not in _FRACTIONS | _ORDINALS
    before = begin > 0 and tokens[begin].glued and tokens[begin].number is None and tokens[begin - 1].number is None
    return tokens[begin].number is None and (after or before)


def _is_pronoun(tokens: list[_Token], at: int, *, digits: bool) -> bool:
    """Whether "one" stands for a noun here.

    It does after "no", "the" and "the red"; and beside digits, unless it is in "one of".
    """
    if digits and _word(tokens, at + 1) != "of":
        return True
    if _word(tokens, at - 1) in _SMALL:
        return False
    for back in (1, 2, 3):
        word = _word(tokens, at - back)
        if word in _POINTERS:
            return True
        if not word.isalpha() or word in _NAMING:
            return False
    return False


def _word(tokens: list[_Token], at: int) -> str:
    return tokens[at].word if 0 <= at < len(tokens) else ""


def _value(words: list[str], first: float | None) -> float:
    """The value of consecutive number words; NaN if no number is written like this.

    Args:
        words: Words of `_SMALL` and `_BIG`, "and" left out; "#" for digits, which only come first.
        first: The value of those digits.
    """
    if words[0] == "#":
        value = first if first is not None else math.nan
        for scale in words[1:]:
            value *= _BIG.get(scale, math.nan)
        return value
    total, group, last = 0, -1, math.inf  # group: the sum below the next scale so far, -1 if there is none
    room = math.inf  # the next word of the group must be below it
    for word in words:
        if word in _SCALES or word == "dozen":
            if group < 0 or _BIG[word] >= last or (word == "dozen" and total):
                return math.nan
            total, group, last, room = total + group * _BIG[word], -1, 1 if word == "dozen" else _BIG[word], math.inf
        elif word == "hundred":
            if not 0 < group < 10:
                return math.nan
            group, room = group * 100, 100
        else:
            small = _SMALL[word]
            if last == 1 or small >= room or (small == 0 and len(words) > 1):
                return math.nan
            group, room = max(group, 0) + small, 10 if small >= 20 else 0
    return float(total + max(group, 0))
