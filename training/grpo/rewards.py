"""What an episode earned: a pure function of its trajectory, the truth and the settings.

The answer's own reward is the paper's (arXiv 2606.19341, eq. 2), with its scorers (`scoring.truth`): equality for an
option, a count or a text; IoU of the time spans, as sets of seconds; mean relative accuracy for a number. All lie in
[0, 1]. Spans that are reversed, negative or not finite cover nothing, and no second counts twice, so none of the tricks
that the published scorer pays (docs/scoring.md) earns anything; seconds outside the video only make the union longer.

| part | value | source | default |
|---|---|---|---|
| `answer` | (1 - w) R, in [0, 1 - w] | eq. 2 | R |
| `format` | w F, in [0, w]: F is the share of turns in the exact format, if the policy answered of its own accord | \
r = 0.1 + 0.9 r (video_env.py of OmniAgent, off there too) | w = 0 |
| `looks` | c for each look that was carried out and is no repeat, if the answer is right | PyVision-RL, arXiv \
2602.20739: R = R_acc + 0.1 n_tc 1[R_acc = 1] | c = 0 |
| `length` | `shaped_by_length`, in [-v/2, v/2] | Kimi k1.5, arXiv 2501.12599, section 2.3.3 | v = 0 |

The total is the sum of the parts. An episode that ended without an answer (`turns`, `tokens`, `wall_clock`), or with
one of a wrong form, has R = 0. One of which nothing is known (`media_unreadable`, `policy_unavailable`, `cancelled`,
`error`) is unscorable: its total is `None`, which keeps it out of the baseline of its group.

Two warnings about `looks`: LongVT found such a reward of no use after SFT, and PyVision-RL's code pays it for calls
that failed. Here a look is paid only where something new was shown.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from pydantic import Field

from apr_plugin.compare.aiming import is_repeat
from apr_plugin.errors import AprError
from apr_plugin.loop.question import QuestionKind
from apr_plugin.loop.trajectory import StopReason, Trajectory
from apr_plugin.scoring.intervals import parse_spans, set_iou
from apr_plugin.scoring.truth import Rules, Truth, score
from apr_plugin.terminal import quoted
from apr_plugin.training.grpo.settings import GrpoSettings
from apr_plugin.training.synthesis.outcome import OutcomeRules, judge_outcome
from apr_plugin.training.targets import THOUGHT

Length = Literal["turns", "visual_tokens"]


class RewardError(AprError):
    """A reward can't be computed: the truth is unusable; the message names the question."""


class RewardSettings(GrpoSettings):
    """What is rewarded. The defaults are the paper's: the answer alone."""

    right_iou: float = Field(default=0.5, gt=0, le=1)
    """Least IoU of time spans that count as right, for `looks` and `length`."""
    right_accuracy: float = Field(default=0.5, gt=0, le=1)
    """Least relative accuracy of a number that counts as right."""
    format: float = Field(default=0.0, ge=0, le=1)
    """The share of the reward that is for the format (w); OmniAgent's option has 0.1."""
    looks: float = Field(default=0.0, ge=0, le=1)
    """What each new look earns if the answer is right (c); PyVision-RL has 0.1."""
    most_looks: int | None = Field(default=None, ge=1)
    """Looks beyond this number earn nothing; `None` is no limit."""
    length: float = Field(default=0.0, ge=0, le=1)
    """Weight of the reward for shorter episodes (v)."""
    length_of: Length = "turns"
    """What is short: the number of turns, or of visual tokens."""
    length_from_step: int = Field(default=0, ge=0)
    """The first training step with that reward: Kimi k1.5 begins without it."""

    @property
    def rules(self) -> OutcomeRules:
        """What counts as right."""
        return OutcomeRules(self.right_iou, self.right_accuracy)


@dataclass(frozen=True)
class Reward:
    """What one episode earned."""

    total: float | None
    """The sum of the parts; `None`: unscorable."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """By the names in the module's table; parts that are switched off are left out."""
    score: float = 0.0
    """R: how right the answer is, in [0, 1]."""
    right: bool = False
    """Whether the answer counts as right."""
    reason: str = ""
    """`right` or why it is wrong (`outcome.Outcome`), or the stop reason of an unscorable one."""

    def with_part(self, name: str, value: float) -> Reward:
        """This reward and one part more."""
        assert self.total is not None
        return replace(self, total=self.total + value, parts={**self.parts, name: value})


