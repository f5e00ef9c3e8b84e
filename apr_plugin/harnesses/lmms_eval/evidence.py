"""Where the evidence for a task's questions is in the video, for the arm `oracle`.

It comes from the same rows that lmms-eval scores, and is passed beside the questions, not in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apr_plugin.errors import AprError
from apr_plugin.loop.question import Question
from apr_plugin.tasks.common.catalogue import Source, sources
from apr_plugin.terminal import quoted

Key = tuple[str, str, str, int]
"""Task, split, doc id, repeat."""


def evidence_of(
    questions: Sequence[Question], task_dict: Mapping[str, Mapping[str, Any]]
) -> dict[Key, list[tuple[float, float]]]:
    """By question key, the evidence in the question's first video, as (start, end) in seconds.

    A question without evidence is left out.

    Args:
        questions: The questions that will be asked.
        task_dict: Task -> split -> the documents, as lmms-eval gives them to a model.

    Raises:
        AprError: no question of a task has evidence.
    """
    found: dict[Key, list[tuple[float, float]]] = {}
    for task, split in dict.fromkeys((question.task, question.split) for question in questions):
        source, docs = sources().get(task), task_dict[task][split]
        if source is None or not any(_spans(source, doc) for doc in docs):
            raise AprError(
                f"arm=oracle: task {quoted(task)} does not say where the evidence is, so there is nothing "
                "to show; choose another arm"
            )
        of_task = [question for question in questions if (question.task, question.split) == (task, split)]
        found |= {question.key: spans for question in of_task if (spans := _spans(source, docs[int(question.doc_id)]))}
    return found


def _spans(source: Source, doc: Any) -> list[tuple[float, float]]:
    truth = source.truth(doc)
    return [] if truth is None else truth.spans()
