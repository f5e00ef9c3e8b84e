"""The single-frame control: the middle frame of each video. A question that it answers right needs only one frame."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from apr_plugin.loop.arms.one_turn import answer_at_once
from apr_plugin.loop.trajectory import Trajectory

if TYPE_CHECKING:
    from apr_plugin.loop.episode import Episode


async def run(episode: Episode) -> Trajectory:
    """Show one frame of each video, then take one reply."""
    return await answer_at_once(episode, partial(episode.environment.plan_uniform, 1))