def reward(
    trajectory: Trajectory, truth: Truth, settings: RewardSettings | None = None, *, exact: bool = False
) -> Reward:
    """What an episode earned, without `length`, which depends on the others of its group.

    Args:
        trajectory: A finished episode.
        truth: The right answer.
        settings: What is rewarded.
        exact: Whether a number must be equal (a count), not only close.

    Returns:
        The total is in [0, 1 + c * looks].

    Raises:
        RewardError: the truth has no right answer that can be scored.
    """
    chosen = settings or RewardSettings()
    _check(trajectory, truth)
    if trajectory.stop_reason.failed:
        return Reward(None, reason=str(trajectory.stop_reason))
    outcome = judge_outcome(trajectory, truth, chosen.rules, exact=exact)
    right = outcome.score or 0.0
    parts = {"answer": (1 - chosen.format) * right}
    if chosen.format:
        parts["format"] = chosen.format * format_share(trajectory)
    if chosen.looks:
        paid = min(new_looks(trajectory), chosen.most_looks or math.inf) if outcome.right else 0
        parts["looks"] = chosen.looks * paid
    return Reward(sum(parts.values()), parts, right, outcome.right, outcome.reason)


def _check(trajectory: Trajectory, truth: Truth) -> None:
    """A truth that no answer can match would give every episode 0."""
    question, fault = trajectory.question, ""
    if not truth.answers:
        fault = "its truth has no right answer"
    elif question.kind is QuestionKind.MCQ and question.options:
        labels = [option.label for option in question.options]
        if not set(truth.answers) & set(labels):
            fault = f"its right answer {quoted(truth.answers[0], 60)} is none of the labels {', '.join(labels)}"
    elif question.kind is QuestionKind.GROUNDING:
        if not any(set_iou(spans, spans) > 0 for spans in map(parse_spans, truth.answers)):
            fault = f"its right answer {quoted(truth.answers[0], 60)} covers no time"
    else:
        try:
            score(None, truth, str(question.kind), Rules(text="normalised"))
        except ValueError as error:
            fault = str(error)
    if fault:
        named = "/".join(filter(None, question.key[:3]))
        raise RewardError(f"question {named}: {fault}, so no answer can earn anything; correct it")


def format_share(trajectory: Trajectory) -> float:
    """The share of turns that are one JSON object in the exact format, in [0, 1]; 0 if no answer came by itself.

    A turn counts if an action could be read and nothing had to be repaired. An action that was read and then refused
    (outside the video, too long) is in the format.
    """
    if trajectory.stop_reason is not StopReason.ANSWERED or not trajectory.turns:
        return 0.0
    clean = [turn.action is not None and not set(turn.repairs) - {THOUGHT} for turn in trajectory.turns]
    return sum(clean) / len(clean)


def new_looks(trajectory: Trajectory) -> int:
    """Looks that were carried out and are no repeat of an earlier one (`compare.aiming`)."""
    shown = [turn.shown for turn in trajectory.turns if turn.shown is not None and turn.error is None]
    return sum(not is_repeat(look, shown[:number]) for number, look in enumerate(shown))


def episode_length(trajectory: Trajectory, what: Length) -> int:
    """The length of an episode: its turns, or the visual tokens of everything it was shown."""
    return len(trajectory.turns) if what == "turns" else trajectory.visual_tokens


