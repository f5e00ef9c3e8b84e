"""The oracle control: frames from where the evidence is.

A question that it answers wrong needs more than looking at the right place.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from apr_plugin.loop.arms.one_turn import answer_at_once
from apr_plugin.loop.trajectory import StopReason, Trajectory

if TYPE_CHECKING:
    from apr_plugin.loop.episode import Episode


async def run(episode: Episode) -> Trajectory:
    """`passive_frames` frames, spread over the evidence of the question's first video; a task without evidence can't have this arm."""
    if not episode.evidence:
        return episode.end(
            StopReason.ERROR,
            detail="the task says nothing of where the evidence lies, so there is no oracle to show it",
        )
    plan = partial(episode.environment.plan_spans, episode.evidence, max(1, episode.config.passive_frames))
    return await answer_at_once(episode, plan)
