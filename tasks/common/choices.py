"""Shared code of the multiple-choice tasks that lmms-eval lacks: options without labels, the prompt, names of buckets.

Their rows have two columns in addition to the benchmark's own: `question`, and `options`, which are texts without
labels. The first option is A.
"""

from __future__ import annotations

import re
from string import ascii_uppercase
from typing import Any

from apr_plugin.loop.question import Option, Question, QuestionKind
from apr_plugin.scoring.options import without_labels
from apr_plugin.tasks.common.rows import NOT_READ, Row, unreadable

__all__ = ["LETTER_ONLY", "ask", "bucket_name", "lettered", "question_of", "without_labels"]

LETTER_ONLY = "Answer with the letter of the right option, and nothing else."


def lettered(doc: Row) -> list[tuple[str, str]]:
    """(letter, text) of each option."""
    return list(zip(ascii_uppercase, doc["options"], strict=False))


def ask(doc: Row, lmms_eval_specific_kwargs: Any = None) -> str:
    """The question, its options, and how to write the answer."""
    if unreadable(doc):
        return str(NOT_READ)
    return "\n".join([doc["question"], *(f"{letter}. {text}" for letter, text in lettered(doc)), LETTER_ONLY])


def question_of(doc: Row, context: str = "") -> Question:
    """The question with its options, labelled in their order.

    Args:
        doc: A document.
        context: The text before the question.

    Raises:
        ValueError: there are fewer than two options.
    """
    options = tuple(Option(label=letter, text=str(text).strip()) for letter, text in lettered(doc))
    if len(options) < 2:
        raise ValueError(f"{len(options)} options")
    text = str(doc["question"]).strip()
    return Question(text=f"{context}\n\n{text}" if context else text, kind=QuestionKind.MCQ, options=options)


def bucket_name(label: str) -> str:
    """A data set's label as part of a metric's name: `AV Event Alignment` is `av_event_alignment`."""
    return re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")
