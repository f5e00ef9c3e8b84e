"""Which turn gets how much of its trajectory's advantage: the rules of credit, by name.

A rule turns the advantage of each trajectory into one for each turn. Most multiply it by a weight whose mean over the
turns of a question's group is one, so that they move credit between turns and don't change how much there is. Each of
them has two parts, so that the turns may lie in several processes: `local_sums` of what one process holds, and
`weights_from` the sums over all of them; an all-reduce of one small array lies between. `credit` does both.

| name | weight w of a turn, or its advantage | source |
|---|---|---|
| `none` | 1 | GRPO, arXiv 2402.03300 |
| `taura` | H / mean of H over all turns of all trajectories of the question | arXiv 2606.19341, eq. 4 |
| `taura_trajectory` | H / mean of H over the turns of its own trajectory | ours: TAURA without the trajectory's share |
| `taura_clipped` | c / mean of c, with c = taura's weight within [clip_low, clip_high] | ours |
| `taura_action` | `taura` with H over the tokens of the action alone | ours |
| `taura_tokens` | H / mean of H over all tokens of the question: the mean over tokens is one | ours |
| `shuffled` | taura's weights, permuted at random within the question | ours: the control for mere noise |
| `empg` | A g(H) + zeta f(H of the next turn) - mean over the batch: damps uncertain turns | arXiv 2509.09265 |
| `information_gain` | sum of gamma^(k-t) of the normalised gains from turn t on | arXiv 2510.14967 (IGPO) |

Nothing is differentiated: weights are constants of the loss. Turns that don't count (padding, copies, failed
trajectories) get weight 0. Where H is 0 in all turns of a group, all of its weights are 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, field_validator

from apr_plugin.policies import did_you_mean
from apr_plugin.terminal import quoted
from apr_plugin.training.grpo.across import Across, FloatArray, OneProcess
from apr_plugin.training.grpo.settings import GrpoSettings
from apr_plugin.training.grpo.turns import BoolArray, CreditError, IntArray, Turns

EPSILON = 1e-8
"""In EMPG's normalisation of entropies, as its authors' listing has it."""

GAIN_EPSILON = 1e-6
"""Added to the standard deviation of gains, as IGPO's code does."""


class CreditSettings(GrpoSettings):
    """Which rule, and its numbers; numbers of other rules are ignored."""

    rule: str = "taura"
    """Name of the rule."""
    entropies: Literal["full", "top_k"] = "full"
    """`top_k` accepts entropies over the likeliest tokens only, which no paper here means."""
    clip_low: float = Field(default=0.5, ge=0, lt=1)
    """`taura_clipped`: the least weight."""
    clip_high: float = Field(default=2.0, gt=1)
    """`taura_clipped`: the largest weight."""
    empg_k: float = Field(default=1.0, ge=0)
    """`empg`: how strongly a turn's own uncertainty damps its credit."""
    empg_k_future: float = Field(default=1.0, ge=0)
    """`empg`: how fast the bonus falls with the uncertainty of the next turn."""
    empg_zeta: float = Field(default=0.05, ge=0)
    """`empg`: weight of that bonus. The listing on the authors' page has 0.1 as its default."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """`information_gain`: discount of later gains."""
    seed: int = Field(default=0, ge=0)
    """`shuffled`: of the permutations."""

    @field_validator("rule")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            rule_named(name)
        except CreditError as error:
            raise ValueError(str(error)) from error
        return name


@dataclass(frozen=True)
class Credit:
    """The credit of the turns that one process holds."""

    advantages: FloatArray
    """The advantage of each turn, shape (n,); 0 for turns that don't count."""
    weights: FloatArray
    """By which the trajectory's advantage was multiplied, shape (n,); 1 for `information_gain`, which replaces it."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Over all processes: `turns` and `not_counted`, and of the weights `mean`, `std`, `min` and `max`."""


Rule = Callable[[Turns, FloatArray, CreditSettings, Across, int], tuple[FloatArray, FloatArray]]
"""Turns, their trajectories' advantages, settings, processes, step -> advantages and weights of the turns."""


