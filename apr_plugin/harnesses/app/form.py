"""A visitor's form as a question and a configuration. Pure functions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from apr_plugin.agent import make_question
from apr_plugin.errors import AprError
from apr_plugin.loop.budget import Budget
from apr_plugin.loop.config import EpisodeConfig
from apr_plugin.loop.question import MediaRef, Question, QuestionKind
from apr_plugin.tasks.needle.read import SPANS_HINT

TASK = "app"
"""The task of every question that the page asks."""

MOST_CHARACTERS = 4000
"""Of the question, and of all options together."""

MOST_OPTIONS = 26

BY_OPTIONS = "by the options"
"""`mcq` if there are options, else `free_form`."""

KINDS = {
    BY_OPTIONS: None,
    "one of the options": QuestionKind.MCQ,
    "time spans": QuestionKind.GROUNDING,
    "a number": QuestionKind.NUMBER,
    "free text": QuestionKind.FREE_FORM,
}
"""What the control says for each kind."""


@dataclass(frozen=True)
class Form:
    """What the controls hold; any values, because a request can hold any."""

    text: Any = ""
    """The question."""
    options: Any = ""
    """One option a line."""
    kind: Any = BY_OPTIONS
    """A name in `KINDS`."""
    turns: Any = None
    """Most turns; `None` is the policy's own limit."""
    frames: Any = None
    """Most frames of a look; `None` is the policy's own limit."""


def question_of(form: Form, video: MediaRef, doc_id: str) -> Question:
    """The question that a form asks.

    Raises:
        AprError: there is no text, too much of it, or the options and the kind don't fit; the message is for the
            visitor.
    """
    text, options = _text(form.text, "the question"), _text(form.options, "the options")
    if not text:
        raise AprError("write a question first")
    listed = [line.strip() for line in options.splitlines() if line.strip()]
    if len(listed) > MOST_OPTIONS:
        raise AprError(f"there are {len(listed)} options; at most {MOST_OPTIONS} are allowed, one a line")
    if form.kind not in KINDS:
        raise AprError(f"the kind of answer must be one of {', '.join(KINDS)}")
    kind = KINDS[form.kind]
    if kind is QuestionKind.MCQ and not listed:
        raise AprError("an answer that is one of the options needs options, one a line")
    if kind not in (None, QuestionKind.MCQ) and listed:
        raise AprError(f"there are options, and the answer is to be {form.kind}; remove the options or change the kind")
    # In the words of the benchmark, so that a model that was trained on them knows the question.
    hint = SPANS_HINT if kind is QuestionKind.GROUNDING else ""
    asked = make_question(video, text, options=listed, kind=kind, hint=hint)
    return asked.model_copy(update={"task": TASK, "doc_id": doc_id})


def config_of(form: Form, config: EpisodeConfig, timeout_s: float | None) -> EpisodeConfig:
    """The configuration of one investigation: the policy's, with the visitor's limits where they are lower.

    Raises:
        AprError: a limit is not a whole number within the policy's limits.
    """
    budget = config.budget
    changed: dict[str, Any] = {}
    if (turns := _limit(form.turns, "the number of turns", most_turns(budget))) is not None:
        changed["max_turns"] = turns
        changed["turns"] = None if budget.turns is None else min(turns, budget.turns)
    if (frames := _limit(form.frames, "the frames of a look", budget.frames_per_look)) is not None:
        changed["frames_per_look"] = frames
    if timeout_s is not None:
        changed["wall_clock_s"] = min(timeout_s, budget.wall_clock_s or timeout_s)
    return config.model_copy(update={"budget": budget.model_copy(update=changed)})


def most_turns(budget: Budget) -> int:
    """The largest number of turns that a visitor may choose."""
    return budget.max_turns if budget.turns is None else budget.turns


def _text(value: Any, what: str) -> str:
    if value is not None and not isinstance(value, str):
        raise AprError(f"{what} must be text")
    words = re.sub(r"[^\S\n]+", " ", (value or "").replace("\0", "")).strip()
    if len(words) > MOST_CHARACTERS:
        raise AprError(f"{what}: {len(words):,} characters; at most {MOST_CHARACTERS:,} are allowed")
    return words


def _limit(value: Any, what: str, most: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or not 1 <= value <= most:
        raise AprError(f"{what} must be a whole number from 1 to {most:,}")
    if value != int(value):
        raise AprError(f"{what} must be a whole number from 1 to {most:,}")
    return int(value)
