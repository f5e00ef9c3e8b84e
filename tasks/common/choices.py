"""What the multiple-choice tasks share whose benchmarks lmms-eval does not know: options without labels, the prompt, names of buckets.

Their rows have two columns beside the benchmark's own: `question`, and `options`, texts without labels. The first option is A.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from string import ascii_uppercase
from typing import Any

from apr_plugin.tasks.common.source import Row

_LABEL = re.compile(r"\s*[A-Z](?:\s*[.:)]\s*|\s+)")

LETTER_ONLY = "Answer with the letter of the right option, and nothing else."


def without_labels(options: Iterable[str]) -> list[str]:
    """Options without the labels that a data set has written into them ("A. red", "A.red", "A: red", "A red"); unchanged unless each has one."""
    texts = [str(option) for option in options]
    labels = [_LABEL.match(text) for text in texts]
    return [text[label.end() if label else 0 :].strip() for text, label in zip(texts, labels if all(labels) else [None] * len(texts), strict=True)]


def lettered(doc: Row) -> list[tuple[str, str]]:
    """(letter, text) of each option."""
    return list(zip(ascii_uppercase, doc["options"], strict=False))


def ask(doc: Row, lmms_eval_specific_kwargs: Any = None) -> str:
    """The question, its options, and how the answer is written."""
    return "\n".join([doc["question"], *(f"{letter}. {text}" for letter, text in lettered(doc)), LETTER_ONLY])


def bucket_name(label: str) -> str:
    """A data set's label as a part of a metric's name: `AV Event Alignment` is `av_event_alignment`."""
    return re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")