def credit(
    turns: Turns,
    advantages: ArrayLike,
    settings: CreditSettings | None = None,
    across: Across | None = None,
    *,
    step: int = 0,
) -> Credit:
    """The advantage of each turn. All processes must call it, also one that holds no turn.

    Args:
        turns: The turns of this process.
        advantages: Shape (n,): the advantage of each turn's trajectory (`groups.advantages`).
        settings: The rule.
        across: The other processes; by default there are none.
        step: Of the training run; `shuffled` draws anew at each.

    Raises:
        CreditError: a value is missing or not finite, or entropies are not over the whole vocabulary; the message names
            the turn. In a run of several processes, the others wait for this one, so let it end the run.
    """
    chosen, every = settings or CreditSettings(), across or OneProcess()
    given = np.asarray(advantages, dtype=float)
    if given.shape != (len(turns),):
        raise CreditError(f"there are {len(turns)} turns, and advantages of shape {given.shape}")
    wrong = turns.counted & ~np.isfinite(given)
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise CreditError(f"{turns.name(at)}: the advantage of its trajectory is {given[at]:g}")
    if chosen.rule in NEED_ENTROPY and turns.top_k is not None and chosen.entropies != "top_k" and len(turns):
        raise CreditError(
            f"the entropies are over the likeliest {turns.top_k} tokens, and the rule {chosen.rule} means the whole "
            "vocabulary: recompute them with the model (policy=hf, or the trainer's forward pass), or set "
            "entropies: top_k to use them as they are"
        )
    given = np.where(turns.counted, given, 0.0)
    values, weights = rule_named(chosen.rule)(turns, given, chosen, every, step)
    values = np.where(turns.counted, values, 0.0)
    return Credit(values, weights, _metrics(weights, turns.counted, every))


def rule_named(name: str) -> Rule:
    """The rule of a name.

    Raises:
        CreditError: there is none.
    """
    if name not in RULES:
        raise CreditError(
            f"there is no rule of credit {quoted(name, 60)}{did_you_mean(name, RULES)}; the rules are "
            f"{', '.join(RULES)}"
        )
    return RULES[name]


def local_sums(
    values: FloatArray, unit: IntArray, counted: BoolArray, units: int, amounts: ArrayLike | None = None
) -> FloatArray:
    """What one process adds to the means: shape (units, 2), the sum of the values and their number.

    Args:
        values: Shape (n,).
        unit: Shape (n,): which mean each value belongs to, from 0 to `units` - 1.
        counted: Shape (n,): which values count.
        units: How many means there are, over all processes.
        amounts: Shape (n,): how much each value counts; by default 1.
    """
    amount = np.ones(len(values)) if amounts is None else np.asarray(amounts, dtype=float)
    columns = [
        np.bincount(unit[counted], weights=(amount * column)[counted], minlength=units)
        for column in (values, np.ones(len(values)))
    ]
    return np.stack(columns, axis=1)


def weights_from(values: FloatArray, unit: IntArray, counted: BoolArray, sums: FloatArray) -> FloatArray:
    """Each value over the mean of its unit: shape (n,); 1 where that mean is 0, and 0 where it does not count.

    Args:
        values: As for `local_sums`.
        unit: As for `local_sums`.
        counted: As for `local_sums`.
        sums: The local sums, added over all processes.
    """
    weights = np.zeros(len(values))
    total, count = sums[unit[counted]].T
    with np.errstate(divide="ignore", invalid="ignore"):
        weights[counted] = np.where(total > 0, values[counted] / (total / count), 1.0)
    return weights


def _over_mean(
    values: FloatArray,
    unit: IntArray,
    units: int,
    counted: BoolArray,
    across: Across,
    amounts: ArrayLike | None = None,
) -> FloatArray:
    sums = across.add(local_sums(values, unit, counted, units, amounts))
    return weights_from(values, unit, counted, sums)


def _taura_weights(turns: Turns, across: Across) -> FloatArray:
    return _over_mean(turns.entropy, turns.group, turns.groups, turns.counted, across)


def _none(
    turns: Turns, given: FloatArray, settings: CreditSettings, across: Across, step: int
) -> tuple[FloatArray, FloatArray]:
    weights = turns.counted.astype(float)
    return given * weights, weights


def _taura(
    turns: Turns, given: FloatArray, settings: CreditSettings, across: Across, step: int
) -> tuple[FloatArray, FloatArray]:
    weights = _taura_weights(turns, across)
    return given * weights, weights


