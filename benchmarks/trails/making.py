"""From nothing to the checkpoint that reinforcement begins with, and what a checkpoint earns.

Every step leaves its result in the folder and is not repeated: films, the teacher's trajectories, rows, the random
student, supervised training with the package's own trainer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_plugin.loop import Budget, Card, EpisodeConfig, Sampling

from .films import SIDE, write_set
from .student import INSTRUCTIONS, TURNS, save_student
from .teacher import TrailTeacher

TEACH, LEARN, HELD_OUT = 0, 100_000, 200_000
"""The first seeds of the films of the teacher, of reinforcement, and of the evaluation."""

BUDGET: dict[str, Any] = {
    "turns": TURNS,
    "on_last_turn": "fail",
    "frame_pixels": SIDE * SIDE,
    "clip_pixels": SIDE * SIDE,
}
TEACHER = "teacher.json"
"""The file with how many of the teacher's episodes ended with a right answer."""

MOST_TOKENS = 14
"""Of a turn; a right one has ten."""


@dataclass(frozen=True)
class Sizes:
    """How much is made."""

    taught: int = 500
    """Films that the teacher plays."""
    sft_steps: int = 300
    learned: int = 160
    """Films of reinforcement."""
    held_out: int = 48
    """Films of the evaluation."""


@dataclass(frozen=True)
class Start:
    """What a run of reinforcement needs."""

    checkpoint: Path
    questions: Path
    held_out: Path
    instructions: Path


def make_start(folder: Path, sizes: Sizes, tell: Any) -> Start:
    """Make the checkpoint and the questions, as far as they are not there.

    Args:
        folder: Where everything is kept.
        sizes: How much.
        tell: Called with a line for each step.
    """
    films, rows = folder / "films", folder / "rows.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    start = Start(
        folder / "sft" / "final", films / "learned.jsonl", films / "held_out.jsonl", folder / "instructions.txt"
    )
    start.instructions.write_text(INSTRUCTIONS)
    if not start.held_out.is_file():
        tell("films")
        with _timed(folder, "films"):
            write_set(films, "taught", range(TEACH, TEACH + sizes.taught))
            write_set(films, "learned", range(LEARN, LEARN + sizes.learned))
            write_set(films, "held_out", range(HELD_OUT, HELD_OUT + sizes.held_out))
    if not rows.is_file():
        tell("the teacher's trajectories, and rows")
        with _timed(folder, "trajectories and rows"):
            _rows(folder, films / "taught.jsonl", rows)
    if not (start.checkpoint / "config.json").is_file():
        tell("supervised training")
        with _timed(folder, "supervised training"):
            _sft(folder, rows, sizes.sft_steps)
    return start


def start_seconds(folder: Path) -> dict[str, float]:
    """CPU seconds of what `make_start` made, by its name; what was there before has none."""
    file = folder / "start.json"
    found: dict[str, float] = json.loads(file.read_text()) if file.is_file() else {}
    return found


@contextlib.contextmanager
def _timed(folder: Path, name: str) -> Iterator[None]:
    began = time.process_time()
    yield
    told = start_seconds(folder) | {name: round(time.process_time() - began, 1)}
    (folder / "start.json").write_text(json.dumps(told) + "\n")


def _rows(folder: Path, taught: Path, file: Path) -> None:
    from apr_plugin.runs.runner import run_episodes
    from apr_plugin.runs.store import TrajectoryStore
    from apr_plugin.training.grpo.rewards import reward
    from apr_plugin.training.making import RowSettings, Source, make_rows
    from apr_plugin.training.rows import write_rows
    from apr_plugin.training.student import Student
    from apr_plugin.training.synthesis.questions import load_questions

    teacher = TrailTeacher()
    config = EpisodeConfig(budget=Budget(**BUDGET), system_prompt=INSTRUCTIONS)
    card = Card.of(config, teacher)
    asked = load_questions([str(taught)])
    with TrajectoryStore(folder / "taught", card.config_hash, card) as store:
        done = asyncio.run(run_episodes([one.question for one in asked], teacher, config, 1, store=store))
        place = store.folder
    right = sum(reward(played, one.truth).right for played, one in zip(done, asked, strict=True))
    (folder / TEACHER).write_text(json.dumps({"right": right, "episodes": len(done)}) + "\n")
    save_student(folder / "student")
    student = Student.from_pretrained(str(folder / "student"))
    # Turns are kept as often as the teacher took them: their shares are what is imitated.
    settings = RowSettings(validation=0, deduplicate=False)
    write_rows(file, make_rows([Source(next(place.glob("*.jsonl")), place)], student, settings))


def _sft(folder: Path, rows: Path, steps: int) -> None:
    from apr_plugin.training.sft.recipe import Recipe
    from apr_plugin.training.sft.running import run_sft

    recipe = {
        "student": {"pretrained": str(folder / "student")},
        "rows": str(rows),
        "rows_per_step": 32,
        "learn": {"towers": "trained"},
        "forward": {"token_budget": 3000},
        "percepts": {"folder": str(folder / "percepts"), "gigabytes": 0.2},
        "trainer": {
            "use_cpu": True,
            "bf16": False,
            "max_steps": steps,
            "learning_rate": 3e-3,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.05,
            "activation_checkpointing": False,
            "save_steps": 100,
            "save_strategy": "steps",
            "save_total_limit": 1,
            "logging_steps": 50,
            "disable_tqdm": True,
        },
    }
    run_sft(Recipe.model_validate(recipe), folder / "sft")


def earned(checkpoint: Path, questions: Path, temperature: float, repeats: int = 1, seed: int = 0) -> dict[str, Any]:
    """What a checkpoint earns: mean reward and turns of whole episodes with `policy=hf`.

    Args:
        checkpoint: Its folder.
        questions: A file of questions.
        temperature: Of sampling; 0 is greedy.
        repeats: Episodes of each question.
        seed: Of sampling.

    Returns:
        `reward`, `turns` and `episodes`, and `rewards`: the mean of each question, in their order.
    """
    from apr_plugin.policies.hf import HfPolicy
    from apr_plugin.runs.runner import run_episodes
    from apr_plugin.training.grpo.rewards import reward
    from apr_plugin.training.synthesis.questions import load_questions

    asked = load_questions([str(questions)])
    config = EpisodeConfig(
        budget=Budget(**BUDGET),
        system_prompt=INSTRUCTIONS,
        sampling=Sampling(temperature=temperature, max_new_tokens=MOST_TOKENS),
        seed=seed,
    )
    policy = HfPolicy.from_pretrained(str(checkpoint), device="cpu", dtype="float32", batch_size=32, kv_cache=False)
    try:
        each = [one.attempt(number) for one in asked for number in range(repeats)]
        done = asyncio.run(run_episodes(each, policy, config, 32))
    finally:
        policy.close()
    totals = [reward(trajectory, asked[number // repeats].truth).total for number, trajectory in enumerate(done)]
    rewards = [_mean(totals[at : at + repeats]) for at in range(0, len(totals), repeats)]
    turns = _mean([len(trajectory.turns) for trajectory in done])
    return {"reward": _mean(rewards), "turns": turns, "episodes": len(done), "rewards": rewards}


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    if len(known) != len(values):
        raise RuntimeError(f"{len(values) - len(known)} of {len(values)} episodes could not be scored")
    return sum(known) / len(known)
