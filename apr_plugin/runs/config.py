"""The configuration of a run.

It is the same for every question (`EpisodeConfig`), or its budget depends on the question (`ConfigPerQuestion`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from apr_plugin.loop.budget import Budget
from apr_plugin.loop.card import Card
from apr_plugin.loop.config import EpisodeConfig, hash_of
from apr_plugin.loop.policy import Policy
from apr_plugin.loop.question import Question

Choose = Callable[[Question, random.Random], Budget]
"""Gives the budget of one question.

Random numbers come only from the generator, which is seeded from the run's seed and the question's key.
"""


class RunConfig(Protocol):
    """What a run needs of its configuration; `EpisodeConfig` has these methods."""

    def describe(self, policy: Policy) -> dict[str, Any]:
        """The configuration as JSON values, with the policy's own; for a function of the question, the function."""
        ...

    def hash(self, policy: Policy) -> str:
        """16 hex digits that identify it; trajectories with different hashes are never mixed."""
        ...

    def for_question(self, question: Question) -> EpisodeConfig:
        """The configuration of this question."""
        ...


@dataclass(frozen=True)
class ConfigPerQuestion:
    """A configuration whose budget is a function of the question, for example drawn at random for training.

    Only the budget can vary. Each trajectory records its own budget, and the card records everything else, so every
    prompt can be rebuilt. Two runs with the same name, parameters and base have the same hash, and continue each other,
    so the name has to change when `choose` changes.
    """

    name: str
    """The name of the function, with its version: `turns_uniform/1`."""

    choose: Choose
    """The function; an exception that it raises ends the run."""

    base: EpisodeConfig = field(default_factory=EpisodeConfig)
    """Everything except the budget; its seed is the run's."""

    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The function's parameters as JSON values: the ranges it draws from."""

    def describe(self, policy: Policy) -> dict[str, Any]:
        """The base, and under `per_question` the name and parameters of the function."""
        return self.base.describe(policy) | {"per_question": {"name": self.name, "parameters": dict(self.parameters)}}

    def hash(self, policy: Policy) -> str:
        """16 hex digits that identify base, function and policy."""
        return hash_of(self.describe(policy))

    def for_question(self, question: Question) -> EpisodeConfig:
        """The configuration of this question; it depends only on the question and the seed."""
        chance = random.Random(f"{self.name}:{self.base.seed_for(question)}")
        return self.base.model_copy(update={"budget": self.choose(question, chance)})

    def card(self, policy: Policy) -> Card:
        """The card of a run that begins now: the base's card with this configuration's hash, name and parameters."""
        own = {
            "config_hash": self.hash(policy),
            "per_question": {"name": self.name, "parameters": dict(self.parameters)},
        }
        return Card.of(self.base, policy).model_copy(update=own)
