"""Recipes of distillation for tests: those of GRPO with a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grpo_making import recipe_of


def distill_recipe(student: str | Path, teacher: str | Path, questions: Path, **more: Any) -> dict[str, Any]:
    """A recipe for the CPU, in float32, with short instructions: one question a step, two trajectories."""
    made = recipe_of(student, questions, **more)
    return made | {"teacher": {"pretrained": str(teacher)}}
