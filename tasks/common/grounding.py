"""Code that the grounding tasks share: how to ask for time spans, how to read a reply, and the metrics of a reply.

A row of a grounding task has three columns in addition to its benchmark's own (`row`): `query`, the event in the
benchmark's words; `question`, the text of the question; `spans`, the true spans in seconds. Every function here is
pure, so that lmms-eval's threads can share them, and none raises on what a model wrote. All corpus figures of these
benchmarks are means over questions, so that lmms-eval's `mean` computes them, with standard errors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from apr_plugin.loop.question import Question, QuestionKind
from apr_plugin.scoring.intervals import Span, best_iou, hull_iou, parse_spans, recalls, set_iou, set_precision_recall
from apr_plugin.scoring.retrieval import LENGTHS, moment_metrics
from apr_plugin.scoring.truth import Evidence, Truth, spans_text
from apr_plugin.tasks.common.catalogue import Source
from apr_plugin.tasks.common.lmms import reply
from apr_plugin.tasks.common.rows import NOT_READ, Row, number, unreadable

_FORM = 'in seconds from the beginning of the video, in the form "From 12.3 to 20.0 seconds"'

ONE = f"Answer with its start and end {_FORM}, and nothing else."
"""How to write the answer if one span is asked for."""

ALL = f"Answer with the start and end of each, {_FORM}, one per line, and nothing else."
"""How to write the answer if every span is asked for."""

RANKED = f"Answer with the start and end of each, {_FORM}, one per line, the most certain first, and nothing else."
"""How to write the answer if every span is asked for and their order counts."""


def row(question: str, query: str, spans: Iterable[Sequence[float]], **columns: Any) -> dict[str, Any]:
    """Make one row.

    Args:
        question: The text of the question, with `{}` in place of the event.
        query: The event in the benchmark's words; blanks at its ends and a full stop are not part of it.
        spans: True spans in seconds.
        columns: The benchmark's own columns.
    """
    event = " ".join(query.split()).rstrip(".").rstrip()
    return {
        **columns,
        "query": query,
        "question": question.format(event),
        "spans": [[number(start), number(end)] for start, end in spans],
    }


def ask_one(doc: Row, lmms_eval_specific_kwargs: Any = None) -> str:
    """The question, to be answered by one span."""
    if unreadable(doc):
        return str(NOT_READ)
    return f"{doc['question']}\n{ONE}"


def ask_all(doc: Row, lmms_eval_specific_kwargs: Any = None) -> str:
    """The question, to be answered by every span."""
    if unreadable(doc):
        return str(NOT_READ)
    return f"{doc['question']}\n{ALL}"


def ask_ranked(doc: Row, lmms_eval_specific_kwargs: Any = None) -> str:
    """The question, to be answered by every span in order of certainty."""
    if unreadable(doc):
        return str(NOT_READ)
    return f"{doc['question']}\n{RANKED}"


def question_of_one(doc: Row) -> Question:
    """The question, without text about the form of its answer, which is one span."""
    return Question(
        text=str(doc["question"]).strip(), kind=QuestionKind.GROUNDING, answer_hint="one time span in seconds"
    )


def question_of_all(doc: Row) -> Question:
    """The question; its answer is every span."""
    return Question(
        text=str(doc["question"]).strip(), kind=QuestionKind.GROUNDING, answer_hint="every time span in seconds"
    )


def truth_of(doc: Row) -> Truth:
    """The true spans, which are the evidence too."""
    spans = true_spans(doc)
    return Truth(spans_text(spans), tuple(Evidence(start, end) for start, end in spans))


def doc_to_target(doc: Row) -> str:
    """The true spans, which are only logged."""
    return json.dumps(doc["spans"]) if unreadable(doc) is None else ""


def read(results: Sequence[Any]) -> list[Span]:
    """The spans that a reply names, in the order in which they are written; empty if it names none."""
    return parse_spans(reply(results))


def score_hull(source: Source, doc: Row, results: Sequence[Any]) -> dict[str, Any]:
    """Score a reply against one true span: temporal IoU with the first span of the reply."""
    spans = read(results)
    iou = hull_iou(spans[0] if spans else None, true_spans(doc)[0])
    scored: dict[str, Any] = source.scored(doc, iou, **recalls(iou, "hull"), no_span=float(not spans))
    return scored


def score_set(source: Source, doc: Row, results: Sequence[Any], **more: float) -> dict[str, Any]:
    """Score a reply against several true spans: IoU, precision and recall of the seconds covered.

    Args:
        source: The task's source.
        doc: One of its documents.
        results: The model's reply.
        more: Further metrics of this reply.
    """
    spans, true = read(results), true_spans(doc)
    iou = set_iou(spans, true)
    precision, recall = set_precision_recall(spans, true)
    scored: dict[str, Any] = source.scored(
        doc, iou, **recalls(iou, "set"), precision_set=precision, recall_set=recall, no_span=float(not spans), **more
    )
    return scored


def score_ranked(source: Source, doc: Row, results: Sequence[Any]) -> dict[str, Any]:
    """Score a ranked reply against several true spans.

    The metrics are the IoU of its first span with the true span that fits it best, and the average precision of the
    ranking.

    A bucket is a range of lengths of the true spans: only true spans of that length count in it, as in QVHighlights'
    own evaluation.
    """
    spans, true = read(results), true_spans(doc)
    iou = best_iou(spans, true)
    numbers = {**recalls(iou, "best"), **moment_metrics([spans], [true]), "no_span": float(not spans)}
    for name in doc["apr_buckets"]:
        over, up_to = LENGTHS[name]
        numbers[f"{source.prefix}_{name}"] = best_iou(
            spans, [span for span in true if over < span[1] - span[0] <= up_to]
        )
    scored: dict[str, Any] = source.scored(doc, iou, **numbers)
    return scored


def true_spans(doc: Row) -> list[Span]:
    """The true spans; for a row that can't be read an arbitrary one, which counts as not found."""
    if unreadable(doc) is not None:
        return [(0.0, 1.0)]
    return [(float(start), float(end)) for start, end in doc["spans"]]