def _taura_trajectory(
    turns: Turns, given: FloatArray, settings: CreditSettings, across: Across, step: int
) -> tuple[FloatArray, FloatArray]:
    weights = _over_mean(turns.entropy, turns.trajectory, turns.trajectories, turns.counted, across)
    return given * weights, weights


def _taura_clipped(
    turns: Turns, given: FloatArray, settings: CreditSettings, across: Across, step: int
) -> tuple[FloatArray, FloatArray]:
    """Weights are from clip_low / clip_high to clip_high / clip_low, because the mean is restored after clipping."""
    clipped = np.clip(_taura_weights(turns, across), settings.clip_low, settings.clip_high)
    weights = _over_mean(clipped, turns.group, turns.groups, turns.counted, across)
    return given * weights, weights


def _taura_action(
    turns: Turns, given: FloatArray, settings: CreditSettings, across: Across, step: int
) -> tuple[FloatArray, FloatArray]:
    """A turn without an action is in no mean, and has weight 1."""
    if turns.action_entropy is None:
        raise CreditError("taura_action needs to know which tokens are the action; give `action` or `decode`")
    acts = turns.counted & ~np.isnan(turns.action_entropy)
    values = np.where(acts, turns.action_entropy, 0.0)
    weights = _over_mean(values, turns.group, turns.groups, acts, across)
    weights[turns.counted & ~acts] = 1.0
    return given * weights, weights


def _taura_tokens(
    turns: Turns, given: FloatArray, settings: CreditSettings, across: Across, step: int
) -> tuple[FloatArray, FloatArray]:
    """Long turns count for more in the mean, as they do in a loss that is a mean over tokens (DAPO)."""
    weights = _over_mean(turns.entropy, turns.group, turns.groups, turns.counted, across, turns.tokens)
    return given * weights, weights


def _shuffled(
    turns: Turns, given: FloatArray, settings: CreditSettings, across: Across, step: int
) -> tuple[FloatArray, FloatArray]:
    own = _taura_weights(turns, across)
    every, start = across.gather(_columns(turns, own))
    moved = every[:, -1].copy()
    for group in np.unique(every[:, 0]):
        places = np.flatnonzero((every[:, 0] == group) & (every[:, 3] > 0))
        places = places[np.lexsort((every[places, 2], every[places, 1]))]  # the same in any order of rows
        chance = np.random.default_rng((settings.seed, step, int(group)))
        moved[places] = every[chance.permutation(places), -1]
    weights = moved[start : start + len(turns)]
    return given * weights, weights


def _empg(
    turns: Turns, given: FloatArray, settings: CreditSettings, across: Across, step: int
) -> tuple[FloatArray, FloatArray]:
    """Entropy-modulated policy gradients (arXiv 2509.09265, eq. 7, 8, 10-12; the listing on empgseed-seed.github.io).

    Over all turns of the batch: Hn = (H - min) / (max - min + 1e-8); g = exp(-k Hn) / mean of exp(-k Hn);
    f = exp(-k' Hn). A turn's advantage is A g(H) + zeta f(H of the next turn), where there is a next turn, minus the
    mean of that over all turns. It works against TAURA: an uncertain turn gets less credit.
    """
    every, start = across.gather(_columns(turns, turns.entropy, given))
    counts = every[:, 3] > 0
    result, weights = np.zeros(len(every)), np.zeros(len(every))
    if counts.any():
        entropy, advantage = every[counts, 4], every[counts, 5]
        scaled = (entropy - entropy.min()) / (np.ptp(entropy) + EPSILON)
        damp = np.exp(-settings.empg_k * scaled)
        damp /= damp.mean()
        clear = np.exp(-settings.empg_k_future * scaled)
        order = np.lexsort((every[counts, 2], every[counts, 1]))
        bonus = np.zeros(len(order))
        follows = every[counts, 1][order][1:] == every[counts, 1][order][:-1]
        bonus[order[:-1]] = np.where(follows, clear[order[1:]], 0.0)
        mixed = advantage * damp + settings.empg_zeta * bonus
        result[counts], weights[counts] = mixed - mixed.mean(), damp
    own = slice(start, start + len(turns))
    return result[own], weights[own]


