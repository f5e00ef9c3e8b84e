"""The blind control: the question alone. A question that it answers right needs no video."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apr_plugin.loop.arms.one_turn import answer_at_once
from apr_plugin.loop.trajectory import Trajectory

if TYPE_CHECKING:
    from apr_plugin.loop.episode import Episode


async def run(episode: Episode) -> Trajectory:
    """Answer without frames, and without the pictures of a question without a video."""
    return await answer_at_once(episode, None)
