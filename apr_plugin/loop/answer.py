"""Whether an answer has the form its question asks for, and its canonical form.

Canonical: `mcq` the option's label; `grounding` JSON `[[start, end], ...]` in seconds, merged and sorted; `number` a plain decimal;
`free_form` the text itself, without thought and stripped.
"""

from __future__ import annotations

import json
from decimal import Decimal

from apr_plugin.loop.feedback import ActionError, ErrorCode
from apr_plugin.loop.question import Question, QuestionKind
from apr_plugin.scoring.answers import match_option, parse_number
from apr_plugin.scoring.intervals import merge, parse_spans, valid_span
from apr_plugin.scoring.text import answer_part
from apr_plugin.scoring.thought import split_thought

SLACK_S = 0.5
"""How far past the end of the video an answered span may reach, for rounding; it is cut to the end."""


def canonical_answer(question: Question, content: str, duration_s: float | None = None) -> str | ActionError:
    """The canonical form of `content`, or the error the model reads.

    Args:
        question: What was asked.
        content: What the model answered.
        duration_s: Length of the video, against which spans are checked; `None` leaves the check out.
    """
    if split_thought(content).unclosed:
        return ActionError(ErrorCode.ANSWER_FORM, "the answer ends within a thought that is never closed; write the answer alone.")
    match question.kind:
        case QuestionKind.MCQ:
            label = match_option(content, [(option.label, option.text) for option in question.options])
            if label is None:
                labels = ", ".join(option.label for option in question.options)
                return ActionError(ErrorCode.ANSWER_FORM, f"the answer must be one of {labels}; {_clip(content)} names none of them.")
            return label
        case QuestionKind.GROUNDING:
            return _canonical_spans(content, duration_s)
        case QuestionKind.NUMBER:
            number = parse_number(content)
            if number is None:
                return ActionError(ErrorCode.ANSWER_FORM, f"the answer must be one number; {_clip(content)} is not.")
            return f"{Decimal(repr(number + 0.0)):f}".removesuffix(".0")
        case QuestionKind.FREE_FORM:
            words = answer_part(content)
            return words or ActionError(ErrorCode.ANSWER_FORM, "the answer is empty.")


def _canonical_spans(content: str, duration_s: float | None) -> str | ActionError:
    spans = parse_spans(content)
    if not spans:
        return ActionError(ErrorCode.ANSWER_FORM, f"the answer must be time spans in seconds such as [[12.5, 20.0]]; {_clip(content)} holds none.")
    for start, end in spans:
        if not valid_span((start, end)):
            return ActionError(ErrorCode.ANSWER_FORM, f"the span [{start:g}, {end:g}] is reversed, negative or not finite.")
        if duration_s is not None and end > duration_s + SLACK_S:
            return ActionError(ErrorCode.ANSWER_FORM, f"the span [{start:g}, {end:g}] reaches past the end of the video at {duration_s:.2f}s.")
    limit = duration_s if duration_s is not None else float("inf")
    merged = merge((min(start, limit), min(end, limit)) for start, end in spans)
    return json.dumps([[round(start, 3), round(end, 3)] for start, end in merged])


def _clip(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
