"""What each look told: how much likelier it made the right answer, and what that goes along with.

The gain of a look is p(right answer | notes after it) - p(right answer | notes before it), as IGPO defines it
(`grpo.gains`). Three questions are answered, none of them about cause:

- Do looks that showed some of the evidence tell more than those that did not? Their mean gains, and the difference.
  Turns whose action was refused are the control: they show nothing, so their gain is what the scoring itself moves.
- Does an uncertain turn look where it learns more? The rank correlation (Spearman) of the gain with the mean entropy of
  the turn's tokens; TAURA (arXiv 2606.19341) gives such turns more credit.
- Does the gain find the evidence? The rank correlation of the gain with having shown some of it.

Intervals are 95%, by the bootstrap over videos.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from apr_plugin.compare.aiming import evidence_spans, shows
from apr_plugin.compare.stats import Interval, mean
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.scoring.truth import Truth
from apr_plugin.training.grpo.across import FloatArray

DRAWS = 1000
"""Of the bootstrap of correlations and differences."""


@dataclass(frozen=True)
class LookGain:
    """One turn that another one follows."""

    video: str
    """The question's first video, by which intervals are clustered."""
    kind: str
    """`frames`, `audio` or `clip`; `refused` where nothing was shown."""
    gain: float
    """What it added to the probability of the right answer, from -1 to 1."""
    entropy: float | None
    """Mean entropy of its tokens in nats, over the whole vocabulary; `None` if the engine gave none."""
    hit: bool | None
    """Whether it showed some of the evidence; `None` where the truth does not say where that is."""
    right: bool | None
    """Whether its trajectory's answer is right; `None` if nothing says it."""


def gains_of_looks(
    trajectory: Trajectory, probabilities: Sequence[float], truth: Truth, right: bool | None
) -> list[LookGain]:
    """The gain of each turn but the last.

    Args:
        trajectory: A trajectory.
        probabilities: p(right answer) at the prompt of each of its turns.
        truth: Where the evidence is.
        right: Whether its answer is right.
    """
    question, spans = trajectory.question, evidence_spans(trajectory, truth)
    video = question.videos[0].path if question.videos else "/".join(question.key[:3])
    found = []
    for turn, before, after in zip(trajectory.turns, probabilities, probabilities[1:], strict=False):
        look = turn.shown
        hit = None
        if look is not None and spans:
            hit = any(shows(look, span) for span in spans.get(look.video, ()))
        values = None if turn.entropy_top_k is not None else turn.entropies
        known = [value for value in values or () if value is not None]
        found.append(
            LookGain(
                video,
                "refused" if look is None else look.kind,
                after - before,
                float(np.mean(known)) if known and len(known) == len(values or ()) else None,
                hit,
                right,
            )
        )
    return found


@dataclass(frozen=True)
class Gains:
    """All gains, and what they go along with."""

    rows: tuple[tuple[str, Interval | None], ...]
    """Mean gains by the name of the part."""
    difference: Interval | None
    """The mean gain of looks that showed evidence minus that of the others."""
    with_entropy: Interval | None
    """Spearman's correlation with the turn's entropy."""
    with_hit: Interval | None
    """Spearman's correlation with having shown evidence."""

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        named = {"difference": self.difference, "with_entropy": self.with_entropy, "with_hit": self.with_hit}
        return {"mean": {name: _dict(of) for name, of in self.rows}} | {name: _dict(of) for name, of in named.items()}


def analyse_gains(looks: Sequence[LookGain]) -> Gains:
    """The means of the parts, and the correlations.

    Args:
        looks: Looks and refused turns.
    """
    shown = [look for look in looks if look.kind != "refused"]
    parts: list[tuple[str, list[LookGain]]] = [("looks", shown)]
    parts += [(kind, [look for look in shown if look.kind == kind]) for kind in ("frames", "audio", "clip")]
    parts += [(f"looks that {word} evidence", [look for look in shown if look.hit is hit]) for word, hit in _HITS]
    parts += [(f"looks of {word} answers", [look for look in shown if look.right is right]) for word, right in _RIGHT]
    parts.append(("refused turns", [look for look in looks if look.kind == "refused"]))
    rows = [(name, mean([look.gain for look in of], [look.video for look in of], (-1.0, 1.0))) for name, of in parts]
    judged = [look for look in shown if look.hit is not None]
    uncertain = [look for look in shown if look.entropy is not None]
    hits = np.array([[look.gain, float(bool(look.hit))] for look in judged]).reshape(-1, 2)
    entropies = np.array([[look.gain, look.entropy] for look in uncertain], dtype=float).reshape(-1, 2)
    videos = [look.video for look in judged]
    return Gains(
        tuple((name, interval) for name, interval in rows if interval is not None),
        _bootstrapped(_difference, hits, videos),
        _bootstrapped(spearman, entropies, [look.video for look in uncertain]),
        _bootstrapped(spearman, hits, videos),
    )


_HITS = (("showed", True), ("missed", False))
_RIGHT = (("right", True), ("wrong", False))


def spearman(pairs: FloatArray) -> float:
    """Spearman's rank correlation of two columns, shape (n, 2); NaN if one of them is constant."""
    from scipy.stats import rankdata  # type: ignore[import-untyped]

    ranks = rankdata(pairs, axis=0)
    apart = ranks - ranks.mean(axis=0)
    scale = float(np.sqrt((apart**2).sum(axis=0).prod()))
    return float(apart.prod(axis=1).sum() / scale) if scale > 0 else float("nan")


def _difference(pairs: FloatArray) -> float:
    hit = pairs[:, 1] > 0
    return float(pairs[hit, 0].mean() - pairs[~hit, 0].mean()) if hit.any() and not hit.all() else float("nan")


def _bootstrapped(of: Callable[[FloatArray], float], pairs: FloatArray, videos: Sequence[str]) -> Interval | None:
    """A statistic of the rows, with the percentiles of draws of whole videos; `None` if it does not exist."""
    value = of(pairs) if len(pairs) > 1 else float("nan")
    if not np.isfinite(value):
        return None
    places = [np.flatnonzero(np.array(videos) == video) for video in sorted(set(videos))]
    if len(places) < 2:
        return Interval(value, None, None, len(pairs))
    chance = np.random.default_rng(0)
    drawn = [
        of(pairs[np.concatenate([places[at] for at in chance.integers(0, len(places), len(places))])])
        for _ in range(DRAWS)
    ]
    known = [one for one in drawn if np.isfinite(one)]
    low, high = np.quantile(known, (0.025, 0.975)) if len(known) > DRAWS / 2 else (None, None)
    return Interval(value, None if low is None else float(low), None if high is None else float(high), len(pairs))


def _dict(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else interval.to_dict()
