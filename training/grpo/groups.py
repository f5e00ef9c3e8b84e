"""Which questions a training step learns from, the advantage of each trajectory, and who computes what.

All functions are pure and take what all processes hold: rewards are gathered first, so every process takes the same
decision. NaN stands for an unscorable reward, as in TRL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from apr_plugin.errors import AprError
from apr_plugin.training.grpo.across import FloatArray
from apr_plugin.training.grpo.rewards import Reward
from apr_plugin.training.grpo.settings import GrpoSettings
from apr_plugin.training.grpo.turns import IntArray

EPSILON = 1e-4
"""Added to the standard deviation, as in TRL 1.16 (`grpo_trainer.py`)."""

NO_SPREAD = 1e-8
"""Rewards that are no further apart are equal."""

Scale = Literal["group", "batch", "none"]


class GroupError(AprError):
    """Groups can't be made of these arrays."""


class GroupSettings(GrpoSettings):
    """How groups are chosen and compared."""

    scale_rewards: Scale = "group"
    """By what the difference to the group's mean is divided: the standard deviation of its `group` (the paper, eq. 3),
    of the whole `batch`, or nothing (`none`; PyVision-RL, Dr. GRPO)."""
    oversample: float = Field(default=1.0, ge=1, le=64)
    """How many groups are sampled for each one that is learned from; 1 keeps all that have spread."""
    broken: Literal["drop_group", "leave_out"] = "drop_group"
    """What a broken trajectory does: its whole group is dropped, or it alone is left out, if two others are left."""


def as_array(rewards: Sequence[Reward]) -> FloatArray:
    """The totals, NaN for unscorable ones: shape (n,)."""
    return np.array([np.nan if one.total is None else one.total for one in rewards], dtype=float)


def advantages(rewards: ArrayLike, group: ArrayLike, scale: Scale = "group") -> FloatArray:
    """The advantage of each trajectory, as TRL 1.16 computes it (`_generate_and_score_completions`).

    A = R - mean of the group, divided by (standard deviation + 1e-4) unless `scale` is `none`. Means and deviations are
    over the scorable trajectories; the deviation divides by n - 1. Unscorable trajectories have advantage 0, and so has
    one that is alone in its group (with `batch`, in the batch).

    Args:
        rewards: Shape (n,): one for each trajectory, of all processes; NaN if unscorable.
        group: Shape (n,): the question of each, any whole numbers. Groups may differ in size.
        scale: See `GroupSettings.scale_rewards`.

    Raises:
        GroupError: shapes don't fit, or a reward is infinite.
    """
    values, of = _arrays(rewards, group)
    if scale not in ("group", "batch", "none"):
        raise GroupError(f"scale_rewards={scale!r}: it is group, batch or none")
    found = np.zeros(len(values))
    known = ~np.isnan(values)
    for number in np.unique(of[known]):
        places = known & (of == number)
        found[places] = values[places] - values[places].mean()
        if scale == "group":
            found[places] /= _deviation(values[places]) + EPSILON
    if scale == "batch" and known.any():
        found[known] /= _deviation(values[known]) + EPSILON
    return found


