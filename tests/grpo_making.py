"""Questions, recipes and scripted draws for tests of GRPO.

A small random model writes nonsense, so its investigations would never look. Here the tokens that it draws are chosen,
after a few that it draws itself; their log-probabilities and entropies are its own, and everything else is real.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from apr_testing import answer, look, turn

from apr_plugin.policies.hf import sample
from apr_plugin.training.student import Student

FREE = 6
"""Tokens at the beginning of a turn that the model draws itself."""


def write_questions(path: Path, videos: dict[str, Path], names: Sequence[str] = ("sound", "silent", "long")) -> Path:
    """A question about each of these films; A is right."""
    lines = [
        {
            "id": name,
            "video": str(videos[name]),
            "question": f"what is shown in {name}?",
            "kind": "mcq",
            "options": ["one", "two"],
            "answer": "A",
            "source": "films",
        }
        for name in names
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def recipe_of(student: str | Path, questions: Path, **more: Any) -> dict[str, Any]:
    """A recipe for the CPU, in float32: two questions a step, four trajectories each."""
    trainer = {"use_cpu": True, "bf16": False, "learning_rate": 1e-3, "max_steps": 1, "disable_tqdm": True}
    trainer |= {"gradient_checkpointing": False, "lr_scheduler_type": "constant", "save_strategy": "no"}
    trainer |= more.pop("trainer", {})
    return {
        "student": {"pretrained": str(student)},
        "questions": [str(questions)],
        "generations": 4,
        "questions_per_step": 2,
        "budget": {"turns": 6, "frame_pixels": 4 * 784, "clip_pixels": 4 * 784},
        "sampling": {"max_new_tokens": 150, "concurrency": 4},
        "learn": {"towers": "trained"},
        "samples": {"every": 1, "trajectories": 3},
        "trainer": trainer,
    } | more


def listens() -> str:
    return turn({"type": "get_audio", "start": 1.0, "end": 3.0})


def watches() -> str:
    return turn({"type": "get_clip", "start": 1.0, "end": 3.0})


def plan(repeat: int, hears: bool) -> list[str]:
    """What the trajectory of this number says: from two to five turns; every second one is right."""
    says = [look(0, 4, 3), listens() if hears else look(1, 2, 2), watches(), "this is no action"]
    return [*says[: 1 + repeat % 4], answer("AB"[repeat % 2])]


class ScriptedDraws:
    """Chooses the tokens that `policy=hf` draws; to be set in place of `sample._draw`.

    The first `FREE` tokens of a turn are drawn from the model, without special ones, and then a text follows. Which
    text depends on the trajectory's `repeat` and the turn, which are found through the seeds of `EpisodeConfig`.
    """

    def __init__(self, student: Student, says: Callable[[int], Sequence[str]], seeds: dict[int, tuple[int, int]]) -> None:
        self.student, self.says, self.seeds = student, says, seeds
        self.draw = sample._draw
        self.plans: dict[int, list[int | None]] = {}

    def __call__(self, logprobs: Any, row: Any) -> Any:
        import torch

        planned = self.plan_of(row.sampling.seed)
        token = planned[min(len(row.tokens), len(planned) - 1)]
        if token is not None:
            return torch.tensor(token)
        plain = logprobs.clone()
        plain[sorted(self.student.special)] = -float("inf")
        return self.draw(plain, row)

    def plan_of(self, seed: int) -> list[int | None]:
        if seed not in self.plans:
            repeat, number = self.seeds[seed]
            said = list(self.says(repeat))
            ids = self.student.encoder.turn_ids(said[min(number, len(said)) - 1])
            self.plans[seed] = [*[None] * FREE, *ids, self.student.end]
        return self.plans[seed]


def seeds_of(config: Any, questions: Sequence[Any], repeats: int, turns: int = 12) -> dict[int, tuple[int, int]]:
    """The `repeat` and the turn of each seed of a generation."""
    return {
        (config.seed_for(one.attempt(repeat)) + number) % 2**32: (repeat, number)
        for one in questions
        for repeat in range(repeats)
        for number in range(1, turns + 1)
    }


def scripted(student: Student, recipe: Any, repeats: int = 64) -> ScriptedDraws:
    """Draws for the rollouts of a recipe."""
    from apr_plugin.loop.config import EpisodeConfig
    from apr_plugin.training.synthesis.questions import load_questions

    config = EpisodeConfig(seed=recipe.seed)
    seeds = seeds_of(config, load_questions(recipe.questions), repeats)
    return ScriptedDraws(student, lambda repeat: plan(repeat, student.family.hears), seeds)


def shuffled(values: Sequence[Any], seed: int = 0) -> list[Any]:
    mixed = list(values)
    random.Random(seed).shuffle(mixed)
    return mixed