def information_gain(probability: ArrayLike) -> FloatArray:
    """What each look told: p(right answer | notes after it) - p(right answer | notes before it), shape (n,).

    IGPO (arXiv 2510.14967) takes for p(answer) the geometric mean of the answer's token probabilities under the policy,
    exp(mean of log p), with the right answer forced after the notes. The gains of a trajectory add up to the change
    from its first to its last notes.

    Args:
        probability: Shape (n, 2), before and after; NaN gives NaN.

    Raises:
        CreditError: a value is not a probability.
    """
    values = np.asarray(probability, dtype=float).reshape(-1, 2)
    wrong = ~((values >= 0) & (values <= 1) | np.isnan(values))
    if wrong.any():
        row, column = (int(place[0]) for place in np.nonzero(wrong))
        raise CreditError(f"row {row}: {values[row, column]:g} is not a probability")
    gains: FloatArray = values[:, 1] - values[:, 0]
    return gains


def _information_gain(
    turns: Turns, given: FloatArray, settings: CreditSettings, across: Across, step: int
) -> tuple[FloatArray, FloatArray]:
    """IGPO (arXiv 2510.14967): each turn but the last is rewarded with its information gain, the last with the outcome.

    Rewards are normalised over all turns of the question, (r - mean) / (std + 1e-6) with the population's standard
    deviation, then added up backwards within a trajectory: A_t = sum over k >= t of gamma^(k - t) r_k. The trajectory's
    advantage is not used.
    """
    if turns.probability is None or turns.reward is None:
        raise CreditError("information_gain needs probabilities and rewards; see Turns.with_probabilities")
    gains = information_gain(turns.probability)
    every, start = across.gather(_columns(turns, gains, turns.reward))
    counts = every[:, 3] > 0
    last = np.zeros(len(every), dtype=bool)
    order = np.lexsort((every[:, 2], every[:, 1]))
    order = order[counts[order]]
    last[order] = np.append(every[order[1:], 1] != every[order[:-1], 1], np.ones(min(1, len(order)), dtype=bool))
    rewards = np.where(last, every[:, 5], every[:, 4])
    missing = counts & ~np.isfinite(rewards)
    if missing.any():
        at = int(np.flatnonzero(missing)[0])
        what = "its trajectory has no reward" if last[at] else "it has no probability before or after it"
        raise CreditError("question {:g}, trajectory {:g}, turn {:g}: ".format(*every[at, :3]) + what)
    rewards = np.where(counts, rewards, 0.0)
    for group in np.unique(every[counts, 0]):
        places = counts & (every[:, 0] == group)
        rewards[places] = (rewards[places] - rewards[places].mean()) / (rewards[places].std() + GAIN_EPSILON)
    result, after = np.zeros(len(every)), 0.0
    for at in order[::-1]:
        after = rewards[at] + (0.0 if last[at] else settings.gamma * after)
        result[at] = after
    return result[start : start + len(turns)], turns.counted.astype(float)


def _columns(turns: Turns, *values: FloatArray) -> FloatArray:
    """What a process tells the others of its turns: group, trajectory, number, whether it counts, and the values."""
    ids = (turns.group, turns.trajectory, turns.number, turns.counted)
    return np.stack([np.asarray(column, dtype=float) for column in (*ids, *values)], axis=1)


def _metrics(weights: FloatArray, counted: BoolArray, across: Across) -> dict[str, float]:
    own = weights[counted]
    sums = across.add(np.array([len(own), len(weights) - len(own), own.sum(), (own**2).sum()]))
    ends = across.highest(np.array([own.max(initial=-np.inf), (-own).max(initial=-np.inf)]))
    turns, left_out, total, squares = map(float, sums)
    found = {"turns": turns, "not_counted": left_out}
    if turns:
        mean = total / turns
        found |= {"mean": mean, "std": max(0.0, squares / turns - mean**2) ** 0.5}
        found |= {"min": -float(ends[1]), "max": float(ends[0])}
    return found


RULES: dict[str, Rule] = {
    "none": _none,
    "taura": _taura,
    "taura_trajectory": _taura_trajectory,
    "taura_clipped": _taura_clipped,
    "taura_action": _taura_action,
    "taura_tokens": _taura_tokens,
    "shuffled": _shuffled,
    "empg": _empg,
    "information_gain": _information_gain,
}
"""Every rule by its name."""

NEED_ENTROPY = frozenset(RULES) - {"none", "information_gain"}
"""The rules that read entropies."""
