"""What a turn teaches: its tokens, and what it reads like in later prompts; or the reason why it teaches nothing.

A target and the same turn in later prompts have the same words, so that the model reads in its notes what it was taught
to write. A turn that is no target stays in later prompts word for word, as the policy saw it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from apr_plugin.loop.policy import Generation
from apr_plugin.loop.trajectory import Turn
from apr_plugin.loop.wires import WIRES, Wire
from apr_plugin.training.student import Student

Writer = Literal["own", "teacher"]
"""Who wrote a trajectory: the student itself, whose `token_ids` are the targets, or another model."""

THOUGHT = "left out a block of thought"
"""The one repair of `loop.parse` that is none for the student's own turn: a model that thinks writes it."""


class Reason(StrEnum):
    """Why something did not become a row."""

    BROKEN_LINE = "broken_line"
    """A line of a trajectory file can't be read."""
    OLD_VERSION = "old_version"
    """A trajectory of version 1, whose prompts can't be rebuilt."""
    NOT_KEPT = "not_kept"
    """It is not among the kept ones."""
    UNFINISHED = "unfinished"
    """The episode failed (media, policy, cancelled): nothing is known about its answer."""
    OTHER_ARM = "other_arm"
    """It is not an agent's."""
    VIDEO = "video"
    """A video is gone, or is another file now."""
    NOT_REBUILT = "not_rebuilt"
    """Its prompts can't be rebuilt for another reason: another configuration, other words, another decoder."""
    ERROR = "error_turn"
    """The turn was refused, or has no action."""
    CUT_OFF = "cut_off"
    """The turn reached its length limit."""
    FORCED = "forced"
    """The last call for an answer alone, see `RowSettings.forced`."""
    REPAIRED = "repaired"
    """The turn had to be repaired, see `RowSettings.repaired`."""
    NO_CONFIDENCE = "no_confidence"
    """The turn would have to be written again, and has no confidence from 0 to 1, which is not invented."""
    PLACEHOLDER = "placeholder"
    """The turn has a token of media, for which there is no medium."""
    SPECIAL_TOKEN = "special_token"
    """The turn has another special token in its words."""
    NO_TOKENS = "no_tokens"
    """It is said to be the student's own, and its trajectory has no token ids."""
    OTHER_TOKENS = "other_tokens"
    """It is said to be the student's own, and its tokens are not the student's: they have other words."""
    OTHER_PROMPT = "other_prompt"
    """It is said to be the student's own, and the student's prompt has another length than the recorded one."""
    OPENED_THOUGHT = "opened_thought"
    """The chat template opens a thought, which a teacher's turn does not close (`enable_thinking=False` avoids it)."""
    MEDIUM = "medium"
    """The student can't take a medium of the prompt."""
    TOO_LONG = "too_long"
    """Prompt and turn are longer than the student's context; nothing is truncated."""
    DUPLICATE = "duplicate"
    """An equal row exists: the same prompt, the same media, the same target."""
    BALANCE = "balance"
    """Its source has more rows than its share."""
    HUGE_LINE = "huge_line"
    """A line of a file of chats is longer than `chats.LONGEST_LINE`."""
    NO_CHAT = "no_chat"
    """A line of a file of chats is JSON, and holds no list of messages with text."""
    WRONG_ROLE = "wrong_role"
    """A chat has a role that is not known, or roles in an order that is no chat."""
    CHAT_MEDIA = "chat_media"
    """A chat has pictures, sound or videos, which its text refers to."""
    TOOL_CALL = "tool_call"
    """A chat has tools, or calls of them."""
    NO_REPLY = "no_reply"
    """A chat has no message of the assistant."""
    EMPTY = "empty_message"
    """The assistant's message is empty, or the user's before it."""
    TEMPLATE = "template"
    """The student's chat template refuses the messages."""


@dataclass(frozen=True)
class Target:
    """What a turn teaches."""

    ids: tuple[int, ...]
    """Token ids, the last one ends the turn."""
    words: str
    """The turn in later prompts."""
    own: bool
    """Whether the ids are the recorded ones."""


def canonical(turn: Turn, several: bool = False, wire: Wire = WIRES["apr"]) -> str:
    """A turn in the one form in which it is taught, which its wire gives (`Wire.written`).

    Args:
        turn: A turn with an action and a confidence.
        several: Whether the question has several videos; only then the action names one.
        wire: The form of the prompts that the turn belongs to.
    """
    return wire.written(turn, several)


def target_of(
    turn: Turn,
    student: Student,
    writer: Writer,
    *,
    several: bool,
    rewrite: bool,
    forced: bool,
    wire: Wire = WIRES["apr"],
) -> Target | Reason:
    """What a turn teaches, or why it teaches nothing.

    Args:
        turn: The turn.
        student: The model that is to learn it.
        writer: Who wrote it.
        several: Whether the question has several videos.
        rewrite: Whether a repaired turn is written again; otherwise it is no target.
        forced: Whether the last call for an answer alone may be a target.
        wire: The form in which it is written again.
    """
    if turn.forced and not forced:
        return Reason.FORCED
    if turn.error is not None or turn.action is None:
        return Reason.ERROR
    if Generation("", finish_reason=turn.finish_reason).cut:
        return Reason.CUT_OFF
    repaired = bool(turn.repairs) if writer == "teacher" else bool(set(turn.repairs) - {THOUGHT})
    if writer == "own":
        own = _own(turn, student)
        if isinstance(own, Reason):
            return own
        if not repaired and own.words == turn.text:
            return own
        repaired = True  # or the engine cut off what a stop text began
    if repaired and not rewrite:
        return Reason.REPAIRED
    if turn.confidence is None:
        return Reason.NO_CONFIDENCE
    if student.opened:
        return Reason.OPENED_THOUGHT
    words = canonical(turn, several, wire)
    ids = ids_of(words, student)
    return ids if isinstance(ids, Reason) else Target(ids, words, own=False)


def ids_of(words: str, student: Student) -> tuple[int, ...] | Reason:
    """The student's tokens of words that someone else wrote, with the end of the turn, or why they can't be learned."""
    if any(mark in words for mark in student.media_marks):
        return Reason.PLACEHOLDER
    try:
        return (*student.encoder.turn_ids(words), student.end)
    except ValueError:
        return Reason.SPECIAL_TOKEN


def _own(turn: Turn, student: Student) -> Target | Reason:
    """The recorded tokens with the end of the turn, and their words."""
    if not turn.token_ids:
        return Reason.NO_TOKENS
    ids = turn.token_ids
    if max(ids) >= len(student.tokenizer) or min(ids) < 0:
        return Reason.OTHER_TOKENS
    ended = ids[-1] in student.ends
    body = ids[:-1] if ended else ids
    if not set(body).isdisjoint(student.encoder.never_written):
        return Reason.PLACEHOLDER
    if not set(body).isdisjoint(student.special):
        return Reason.SPECIAL_TOKEN
    words = student.opened + student.text(body)
    # What follows a stop text is in the tokens and not in the turn.
    if not words.startswith(turn.text) or not turn.text:
        return Reason.OTHER_TOKENS
    return Target(with_end(ids, student), words, own=True)


def with_end(ids: tuple[int, ...], student: Student) -> tuple[int, ...]:
    """Recorded tokens with the end of the turn, which some engines leave out."""
    return ids if ids and ids[-1] in student.ends else (*ids, student.end)
