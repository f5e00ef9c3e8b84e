"""Filter two: a judge reads the notebook and rates, turn by turn, whether each step follows from what was known.

The paper (arXiv 2606.19341) asks a judge whether the thought of a turn is entailed by the notes before it and the new
observation, on a 5-point scale, and keeps 3 and more; it does not print its prompt. Ours is `judge.jinja`.

A turn that was refused is not rated: it is never a training target. The turns after it are, so a recovery has to be
sound. The judge sees the observations, actions and results of earlier turns, not their thoughts: a claim in an earlier
thought supports nothing. It never sees the truth.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from apr_plugin import interrupt
from apr_plugin.errors import AprError, told
from apr_plugin.loop.action import Answer, describe
from apr_plugin.loop.config import hash_of
from apr_plugin.loop.files import append_line, cut_torn_tail
from apr_plugin.loop.policy import Message, Policy, Prompt, Sampling, TextPart
from apr_plugin.loop.trajectory import Trajectory, Turn
from apr_plugin.runs.runner import run_workers
from apr_plugin.training.synthesis.verdict import (
    LONGEST_TEXT,
    Verdict,
    read_verdict,
    read_verdicts,
    turns_digest,
)

THRESHOLD = 3
"""Least rating of every rated turn of a trajectory that is kept (the paper's)."""

VERDICTS, JUDGE = "verdicts.jsonl", "judge.json"
"""Files in a judge's folder: what it said, and what it is."""

GIVE_UP = 10
"""Failures of the judge in a row after which no more is asked in this run."""

SYSTEM = "You are a careful reviewer. You reply with one JSON object and nothing else."

_Turn = tuple[str, tuple[str, str, str, int], str, int]
"""Configuration, key, digest and turn of a verdict."""


@cache
def _template() -> jinja2.Template:
    text = resources.files("apr_plugin.training.synthesis").joinpath("judge.jinja").read_text("utf-8")
    return jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False).from_string(text)


def rated_turns(trajectory: Trajectory) -> list[int]:
    """The turns that a judge rates, counted from 1: those whose action was carried out."""
    return [number for number, turn in enumerate(trajectory.turns, 1) if turn.action is not None and turn.error is None]


def judge_prompt(trajectory: Trajectory, number: int) -> Prompt:
    """What a judge reads about one turn, as text alone.

    Everything that the agent wrote is in it as JSON strings, so that it can't end its own part of the prompt.

    Args:
        trajectory: The trajectory.
        number: The turn, counted from 1.
    """
    question, turn = trajectory.question, trajectory.turns[number - 1]
    before = [_note(at, earlier) for at, earlier in enumerate(trajectory.turns[: number - 1], 1)]
    asked: dict[str, Any] = {"text": question.text, "kind": str(question.kind)}
    if question.options:
        asked["options"] = {option.label: option.text for option in question.options}
    if question.answer_hint:
        asked["hint"] = question.answer_hint
    videos = [
        {"duration_s": round(film.duration_s, 2), "fps": film.fps, "has_audio": film.has_audio}
        for film in trajectory.videos
    ]
    text = _template().render(
        step=number,
        steps=len(trajectory.turns),
        question=_json(asked),
        videos=_json(videos),
        notes="\n".join(map(_json, before)) or "none",
        observation=_json(turn.observation) if number > 1 else "none, this is the first step",
        thought=_json(turn.think),
        action=_json(None if turn.action is None else turn.action.model_dump(mode="json")),
    )
    parts = (Message("system", (TextPart(SYSTEM),)), Message("user", (TextPart(text.strip()),)))
    return Prompt(parts, final=True)


