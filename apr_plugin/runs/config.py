"""The configuration of a run: one for every question (`EpisodeConfig`), or a function of the question (`ConfigPerQuestion`)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from apr_plugin.loop.config import EpisodeConfig, hash_of
from apr_plugin.loop.policy import Policy
from apr_plugin.loop.question import Question

Choose = Callable[[Question, random.Random], EpisodeConfig]
"""Gives the configuration of one question. Chance comes from the generator alone, which is seeded from the run's seed and the question's key."""


class RunConfig(Protocol):
    """What a run needs of its configuration. `EpisodeConfig` has these methods."""

    def describe(self, policy: Policy) -> dict[str, Any]:
        """The configuration as JSON values, with the policy's own; for a function of the question, the function."""
        ...

    def hash(self, policy: Policy) -> str:
        """16 hex digits that name it; trajectories of different ones are never mixed."""
        ...

    def for_question(self, question: Question) -> EpisodeConfig:
        """What holds for this question."""
        ...


@dataclass(frozen=True)
class ConfigPerQuestion:
    """A configuration that differs from question to question, such as budgets drawn at random for synthesis and training.

    Two runs with the same name, parameters and base have the same hash, and continue each other: the name has to change with what `choose` does.
    """

    name: str
    """Names the function, with its version: `turns_uniform/1`."""

    choose: Choose
    """The function itself. What it raises ends the run."""

    base: EpisodeConfig = field(default_factory=EpisodeConfig)
    """What holds where `choose` changes nothing; its seed is the run's."""

    parameters: Mapping[str, Any] = field(default_factory=dict)
    """What the function was made with, as JSON values: the ranges it draws from."""

    def describe(self, policy: Policy) -> dict[str, Any]:
        """The base, and under `per_question` the name and parameters of the function."""
        return self.base.describe(policy) | {"per_question": {"name": self.name, "parameters": dict(self.parameters)}}

    def hash(self, policy: Policy) -> str:
        """16 hex digits that name base, function and policy."""
        return hash_of(self.describe(policy))

    def for_question(self, question: Question) -> EpisodeConfig:
        """The same for the same question and seed, whatever else is asked before it."""
        return self.choose(question, random.Random(f"{self.name}:{self.base.seed_for(question)}"))
