"""The oracle control: frames from where the evidence is.

A question that it answers wrong needs more than a look at the right place.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from apr_plugin.loop.arms.one_turn import answer_at_once
from apr_plugin.loop.trajectory import StopReason, Trajectory

if TYPE_CHECKING:
    from apr_plugin.loop.episode import Episode


async def run(episode: Episode) -> Trajectory:
    """Show `passive_frames` frames, spread over the evidence of the question's first video.

    If the task gives no evidence, the episode ends without an answer.
    """
    if not episode.evidence:
        return episode.end(
            StopReason.ERROR,
            detail="the task does not say where the evidence is, so the oracle has nothing to show",
        )
    plan = partial(episode.environment.plan_spans, episode.evidence, max(1, episode.config.passive_frames))
    return await answer_at_once(episode, plan)
