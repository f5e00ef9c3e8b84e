"""Times and time spans in what a model writes: the one parser for every task and for the loop. Pure functions, seconds throughout."""

from __future__ import annotations

import json
import math
import re

Span = tuple[float, float]

MAX_SPANS = 200
"""More spans than this in one answer are no answer."""

_TIME = r"(?:(?:\d{1,3}:)?\d{1,3}:\d{2}(?:\.\d{1,6})?|\d{1,9}(?:\.\d{1,6})?)"
_RANGE = re.compile(
    rf"(?<![\d.:])({_TIME})\s{{0,4}}(?:s|sec|secs|seconds)?\s{{0,4}}(?:-|–|—|to|until|and)\s{{0,4}}({_TIME})(?![\d:])",  # noqa: RUF001
    re.IGNORECASE,
)


def parse_time(text: str) -> float:
    """Seconds of `83.5`, `1:23.5` or `1:01:23.5`.

    Raises:
        ValueError: the text is none of these.
    """
    seconds = 0.0
    for field in text.strip().split(":"):
        seconds = seconds * 60 + float(field)
    return seconds


def parse_spans(text: str) -> list[Span]:
    """Read the time spans an answer names: JSON (`[[1.5, 4]]`, `[1.5, 4]`), or words (`from 1:02 to 1:15.5`, `62s-75s`).

    Spans come back in the order written, reversed and non-finite ones included, so that the caller can say what is wrong with them; an empty
    list means that no span was found.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, list):
        pairs = [value] if len(value) == 2 and all(_is_number(item) for item in value) else value
        if all(isinstance(pair, list) and len(pair) == 2 and all(_is_number(item) for item in pair) for pair in pairs):
            return [(_as_float(start), _as_float(end)) for start, end in pairs] if len(pairs) <= MAX_SPANS else []
        return []
    words = [(parse_time(m[1]), parse_time(m[2])) for m in _RANGE.finditer(text[:20_000])]
    return words if len(words) <= MAX_SPANS else []


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
