"""Is the pivotal turn of an investigation an uncertain one? The share with more entropy than its trajectory's mean.

TAURA (arXiv 2606.19341) gives uncertain turns more credit. Its appendix C supports that with one number: of the fork
turns that a judge chose in successful trajectories, 79.2% have an entropy above the mean of their own trajectory. It
states no n, no interval, and no control. The number alone does not show that entropy marks pivotal turns:

- Entropy is skewed, so a turn drawn at random is above the mean in less (or more) than half of the cases: `chance`.
- It depends on where in a trajectory a turn stands. If every second turn is uncertain, and judges like second turns,
  then position explains both. `position`: the same share for the turns at the same position in the other trajectories.
  Positions are counted from the start, because that is where agents are alike (an overview, then an aim); last turns
  are compared with last turns, because an answer is another kind of turn than a look.
- It depends on how many tokens a turn has: long thoughts have words of low entropy, and a judge may prefer them.
  `length`: the same share for the ten turns of other trajectories whose number of tokens is nearest.

Both comparisons are matched and assume no model; each is reported with the difference to the pivotal turns, averaged
over pivotal turns, with an interval. Pivotal turns of the others stay in the comparison: leaving them out would make it
too easy. Matching on both at once would leave too few turns. So `residual` takes both out by a regression within
trajectories: entropy on first turn, last turn, relative position and the logarithm of tokens, all minus their means in
the trajectory, by least squares over all turns; it is the share of pivotal turns whose entropy is above what the
regression expects, next to the same share for a turn drawn at random.

Where the truth says where the evidence is, as in needle, no judge is needed: the pivotal turn is then the first one
whose look showed some of it (`compare.aiming`).

Intervals are 95%, clustered by video (`compare.stats`). It is a correlation: nothing here shows that weighting turns by
entropy trains better.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from apr_plugin.compare.aiming import evidence_spans, shows
from apr_plugin.compare.stats import Interval, mean, proportion
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.scoring.truth import Truth
from apr_plugin.training.grpo.across import FloatArray

NEIGHBOURS = 10
"""Turns of other trajectories with which a pivotal turn is compared by length."""

LEAST_TURNS = 30
"""With fewer turns in all, no regression is made."""

_ROUNDING = 1e-9
"""Entropies that are no further above a mean are not above it."""


class LeftOut(StrEnum):
    """Why a trajectory is not counted."""

    FAILED = "failed"
    """Its episode failed."""
    WRONG = "wrong"
    """Its answer is wrong; the paper's number is about right ones."""
    NOT_SCORED = "not_scored"
    """Nothing says whether its answer is right."""
    NO_ENTROPIES = "no_entropies"
    """The engine gave none (a scripted policy, or `top_logprobs=0`)."""
    SOME_MISSING = "some_missing"
    """A token of it has no entropy."""
    TOP_K = "top_k"
    """Its entropies are over the likeliest tokens only, which was not asked for."""
    VERSION_1 = "version_1"
    """An old line, which does not say over how many tokens its entropies are."""
    ONE_TURN = "one_turn"
    """It has a single turn, which is its own mean."""


@dataclass(frozen=True)
class Measured:
    """The turns of a trajectory, as far as they count here."""

    video: str
    """Its first video, by which intervals are clustered."""
    entropies: tuple[float, ...]
    """Mean entropy of each turn's tokens, in nats."""
    tokens: tuple[int, ...]
    """How many tokens each turn has."""

    @property
    def above(self) -> tuple[bool, ...]:
        """Whether each turn's entropy is above the mean over the trajectory's turns."""
        middle = sum(self.entropies) / len(self.entropies)
        return tuple(value > middle + _ROUNDING for value in self.entropies)


