"""Questions, recipes and scripted draws for tests of GRPO.

A small random model writes nonsense, so its investigations would never look. Here the tokens that it draws are chosen,
after a few that it draws itself; their log-probabilities and entropies are its own, and everything else is real.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from apr_plugin.policies.hf import sample
from apr_plugin.training.student import Student

FREE = 3
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


Says = Callable[[str, int], Sequence[str]]
"""From a question's id and the trajectory's `repeat` to what it says, turn by turn."""

INSTRUCTIONS = "Look at the video, then answer."


def recipe_of(student: str | Path, questions: Path, **more: Any) -> dict[str, Any]:
    """A recipe for the CPU, in float32, with short instructions: one question a step, two trajectories."""
    (words := questions.with_name("instructions.txt")).write_text(INSTRUCTIONS)
    trainer = {"use_cpu": True, "bf16": False, "learning_rate": 1e-3, "max_steps": 1, "disable_tqdm": True}
    trainer |= {"gradient_checkpointing": False, "lr_scheduler_type": "constant", "save_strategy": "no"}
    trainer |= more.pop("trainer", {})
    return {
        "student": {"pretrained": str(student)},
        "questions": [str(questions)],
        "generations": 2,
        "questions_per_step": 1,
        "system_prompt": str(words),
        "budget": {"turns": 6, "frame_pixels": 4 * 784, "clip_pixels": 4 * 784},
        "sampling": {"max_new_tokens": 150, "concurrency": 4},
        "learn": {"towers": "trained"},
        "samples": {"every": 1, "trajectories": 8},
        "trainer": trainer,
    } | more


def said(**action: Any) -> str:
    """A short turn."""
    return json.dumps({"observation": "s", "think": "s", "confidence": 0.5, "action": action}, separators=(",", ":"))


LOOKS = (said(type="get_frames", start=0, end=4, num=2), said(type="get_frames", start=1, end=2, num=1))
LISTENS = said(type="get_audio", start=1, end=2)
WATCHES = said(type="get_clip", start=1, end=2)
ERRS = said(type="get_frames", start=90, end=95, num=2)
"""A look outside of the film."""


def plan(repeat: int, hears: bool) -> list[str]:
    """What the trajectory of this number says: from two to five turns; every second one is right."""
    says = [LOOKS[0], WATCHES, LISTENS if hears else LOOKS[1], ERRS]
    return [*says[: 1 + repeat % 4], said(type="answer", content="AB"[repeat % 2])]


class ScriptedDraws:
    """Chooses the tokens that `policy=hf` draws; to be set in place of `sample._draw`.

    The first `FREE` tokens of a turn are drawn from the model, without special ones, and then a text follows. Which
    text depends on the trajectory's `repeat` and the turn, which are found through the seeds of `EpisodeConfig`.
    """

    def __init__(self, student: Student, says: Says, seeds: dict[int, tuple[str, int, int]]) -> None:
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
            name, repeat, number = self.seeds[seed]
            texts = list(self.says(name, repeat))
            ids = self.student.encoder.turn_ids(texts[min(number, len(texts)) - 1])
            self.plans[seed] = [*[None] * FREE, *ids, self.student.end]
        return self.plans[seed]


def seeds_of(config: Any, questions: Sequence[Any], repeats: int, turns: int = 12) -> dict[int, tuple[str, int, int]]:
    """The question, the `repeat` and the turn of each seed of a generation."""
    return {
        (config.seed_for(one.attempt(repeat)) + number) % 2**32: (one.question.doc_id, repeat, number)
        for one in questions
        for repeat in range(repeats)
        for number in range(1, turns + 1)
    }


def scripted(student: Student, recipe: Any, says: Says | None = None, repeats: int = 64) -> ScriptedDraws:
    """Draws for the rollouts of a recipe; by default `plan`."""
    from apr_plugin.loop.config import EpisodeConfig
    from apr_plugin.training.synthesis.questions import load_questions

    seeds = seeds_of(EpisodeConfig(seed=recipe.seed), load_questions(recipe.questions), repeats)
    return ScriptedDraws(student, says or (lambda _, repeat: plan(repeat, student.family.hears)), seeds)


def taught(base: Path, recipe: Any, says: Says, folder: Path, steps: int = 20) -> Path:
    """A copy of a small model that has learned to say this in the rollouts of a recipe, so that it needs no script.

    Where two trajectories of a question say different things after the same prompt, it has learned to say either.

    Args:
        base: The small model.
        recipe: Its questions and how they are asked.
        says: What is said; the trajectories 0 and 1 of each question are learned.
        folder: For the copy.
        steps: Passes over all turns.
    """
    import pytest
    import torch

    from apr_plugin.training.grpo.making import make_trainer
    from apr_plugin.training.grpo.served.media import without_clip_sound
    from apr_plugin.training.synthesis.questions import load_questions

    asked = load_questions(recipe.questions)
    given = {"generations": 2, "questions_per_step": len(asked)}
    trainer = make_trainer(recipe.model_copy(update=given), asked, {}, Student.from_pretrained(str(base)), folder / "x")
    student, model = trainer.rollouts.student, trainer.model
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys.modules[__name__], "FREE", 0)
        patched.setattr(sample, "_draw", scripted(student, recipe, says))
        (part,) = trainer._generate_and_score_completions(
            [{"question": number} for number in range(len(asked)) for _ in range(2)]
        )
    trainer.rollouts.close()
    # Without the sound of clips, which servers don't play.
    silent = [replace(row, prompt=without_clip_sound(row.prompt), ids=()) for (row,) in part.packs]
    rows = {(row.prompt.text, row.target): row for row in silent}.values()
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    for _ in range(steps):
        optimiser.zero_grad()
        for row in rows:
            scored = trainer.forward(model, model.get_output_embeddings(), (row,), "cpu")
            (-scored.logprobs.mean() / len(rows)).backward()
        optimiser.step()
    model.save_pretrained(folder)
    student.encoder.processor.save_pretrained(folder)
    return folder
