"""Truths of a task's questions, from the rows that lmms-eval scores, kept beside the questions and not in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apr_plugin.errors import AprError
from apr_plugin.loop.question import Question
from apr_plugin.runs.truths import DocKey
from apr_plugin.scoring.truth import Truth
from apr_plugin.tasks.common.catalogue import sources
from apr_plugin.terminal import quoted

Key = tuple[str, str, str, int]
"""Task, split, doc id, repeat."""


def truths_of(questions: Sequence[Question], task_dict: Mapping[str, Mapping[str, Any]]) -> dict[DocKey, Truth]:
    """The truth of each document that is asked about, where its task says what is right.

    Args:
        questions: What will be asked.
        task_dict: Task -> split -> the documents, as lmms-eval gives them to a model.
    """
    found: dict[DocKey, Truth] = {}
    for question in questions:
        source = sources().get(question.task)
        if source is None:
            continue
        truth = source.truth(task_dict[question.task][question.split][int(question.doc_id)])
        if truth is not None:
            found[question.task, question.split, question.doc_id] = truth
    return found


def evidence_of(questions: Sequence[Question], truths: Mapping[DocKey, Truth]) -> dict[Key, list[tuple[float, float]]]:
    """The evidence in each question's first video, as (start, end) in seconds; a question without any is left out.

    Raises:
        AprError: no question of a task has evidence.
    """
    found: dict[Key, list[tuple[float, float]]] = {}
    for question in questions:
        truth = truths.get((question.task, question.split, question.doc_id))
        if truth is not None and (spans := truth.spans()):
            found[question.key] = spans
    for task in dict.fromkeys(question.task for question in questions):
        if not any(key[0] == task for key in found):
            raise AprError(
                f"arm=oracle: task {quoted(task)} does not say where the evidence is, so there is nothing to show; "
                "choose another arm"
            )
    return found
