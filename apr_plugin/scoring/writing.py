"""Writes a canonical answer in the form that a task's scorer reads correctly. Pure functions; none of them raises."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

from apr_plugin.scoring.intervals import parse_spans, valid_span

_MAX_EXPONENT = 30
"""A number above 10**30, or finer than 10**-30, is not an answer; in plain decimals it would be mostly zeros."""


def write_label(text: str, *, written: Mapping[str, str]) -> str:
    """An option's label, in the form that the scorer reads.

    Args:
        text: The canonical answer, a label.
        written: The returned text for each label.
    """
    return written.get(text.strip(), text)


def write_longest_span(text: str, *, template: str = "The event happens in the {start} - {end} seconds.") -> str:
    """One span for a scorer that reads only one: the longest; of two equally long ones, the first one in the answer.

    Args:
        text: The canonical answer, `[[start, end], ...]` in seconds.
        template: The sentence that the scorer reads, with `{start}` and `{end}`.
    """
    # `parse_spans` also reads words. Only the canonical form is rewritten here, so that a forced answer is not changed.
    spans = parse_spans(text) if text.lstrip().startswith("[") else []
    if not spans or not all(valid_span(span) for span in spans):
        return text
    start_s, end_s = max(spans, key=lambda span: span[1] - span[0])
    return template.format(start=_seconds(start_s), end=_seconds(end_s))


def write_longest_first(text: str) -> str:
    """Spans for a scorer that reads a ranking: the longest first; of equally long ones, the earlier one first.

    The canonical answer is in order of time.

    Args:
        text: The canonical answer, `[[start, end], ...]` in seconds.
    """
    spans = parse_spans(text) if text.lstrip().startswith("[") else []
    if not spans or not all(valid_span(span) for span in spans):
        return text
    return json.dumps([list(span) for span in sorted(spans, key=lambda span: span[0] - span[1])])


def write_number(text: str) -> str:
    """A number in plain decimals: scorers search for digits, so that they would read ".5" as 5 and "1e-3" as 1."""
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        return text
    if not number.is_finite() or abs(number.adjusted()) > _MAX_EXPONENT:
        return text
    return f"{number:f}"


def _seconds(second: float) -> str:
    """Round to milliseconds: 24.296875 -> "24.297", 7.0 -> "7"."""
    return f"{second:.3f}".rstrip("0").rstrip(".")
