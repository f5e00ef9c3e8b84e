"""A judge chooses the pivotal turn of trajectories: what it is shown, and its picks on disk.

It sees the question and the whole log: the observation, thought and action of each turn, and whether it was refused. It
sees no entropy, no truth and no video. The policy is that of the step audit: a pick is on disk before the next
trajectory is asked about, nonsense is stored, counted and not asked for again, and a judge that can't be reached is
asked again by the next run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from apr_plugin.loop.policy import Prompt
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.training.synthesis.judge import (
    Judge,
    Records,
    Tally,
    as_json,
    asked_of,
    folder_of,
    for_each,
    note_of,
    prompt_of,
    videos_of,
)
from apr_plugin.training.synthesis.verdict import LONGEST_TEXT, Pick, read_pick, read_picks, turns_digest

FORK_PROMPT = "fork.jinja"
"""The judge's prompt."""

PICKS = "picks.ndjson"
"""The file in a judge's folder with what it said. It is JSON Lines; files of trajectories end otherwise."""

OnPick = Callable[[Trajectory, Pick | None], None]
"""Called for each trajectory; `None` if the judge could not be reached."""


def fork_prompt(trajectory: Trajectory) -> Prompt:
    """What a judge reads about a trajectory, as text alone."""
    steps = [
        note_of(number, turn) | {"thought": turn.think, "confidence": turn.confidence}
        for number, turn in enumerate(trajectory.turns, 1)
    ]
    return prompt_of(
        FORK_PROMPT,
        question=as_json(asked_of(trajectory)),
        videos=as_json(videos_of(trajectory)),
        steps=len(steps),
        log="\n".join(map(as_json, steps)),
    )


class Picks(Records[Pick]):
    """The picks of one judge: its folder, read and appended to.

    Args:
        folder: `OUT/<hash of the judge>`.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / PICKS, read_picks, lambda pick: (pick.config_hash, pick.key, pick.digest))

    def of(self, trajectory: Trajectory) -> Pick | None:
        """The pick for a trajectory, if there is one for exactly its turns."""
        return self.get((trajectory.config_hash, trajectory.question.key, turns_digest(trajectory)))


def open_picks(out: Path, judge: Judge) -> Picks:
    """The picks of a judge, whose folder below `out` is made if it is missing.

    Raises:
        AprError: the folder can't be written.
    """
    return Picks(folder_of(out, judge))


async def pick_forks(
    trajectories: Sequence[Callable[[], Trajectory]],
    judge: Judge,
    picks: Picks,
    *,
    concurrency: int = 4,
    on_pick: OnPick | None = None,
) -> Tally:
    """Let the judge choose the pivotal turn of every trajectory for which it has not chosen one yet.

    Args:
        trajectories: Functions that read them.
        judge: The judge, made with `FORK_PROMPT`.
        picks: Its picks so far.
        concurrency: Trajectories at once.
        on_pick: Called after each trajectory.

    Raises:
        TrajectoryError: a pick can't be written.
    """
    tally = Tally()

    async def choose(trajectory: Trajectory) -> None:
        pick = picks.of(trajectory)
        if pick is not None:
            tally.known += 1
            tally.nonsense += pick.turn is None
        else:
            pick = await _ask(trajectory, judge, tally)
            if pick is not None:
                await asyncio.to_thread(picks.add, pick)
        if on_pick is not None:
            on_pick(trajectory, pick)

    await for_each(trajectories, choose, tally, concurrency)
    return tally


async def _ask(trajectory: Trajectory, judge: Judge, tally: Tally) -> Pick | None:
    reply = await judge.reply(fork_prompt(trajectory), trajectory, 0, tally)
    if reply is None:
        return None
    turn, reason, fault = read_pick(reply.text, len(trajectory.turns), cut=reply.cut)
    tally.nonsense += turn is None
    about = (trajectory.question.key, trajectory.config_hash, turns_digest(trajectory))
    return Pick(*about, turn, reason, fault, reply.text[:LONGEST_TEXT] if turn is None else "")
