"""The record of one turn: what the policy wrote, what was read from it, and the result."""

from __future__ import annotations

from apr_plugin.loop.feedback import ActionError
from apr_plugin.loop.parse import ParsedTurn
from apr_plugin.loop.percept import Percept
from apr_plugin.loop.policy import Generation
from apr_plugin.loop.trajectory import Turn


def turn_of(
    parsed: ParsedTurn, generation: Generation, outcome: Percept | ActionError | None, *, model_s: float, media_s: float
) -> Turn:
    """Record a turn; `model_s` and `media_s` are the seconds spent in the policy and on the action's media."""
    return Turn(
        text=generation.text,
        observation=parsed.observation,
        think=parsed.think,
        confidence=parsed.confidence,
        action=parsed.action,
        named=parsed.named,
        error=outcome if isinstance(outcome, ActionError) else None,
        shown=outcome.shown() if isinstance(outcome, Percept) else None,
        repairs=parsed.repairs,
        finish_reason=generation.finish_reason,
        usage=generation.usage,
        token_ids=generation.token_ids,
        logprobs=generation.logprobs,
        logprobs_of=generation.logprobs_of,
        entropies=generation.entropies,
        entropy_top_k=generation.entropy_top_k,
        timings=generation.timings,
        model_s=round(model_s, 6),
        media_s=round(media_s, 6),
    )
