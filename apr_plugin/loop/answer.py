"""Checks that an answer has the form that its question asks for, and gives its canonical form.

Canonical forms: `mcq` the option's label; `grounding` JSON `[[start, end], ...]` in seconds, merged and sorted;
`number` a plain decimal; `free_form` the text itself, stripped and without thought. `strict_answer` is for
`parsing=strict`.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any, NamedTuple

from apr_plugin.loop.feedback import ActionError, ErrorCode
from apr_plugin.loop.question import Question, QuestionKind
from apr_plugin.scoring.answers import first_number, match_option, parse_number
from apr_plugin.scoring.intervals import Span, merge, parse_spans, valid_span
from apr_plugin.scoring.text import answer_part
from apr_plugin.scoring.thought import split_thought

SLACK_S = 0.5
"""How far past the end of the video an answered span may reach, because of rounding; it is cut at the end."""


def canonical_answer(question: Question, content: str, duration_s: float | None = None) -> str | ActionError:
    """The canonical form of `content`, or the error that the model reads.

    Args:
        question: What was asked.
        content: What the model answered.
        duration_s: Length of the video, against which spans are checked; with `None` they are not checked.
    """
    if split_thought(content).unclosed:
        return ActionError(
            ErrorCode.ANSWER_FORM, "the answer ends within a thought that is never closed; write the answer alone."
        )
    match question.kind:
        case QuestionKind.MCQ:
            label = match_option(content, [(option.label, option.text) for option in question.options])
            if label is None:
                labels = ", ".join(option.label for option in question.options)
                return ActionError(
                    ErrorCode.ANSWER_FORM, f"the answer must be one of {labels}; {_clip(content)} names none of them."
                )
            return label
        case QuestionKind.GROUNDING:
            return _canonical_spans(content, duration_s)
        case QuestionKind.NUMBER:
            number = parse_number(content)
            if number is None:
                return ActionError(ErrorCode.ANSWER_FORM, f"the answer must be one number; {_clip(content)} is not.")
            return _plain(number)
        case QuestionKind.FREE_FORM:
            words = answer_part(content)
            return words or ActionError(ErrorCode.ANSWER_FORM, "the answer is empty.")


def _canonical_spans(content: str, duration_s: float | None) -> str | ActionError:
    spans = parse_spans(content)
    if not spans:
        return ActionError(
            ErrorCode.ANSWER_FORM,
            f"the answer must be time spans in seconds such as [[12.5, 20.0]]; {_clip(content)} holds none.",
        )
    for start, end in spans:
        if not valid_span((start, end)):
            return ActionError(
                ErrorCode.ANSWER_FORM, f"the span [{start:g}, {end:g}] is reversed, negative or not finite."
            )
        if duration_s is not None and end > duration_s + SLACK_S:
            return ActionError(
                ErrorCode.ANSWER_FORM,
                f"the span [{start:g}, {end:g}] reaches past the end of the video at {duration_s:.2f}s.",
            )
    limit = duration_s if duration_s is not None else float("inf")
    merged = merge((min(start, limit), min(end, limit)) for start, end in spans)
    return json.dumps([[round(start, 3), round(end, 3)] for start, end in merged])


def _plain(number: float) -> str:
    return f"{Decimal(repr(number + 0.0)):f}".removesuffix(".0")


class TakenAnswer(NamedTuple):
    """An answer that ends the episode."""

    text: str
    """Its canonical form; the answer as written if it is not `valid`."""

    valid: bool = True
    """Whether it has the form that its question asks for. If not, it counts as wrong."""

    remark: str = ""
    """Why it counts as wrong."""


def strict_answer(question: Question, content: str, duration_s: float | None = None) -> TakenAnswer | ActionError:
    """Read an answer as OmniAgent's environment does, or return the error that costs the turn there.

    The source is HarryHsing/OmniAgent, `video_env.py`.

    - mcq: the label alone, in either case; everything else is accepted and wrong.
    - grounding: JSON that is a list of pairs, or one pair; words or other JSON are an error. Spans are not checked
      against the video's length. Reversed and negative spans are dropped, and an answer without a span left is wrong.
    - number: the first digits (`first_number`); a text without digits is an error.
    - free_form: the text unchanged.


    Args:
        question: What was asked.
        content: What the model answered.
        duration_s: Length of the video; it is used only in the text of an error.
    """
    match question.kind:
        case QuestionKind.MCQ:
            named = content.strip().upper()
            label = next((option.label for option in question.options if option.label.strip().upper() == named), None)
            return TakenAnswer(label) if label is not None else _wrong(content, "it is not a label alone")
        case QuestionKind.GROUNDING:
            try:
                spans = merge(_listed_spans(json.loads(content)))
            except (ValueError, TypeError, OverflowError, RecursionError):
                return _refused(
                    question,
                    content,
                    duration_s,
                    "JSON time spans in seconds such as [[12.5, 20.0]], with nothing around them",
                )
            return (
                TakenAnswer(json.dumps([list(span) for span in spans]))
                if spans
                else _wrong(content, "it holds no span that runs forward")
            )
        case QuestionKind.NUMBER:
            number = first_number(content)
            if number is None:
                return _refused(question, content, duration_s, "a number in digits")
            return (
                TakenAnswer(_plain(number))
                if math.isfinite(number)
                else _wrong(content, "its number is beyond any that can be kept")
            )
        case QuestionKind.FREE_FORM:
            return TakenAnswer(content.strip()) if content.strip() else _wrong(content, "it is empty")


def _listed_spans(value: Any) -> list[Span]:
    """Pairs of a JSON value: a list of pairs, one pair of numbers, or nothing (`[]`, `null`).

    A value that Python converts to a float is a number.

    Raises:
        ValueError, TypeError, OverflowError: the value has none of these forms.
    """
    if value is None or value == []:
        return []
    if not isinstance(value, list):
        raise TypeError(type(value).__name__)
    if not isinstance(value[0], list):
        if not all(isinstance(each, int | float) for each in value):
            raise TypeError("neither pairs nor numbers")
        value = [value]
    spans = [(float(start), float(end)) for start, end in value]
    if not all(map(math.isfinite, (second for span in spans for second in span))):
        raise ValueError("not finite")
    return spans


def _wrong(content: str, why: str) -> TakenAnswer:
    return TakenAnswer(content.strip(), False, f"strict parsing counts the answer {_clip(content)} as wrong: {why}")


def _refused(question: Question, content: str, duration_s: float | None, wanted: str) -> ActionError:
    """The error that the policy also reads with `parsing=repair`, if there is one."""
    repaired = canonical_answer(question, content, duration_s)
    if isinstance(repaired, ActionError):
        return repaired
    return ActionError(ErrorCode.ANSWER_FORM, f"the answer must be {wanted}; {_clip(content)} is not.")


def _clip(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
