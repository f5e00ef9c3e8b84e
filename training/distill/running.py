"""`apr train distill`: a recipe, its questions and a teacher to a checkpoint."""

from __future__ import annotations

from pathlib import Path

from apr_plugin.training.distill.recipe import DistillRecipe
from apr_plugin.training.grpo.running import Method, run_grpo

DISTILLATION = Method(
    making="apr_plugin.training.distill.making",
    tag="distillation",
    words=(
        "by on-policy distillation (arXiv 2603.25562) on its own investigations of videos: each of its turns is a row "
        "with the prompt as it saw it, and at each token it was drawn towards the teacher's likeliest tokens"
    ),
)


def run_distill(recipe: DistillRecipe, out: Path) -> Path:
    """Train; a folder that has a checkpoint of the same recipe and questions is continued, as in `run_grpo`.

    Args:
        recipe: What is trained, from whom, and how; it names its questions.
        out: Folder of the run.

    Returns:
        The folder of the trained checkpoint.

    Raises:
        AprError: nothing can be trained; the message says why.
    """
    return run_grpo(recipe, out, DISTILLATION)
