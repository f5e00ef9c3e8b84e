"""Answers in words: which option is meant, which number is named. Pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from apr_plugin.scoring.text import answer_part
from apr_plugin.scoring.times import MAX_CHARS

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d{1,30})(?:\.\d{1,30})?|[-+]?\.\d{1,30}")
_LABEL = r"[\s(\[*\"'`]{0,6} ([^\s().:,;*`\"'<>{}\[\]]{1,3}) [)\]*\"'`]{0,3}"
_IS_RIGHT = r"\s{1,3} is \s{1,3} (?:the\s{1,3})? (?:correct|right|best)\b"
_LEADING = re.compile(r"\(?\s{0,3}([^\s().:]{1,3})\s{0,3}[).:](?!\d)\s{0,3}(\S.{0,2000})?$", re.DOTALL)
_STATED = re.compile(
    rf"""(?: answer | (?:correct|right|best|final)\s(?:option|choice) ) \**
         \s{{0,3}} (?:is\b|would\sbe\b|:)? \s{{0,3}} :? \s{{0,3}} (?:option\s{{1,3}})?
         {_LABEL} (?: [.:)](?!\d) | \s{{0,3}}$ | \s{{0,3}}\n | ,?\s{{1,3}}(?:because|since|as)\b | {_IS_RIGHT} )
       | ^(?:the\s{{1,3}})? (?:option|choice) \s{{0,3}} (?:is\b|:)? \s{{0,3}} {_LABEL} \.?$
       | (?<!\w) {_LABEL} {_IS_RIGHT}
       | \\boxed\{{ (?:\\text\{{)? {_LABEL} \}}""",
    re.IGNORECASE | re.VERBOSE,
)
_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def match_option(content: str, options: Sequence[tuple[str, str]]) -> str | None:
    r"""The label of the option that `content` names, or `None`.

    Reads a bare label (`B`, `b`, `(B)`, `B.`), a label with words after it (`B. the red one`, `B) ...`), the words of exactly one option,
    or, wherever it stands, a statement of the answer (`Answer: B`, `the answer is B. the red one`, `Option B is correct`, `\boxed{B}`); of
    several statements the last counts. Of a reply with `<think>` or `<answer>` marks only the answer is read. A sentence that merely begins
    with a capital letter ("A man walks") names nothing.

    Args:
        content: What was answered.
        options: (label, text) of each option.
    """
    content = answer_part(content)[-MAX_CHARS:].strip().strip("`*\"'").strip()
    labels = {label.casefold(): label for label, _ in options}
    bare = content.strip("()[]{}.:, \n").casefold()
    if bare in labels:
        return labels[bare]
    by_text = [label for label, text in options if text.strip() and _plain(text) == _plain(content)]
    if len(by_text) == 1:
        return by_text[0]
    match = _LEADING.match(content)
    if match and match[1].casefold() in labels:
        return labels[match[1].casefold()]
    stated = [label for match in _STATED.finditer(content) if (label := next(filter(None, match.groups())).casefold()) in labels]
    return labels[stated[-1]] if stated else None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


def parse_number(content: str) -> float | None:
    """The one number that `content` names, or `None` where it names none or several different ones.

    Thousands separators count (`1,000` is 1000) and so do the words zero to twelve. Of a reply with `<think>` or `<answer>` marks only the
    answer is read.
    """
    text = answer_part(content)[:2000]
    found = {number for m in _NUMBER.findall(text) if math.isfinite(number := float(m.replace(",", "")))}
    if not found:
        found = {float(_WORDS.index(word)) for word in re.findall(r"[a-z]+", text.casefold()) if word in _WORDS}
    return found.pop() if len(found) == 1 else None


def exact_number(predicted: str | float | None, true: str | float) -> float:
    """1.0 where the predicted number equals the true one at two decimals, else 0.0 (also where no number can be read).

    The comparison of OmniAgent's counting questions (HarryHsing/OmniAgent, `video_env.py`): both sides through `round(x, 2)`.

    Args:
        predicted: A number, or text that names one (`parse_number`).
        true: The right number.

    Raises:
        ValueError: the true value is no number.
    """
    number = _as_number(predicted)
    return float(number is not None and round(number, 2) == round(_true_number(true), 2))


_STEP = (0.95 - 0.5) / 9
MRA_TOLERANCES = (*(1 - (0.5 + step * _STEP) for step in range(9)), 1 - 0.95)
"""How far off an answer may be at the confidences 0.50, 0.55, ... 0.95, as a share of the true value; to the last bit those of VSI-Bench's scorer."""


def mean_relative_accuracy(predicted: str | float | None, true: str | float, *, strict: bool = False) -> float:
    """Mean relative accuracy (VSI-Bench): the share of the ten confidences .50, .55, ... .95 at which |p - t| / |t| <= 1 - confidence.

    The comparison is `<=`, as VSI-Bench's own scorer has it (vision-x-nyu/thinking-in-space; lmms-eval's `vsibench`); with `strict` it is `<`, as
    in OmniAgent's reward for sizes (`video_env.py`, in single precision). The two differ only where the error falls on a threshold. Text that
    names no number scores 0. Of a true value of 0 there is no relative error: 1 where the prediction is 0 too, else 0.

    Args:
        predicted: A number, or text that names one (`parse_number`).
        true: The right number.
        strict: Compare with `<`.

    Raises:
        ValueError: the true value is no number.
    """
    number, right = _as_number(predicted), _true_number(true)
    if number is None:
        return 0.0
    if right == 0:
        return float(number == 0)
    error = abs(number - right) / abs(right)
    return sum(error < tolerance if strict else error <= tolerance for tolerance in MRA_TOLERANCES) / len(MRA_TOLERANCES)


def _as_number(value: str | float | None) -> float | None:
    number = parse_number(value) if isinstance(value, str) else value
    return number if number is not None and math.isfinite(number) else None


def _true_number(value: str | float) -> float:
    number = _as_number(value)
    if number is None:
        raise ValueError(f"the true answer {value!r} is no number")
    return number
