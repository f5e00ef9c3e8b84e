"""How likely the right answer is, given the notes so far: for the rule `information_gain` and `apr train gain`.

IGPO (arXiv 2510.14967; `scrl/llm_agent/generation.py` of its code) forces the right answer after each prompt and takes
the geometric mean of the probabilities of the answer's tokens,

    p_t = exp(mean over the tokens of the answer of log p(token | prompt of turn t, forced text so far)),

under the policy that sampled. The gain of turn t is p_(t+1) - p_t. Here the prompt is the turn's own purged one: notes
of all turns before, with the media of the latest look. The forced text is a turn in the form that is taught
(`targets.canonical`): nothing new observed, a fixed thought, and the action `answer`. As in IGPO, only the tokens of
the answer itself count: the words around it are the same for every answer. A token that holds a quotation mark beside
the answer counts too. If several answers are right, the likeliest counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from apr_plugin.errors import AprError
from apr_plugin.loop.policy import Prompt
from apr_plugin.scoring.truth import Truth
from apr_plugin.training.grpo.across import FloatArray
from apr_plugin.training.grpo.rollouts import Investigation
from apr_plugin.training.grpo.rows import Probabilities, TurnRow
from apr_plugin.training.student import Student

THOUGHT = "My notes are enough to answer."
"""The thought of a forced turn; IGPO's is "Now there's enough information to answer"."""


class NotForced(AprError):
    """A right answer can't be written as a turn of this student."""


@dataclass(frozen=True)
class Forced:
    """A right answer as a turn."""

    ids: tuple[int, ...]
    """The tokens of the turn, with its end."""
    counted: tuple[bool, ...]
    """Which of them are the answer's."""


def forced_turn(answer: str, student: Student) -> Forced:
    """The turn that gives an answer, as a student's tokens.

    Raises:
        NotForced: the answer has a special token in it, or no text.
    """
    if not answer.strip():
        raise NotForced("a right answer without text can't be forced")
    opened = f"{THOUGHT}\n</think>\n\n" if student.opened else ""
    action = {"type": "answer", "content": answer}
    whole = {"observation": "", "think": THOUGHT, "confidence": 1.0, "action": action}
    words = opened + json.dumps(whole, ensure_ascii=False)
    inside = json.dumps(answer, ensure_ascii=False)[1:-1]
    start = words.rindex(inside + '"}}')
    try:
        ids = student.encoder.turn_ids(words)
    except ValueError as error:
        raise NotForced(f"the right answer {answer!r} can't be forced: {error}") from error
    offsets = student.tokenizer.backend_tokenizer.encode(words, add_special_tokens=False).offsets
    counted = [low < start + len(inside) and high > start for low, high in offsets]
    return Forced((*ids, student.end), (*counted, False))


@dataclass(frozen=True)
class Asked:
    """A prompt and the forced turns that are scored after it."""

    rows: tuple[TurnRow, ...]
    """One for each right answer."""
    counted: tuple[tuple[bool, ...], ...]
    """Which tokens count, for each of them."""

    def probability(self, logprobs: Sequence[FloatArray]) -> float:
        """p(right answer), from the log-probabilities of each row's targets."""
        found = [
            float(np.exp(np.asarray(values, dtype=float)[: len(of)][np.array(of)].mean()))
            for values, of in zip(logprobs, self.counted, strict=True)
        ]
        return max(found)


def asked(prompt: Prompt, ids: Sequence[int], truth: Truth, student: Student, where: str) -> Asked:
    """What has to be scored to know how likely a right answer is after a prompt.

    Args:
        prompt: The purged prompt.
        ids: Its tokens; empty: not known.
        truth: What is right.
        student: Its tokenizer.
        where: The turn's name in messages.

    Raises:
        NotForced: a right answer can't be forced.
    """
    try:
        turns = [forced_turn(answer, student) for answer in truth.answers]
    except NotForced as error:
        raise NotForced(f"{where}: {error}") from error
    if not turns:
        raise NotForced(f"{where}: its truth has no right answer")
    rows = tuple(TurnRow(prompt, tuple(ids), one.ids, where=where, trained=False) for one in turns)
    return Asked(rows, tuple(one.counted for one in turns))


Wanted = Mapping[tuple[int, int], Asked]
"""What has to be scored of the prompt before each turn, by trajectory and turn."""


def asked_of(kept: Iterable[tuple[int, Investigation, Truth, str]], student: Student) -> Wanted:
    """What has to be scored of sampled episodes.

    Args:
        kept: The number of each, the episode, its truth, and its name in messages.
        student: The model's tokenizer.

    Raises:
        NotForced: a right answer can't be forced.
    """
    return {
        (at, number): asked(
            turn.prompt, turn.generation.prompt_token_ids or (), truth, student, f"{where}, turn {number}"
        )
        for at, investigation, truth, where in kept
        for number, turn in sorted(investigation.turns.items())
    }


def gains_of(wanted: Wanted, logprobs: Callable[[TurnRow], FloatArray]) -> Probabilities:
    """p(right answer) before and after each turn, from the log-probabilities of each row's targets."""
    known: dict[int, dict[int, float]] = {}
    for (at, number), one in wanted.items():
        known.setdefault(at, {})[number] = one.probability([logprobs(row) for row in one.rows])
    return {(at, number): pair for at, of in known.items() for number, pair in before_and_after(of).items()}


def before_and_after(known: Mapping[int, float]) -> dict[int, tuple[float, float]]:
    """From p(right answer) at the prompts of a trajectory's turns, by number, what each turn found and left.

    After the last turn there is no prompt: NaN. A turn that is missing counts to the one before it.
    """
    numbers = sorted(known)
    following = [*numbers[1:], None]
    return {
        number: (known[number], math.nan if after is None else known[after])
        for number, after in zip(numbers, following[: len(numbers)], strict=True)
    }
