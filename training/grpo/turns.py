"""The turns of a batch as arrays, one element a turn, as the rules of credit read them.

A turn's entropy H is the mean, over all tokens that the policy wrote in it, of the entropy (nats) of the distribution
from which the token was drawn: over the whole vocabulary, at the sampling temperature, of the policy that sampled
(arXiv 2606.19341, eq. 4; `get_entropy_weights` of its code averages over all response tokens, scaffolding and end
included). vLLM and servers give entropies over the likeliest k tokens only. These are another quantity, so a batch says
what it has (`top_k`), and a rule refuses it unless the settings ask for it.

policy=hf records the first kind, without the tokens that it never writes (`PromptEncoder.never_written`, such as the
placeholders of media). A forward pass that is to give the same numbers has to leave out the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from apr_plugin.errors import AprError
from apr_plugin.loop.trajectory import Trajectory, Turn
from apr_plugin.training.grpo.across import FloatArray
from apr_plugin.training.grpo.action_tokens import action_mask

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

SLIGHTLY_NEGATIVE = -1e-3
"""Entropies down to this are rounding errors and count as 0; lower ones are errors."""


class CreditError(AprError):
    """Credit can't be computed; the message names the turn."""


@dataclass(frozen=True)
class Turns:
    """The turns that one process holds. All arrays have shape (n,), unless their docstring says otherwise."""

    group: IntArray
    """The question of each turn: a number from 0 to `groups` - 1, the same in all processes."""
    trajectory: IntArray
    """The trajectory of each turn: a number from 0 to `trajectories` - 1, the same in all processes. A trajectory
    belongs to one group; its turns may be in several processes."""
    number: IntArray
    """The number of the turn in its trajectory, from 1."""
    entropy: FloatArray
    """Mean entropy of its tokens, in nats."""
    tokens: IntArray
    """How many tokens the policy wrote."""
    counted: BoolArray
    """False for padding, for copies and for turns of failed trajectories: they are in no mean, and get no credit."""
    groups: int
    """Questions in the batch, over all processes."""
    trajectories: int
    """Trajectories in the batch, over all processes."""
    top_k: int | None = None
    """With `None`, entropies are over the whole vocabulary. Otherwise over this many of the likeliest tokens."""
    action_entropy: FloatArray | None = None
    """Mean entropy of the tokens of the turn's action; NaN for a turn without an action. `None`: not known."""
    probability: FloatArray | None = None
    """Shape (n, 2): the probability of the right answer, given the notes before and after the turn; NaN where it was
    not computed. `None`: not known."""
    reward: FloatArray | None = None
    """The reward of the turn's trajectory. `None`: not known."""

    def __post_init__(self) -> None:
        n = len(self.group)
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray) and value.shape != ((n, 2) if name == "probability" else (n,)):
                raise CreditError(f"{name} has shape {value.shape}, and there are {n} turns")
        for name, many in (("group", self.groups), ("trajectory", self.trajectories)):
            of = getattr(self, name)[self.counted]
            if len(of) and (of.min() < 0 or of.max() >= many):
                raise CreditError(f"{name} goes from {of.min()} to {of.max()}; it must be from 0 to {many - 1}")
        # A copy in another process can't be seen here: whoever makes it clears `counted`.
        counted = self.counted & _first(np.stack([self.trajectory, self.number], axis=1), self.counted)
        object.__setattr__(self, "counted", counted)
        self._check()

    def _check(self) -> None:
        for name, values in (("entropy", self.entropy), ("action entropy", self.action_entropy)):
            if values is None:
                continue
            wrong = self.counted & ~(values >= SLIGHTLY_NEGATIVE) | self.counted & np.isinf(values)
            if name == "action entropy":
                wrong &= ~np.isnan(values)
            if wrong.any():
                at = int(np.flatnonzero(wrong)[0])
                raise CreditError(f"{self.name(at)}: its {name} is {_shown(values[at])}; it must be a number of nats")
        if self.probability is not None:
            low, high = np.fmin.reduce(self.probability, axis=1), np.fmax.reduce(self.probability, axis=1)
            wrong = self.counted & ((low < 0) | (high > 1))
            if wrong.any():
                at = int(np.flatnonzero(wrong)[0])
                raise CreditError(f"{self.name(at)}: {low[at]:g} and {high[at]:g} are not both probabilities")
        empty = self.counted & (self.tokens < 1)
        if empty.any():
            raise CreditError(f"{self.name(int(np.flatnonzero(empty)[0]))}: it has no token")
        object.__setattr__(self, "entropy", np.where(self.counted, np.maximum(self.entropy, 0.0), 0.0))
        if self.action_entropy is not None:
            object.__setattr__(self, "action_entropy", np.maximum(self.action_entropy, 0.0))

    def __len__(self) -> int:
        return len(self.group)

    def name(self, at: int) -> str:
        """Which turn it is, for messages."""
        return f"question {self.group[at]}, trajectory {self.trajectory[at]}, turn {self.number[at]}"

    def with_probabilities(self, probability: ArrayLike, reward: ArrayLike) -> Turns:
        """The same turns with what `information_gain` needs.

        Args:
            probability: Shape (n, 2): p(right answer | notes) before and after each turn; NaN where there is none.
            reward: Shape (n,): the reward of each turn's trajectory.
        """
        return replace(self, probability=np.asarray(probability, dtype=float), reward=np.asarray(reward, dtype=float))


