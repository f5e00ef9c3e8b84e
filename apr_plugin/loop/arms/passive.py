"""The passive baseline: `passive_frames` uniform frames of all videos at once, then one reply."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from apr_plugin.loop.arms.one_turn import answer_at_once
from apr_plugin.loop.trajectory import Trajectory

if TYPE_CHECKING:
    from apr_plugin.loop.episode import Episode


async def run(episode: Episode) -> Trajectory:
    """Show the middle frame of each part of the video. With `passive_frames=0` the policy is asked blind."""
    frames = episode.config.passive_frames
    return await answer_at_once(episode, partial(episode.environment.plan_uniform, frames) if frames else None)
