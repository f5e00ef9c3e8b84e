"""A teacher explores each training question until its first right answer, at most N times.

Questions run at the same time; the attempts of one question run one after the other. Each attempt is an episode with
its own budget and seed, and is on disk before the next one begins, so a killed run continues where it was. Wrong turns
are part of a trajectory, and so is what the teacher did about them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from apr_plugin import interrupt
from apr_plugin.errors import AprError
from apr_plugin.loop.decoding import Decoding
from apr_plugin.loop.policy import Policy
from apr_plugin.loop.trajectory import StopReason, Trajectory
from apr_plugin.runs.config import ConfigPerQuestion
from apr_plugin.runs.runner import run_episodes, run_workers
from apr_plugin.runs.store import TrajectoryStore
from apr_plugin.training.synthesis.outcome import Outcome, OutcomeRules, judge_outcome
from apr_plugin.training.synthesis.questions import DocKey, TrainingQuestion

ATTEMPTS = 4
"""Attempts at one question at most, as in the paper's usage notes (`--sft_attempts 4`)."""


@dataclass(frozen=True)
class Explored:
    """What came of one question."""

    key: DocKey
    attempts: int
    """Episodes that ended; failed ones are not counted."""
    won: bool
    """Whether the last of them was right."""
    failed: StopReason | None = None
    """Why the question could not be asked further; the next run asks it again."""


@dataclass
class Cost:
    """What episodes cost, summed."""

    episodes: int = 0
    resumed: int = 0
    """How many of them came from an earlier run."""
    turns: int = 0
    frames: int = 0
    audio_s: float = 0.0
    visual_tokens: int = 0
    """By the rule in `loop.budget`."""
    prompt_tokens: int = 0
    """As the policy counts them, media included."""
    completion_tokens: int = 0
    counted: int = 0
    """Episodes whose tokens the policy counted."""
    seconds: float = 0.0
    """Seconds of episodes; several run at once."""

    def add(self, trajectory: Trajectory, resumed: bool) -> None:
        """Add one episode."""
        from apr_plugin.runs.meter import audio_s, tokens_spent

        self.episodes += 1
        self.resumed += resumed
        self.turns += len(trajectory.turns)
        self.frames += trajectory.frames
        self.audio_s += audio_s(trajectory)
        self.visual_tokens += trajectory.visual_tokens
        self.seconds += trajectory.timings.total_s
        if (spent := tokens_spent(trajectory)) is not None:
            self.counted += 1
            self.prompt_tokens += spent.prompt
            self.completion_tokens += spent.completion


OnAttempt = Callable[[TrainingQuestion, Trajectory, Outcome, bool], None]
"""Called for each episode that ended; the flag tells whether it came from an earlier run."""

OnQuestion = Callable[[Explored], None]
"""Called when a question is finished."""


@dataclass(frozen=True)
class Exploration:
    """What a synthesis run does."""

    policy: Policy
    """The teacher."""
    config: ConfigPerQuestion
    """Its configuration, with drawn budgets (`budgets.drawn_budgets`)."""
    attempts: int = ATTEMPTS
    rules: OutcomeRules = field(default_factory=OutcomeRules)
    concurrency: int = 4
    """Questions at once."""

    def __post_init__(self) -> None:
        if self.config.base.arm != "agent":
            raise AprError(f"arm={self.config.base.arm}: only trajectories of an agent can be trained on")
        if self.attempts < 1 or self.concurrency < 1:
            raise AprError("attempts and concurrency must be at least 1")


@dataclass(frozen=True)
class Left:
    """What an earlier run left to do."""

    questions: list[TrainingQuestion]
    """Questions that are not finished."""
    attempts_done: list[int]
    """For each of them, the number of attempts that are on disk."""
    done: Cost
    """What all attempts on disk cost."""


def left_to_do(questions: Sequence[TrainingQuestion], exploration: Exploration, store: TrajectoryStore) -> Left:
    """Which questions an earlier run of the same configuration has not finished."""
    left, attempts, cost = [], [], Cost()
    for asked in questions:
        made, won = 0, False
        while made < exploration.attempts and not won and (saved := store.finished(asked.attempt(made))) is not None:
            cost.add(saved, True)
            won = judge_outcome(saved, asked.truth, exploration.rules, exact=asked.exact).right
            made += 1
        if not won and made < exploration.attempts:
            left.append(asked)
            attempts.append(made)
    return Left(left, attempts, cost)


async def explore(
    questions: Sequence[TrainingQuestion],
    exploration: Exploration,
    store: TrajectoryStore,
    *,
    decoding: Decoding | None = None,
    on_attempt: OnAttempt | None = None,
    on_question: OnQuestion | None = None,
) -> list[Explored]:
    """Explore every question; the list has their order.

    An attempt that is in the store is not made again. After an episode that failed (the video can't be read, the
    teacher can't be reached) its question gets no further attempt in this run.

    Args:
        questions: The questions, each once.
        exploration: Teacher, budgets, attempts.
        store: Where each trajectory is saved when its episode ends.
        decoding: Limits on memory and on the number of reads at once.
        on_attempt: Called for each episode that ended.
        on_question: Called when a question is finished.

    Raises:
        TrajectoryError: a trajectory could not be saved; what was saved stays.
    """
    reading = decoding or Decoding()
    results: list[Explored | None] = [None] * len(questions)
    waiting = iter(range(len(questions)))

    async def one(asked: TrainingQuestion) -> Explored:
        for number in range(exploration.attempts):
            resumed = False

            def done(trajectory: Trajectory, from_store: bool) -> None:
                nonlocal resumed
                resumed = from_store

            (trajectory,) = await run_episodes(
                [asked.attempt(number)],
                exploration.policy,
                exploration.config,
                store=store,
                on_done=done,
                decoding=reading,
            )
            outcome = judge_outcome(trajectory, asked.truth, exploration.rules, exact=asked.exact)
            if on_attempt is not None:
                on_attempt(asked, trajectory, outcome, resumed)
            if trajectory.stop_reason.failed:
                return Explored(asked.key, number, False, trajectory.stop_reason)
            if outcome.right:
                return Explored(asked.key, number + 1, True)
        return Explored(asked.key, exploration.attempts, False)

    async def work() -> None:
        for index in waiting:
            if interrupt.asked():
                raise asyncio.CancelledError
            results[index] = found = await one(questions[index])
            if on_question is not None:
                on_question(found)

    try:
        await run_workers(work, min(exploration.concurrency, len(questions)))
    finally:
        if decoding is None:
            reading.close()
    return [result for result in results if result is not None]
