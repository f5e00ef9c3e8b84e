"""How `parsing=strict` would have read a finished trajectory, as far as its words show.

A trajectory keeps every turn word for word, so each can be read again. Up to the first turn that the two readings treat
differently, the model would have seen the same prompts with both. After it, only the outcome of the reading that was
used is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from apr_plugin.loop.action import Answer
from apr_plugin.loop.answer import TakenAnswer, strict_answer
from apr_plugin.loop.feedback import ErrorCode
from apr_plugin.loop.parse import parse_strictly
from apr_plugin.loop.trajectory import Trajectory, Turn

_SMALLER = "the token limit."
"""Part of the remark of a look that was shown with fewer pixels or pictures (`Environment`)."""

_FULL = ("The model's context of", "The prompt's limit of")
"""Beginning of the detail of an episode whose prompt became too long (`Context.full`)."""


class StrictEnding(StrEnum):
    """How the question would have ended with strict parsing."""

    SAME = "same"
    """In the same way: every turn and the answer count the same, or there is no answer. A passive arm always ends like
    this."""

    WRONG = "wrong"
    """With an answer that counts as wrong, or without one."""

    OTHER = "other"
    """With another answer; the run does not have the harness's score of it."""

    UNKNOWN = "unknown"
    """A turn would have counted differently, and the run does not have what the model would have written after it."""


@dataclass(frozen=True)
class StrictOutcome:
    """The result of reading one question again."""

    ending: StrictEnding
    """How it would have ended."""

    turn: int | None = None
    """The first turn (from 1) that differs from what happened; `None` if none does."""

    why: str = ""
    """The difference in that turn."""

    answer: str | None = None
    """The answer that strict parsing reads, in canonical form, if it is known and has the form asked for."""


def strict_outcome(trajectory: Trajectory, *, forced_call: bool = True, room: int | None = None) -> StrictOutcome:
    """Read a trajectory again as `parsing=strict` would have.

    Args:
        trajectory: One finished question, made with either parsing.
        forced_call: Whether the run asks once more for the answer when the turns are used up (`on_last_turn=force`).
        room: Most tokens of a prompt of the run, if a limit made looks smaller; with strict parsing the limit ends the
            episode. `None` for a run without a limit, and for one that was made with `parsing=strict`.
    """
    if trajectory.arm == "agent":
        for number, turn in enumerate(trajectory.turns, 1):
            outcome = _outcome(trajectory, number, turn, forced_call) or _squeezed(trajectory, number, turn, room)
            if outcome is not None:
                return outcome
    return StrictOutcome(StrictEnding.SAME, answer=trajectory.answer if trajectory.answer_valid else None)


def _outcome(trajectory: Trajectory, number: int, turn: Turn, forced_call: bool) -> StrictOutcome | None:
    """The difference from this turn on, or `None` if there is none."""
    read = parse_strictly(turn.text, several=len(trajectory.question.videos) > 1)
    if turn.forced and trajectory.stop_detail.startswith(_FULL):
        return (
            StrictOutcome(StrictEnding.WRONG, number, "the prompt is too long, which ends the episode")
            if trajectory.answer is not None
            else None
        )
    if turn.forced:
        return _forced(trajectory, number, read.action, read.error.message if read.error else "")
    if turn.action is None:
        # The trajectory does not say which actions the policy was offered.
        refused = turn.error is None or turn.error.code is ErrorCode.UNKNOWN_ACTION
        if refused or read.action is None:
            return None
        return StrictOutcome(StrictEnding.UNKNOWN, number, "strict parsing takes this turn, which was refused")
    if read.error is not None:
        return _spent(trajectory, number, f"{read.error.code}: {read.error.message}", forced_call)
    if read.action != turn.action:
        return StrictOutcome(StrictEnding.UNKNOWN, number, "strict parsing reads another action")
    if not isinstance(turn.action, Answer) or (turn.error is not None and turn.error.code is ErrorCode.EARLY_ANSWER):
        return None
    taken = strict_answer(trajectory.question, turn.action.content, max(trajectory.video_durations_s, default=None))
    if isinstance(taken, TakenAnswer):
        return _ended(trajectory, number, taken, refused=turn.error is not None)
    return _spent(trajectory, number, f"{taken.code}: {taken.message}", forced_call) if turn.error is None else None


def _squeezed(trajectory: Trajectory, number: int, turn: Turn, room: int | None) -> StrictOutcome | None:
    """The outcome if the prompt's limit made a look smaller, or may have.

    The budget's own limit for a look leaves the same remark.
    """
    if room is None:
        return None
    if turn.error is not None and turn.error.code is ErrorCode.NO_TOKENS_LEFT:
        return StrictOutcome(
            StrictEnding.UNKNOWN,
            number,
            "the look did not fit; strict parsing ends the episode if the prompt's limit is the reason",
        )
    if turn.shown is not None and turn.shown.fitted:
        return StrictOutcome(
            StrictEnding.WRONG, number, "the look was made smaller to fit into the prompt, which ends the episode"
        )
    if turn.shown is None or trajectory.budget is not None or _SMALLER not in turn.shown.remark:
        return None  # only a line of version 1 does not say what made a look smaller
    after = trajectory.turns[number].usage.prompt_tokens if number < len(trajectory.turns) else None
    if after is not None and after < room / 2:  # such a look nearly fills the prompt
        return None
    return StrictOutcome(
        StrictEnding.UNKNOWN,
        number,
        "the look was made smaller; strict parsing ends the episode if the prompt's limit is the reason",
    )


def _ended(trajectory: Trajectory, number: int, taken: TakenAnswer, *, refused: bool) -> StrictOutcome | None:
    if not taken.valid:
        return StrictOutcome(StrictEnding.WRONG, number, taken.remark)
    if not refused and trajectory.answer_valid and taken.text == trajectory.answer:
        return None
    why = "the answer was refused" if refused else f"the answer was read as {trajectory.answer!r}"
    return StrictOutcome(StrictEnding.OTHER, number, f"{why}; strict parsing reads {taken.text!r}", taken.text)


def _spent(trajectory: Trajectory, number: int, why: str, forced_call: bool) -> StrictOutcome | None:
    if number == trajectory.turns_allowed and not forced_call:
        return (
            StrictOutcome(StrictEnding.WRONG, number, f"{why} It was the last turn.")
            if trajectory.answer is not None
            else None
        )
    return StrictOutcome(StrictEnding.UNKNOWN, number, why)


def _forced(trajectory: Trajectory, number: int, action: object, fault: str) -> StrictOutcome | None:
    if isinstance(action, Answer):
        taken = strict_answer(trajectory.question, action.content, max(trajectory.video_durations_s, default=None))
        if isinstance(taken, TakenAnswer):
            return _ended(trajectory, number, taken, refused=False)
        fault = taken.message
    if trajectory.answer is None:
        return None
    return StrictOutcome(
        StrictEnding.WRONG, number, f"the forced call brings no answer: {fault or 'it asks for a look.'}"
    )
