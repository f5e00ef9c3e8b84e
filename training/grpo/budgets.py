"""The budget of each group of trajectories, drawn from ranges.

All trajectories of a group have the same budget: their rewards are compared with each other. It depends on the run's
seed, the question and the visit, so a continued run draws the same ones.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial
from typing import Any

from apr_plugin.errors import AprError
from apr_plugin.loop.budget import Budget
from apr_plugin.loop.config import EpisodeConfig
from apr_plugin.loop.question import Question
from apr_plugin.runs.config import ConfigPerQuestion
from apr_plugin.runs.limits import limits_of
from apr_plugin.training.grpo.recipe import BudgetDraws
from apr_plugin.training.synthesis.questions import DocKey

NAME = "group_budgets/1"
"""Names the distribution in a run's hash; the number is raised when the same ranges would give other budgets."""

_FIELDS = {"frames": "frames_per_look", "clip_s": "clip_s", "audio_s": "audio_s", "turns": "turns"}


def group_budgets(
    base: EpisodeConfig, draws: BudgetDraws, generations: int, durations: Mapping[DocKey, float]
) -> ConfigPerQuestion:
    """The configuration of rollouts: `base`, with a budget for each group.

    Args:
        base: Everything else.
        draws: The ranges.
        generations: Trajectories of a group: the attempts (`repeat`) `n * generations` to `(n + 1) * generations - 1`
            of a question are one group.
        durations: Seconds of the films of each question, all together.

    Raises:
        AprError: a range has values that a budget can't have.
    """
    for name, field in _FIELDS.items():
        if (given := getattr(draws, name)) is not None:
            limits = limits_of(Budget, field)
            assert limits is not None
            if not (limits.hold(given[0]) and limits.hold(given[1])):
                raise AprError(f"recipe: draws.{name}: [{given[0]}, {given[1]}]: both must be {limits}")
    parameters: dict[str, Any] = draws.model_dump(mode="json") | {"generations": generations}
    return ConfigPerQuestion(NAME, partial(_draw, base, draws, generations, durations), base, parameters)


def _draw(
    base: EpisodeConfig,
    draws: BudgetDraws,
    generations: int,
    durations: Mapping[DocKey, float],
    question: Question,
    _: random.Random,
) -> Budget:
    key, visit = question.key[:3], question.repeat // generations
    chance = random.Random(f"{NAME}:{base.seed}:{key}:{visit}")  # that of the run differs within a group
    drawn: dict[str, Any] = {}
    for name, field in _FIELDS.items():
        given = getattr(draws, name)
        value = None if given is None else chance.randint(*given)
        if value is not None and (name != "turns" or durations.get(key, float("inf")) < draws.short_s):
            drawn[field] = value
    return Budget.model_validate(base.budget.model_dump() | drawn)
