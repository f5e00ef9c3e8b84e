"""Times and time spans in what a model writes: the one parser for every task and for the loop. Pure functions, seconds throughout.

Every pattern here repeats a bounded number of times, so that reading takes time in proportion to the text, whatever the text is.
"""

from __future__ import annotations

import json
import math
import re

from apr_plugin.scoring.text import answer_part

Span = tuple[float, float]

MAX_SPANS = 200
"""More spans than this in one answer are no answer."""

MAX_CHARS = 20_000
"""Words are read in the last so many characters: an answer stands at the end of a long reply."""

_SECONDS = {"h": 3600, "m": 60, "s": 1}

_CLOCK = r"(?:\d{1,3}:)?\d{1,3}:\d{2}(?:\.\d{1,9}|,\d{3}(?!\d))?"
_PLAIN = r"\d{1,9}(?:\.\d{0,9})?"
_THOUSANDS = r"\d{1,3}(?:,\d{3}){1,2}(?:\.\d{1,9})?(?!,?\d)"
_UNIT = r"(?:hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s)(?![a-z])"


def _time(number: str) -> str:
    """A pattern of one time: `1:02.5`, `62.5`, `62 s`, `1 min 2 s`; not cut off a longer number at its end, and no percentage."""
    return rf"-?(?>{_CLOCK}|{number}(?:\s{{0,3}}{_UNIT}(?:\s{{0,3}}{_PLAIN}\s{{0,3}}{_UNIT}){{0,2}})?)(?![\d:]|\.\d|\s?%|\spercent)"


_WORD_TIME = rf"(?<![\d:])(?<![\d:][.,]){_time(f'(?:{_THOUSANDS}|{_PLAIN})')}"
_LIST_TIME = rf"[\"']?({_time(_PLAIN)})[\"']?"
_ABOUT = r"(?:(?:about|around|approximately|approx\.|roughly|the|seconds?|timestamp|time|t=)\s{0,3}){0,3}"
_IN_BRACKETS = re.compile(rf"\[\s{{0,9}}{_LIST_TIME}\s{{0,9}},\s{{0,9}}{_LIST_TIME}\s{{0,9}}\]", re.IGNORECASE)
_IN_PARENTHESES_OR_BARE = re.compile(
    rf"\(\s{{0,9}}{_LIST_TIME}\s{{0,9}},\s{{0,9}}{_LIST_TIME}\s{{0,9}}\)|\A{_LIST_TIME}\s{{0,9}},\s{{0,9}}{_LIST_TIME}\Z", re.IGNORECASE
)
_IN_WORDS = re.compile(
    rf"between\s{{1,4}}{_ABOUT}({_WORD_TIME})\s{{1,4}}and\s{{1,4}}{_ABOUT}({_WORD_TIME})"
    rf"|({_WORD_TIME})\s{{0,4}}(?:--?>|[-–—−~→]|(?:up\s)?to(?![a-z])|until|till|through)\s{{0,4}}{_ABOUT}({_WORD_TIME})"  # noqa: RUF001
    rf"|start[a-z_ ]{{0,12}}[\"']?\s{{0,3}}[:=]?\s{{0,3}}[\"']?{_ABOUT}({_WORD_TIME})[^\d\[\]]{{0,40}}?"
    rf"end[a-z_ ]{{0,12}}[\"']?\s{{0,3}}[:=]?\s{{0,3}}[\"']?{_ABOUT}({_WORD_TIME})",
    re.IGNORECASE,
)
_PART = re.compile(rf"({_THOUSANDS}|{_PLAIN})\s{{0,3}}([hms]?)", re.IGNORECASE)


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
    """Read the time spans an answer names.

    Read are, and the first of these kinds that the text has counts: a JSON list that is the whole answer (`[[1.5, 4]]`, `[1.5, 4]`); pairs in
    brackets among words (`The event is at [[10, 20]]`); words (`from 1:02 to 1:15.5`, `62s-75s`, `between 1 min 2 s and 75 s`,
    `2 to 3 minutes`, `start: 10, end: 20`); pairs in parentheses (`(10, 20)`), or one that is the whole answer (`10, 20`). A number without a
    unit takes that of the other end, else seconds. Percentages are no times.

    Spans come back in the order written, reversed and non-finite ones included, so that the caller can say what is wrong with them; an empty
    list means that no span was found, or over `MAX_SPANS`.
    """
    text = answer_part(text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    spans = _from_json(value) if isinstance(value, list) else _from_words(text[-MAX_CHARS:])
    return spans if len(spans) <= MAX_SPANS else []


def _from_json(value: list[object]) -> list[Span]:
    pairs = [value] if len(value) == 2 and not any(isinstance(item, list) for item in value) else value
    spans: list[Span] = []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            return []
        start, end = map(_json_time, pair)
        if start is None or end is None:
            return []
        spans.append((start, end))
    return spans


def _json_time(value: object) -> float | None:
    if isinstance(value, str):
        return _seconds(value, "s") if re.fullmatch(_time(_PLAIN), value.strip(), re.IGNORECASE) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _from_words(text: str) -> list[Span]:
    for pattern in (_IN_BRACKETS, _IN_WORDS, _IN_PARENTHESES_OR_BARE):
        if spans := [_span(*filter(None, match.groups())) for match in pattern.finditer(text)]:
            return spans
    return []


def _span(start: str, end: str) -> Span:
    return _seconds(start, _unit(end)), _seconds(end, _unit(start))


def _unit(time: str) -> str:
    """The last unit that a time names; seconds of a clock or a bare number."""
    units = [unit for _, unit in _PART.findall(time) if unit]
    return units[-1] if units else "s"


def _seconds(time: str, default_unit: str) -> float:
    time = time.strip()
    sign, time = (-1.0, time[1:]) if time.startswith("-") else (1.0, time)
    if ":" in time:
        return sign * parse_time(time.replace(",", "."))
    parts = _PART.findall(time)
    return sign * sum(float(number.replace(",", "")) * _SECONDS[(unit or default_unit).lower()] for number, unit in parts)
