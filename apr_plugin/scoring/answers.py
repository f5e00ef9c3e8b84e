"""Answers in words: the option or the number that a reply names. Pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from apr_plugin.scoring import options as options_rule
from apr_plugin.scoring.numbers import read_number
from apr_plugin.scoring.text import answer_part, named_answer

__all__ = ["exact_number", "first_number", "match_option", "mean_relative_accuracy", "parse_number"]


def match_option(content: str, options: Sequence[tuple[str, str]], *, opening: bool = False) -> str | None:
    """The label of the option that a reply names, or `None` if it names no option or more than one.

    `apr_plugin.scoring.options` has the rule. If a reply marks its thought or its answer, only the answer is read; if
    it is a JSON object, only its answer.

    Args:
        content: The reply.
        options: (label, text) of each option.
        opening: Whether only the beginning of the reply counts, because it was cut off.
    """
    return options_rule.match_option(named_answer(answer_part(content)), options, opening=opening)


def parse_number(content: str) -> float | None:
    """The one number that a reply names, or `None` if it names none or several, or one that can't be read.

    The same number may be named more than once. Thousands separators count (`1,000` is 1000), and so do English number
    words of any size (`apr_plugin.scoring.numbers`). If a reply marks its thought or its answer, only the answer is
    read; if it is a JSON object, only its answer.
    """
    return read_number(named_answer(answer_part(content)))


_DIGITS = re.compile(r"[+-]?\d+(?:\.\d+)?")


def first_number(content: str) -> float | None:
    """The first run of digits in a text, with its sign and decimals, or `None` if there is none.

    This is how OmniAgent reads its counting and size answers (HarryHsing/OmniAgent, `video_env.py`). `parse_number`
    reads most texts differently: here "1,000" is 1, "2 or 3" is 2, ".5" is 5, "1e3" is 1, and "three" is nothing.
    Digits beyond the range of floats are infinity.
    """
    found = _DIGITS.search(content)
    return float(found[0]) if found else None


def exact_number(predicted: str | float | None, true: str | float, *, strict: bool = False) -> float:
    """1.0 if the predicted number equals the true one at two decimals, else 0.0 (also if no number can be read).

    This is the comparison of OmniAgent's counting questions (HarryHsing/OmniAgent, `video_env.py`): both sides are
    rounded with `round(x, 2)`.

    Args:
        predicted: A number, or text that names one (`parse_number`).
        true: The right number.
        strict: Read text as OmniAgent does, on both sides (`first_number`).

    Raises:
        ValueError: the true value is not a number.
    """
    number, right = _as_number(predicted, strict), _true_number(true, strict)
    return float(number is not None and round(number, 2) == round(right, 2))


_STEP = (0.95 - 0.5) / 9
MRA_TOLERANCES = (*(1 - (0.5 + step * _STEP) for step in range(9)), 1 - 0.95)
"""Largest error of an answer at the confidences 0.50, 0.55, ... 0.95, as a share of the true value. The values are
exactly those of VSI-Bench's scorer."""

_STRICT_TOLERANCES = np.float32(1) - np.array([0.5 + 0.05 * step for step in range(10)], np.float32)
"""The same, shape (10,), in single precision: exactly one minus the values of `torch.arange(0.5, 0.975, 0.05)`."""


def mean_relative_accuracy(predicted: str | float | None, true: str | float, *, strict: bool = False) -> float:
    """Mean relative accuracy (VSI-Bench): the share of ten confidences at which the relative error is small enough.

    The confidences are .50, .55, ... .95; at each, |p - t| / |t| <= 1 - confidence must hold. The comparison is `<=`,
    as in VSI-Bench's own scorer (vision-x-nyu/thinking-in-space; lmms-eval's `vsibench`). With `strict` it is
    OmniAgent's reward for sizes (`video_env.py`): `<`, |p - t| / (|t| + 1e-8), all in single precision, and text read
    by `first_number`. For the same two numbers the results differ only if the error equals a threshold: a prediction of
    7 for 10 scores 0.5, and 0.4 with `strict`. Text that names no number scores 0. For a true value of 0 there is no
    relative error: the score is 1 if the prediction is 0 too, else 0.

    Args:
        predicted: A number, or text that names one (`parse_number`).
        true: The right number.
        strict: Count as OmniAgent does.

    Raises:
        ValueError: the true value is not a number.
    """
    number, right = _as_number(predicted, strict), _true_number(true, strict)
    if number is None:
        return 0.0
    if strict:
        with np.errstate(all="ignore"):  # a number too large for single precision becomes infinity
            p, t = np.float32(number), np.float32(right)
            return float(np.mean(np.abs(p - t) / (np.abs(t) + np.float32(1e-8)) < _STRICT_TOLERANCES))
    if right == 0:
        return float(number == 0)
    error = abs(number - right) / abs(right)
    return sum(error <= tolerance for tolerance in MRA_TOLERANCES) / len(MRA_TOLERANCES)


def _as_number(value: str | float | None, strict: bool) -> float | None:
    number = (first_number if strict else parse_number)(value) if isinstance(value, str) else value
    return number if number is not None and math.isfinite(number) else None


def _true_number(value: str | float, strict: bool) -> float:
    number = _as_number(value, strict)
    if number is None:
        raise ValueError(f"the true answer {value!r} is not a number")
    return number