def _first(keys: IntArray, among: BoolArray) -> BoolArray:
    """Which rows are the first with their key, among those that count."""
    first = np.zeros(len(keys), dtype=bool)
    places = np.flatnonzero(among)
    if len(places):
        first[places[np.unique(keys[places], axis=0, return_index=True)[1]]] = True
    return first


def turns_of_tokens(
    entropies: ArrayLike,
    mask: ArrayLike,
    *,
    group: ArrayLike,
    trajectory: ArrayLike,
    number: ArrayLike,
    groups: int,
    trajectories: int,
    top_k: int | None,
    counted: ArrayLike | None = None,
    action: ArrayLike | None = None,
) -> Turns:
    """Turns from the entropies of their tokens, as a trainer has them after a forward pass.

    Args:
        entropies: Shape (n, tokens), in nats. What stands at masked places is ignored, NaN too.
        mask: Shape (n, tokens): true where the policy wrote the token; padding, on either side, is false.
        group: Shape (n,), see `Turns`.
        trajectory: Shape (n,).
        number: Shape (n,).
        groups: Questions in the batch, over all processes.
        trajectories: Trajectories in the batch, over all processes.
        top_k: `None` if the entropies are over the whole vocabulary; else over how many tokens. It has no default,
            because the numbers don't show it.
        counted: Shape (n,): false for padding rows, copies and failed trajectories; by default all count.
        action: Shape (n, tokens): true at the tokens of the turn's action (`action_tokens.action_mask`); a row without
            any has no action entropy.

    Raises:
        CreditError: shapes don't fit, or a token of a turn that counts has no finite entropy; the message names it.
    """
    values, wrote = np.asarray(entropies, dtype=float), np.asarray(mask, dtype=bool)
    if values.ndim != 2 or values.shape != wrote.shape:
        raise CreditError(f"entropies have shape {values.shape} and their mask {wrote.shape}; both are (turns, tokens)")
    n = len(values)
    ids = {
        name: np.asarray(given, dtype=np.int64)
        for name, given in (("group", group), ("trajectory", trajectory), ("number", number))
    }
    count = np.ones(n, dtype=bool) if counted is None else np.asarray(counted, dtype=bool)
    for name, given in (*ids.items(), ("counted", count)):
        if given.shape != (n,):
            raise CreditError(f"{name} has shape {given.shape}, and there are {n} turns")
    acts = None if action is None else np.asarray(action, dtype=bool)
    if acts is not None and acts.shape != values.shape:
        raise CreditError(f"action has shape {acts.shape}, and entropies {values.shape}")
    wrong = wrote & ~np.isfinite(values) & count[:, None]
    if wrong.any():
        row, column = (int(place[0]) for place in np.nonzero(wrong))
        where = "question {}, trajectory {}, turn {}".format(*(given[row] for given in ids.values()))
        token = int(wrote[row, : column + 1].sum())
        raise CreditError(f"{where}: the entropy of its token {token} is {_shown(values[row, column])}")
    return Turns(
        group=ids["group"],
        trajectory=ids["trajectory"],
        number=ids["number"],
        entropy=_mean(values, wrote, 0.0),
        tokens=wrote.sum(axis=1).astype(np.int64),
        counted=count,
        groups=groups,
        trajectories=trajectories,
        top_k=top_k,
        action_entropy=None if acts is None else _mean(values, wrote & acts, np.nan),
    )