def shaped_by_length(
    rewards: Sequence[Reward], lengths: Sequence[int], settings: RewardSettings, *, step: int = 0
) -> list[Reward]:
    """The rewards of one group with their part `length` (Kimi k1.5, arXiv 2501.12599, section 2.3.3).

    With lambda = 0.5 - (length - shortest) / (longest - shortest), the part is v * lambda for a right answer and
    v * min(0, lambda) for a wrong one, so a wrong answer earns nothing by being quick. If all are as long, it is 0.
    Unscorable episodes stay unscorable and are not compared with.

    Args:
        rewards: Of one question's episodes.
        lengths: Of the same episodes (`episode_length`).
        settings: The weight v, and the step from which on it counts.
        step: The present training step.

    Raises:
        RewardError: the numbers of rewards and lengths differ, or a length is negative.
    """
    if len(rewards) != len(lengths):
        raise RewardError(f"{len(rewards)} rewards and {len(lengths)} lengths: each episode needs both")
    if lengths and min(lengths) < 0:
        raise RewardError(f"a length is {min(lengths)}; it must be at least 0")
    if not settings.length or step < settings.length_from_step:
        return list(rewards)
    known = [length for one, length in zip(rewards, lengths, strict=True) if one.total is not None]
    shortest, spread = min(known, default=0), max(known, default=0) - min(known, default=0)
    shaped = []
    for one, length in zip(rewards, lengths, strict=True):
        if one.total is not None:
            value = 0.5 - (length - shortest) / spread if spread else 0.0
            one = one.with_part("length", settings.length * (value if one.right else min(0.0, value)))
        shaped.append(one)
    return shaped


@dataclass(frozen=True)
class Sampled:
    """One of the episodes that were sampled of a question, for `pruner_weights`."""

    length: float
    """Turns, frames or visual tokens."""
    right: bool


def pruner_weights(
    questions: Sequence[Sequence[Sampled]],
    *,
    alpha: float = 5.0,
    low: float = -2.0,
    high: float = 4.0,
    keep: int = 2,
    seed: int = 0,
) -> list[list[float | None]]:
    """Weights of SFT rows that prefer short right episodes, without any sampling in training (O1-Pruner).

    w = L / length - 1 + alpha (right - A), where L and A are the mean length and accuracy of all samples of the
    question; clipped to [low, high], then shifted and divided so that the weights of the whole set have a mean of 0 and
    a standard deviation of 1. A negative weight pushes away. Before clipping, a wrong episode has a larger weight than
    a right one only if its L / length is larger by more than alpha.

    Source: arXiv 2501.12570; o1_scripts/construct_dataset.py of its repository (K = 16 samples, 2 of them kept,
    clipping to [-2, 4]).

    Args:
        questions: The samples of each question.
        alpha: How much being right counts against being short.
        low: Least weight before the set is normalised.
        high: Largest weight before that.
        keep: Samples of each question that get a weight.
        seed: Draws them.

    Returns:
        The weight of each sample; `None` for those that are not kept. If all weights are equal, they are 0.

    Raises:
        RewardError: a length is negative or not finite, or the settings don't fit.
    """
    if not (math.isfinite(alpha) and alpha >= 0 and low < high and keep >= 1):
        raise RewardError(
            f"alpha={alpha:g}, low={low:g}, high={high:g}, keep={keep}: alpha must be at least 0, low below high, and "
            "keep at least 1"
        )
    found: list[list[float | None]] = []
    for number, samples in enumerate(questions):
        wrong = [one.length for one in samples if not (math.isfinite(one.length) and one.length >= 0)]
        if wrong:
            raise RewardError(f"question {number}: {wrong[0]:g} is no length")
        kept = set(random.Random(f"{seed}:{number}").sample(range(len(samples)), min(keep, len(samples))))
        length = float(np.mean([one.length for one in samples])) if samples else 0.0
        accuracy = float(np.mean([one.right for one in samples])) if samples else 0.0
        found.append(
            [
                float(np.clip(_shorter(length, one.length) + alpha * (one.right - accuracy), low, high))
                if at in kept
                else None
                for at, one in enumerate(samples)
            ]
        )
    every = np.array([weight for weights in found for weight in weights if weight is not None])
    mean, spread = (float(every.mean()), float(every.std())) if len(every) else (0.0, 0.0)
    return [
        [None if weight is None else (weight - mean) / spread if spread > 1e-12 else 0.0 for weight in weights]
        for weights in found
    ]


def _shorter(mean: float, length: float) -> float:
    """L / length - 1; an episode without any visual token is as much shorter as can be."""
    return mean / length - 1 if length > 0 else (math.inf if mean > 0 else 0.0)
