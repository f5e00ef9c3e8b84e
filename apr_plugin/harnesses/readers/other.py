"""Readers of tasks that are answered by a time span, a number or text, or by one of these depending on the doc."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_plugin.harnesses.readers.choices import by_key, by_prefix, mcq
from apr_plugin.harnesses.readers.reading import Reading, column
from apr_plugin.harnesses.readers.registry import register_reader
from apr_plugin.loop.question import QuestionKind
from apr_plugin.scoring.writing import write_longest_span, write_number

Doc = Mapping[str, Any]

_VSIBENCH_NUMBERS = {
    "object_abs_distance": "in metres",
    "object_counting": "a whole number",
    "object_size_estimation": "in centimetres",
    "room_size_estimation": "in square metres",
}
"""The unit of each of VSI-Bench's question types that are answered by a number."""


@register_reader("temporal_grounding_charades")
def read_charades(doc: Doc, prompt: str) -> Reading:
    """Charades-STA: `caption`. The scorer takes the first range of the text."""
    return _one_span(_when(column(doc, "caption")))


@register_reader("timelens_*")
def read_timelens(doc: Doc, prompt: str) -> Reading:
    """TimeLens-Bench: `query`. The scorer takes the first range of the text."""
    return _one_span(_when(column(doc, "query")))


@register_reader("extremewhenbench")
def read_extremewhenbench(doc: Doc, prompt: str) -> Reading:
    """ExtremeWhenBench: `question`. The scorer takes the last range of the text."""
    return _one_span(str(column(doc, "question")).strip())


@register_reader("vsibench*")
def read_vsibench(doc: Doc, prompt: str) -> Reading:
    """VSI-Bench: `question`, `question_type`, `options` ("A. …") where the type has any."""
    question, question_type = column(doc, "question"), column(doc, "question_type")
    if question_type in _VSIBENCH_NUMBERS:
        return Reading(
            text=str(question).strip(),
            kind=QuestionKind.NUMBER,
            answer_hint=_VSIBENCH_NUMBERS[question_type],
            write=write_number,
        )
    return mcq(question, by_prefix(column(doc, "options")))


@register_reader("mmvu*")
def read_mmvu(doc: Doc, prompt: str) -> Reading:
    """MMVU: `question`, `question_type`, and `choices` (dict of A to E) of a multiple-choice question.

    The other questions are answered in words.
    """
    if column(doc, "question_type") == "multiple-choice":
        return mcq(column(doc, "question"), by_key(column(doc, "choices")))
    return _words(doc, "a short answer, without an explanation")


@register_reader("nextqa_oe*")
def read_nextqa_oe(doc: Doc, prompt: str) -> Reading:
    """NExT-QA, open-ended: `question`."""
    return _words(doc, "a short phrase")


@register_reader("videomme_convert_mcq_oe", "videomme_revert_oe_mcq", "videoevalpro")
def read_short_answer(doc: Doc, prompt: str) -> Reading:
    """Tasks that have options but hide them: `question`."""
    return _words(doc, "a short answer")


@register_reader("moviechat_global", "tempcompass_captioning")
def read_question_only(doc: Doc, prompt: str) -> Reading:
    """Tasks with a text answer that a judge scores: `question`."""
    return _words(doc, "")


def _when(event: object) -> str:
    return f'When in the video does this happen: "{str(event).strip().rstrip(".")}"?'


def _one_span(question: str) -> Reading:
    return Reading(
        text=question, kind=QuestionKind.GROUNDING, answer_hint="one time span in seconds", write=write_longest_span
    )


def _words(doc: Doc, hint: str) -> Reading:
    return Reading(text=str(column(doc, "question")).strip(), kind=QuestionKind.FREE_FORM, answer_hint=hint)