def measure(trajectory: Trajectory, *, top_k: bool = False) -> Measured | LeftOut:
    """The entropies of a trajectory's turns, or why it can't be counted.

    Args:
        trajectory: The trajectory.
        top_k: Whether entropies over the likeliest tokens are taken, too.
    """
    turns = trajectory.turns
    if trajectory.stop_reason.failed:
        return LeftOut.FAILED
    if not any(turn.entropies for turn in turns):
        return LeftOut.NO_ENTROPIES
    if any(not turn.entropies or None in turn.entropies for turn in turns):
        return LeftOut.SOME_MISSING
    if trajectory.budget is None:
        return LeftOut.VERSION_1
    if not top_k and any(turn.entropy_top_k is not None for turn in turns):
        return LeftOut.TOP_K
    if len(turns) < 2:
        return LeftOut.ONE_TURN
    values = [[value for value in turn.entropies or () if value is not None] for turn in turns]
    question = trajectory.question
    return Measured(
        question.videos[0].path if question.videos else "/".join(question.key[:3]),
        tuple(math.fsum(of) / len(of) for of in values),
        tuple(map(len, values)),
    )


def evidence_pivot(trajectory: Trajectory, truth: Truth) -> int | None:
    """The first turn whose look showed some of the evidence, counted from 1; `None` if none did or none is known."""
    spans = evidence_spans(trajectory, truth)
    for number, turn in enumerate(trajectory.turns, 1):
        look = turn.shown
        if look is not None and any(shows(look, span) for span in spans.get(look.video, ())):
            return number
    return None


@dataclass(frozen=True)
class Control:
    """What the pivotal turns are compared with."""

    share: Interval | None
    """The share above the mean that the compared turns have, averaged over pivotal turns."""
    difference: Interval | None
    """The pivotal turns minus that, turn by turn."""
    unmatched: int = 0
    """Pivotal turns that have nothing to be compared with."""


@dataclass(frozen=True)
class Forks:
    """Whether pivotal turns are uncertain; the module says what each number is."""

    trajectories: int
    turns: float
    """Turns of a trajectory on average."""
    above: Interval | None
    """The paper's number: the share of pivotal turns with an entropy above their trajectory's mean."""
    chance: Control
    position: Control
    length: Control
    residual: Interval | None
    """The share of pivotal turns above what the regression expects; `None` with fewer than `LEAST_TURNS` turns."""
    residual_chance: Control

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)

    def rows(self) -> list[tuple[str, Interval | None, Interval | None, int]]:
        """(name, share, difference to the pivotal turns, unmatched), for a table."""
        controls = [("a random turn", self.chance), ("same position", self.position), ("same length", self.length)]
        rows: list[tuple[str, Interval | None, Interval | None, int]] = [("pivotal turns", self.above, None, 0)]
        rows += [(name, of.share, of.difference, of.unmatched) for name, of in controls]
        rows.append(("pivotal turns, position and length out", self.residual, None, 0))
        after = self.residual_chance
        return [*rows, ("a random turn, position and length out", after.share, after.difference, after.unmatched)]


def analyse(measured: Sequence[Measured], pivots: Sequence[int]) -> Forks:
    """Compare the pivotal turns with the others.

    Args:
        measured: Trajectories with a pivotal turn.
        pivots: The number of the pivotal turn of each, from 1.

    Raises:
        ValueError: a trajectory has no such turn.
    """
    for one, pivot in zip(measured, pivots, strict=True):
        if not 1 <= pivot <= len(one.entropies):
            raise ValueError(f"turn {pivot} of a trajectory with {len(one.entropies)} turns")
    videos = [one.video for one in measured]
    above = [one.above for one in measured]
    hits = [flags[pivot - 1] for flags, pivot in zip(above, pivots, strict=True)]

    def control(shares: Sequence[float | None], own: Sequence[bool]) -> Control:
        differences = [None if share is None else hit - share for hit, share in zip(own, shares, strict=True)]
        return Control(
            mean(shares, videos, (0.0, 1.0)), mean(differences, videos, (-1.0, 1.0)), sum(s is None for s in shares)
        )

    residuals = _residuals(measured)
    expected = [tuple(bool(value > _ROUNDING) for value in of) for of in residuals] if residuals is not None else None
    beyond = [flags[pivot - 1] for flags, pivot in zip(expected, pivots, strict=True)] if expected is not None else []
    return Forks(
        trajectories=len(measured),
        turns=sum(len(one.entropies) for one in measured) / len(measured) if measured else 0.0,
        above=proportion(hits, videos),
        chance=control([sum(flags) / len(flags) for flags in above], hits),
        position=control(_same_position(above, pivots), hits),
        length=control(_same_length(measured, above, pivots), hits),
        residual=proportion(beyond, videos) if expected is not None else None,
        residual_chance=control([sum(flags) / len(flags) for flags in expected], beyond)
        if expected is not None
        else Control(None, None),
    )


