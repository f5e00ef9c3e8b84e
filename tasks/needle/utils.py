"""The functions of the YAMLs' `!function`; lmms-eval loads this file again for every reference, so it has no state."""

from __future__ import annotations

import json
from typing import Any

from apr_plugin.scoring.answers import match_option, parse_number
from apr_plugin.tasks.common import NOT_READ, Row, grounding, lmms, reply, unreadable
from apr_plugin.tasks.common.choices import lettered
from apr_plugin.tasks.needle.questions import Kind
from apr_plugin.tasks.needle.read import needle_set

HINTS = {
    "number": "Answer with one whole number only.",
    "spans": (
        "Answer with the time span in seconds from the beginning of the video, as [[start, end]], and nothing else."
    ),
    "option": "Answer with the option's letter only.",
}

GLYPH = needle_set(Kind.GLYPH)
WHEN = needle_set(Kind.WHEN)
SOUND = needle_set(Kind.SOUND)
COUNT = needle_set(Kind.COUNT)
ORDER = needle_set(Kind.ORDER)


def glyph_docs(_stub: Any) -> Any:
    """Questions about what is seen."""
    return lmms.docs(GLYPH)


def when_docs(_stub: Any) -> Any:
    """Questions answered by a time span."""
    return lmms.docs(WHEN)


def sound_docs(_stub: Any) -> Any:
    """Questions that join a tone to what is on screen."""
    return lmms.docs(SOUND)


def count_docs(_stub: Any) -> Any:
    """Questions answered by counting sounds."""
    return lmms.docs(COUNT)


def order_docs(_stub: Any) -> Any:
    """Questions about which of two comes first."""
    return lmms.docs(ORDER)


def doc_to_text(doc: Row, lmms_eval_specific_kwargs: Any = None) -> str:
    """The question, its options, and how to write the answer."""
    if unreadable(doc):
        return str(NOT_READ)
    hint = HINTS["spans" if doc["kind"] == Kind.WHEN else "option" if doc["options"] else "number"]
    return "\n".join([doc["question"], *(f"{letter}. {text}" for letter, text in lettered(doc)), hint])


def doc_to_target(doc: Row) -> str:
    """The right answer in its canonical form, which is only logged."""
    if unreadable(doc) is not None:
        return ""
    return json.dumps(doc["answer_spans"]) if doc["kind"] == Kind.WHEN else str(doc["answer"])


def process_results(doc: Row, results: list[Any]) -> dict[str, Any]:
    """Score one answer in [0, 1], overall and under its duration bucket.

    Time spans get the metrics of the other grounding tasks too.

    An answer that can't be read scores 0 and stays in the denominator. The function is safe in threads, and never
    raises on what a model wrote.
    """
    if unreadable(doc) is not None:
        return dict(GLYPH.scored(doc, 0.0))
    if doc["kind"] == Kind.WHEN:
        return dict(grounding.score_set(WHEN, {**doc, "spans": doc["answer_spans"]}, results))
    text = reply(results)
    right = (
        match_option(text, lettered(doc)) == doc["answer"]
        if doc["options"]
        else parse_number(text) == float(doc["answer"])
    )
    return dict(GLYPH.scored(doc, float(right)))