def _mean(values: FloatArray, where: BoolArray, empty: float) -> FloatArray:
    counts = where.sum(axis=1)
    sums = np.where(where, values, 0.0).sum(axis=1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), empty)


Decode = Callable[[Sequence[int]], str]
"""The text of token ids, special tokens left out, as a tokenizer's `decode(ids, skip_special_tokens=True)`."""


def turns_of_trajectories(groups: Sequence[Sequence[Trajectory]], *, decode: Decode | None = None) -> Turns:
    """Turns from recorded trajectories and the entropies in them, in one process.

    Turns of a trajectory that failed don't count, nor does a trajectory that is given twice.

    Args:
        groups: The trajectories of each question.
        decode: The tokenizer, for the entropies of actions; without it they are not known.

    Raises:
        CreditError: a turn that counts has no entropies, or one of a token is missing; or entropies are over different
            numbers of tokens.
    """
    rows: list[tuple[int, int, int, bool, Turn]] = []
    known: dict[tuple[object, ...], int] = {}
    for number, group in enumerate(groups):
        for trajectory in group:
            key = (number, trajectory.question.key, trajectory.config_hash, trajectory.seed)
            again = key in known
            of = known.setdefault(key, len(known))
            count = not again and not trajectory.stop_reason.failed
            if count and trajectory.budget is None:
                raise CreditError(
                    f"{_named((number, of, 1))}: a trajectory of version 1 does not say over how many tokens its "
                    "entropies are; sample it again"
                )
            rows += [(number, of, at, count, turn) for at, turn in enumerate(trajectory.turns, 1)]
    values = [_entropies(*row) for row in rows]
    longest = max(map(len, values), default=0)
    padded, wrote = np.zeros((len(rows), longest)), np.zeros((len(rows), longest), dtype=bool)
    action = np.zeros((len(rows), longest), dtype=bool)
    for at, (row, found) in enumerate(zip(rows, values, strict=True)):
        padded[at, : len(found)], wrote[at, : len(found)] = found, True
        ids = row[4].token_ids
        if decode is not None and row[3]:
            if ids is None or len(ids) != len(found):
                raise CreditError(f"{_named(row)}: it has no token ids, so the tokens of its action can't be found")
            action[at, : len(found)] = action_mask(ids, decode)
    return turns_of_tokens(
        padded,
        wrote,
        group=[row[0] for row in rows],
        trajectory=[row[1] for row in rows],
        number=[row[2] for row in rows],
        counted=[row[3] for row in rows],
        groups=len(groups),
        trajectories=len(known),
        top_k=_one_top_k(rows),
        action=action if decode is not None else None,
    )


def _entropies(group: int, trajectory: int, number: int, counted: bool, turn: Turn) -> Sequence[float]:
    found = turn.entropies
    if not counted:
        return [0.0 if value is None else value for value in found or ()]
    where = _named((group, trajectory, number))
    if not found:
        raise CreditError(f"{where}: it has no entropies; only an engine that gives them can be trained with them")
    missing = [at for at, value in enumerate(found, 1) if value is None]
    if missing:
        raise CreditError(f"{where}: token {missing[0]} has no entropy (the engine gave none, or NaN)")
    return [value for value in found if value is not None]


def _named(row: Sequence[object]) -> str:
    return "question {}, trajectory {}, turn {}".format(*row[:3])


def _one_top_k(rows: Sequence[tuple[int, int, int, bool, Turn]]) -> int | None:
    found: dict[int | None, str] = {}
    for row in rows:
        if row[3]:
            found.setdefault(row[4].entropy_top_k, _named(row))
    if len(found) > 1:
        told = "; ".join(
            f"{where}: {'the whole vocabulary' if k is None else f'the likeliest {k} tokens'}"
            for k, where in found.items()
        )
        raise CreditError(f"entropies are over different numbers of tokens, so they can't be compared: {told}")
    return next(iter(found), None)


def _shown(value: float) -> str:
    return "NaN" if np.isnan(value) else f"{value:g}"
