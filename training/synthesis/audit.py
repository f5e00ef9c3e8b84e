"""Filter two: a judge reads the notebook and rates, turn by turn, whether each step follows from what was known.

The paper (arXiv 2606.19341) asks a judge whether the thought of a turn is entailed by the notes before it and the new
observation, on a 5-point scale, and keeps 3 and more; it does not print its prompt. Ours is `judge.jinja`.

A turn that was refused is not rated: it is never a training target. The turns after it are, so a recovery has to be
sound. The judge sees the observations, actions and results of earlier turns, not their thoughts: a claim in an earlier
thought supports nothing. It never sees the truth.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from apr_plugin.errors import AprError
from apr_plugin.loop.policy import Prompt
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.training.synthesis.judge import (
    AUDIT_PROMPT,
    GIVE_UP,
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
from apr_plugin.training.synthesis.verdict import LONGEST_TEXT, Verdict, read_verdict, read_verdicts, turns_digest

__all__ = [
    "GIVE_UP",
    "THRESHOLD",
    "VERDICTS",
    "Audited",
    "Judge",
    "Tally",
    "Verdicts",
    "audit",
    "judge_audit",
    "judge_prompt",
    "open_verdicts",
    "rated_turns",
]

THRESHOLD = 3
"""Least rating of every rated turn of a trajectory that is kept (the paper's)."""

VERDICTS = "verdicts.jsonl"
"""The file in a judge's folder with what it said."""


def rated_turns(trajectory: Trajectory) -> list[int]:
    """The turns that a judge rates, counted from 1: those whose action was carried out."""
    return [number for number, turn in enumerate(trajectory.turns, 1) if turn.action is not None and turn.error is None]


def judge_prompt(trajectory: Trajectory, number: int) -> Prompt:
    """What a judge reads about one turn, as text alone.

    Args:
        trajectory: The trajectory.
        number: The turn, counted from 1.
    """
    turn = trajectory.turns[number - 1]
    before = [note_of(at, earlier) for at, earlier in enumerate(trajectory.turns[: number - 1], 1)]
    return prompt_of(
        AUDIT_PROMPT,
        step=number,
        steps=len(trajectory.turns),
        question=as_json(asked_of(trajectory)),
        videos=as_json(videos_of(trajectory)),
        notes="\n".join(map(as_json, before)) or "none",
        observation=as_json(turn.observation) if number > 1 else "none, this is the first step",
        thought=as_json(turn.think),
        action=as_json(None if turn.action is None else turn.action.model_dump(mode="json")),
    )


OnTrajectory = Callable[[Trajectory, Sequence[Verdict]], None]
"""Called when all turns of a trajectory are rated, as far as the judge can be reached."""


class Verdicts(Records[Verdict]):
    """The verdicts of one judge: its folder, read and appended to.

    Args:
        folder: `OUT/audit/<hash of the judge>`.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder / VERDICTS,
            read_verdicts,
            lambda verdict: (verdict.config_hash, verdict.key, verdict.digest, verdict.turn),
        )

    def of(self, trajectory: Trajectory) -> dict[int, Verdict]:
        """The verdicts on a trajectory's turns, by turn."""
        digest = turns_digest(trajectory)
        found = {}
        for number in rated_turns(trajectory):
            verdict = self.get((trajectory.config_hash, trajectory.question.key, digest, number))
            if verdict is not None:
                found[number] = verdict
        return found


def open_verdicts(audit: Path, judge: Judge) -> Verdicts:
    """The verdicts of a judge, whose folder is made if it is missing.

    Args:
        audit: `OUT/audit`.
        judge: The judge.

    Raises:
        AprError: the folder can't be written.
    """
    return Verdicts(folder_of(audit, judge))


async def audit(
    trajectories: Sequence[Callable[[], Trajectory]],
    judge: Judge,
    verdicts: Verdicts,
    *,
    concurrency: int = 4,
    on_trajectory: OnTrajectory | None = None,
) -> Tally:
    """Rate every turn of every trajectory that this judge has not rated yet.

    Each verdict is on disk before the next turn is asked about, so a killed audit continues where it was. A reply
    without a rating is stored as such and not asked for again. If the judge can't be reached, its turn has no verdict.

    Args:
        trajectories: Functions that read them, so that not all are in memory.
        judge: The judge.
        verdicts: Its verdicts so far.
        concurrency: Trajectories at once.
        on_trajectory: Called after each trajectory.

    Raises:
        TrajectoryError: a verdict can't be written.
    """
    tally = Tally()

    async def rate(trajectory: Trajectory) -> None:
        known, digest = verdicts.of(trajectory), turns_digest(trajectory)
        for number in rated_turns(trajectory):
            if number in known:
                tally.known += 1
                tally.nonsense += known[number].rating is None
                continue
            verdict = await _ask(trajectory, number, judge, digest, tally)
            if verdict is None:
                break
            await asyncio.to_thread(verdicts.add, verdict)
            known[number] = verdict
        if on_trajectory is not None:
            on_trajectory(trajectory, [known[number] for number in sorted(known)])

    await for_each(trajectories, rate, tally, concurrency)
    return tally


async def _ask(trajectory: Trajectory, number: int, judge: Judge, digest: str, tally: Tally) -> Verdict | None:
    reply = await judge.reply(judge_prompt(trajectory, number), trajectory, number, tally)
    if reply is None:
        return None
    read = read_verdict(reply.text, cut=reply.cut)
    tally.nonsense += read.rating is None
    return Verdict(
        trajectory.question.key,
        trajectory.config_hash,
        digest,
        number,
        read.rating,
        read.reason,
        read.fault,
        reply.text[:LONGEST_TEXT] if read.rating is None else "",
    )


@dataclass(frozen=True)
class Audited:
    """What filter two says of a trajectory."""

    passed: bool
    reason: str
    """`passed`, or why not: `unsupported`, `nonsense_verdict`, `not_audited`, `nothing_to_rate`."""
    ratings: tuple[int | None, ...]
    """Of the rated turns, in order; `None` for nonsense and for a turn without a verdict."""
    detail: str = ""
    """The same in words, with the judge's reason."""


def judge_audit(trajectory: Trajectory, known: Mapping[int, Verdict], threshold: int = THRESHOLD) -> Audited:
    """Whether every rated turn has a rating of at least the threshold.

    Args:
        trajectory: The trajectory.
        known: Its verdicts, by turn.
        threshold: 1 to 5.

    Raises:
        AprError: there is no such threshold.
    """
    if not 1 <= threshold <= 5:
        raise AprError(f"threshold {threshold}: it must be from 1 to 5")
    turns = rated_turns(trajectory)
    ratings = tuple(known[number].rating if number in known else None for number in turns)
    if not turns:
        return Audited(False, "nothing_to_rate", (), "no turn has an action that was carried out")
    low = [number for number in turns if number in known and (known[number].rating or threshold) < threshold]
    if low:
        worst = known[low[0]]
        return Audited(False, "unsupported", ratings, f"turn {low[0]} has {worst.rating}: {worst.reason}")
    if missing := [number for number in turns if number not in known]:
        return Audited(False, "not_audited", ratings, f"turn {missing[0]} has no verdict")
    if nonsense := [number for number in turns if known[number].rating is None]:
        return Audited(False, "nonsense_verdict", ratings, f"turn {nonsense[0]}: {known[nonsense[0]].fault}")
    return Audited(True, "passed", ratings)