def _same_position(above: Sequence[Sequence[bool]], pivots: Sequence[int]) -> list[float | None]:
    """For each pivotal turn, the share of the turns at its position in other trajectories that are above their mean."""

    def position(number: int, turns: int) -> int:
        return 0 if number == turns else number

    hits: dict[int, int] = {}
    counts: dict[int, int] = {}
    for flags in above:
        for number, flag in enumerate(flags, 1):
            at = position(number, len(flags))
            hits[at], counts[at] = hits.get(at, 0) + flag, counts.get(at, 0) + 1
    found: list[float | None] = []
    for flags, pivot in zip(above, pivots, strict=True):
        at = position(pivot, len(flags))
        others = counts[at] - 1
        found.append((hits[at] - flags[pivot - 1]) / others if others else None)
    return found


def _same_length(
    measured: Sequence[Measured], above: Sequence[Sequence[bool]], pivots: Sequence[int]
) -> list[float | None]:
    """For each pivotal turn, the share of the nearest turns by number of tokens, in other trajectories."""
    turns = sorted(
        (math.log(tokens), number, at) for number, one in enumerate(measured) for at, tokens in enumerate(one.tokens)
    )
    lengths = [length for length, _, _ in turns]
    found: list[float | None] = []
    for number, (one, pivot) in enumerate(zip(measured, pivots, strict=True)):
        length = math.log(one.tokens[pivot - 1])
        high = bisect.bisect_left(lengths, length)
        low, nearest = high - 1, list[bool]()
        while len(nearest) < NEIGHBOURS and (low >= 0 or high < len(turns)):
            down = length - lengths[low] if low >= 0 else math.inf
            up = lengths[high] - length if high < len(turns) else math.inf
            _, of, at = turns[high] if up <= down else turns[low]
            low, high = (low, high + 1) if up <= down else (low - 1, high)
            if of != number:
                nearest.append(above[of][at])
        found.append(sum(nearest) / len(nearest) if nearest else None)
    return found


def _residuals(measured: Sequence[Measured]) -> list[FloatArray] | None:
    """Entropies minus what position and length explain within trajectories."""
    if sum(len(one.entropies) for one in measured) < LEAST_TURNS:
        return None
    columns, values = [], []
    for one in measured:
        n = len(one.entropies)
        number = np.arange(n)
        of = np.stack([number == 0, number == n - 1, number / (n - 1), np.log(one.tokens)], axis=1).astype(float)
        columns.append(of - of.mean(axis=0))
        values.append(np.array(one.entropies) - np.mean(one.entropies))
    slopes, *_ = np.linalg.lstsq(np.concatenate(columns), np.concatenate(values), rcond=None)
    return [value - column @ slopes for value, column in zip(values, columns, strict=True)]


def agreement(picks: Mapping[Any, int], known: Mapping[Any, int], videos: Mapping[Any, str]) -> Interval | None:
    """How often a judge's pivotal turn is the one that showed the evidence first, over trajectories that have both."""
    both = [key for key in picks if key in known]
    return proportion([picks[key] == known[key] for key in both], [videos[key] for key in both])
