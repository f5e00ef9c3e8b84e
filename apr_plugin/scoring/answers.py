"""Answers in words: which option is meant, which number is named. Pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d{1,30})(?:\.\d{1,30})?|[-+]?\.\d{1,30}")
_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def match_option(content: str, options: Sequence[tuple[str, str]]) -> str | None:
    """The label of the option that `content` names, or `None`.

    Reads a bare label (`B`, `b`, `(B)`, `B.`), a label with words after it (`B. the red one`, `B) ...`), `Answer: B`, or the words of exactly
    one option. A sentence that merely begins with a capital letter ("A man walks") names nothing.

    Args:
        content: What was answered.
        options: (label, text) of each option.
    """
    content = content.strip().strip("`*\"'").strip()
    labels = {label.casefold(): label for label, _ in options}
    bare = content.strip("()[]{}.:, \n").casefold()
    if bare in labels:
        return labels[bare]
    by_text = [label for label, text in options if text.strip() and _plain(text) == _plain(content)]
    if len(by_text) == 1:
        return by_text[0]
    match = re.match(r"\(?\s{0,3}([^\s().:]{1,3})\s{0,3}[).:](?!\d)\s{0,3}(\S.{0,2000})?$", content, re.DOTALL)
    if match and match[1].casefold() in labels:
        return labels[match[1].casefold()]
    match = re.match(
        r"(?:the\s{1,3})?(?:correct\s{1,3})?(?:final\s{1,3})?(?:answer|option|choice)\s{0,3}(?:is|:)?\s{0,3}\(?([^\s().:]{1,3})\)?\.?$", content, re.I
    )
    if match and match[1].casefold() in labels:
        return labels[match[1].casefold()]
    return None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


def parse_number(content: str) -> float | None:
    """The one number that `content` names, or `None` where it names none or several different ones.

    Thousands separators count (`1,000` is 1000) and so do the words zero to twelve.
    """
    text = content.strip()[:2000]
    found = {number for m in _NUMBER.findall(text) if math.isfinite(number := float(m.replace(",", "")))}
    if not found:
        found = {float(_WORDS.index(word)) for word in re.findall(r"[a-z]+", text.casefold()) if word in _WORDS}
    return found.pop() if len(found) == 1 else None
