"""The shuffled control: the passive frames in a random order, without their times and without subtitles.

A question that it answers right does not depend on the order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from apr_plugin.loop.arms.one_turn import answer_at_once
from apr_plugin.loop.percept import Percept
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.media.subtitles import SUBTITLES

if TYPE_CHECKING:
    from apr_plugin.loop.episode import Episode


async def run(episode: Episode) -> Trajectory:
    """Like the passive arm; the order comes from the seed of the episode."""
    plan = partial(episode.environment.plan_uniform, max(1, episode.config.passive_frames))
    return await answer_at_once(episode, plan, partial(_shuffled, episode.seed))


def _shuffled(seed: int, percepts: Sequence[Percept]) -> list[Percept]:
    rng = random.Random(seed)
    return [_in_order(percept, rng.sample(range(len(percept.times_s)), len(percept.times_s))) for percept in percepts]


def _in_order(percept: Percept, order: list[int]) -> Percept:
    assert percept.images is not None
    times_s, asked_s, file_s = (
        [times[i] for i in order] for times in (percept.times_s, percept.asked_s, percept.file_s)
    )
    return replace(
        percept,
        images=percept.images[order],
        times_s=tuple(times_s),
        asked_s=tuple(asked_s),
        file_s=tuple(file_s),
        untimed=True,
        remark=percept.remark.partition(SUBTITLES)[0].rstrip(),  # their times would tell the order
    )
