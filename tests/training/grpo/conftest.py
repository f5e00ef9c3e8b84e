"""A trainer with one rollout, for each of two families."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def rolled(
    tiny: Any, student: Callable[..., Any], shared_videos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Any]]:
    """`rolled("qwen2_5_omni")`: an `InvestigationTrainer` with the part that its first rollout gave, as `trainer.part`,
    and what chose its tokens, as `trainer.says`.

    The two trajectories have a look at frames, a clip, sound where the family hears, an error, and an answer.
    """
    pytest.importorskip("trl")
    from grpo_making import plan, recipe_of, scripted, write_questions

    from apr_plugin.policies.hf import sample
    from apr_plugin.training.grpo.making import make_trainer
    from apr_plugin.training.grpo.recipe import GrpoRecipe
    from apr_plugin.training.synthesis.questions import load_questions

    made = []

    @cache
    def make(name: str) -> Any:
        folder = tmp_path_factory.mktemp(name)
        questions = write_questions(folder / "q.jsonl", shared_videos, ["sound"])
        recipe = GrpoRecipe.model_validate(recipe_of(tiny(name), questions))
        reads, asked = student(name), load_questions(recipe.questions)
        trainer = make_trainer(recipe, asked, {}, reads, folder / "out")
        made.append(trainer)
        says = trainer.says = scripted(reads, recipe, lambda _, repeat: plan(3 * (1 - repeat), reads.family.hears))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(sample, "_draw", says)
            (trainer.part,) = trainer._generate_and_score_completions([{"question": 0}] * 2)
        return trainer

    yield make
    for trainer in made:
        trainer.rollouts.close()