def _deviation(values: FloatArray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _arrays(rewards: ArrayLike, group: ArrayLike) -> tuple[FloatArray, IntArray]:
    values, of = np.asarray(rewards, dtype=float), np.asarray(group, dtype=np.int64)
    if values.ndim != 1 or values.shape != of.shape:
        raise GroupError(f"rewards have shape {values.shape} and groups {of.shape}; each trajectory has one of both")
    if np.isinf(values).any():
        at = int(np.flatnonzero(np.isinf(values))[0])
        raise GroupError(f"the reward of trajectory {at} (group {of[at]}) is {values[at]:g}; it must be finite")
    return values, of


class Fate(StrEnum):
    """What becomes of a group."""

    KEPT = "kept"
    """It is learned from."""
    BROKEN = "broken"
    """A trajectory of it is broken."""
    TOO_FEW = "too_few"
    """Fewer than two of its trajectories have a reward."""
    ALL_ZERO = "all_zero"
    """All of its rewards are 0."""
    ALL_ONE = "all_one"
    """All of its rewards are 1."""
    NO_SPREAD = "no_spread"
    """All of its rewards are equal, and neither 0 nor 1."""
    SURPLUS = "surplus"
    """Enough other groups have a larger spread."""


@dataclass(frozen=True)
class Chosen:
    """The groups that a step learns from."""

    groups: tuple[int, ...]
    """Their numbers, the largest spread first."""
    fates: Mapping[int, Fate]
    """What became of each group, by number."""

    def shares(self) -> dict[str, float]:
        """The share of groups with each fate, for a log; all of them, so that a fate that does not occur is 0."""
        counts = [list(self.fates.values()).count(fate) for fate in Fate]
        return {str(fate): count / max(1, len(self.fates)) for fate, count in zip(Fate, counts, strict=True)}


def choose(
    rewards: ArrayLike,
    group: ArrayLike,
    wanted: int | None = None,
    *,
    broken: ArrayLike | None = None,
    settings: GroupSettings | None = None,
) -> Chosen:
    """Oversample, filter, rank (PyVision-RL, arXiv 2602.20739): which groups to learn from.

    Groups whose rewards have no spread teach nothing and are dropped, and so are groups with a broken trajectory. Of
    the rest, those with the largest standard deviation are kept. Whole groups are kept: PyVision-RL cuts its list of
    trajectories, which can split a group. Equal spreads are kept in the order of their numbers. The result depends on
    the gathered arrays alone, so it is the same in each process.

    Args:
        rewards: Shape (n,), of all processes; NaN if unscorable.
        group: Shape (n,).
        wanted: Most groups to keep; `None` keeps all with spread.
        broken: Shape (n,): which trajectories can't be learned from (they failed, or are too long). Unscorable ones are
            broken in any case.
        settings: What a broken trajectory does.

    Raises:
        GroupError: shapes don't fit, a reward is infinite, or `wanted` is below 1.
    """
    values, of = _arrays(rewards, group)
    chosen = settings or GroupSettings()
    if wanted is not None and wanted < 1:
        raise GroupError(f"{wanted} groups are wanted; it must be at least 1")
    lost = np.isnan(values)
    if broken is not None:
        told = np.asarray(broken, dtype=bool)
        if told.shape != values.shape:
            raise GroupError(f"broken has shape {told.shape}, and there are {len(values)} trajectories")
        lost |= told
    fates: dict[int, Fate] = {}
    spreads: dict[int, float] = {}
    for number in np.unique(of).tolist():
        own = values[(of == number) & ~lost]
        fates[number] = _fate(own, bool(lost[of == number].any()), chosen)
        spreads[number] = _deviation(own)
    kept = sorted((n for n, fate in fates.items() if fate is Fate.KEPT), key=lambda n: (-round(spreads[n], 12), n))
    for number in kept[len(kept) if wanted is None else wanted :]:
        fates[number] = Fate.SURPLUS
    return Chosen(tuple(kept[:wanted]), fates)


def _fate(values: FloatArray, broken: bool, settings: GroupSettings) -> Fate:
    if broken and settings.broken == "drop_group":
        return Fate.BROKEN
    if len(values) < 2:
        return Fate.TOO_FEW
    if np.ptp(values) > NO_SPREAD:
        return Fate.KEPT
    at = float(values.mean())
    return Fate.ALL_ZERO if abs(at) <= NO_SPREAD else Fate.ALL_ONE if abs(at - 1) <= NO_SPREAD else Fate.NO_SPREAD


@dataclass(frozen=True)
class Shares:
    """Who computes which rows."""

    rows: tuple[IntArray, ...]
    """For each process, the numbers of its rows, in ascending order."""
    tokens: IntArray
    """For each process, how many tokens they have, shape (processes,)."""

    @property
    def longest(self) -> float:
        """The tokens of the busiest process over the mean: 1 is balanced."""
        mean = float(self.tokens.mean())
        return float(self.tokens.max()) / mean if mean > 0 else 1.0


def rebalance(tokens: ArrayLike, processes: int, *, even_rows: bool = False) -> Shares:
    """Spread rows over processes so that all have about as many tokens.

    The longest row first, each to the process with the fewest tokens so far (longest processing time first; R. L.
    Graham, SIAM J. Appl. Math. 17, 1969: the busiest one has at most 4/3 of the best possible). Equal rows go in the
    order of their numbers, and of equal processes the first one gets the row, so each process finds the same shares.

    Args:
        tokens: Shape (n,): the length of each row.
        processes: How many there are.
        even_rows: Whether no process gets more than n / processes rows, rounded up: where each process makes one
            forward pass a row and all wait for each other, the number of rows matters too. The bound is then lost.

    Raises:
        GroupError: a length is negative, or there is no process.
    """
    lengths = np.asarray(tokens, dtype=np.int64)
    if processes < 1:
        raise GroupError(f"{processes} processes: there must be at least 1")
    if lengths.ndim != 1 or (lengths < 0).any():
        raise GroupError(f"lengths of rows must be whole numbers of at least 0, one a row, not {lengths.tolist()[:9]}")
    most = -(-len(lengths) // processes) if even_rows else len(lengths)
    rows: list[list[int]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for row in sorted(range(len(lengths)), key=lambda at: (-int(lengths[at]), at)):
        free = [at for at in range(processes) if len(rows[at]) < most]
        least = min(free, key=lambda at: (loads[at], len(rows[at]), at))
        rows[least].append(row)
        loads[least] += int(lengths[row])
    return Shares(tuple(np.array(sorted(of), dtype=np.int64) for of in rows), np.array(loads, dtype=np.int64))
