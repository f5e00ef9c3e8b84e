"""`Truth`: a question's right answer and where its evidence is; `score`: how right an answer is. Pure functions.

A truth is stored separately from its question, under the same key (task, split, doc id, repeat). No prompt, policy or
trajectory ever contains a truth.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from apr_plugin.scoring.answers import exact_number, mean_relative_accuracy
from apr_plugin.scoring.intervals import Span, best_iou, hull_iou, parse_spans, set_iou, valid_span
from apr_plugin.scoring.writing import write_longest_first

__all__ = ["Evidence", "Rules", "Truth", "score", "spans_text"]


@dataclass(frozen=True)
class Evidence:
    """A stretch of one video that shows the right answer."""

    start_s: float
    """Where it begins, in seconds of the video, counted as in a look."""

    end_s: float
    """Where it ends."""

    video: int = 0
    """Which of the question's videos, counted from 0."""


@dataclass(frozen=True)
class Truth:
    """What is right."""

    answer: str | tuple[str, ...]
    """The right answer in canonical form (a label, `[[start, end], ...]` in seconds, a number, a text), or several
    right answers."""

    evidence: tuple[Evidence, ...] = ()
    """Where the answer can be seen or heard; empty if the task does not give it."""

    @property
    def answers(self) -> tuple[str, ...]:
        """The right answers, one or more."""
        return (self.answer,) if isinstance(self.answer, str) else self.answer

    def spans(self, video: int = 0) -> list[Span]:
        """The evidence in one video, as (start, end) in seconds; invalid spans are left out."""
        spans = [(part.start_s, part.end_s) for part in self.evidence if part.video == video]
        return [span for span in spans if valid_span(span)]


@dataclass(frozen=True)
class Rules:
    """How a task scores the kinds of question for which there is more than one way."""

    spans: Literal["set", "hull", "best"] = "set"
    """Which IoU is used (`apr_plugin.scoring.intervals`). `hull` and `best` take one span of the answer, the longest
    one: a canonical answer is in order of time, so its first span is not the most certain one."""

    number: Literal["exact", "relative"] = "exact"
    """Equal at two decimals, or mean relative accuracy."""

    text: Literal["exact", "normalised"] | None = None
    """Equal, equal except for case and blanks, or not scored here."""


def score(answer: str | None, truth: Truth, kind: str, rules: Rules | None = None) -> float | None:
    """How right an answer is, in [0, 1]; if there are several right answers, the highest score counts.

    Args:
        answer: The answer in canonical form, as in a trajectory. `None` means no answer, and is wrong. Numbers and
            spans in another form are read from the text; the label of an option has only one form.
        truth: The right answer.
        kind: `mcq`, `grounding`, `number` or `free_form`.
        rules: The rules of the task; by default set IoU and the exact number.

    Returns:
        The score, or `None` for free-form text without a rule.

    Raises:
        ValueError: there is no such kind, or a right answer of kind `number` is not a number.
    """
    rules = rules or Rules()
    if kind == "free_form" and rules.text is None:
        return None
    return max((_score(answer or "", right, kind, rules) for right in truth.answers), default=0.0)


def _score(answer: str, right: str, kind: str, rules: Rules) -> float:
    match kind:
        case "mcq":
            return float(answer.strip() == right)
        case "grounding":
            return _iou(answer, parse_spans(right), rules)
        case "number":
            return (exact_number if rules.number == "exact" else mean_relative_accuracy)(answer, right)
        case "free_form":
            return float(_plain(answer) == _plain(right) if rules.text == "normalised" else answer == right)
    raise ValueError(f"there is no kind of question {kind!r}")


def _iou(answer: str, true: Sequence[Span], rules: Rules) -> float:
    if rules.spans == "set":
        return set_iou(parse_spans(answer), true)
    spans = parse_spans(write_longest_first(answer))
    return (
        best_iou(spans, true)
        if rules.spans == "best"
        else max((hull_iou(next(iter(spans), None), span) for span in true), default=0.0)
    )


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def spans_text(spans: Iterable[Sequence[float]]) -> str:
    """Spans of (start, end) in seconds as a canonical answer."""
    return json.dumps([[float(start), float(end)] for start, end in spans])