def _note(number: int, turn: Turn) -> dict[str, Any]:
    """What stays of an earlier turn: what it saw, what it did, what came back."""
    note: dict[str, Any] = {"turn": number, "observation": turn.observation}
    note["action"] = None if turn.action is None else describe(turn.action)
    if turn.error is not None:
        note["refused"] = str(turn.error.code)
    elif isinstance(turn.action, Answer):
        note["answered"] = True
    return note


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class Judge:
    """A judge and how it is asked."""

    policy: Policy
    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=1024))
    """How its replies are sampled; each turn gets a seed of its own."""

    def describe(self) -> dict[str, Any]:
        """All that decides its verdicts, as JSON values."""
        sampling = {
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "top_k": self.sampling.top_k,
            "max_new_tokens": self.sampling.max_new_tokens,
            "seed": self.sampling.seed,
        }
        source = resources.files("apr_plugin.training.synthesis").joinpath("judge.jinja").read_text("utf-8")
        words = hashlib.sha256((SYSTEM + source).encode()).hexdigest()[:16]
        return {"policy": {"name": self.policy.name} | self.policy.describe(), "sampling": sampling, "prompt": words}

    @property
    def hash(self) -> str:
        """16 hex digits that identify policy, sampling and prompt."""
        return hash_of(self.describe())

    def seed(self, trajectory: Trajectory, number: int) -> int:
        """The seed of one verdict."""
        text = json.dumps([self.sampling.seed, *trajectory.question.key, trajectory.config_hash, number])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


@dataclass
class Tally:
    """What a judge did."""

    asked: int = 0
    """Turns that were rated in this run."""
    known: int = 0
    """Turns that an earlier run had rated."""
    nonsense: int = 0
    """Replies without a rating, of this run and earlier ones."""
    unreachable: int = 0
    """Turns that could not be rated; the next run asks again."""
    why: str = ""
    """The first reason for that."""
    in_a_row: int = 0
    """Failures since the last reply."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


OnTrajectory = Callable[[Trajectory, Sequence[Verdict]], None]
"""Called when all turns of a trajectory are rated, as far as the judge can be reached."""


class Verdicts:
    """The verdicts of one judge: its folder, read and appended to.

    Args:
        folder: `OUT/audit/<hash of the judge>`.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / VERDICTS
        self.problems: list[str] = []
        if self.file.exists():
            cut_torn_tail(self.file)
        self._known: dict[_Turn, Verdict] = {}
        for verdict in read_verdicts(self.file, self.problems):
            self._known[(verdict.config_hash, verdict.key, verdict.digest, verdict.turn)] = verdict

    def of(self, trajectory: Trajectory) -> dict[int, Verdict]:
        """The verdicts on a trajectory's turns, by turn."""
        digest = turns_digest(trajectory)
        found = {}
        for number in rated_turns(trajectory):
            verdict = self._known.get((trajectory.config_hash, trajectory.question.key, digest, number))
            if verdict is not None:
                found[number] = verdict
        return found

    def add(self, verdict: Verdict) -> None:
        """Append a verdict and wait until it is on disk.

        Raises:
            TrajectoryError: it can't be written.
        """
        append_line(self.file, verdict.to_json())
        self._known[(verdict.config_hash, verdict.key, verdict.digest, verdict.turn)] = verdict


def open_verdicts(audit: Path, judge: Judge) -> Verdicts:
    """The verdicts of a judge, whose folder is made if it is missing.

    Args:
        audit: `OUT/audit`.
        judge: The judge.

    Raises:
        AprError: the folder can't be written.
    """
    folder = audit / judge.hash
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JUDGE).write_text(json.dumps(judge.describe(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise AprError(f"{folder}: cannot write there: {error.strerror or error}") from error
    return Verdicts(folder)


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
    tally, waiting = Tally(), iter(trajectories)

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

    async def work() -> None:
        for read in waiting:
            if interrupt.asked():
                raise asyncio.CancelledError
            if tally.in_a_row >= GIVE_UP:
                return
            await rate(read())
            await asyncio.sleep(0)

    await run_workers(work, min(concurrency, len(trajectories)))
    return tally


async def _ask(trajectory: Trajectory, number: int, judge: Judge, digest: str, tally: Tally) -> Verdict | None:
    sampling = Sampling(**(vars(judge.sampling) | {"seed": judge.seed(trajectory, number)}))
    try:
        reply = await judge.policy.generate(judge_prompt(trajectory, number), sampling)
    except Exception as error:  # noqa: BLE001 - a judge is any policy; one turn must not end the audit
        tally.unreachable += 1
        tally.in_a_row += 1
        tally.why = tally.why or told(error)
        return None
    tally.asked += 1
    tally.in_a_row = 0
    tally.prompt_tokens += reply.usage.prompt_tokens or 0
    tally.completion_tokens += reply.usage.completion_tokens or 0
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
