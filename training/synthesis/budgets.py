"""Budgets that are drawn for each attempt, so that a student learns to obey the limits that it is told.

The ranges are those of OmniAgent's data (arXiv 2606.19341): 30 to 60 frames, 30 to 60 s of a clip and 150 to 300 s of
sound in one look.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import partial

from apr_plugin.errors import AprError
from apr_plugin.loop.budget import Budget
from apr_plugin.loop.config import EpisodeConfig
from apr_plugin.loop.question import Question
from apr_plugin.runs.config import ConfigPerQuestion
from apr_plugin.runs.limits import limits_of
from apr_plugin.terminal import quoted

NAME = "look_budgets/1"
"""Names the distribution in a run's hash; the number is raised when the same ranges would give other budgets."""

Range = tuple[int, int]
"""The least and the greatest value; whole numbers, both can be drawn."""

_FIELDS = {"frames": "frames_per_look", "clip_s": "clip_s", "audio_s": "audio_s"}


@dataclass(frozen=True)
class BudgetRanges:
    """What one look may ask for at most, as ranges from which each attempt draws."""

    frames: Range = (30, 60)
    """Frames of one `get_frames`."""

    clip_s: Range = (30, 60)
    """Seconds of one `get_clip`; also the unit of length from which the number of turns is computed, so that shorter
    clips give more turns (`Budget.turns_for`)."""

    audio_s: Range = (150, 300)
    """Seconds of one `get_audio`."""

    def __post_init__(self) -> None:
        for name, field in _FIELDS.items():
            low, high = getattr(self, name)
            limits = limits_of(Budget, field)
            assert limits is not None
            if low > high:
                raise AprError(f"{name}={low}-{high}: the first number must not be above the second")
            if not (limits.hold(low) and limits.hold(high)):
                raise AprError(f"{name}={low}-{high}: both must be {limits}")

    def parameters(self) -> dict[str, list[int]]:
        """The ranges as JSON values, by the names of the budget's fields."""
        return {field: list(getattr(self, name)) for name, field in _FIELDS.items()}


def read_range(name: str, text: str) -> Range:
    """A range that a user wrote: `30-60`, or `60` for a value that does not vary.

    Raises:
        AprError: it is neither.
    """
    found = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", text)
    if found is None:
        raise AprError(f"{name}={quoted(text, 60)}: write a range of whole numbers such as 30-60, or one number")
    return int(found[1]), int(found[2] or found[1])


def drawn_budgets(base: EpisodeConfig, ranges: BudgetRanges) -> ConfigPerQuestion:
    """The configuration of a synthesis run: `base`, with a budget for each question and attempt.

    The draws depend only on the run's seed, the question's key and the attempt (its `repeat`). Each trajectory records
    its budget, and the card records the ranges.

    Raises:
        AprError: the least sound that can be drawn is shorter than the least that a look must ask for.
    """
    if ranges.audio_s[0] < base.budget.min_audio_s:
        raise AprError(
            f"audio_s={ranges.audio_s[0]}-{ranges.audio_s[1]}: it must not be below min_audio_s="
            f"{base.budget.min_audio_s:g}"
        )
    return ConfigPerQuestion(NAME, partial(_draw, base.budget, ranges), base, ranges.parameters())


def _draw(base: Budget, ranges: BudgetRanges, question: Question, chance: random.Random) -> Budget:
    drawn = {field: chance.randint(*getattr(ranges, name)) for name, field in _FIELDS.items()}
    return Budget.model_validate(base.model_dump() | drawn)
