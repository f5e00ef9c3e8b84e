"""The ladder: how far an agent climbs from answering blind to answering with the evidence in sight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from apr_plugin.compare.joined import Arm, Comparison
from apr_plugin.compare.pairs import clusters_of, score
from apr_plugin.compare.stats import Interval, ratio
from apr_plugin.runs.opened import Key

RUNGS = ("blind", "passive", "agent", "oracle")
"""Kinds of arms, from the lowest up."""


@dataclass(frozen=True)
class Ladder:
    """The rungs, over the questions for which every one of them has a score."""

    n: int
    """Questions."""
    arms: dict[str, str]
    """Which arm is on each rung."""
    rungs: dict[str, Interval | None]
    """Mean score of each rung; `None` where the arm is missing."""
    realised: Interval | None
    """(agent - blind) / (oracle - blind): the share of what aiming can bring that the agent brings. It may be below 0
    and above 1."""
    realised_over_passive: Interval | None
    """(agent - passive) / (oracle - passive)."""
    reasons: dict[str, str]
    """Why one of these two is `None`, by its name."""

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON; each rung under its own name."""
        numbers = {
            **self.rungs,
            "realised": self.realised,
            "realised_over_passive": self.realised_over_passive,
        }
        intervals = {name: None if value is None else value.to_dict() for name, value in numbers.items()}
        return intervals | {"n": self.n, "arms": dict(self.arms), "reasons": dict(self.reasons)}


def ladder(comparison: Comparison, *, agent: str | None = None, passive: str | None = None) -> Ladder:
    """Put the arms on the ladder.

    The questions are those for which every arm of the ladder has a score, so that all rungs are about the same ones; an
    oracle has none for a question without evidence.

    Args:
        comparison: Its arms. On each rung is the first arm of that kind.
        agent: Another arm for the agent's rung, by name.
        passive: Another arm for the passive rung, by name.
    """
    named = {"agent": agent, "passive": passive}
    arms: dict[str, Arm] = {}
    for rung in RUNGS:
        name = named.get(rung)
        fitting = [arm for arm in comparison.arms if (arm.kind == rung if name is None else arm.name == name)]
        if fitting:
            arms[rung] = fitting[0]
    keys = [key for key in comparison.keys if all(arm.outcome(key).status == "scored" for arm in arms.values())]
    rungs = {rung: score(comparison, arms[rung], keys) if rung in arms else None for rung in RUNGS}
    reasons: dict[str, str] = {}
    shares: dict[str, Interval | None] = {}
    for name, floor in (("realised", "blind"), ("realised_over_passive", "passive")):
        shares[name] = None
        missing = [rung for rung in (floor, "agent", "oracle") if rung not in arms]
        if missing:
            reasons[name] = f"there is no arm of kind {' and none of kind '.join(missing)}"
        elif not keys:
            reasons[name] = "no question has a score of every arm of the ladder"
        else:
            shares[name] = _share(comparison, arms, floor, keys)
            if shares[name] is None:
                reasons[name] = f"the oracle is not better than the {floor} arm, so there is nothing to realise"
    return Ladder(
        len(keys),
        {rung: arm.name for rung, arm in arms.items()},
        rungs,
        shares["realised"],
        shares["realised_over_passive"],
        reasons,
    )


def _share(comparison: Comparison, arms: dict[str, Arm], floor: str, keys: list[Key]) -> Interval | None:
    low, own, high = ([arms[rung].outcome(key).score for key in keys] for rung in (floor, "agent", "oracle"))
    tops = [a - b for a, b in zip(own, low, strict=True)]
    bottoms = [a - b for a, b in zip(high, low, strict=True)]
    return ratio(tops, bottoms, clusters_of(comparison, keys))
