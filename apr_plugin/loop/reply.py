"""Reads a completion as a turn, or as an answer if one is expected (the passive turn and the forced answer)."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from apr_plugin.loop.action import ACTIONS, Answer
from apr_plugin.loop.feedback import ActionError, ErrorCode
from apr_plugin.loop.parse import ParsedTurn, parse_strictly, parse_turn
from apr_plugin.loop.policy import Generation
from apr_plugin.loop.question import Question, QuestionKind
from apr_plugin.loop.references import FrameNames, Named
from apr_plugin.scoring.answers import match_option
from apr_plugin.scoring.text import without_turn_marks
from apr_plugin.scoring.thought import split_thought

_TURN_KEYS = re.compile(r'"(?:observation|action)"\s{0,9}:')


@dataclass(frozen=True)
class AnswerReply:
    """A reply, read as an answer."""

    parsed: ParsedTurn
    """The reply as a turn, for the record."""

    content: str = ""
    """The answer; empty if there is none."""

    fault: ActionError | None = None
    """Why there is no answer, or why the answer is not reliable."""

    bare: bool = False
    """Whether the answer was written without the object around it."""


def read_turn(
    generation: Generation,
    *,
    answer_only: bool = False,
    offered: Collection[str] = tuple(ACTIONS),
    names: FrameNames | None = None,
) -> ParsedTurn:
    """`parse_turn` of the generated text. If it has no words, the error says what the engine returned instead."""
    return _remarked(
        parse_turn(generation.text, answer_only=answer_only, offered=offered, cut=generation.cut, names=names),
        generation,
    )


def read_turn_strictly(
    generation: Generation, *, offered: Collection[str] = tuple(ACTIONS), several: bool = False
) -> ParsedTurn:
    """`parse_strictly` of the generated text; if it has no words, like `read_turn`."""
    return _remarked(parse_strictly(generation.text, offered=offered, several=several, cut=generation.cut), generation)


def _remarked(parsed: ParsedTurn, generation: Generation) -> ParsedTurn:
    if generation.remark and not generation.text.strip():
        return replace(parsed, error=ActionError(ErrorCode.MALFORMED_JSON, generation.remark))
    return parsed


def read_answer(generation: Generation, question: Question, names: FrameNames | None = None) -> AnswerReply:
    """The answer in a completion: that of its JSON object, or otherwise its words outside thought.

    A reply that ends within its thought is not an answer, and neither is a turn without one. A reply that was cut off
    without a mark of thought may be thought that the chat template opened, so only its beginning counts. The words of a
    free-form answer that was cut off are kept, and the fault is named.

    Args:
        generation: The completion.
        question: What was asked.
        names: The frames that the answer may name in place of times.
    """
    reply = _read_answer(generation, question, names)
    if names is None or not reply.bare or not reply.content:
        return reply
    content = names.in_answer(reply.content)
    if isinstance(content, ActionError):
        return replace(reply, fault=reply.fault or content)
    if content == reply.content:
        return reply
    return replace(reply, content=content, parsed=replace(reply.parsed, named=Named(content=reply.content)))


def _read_answer(generation: Generation, question: Question, names: FrameNames | None) -> AnswerReply:
    parsed = read_turn(generation, answer_only=True, names=names)
    if isinstance(parsed.action, Answer):
        content = split_thought(parsed.action.content).said
        return AnswerReply(parsed, content, None if content else _no_answer())
    if parsed.action is not None:
        return AnswerReply(parsed, fault=_look_instead())
    reply = split_thought(generation.text)
    said = without_turn_marks(reply.said)
    if reply.unclosed:
        return AnswerReply(
            parsed, fault=_missing("the reply held no answer: it ends within its thought, which is never closed.")
        )
    if not said and generation.remark:
        return AnswerReply(parsed, fault=parsed.error)
    if not said:
        return AnswerReply(
            parsed, fault=_missing("the reply held no answer after its thought.") if reply.thought else _no_answer()
        )
    if _TURN_KEYS.search(said):
        return AnswerReply(parsed, fault=parsed.error)
    if not generation.cut or reply.thought:
        return AnswerReply(parsed, said, bare=True)
    cut_off = _missing("the reply was cut off at its length limit and may be thought; allow it more new tokens.")
    if question.kind is QuestionKind.MCQ:
        label = match_option(said, [(option.label, option.text) for option in question.options], opening=True)
        return AnswerReply(parsed, label, bare=True) if label else AnswerReply(parsed, fault=cut_off)
    return AnswerReply(parsed, said if question.kind is QuestionKind.FREE_FORM else "", cut_off, bare=True)


def read_answer_strictly(generation: Generation) -> AnswerReply:
    """The answer of a completion that `read_turn_strictly` accepts as a turn with an answer.

    Any other completion has no answer.
    """
    parsed = read_turn_strictly(generation)
    if isinstance(parsed.action, Answer):
        return AnswerReply(parsed, parsed.action.content)
    return AnswerReply(parsed, fault=parsed.error or _look_instead())


def _look_instead() -> ActionError:
    return _missing("the reply asks for a look, and only an answer counts.")


def _missing(message: str) -> ActionError:
    return ActionError(ErrorCode.ANSWER_EXPECTED, message)


def _no_answer() -> ActionError:
    return _missing("the reply held no answer.")
