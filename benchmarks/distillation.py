"""Shows whether on-policy distillation brings a student to its teacher, and how steady two forms of its gradient are.

    python -m benchmarks.distillation [--steps 30] [--seeds 3] [--rollouts 16] [--json FILE]

The student is a Qwen2.5-VL of half a million weights that was taught imperfectly to follow trails
(`benchmarks/trails`). The teacher is the same model after reinforcement (`apr train grpo`'s trainer), so that it knows
what a student does wrong. Then the student learns from the teacher on its own investigations, with the trainer of
`apr train distill`, once for each seed and estimator. Both estimators of a seed ask the same questions and begin with
the same rollout.

| figure | how |
|---|---|
| loss | as the trainer logs it at each step, on rollouts made for it; means of the first and last fifth of the steps |
| held-out KL | reverse KL over the whole vocabulary, in nats a token, on the student's own rollouts about films that \
were in no training, before and after |
| reward | of held-out questions, greedy and sampled: student before and after, and teacher |
| gradient variance | trace of the covariance of the gradient over fresh rollouts, for both estimators on the same \
rollouts, before and after training; and the same over the squared length of the mean gradient (noise to signal) |

Intervals are 95%: Student's t over seeds; over held-out films by bootstrap; over rollouts by jackknife.

`--work` keeps what is finished: after a kill the same command goes on, and repeats at most the part that was running.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from benchmarks.distillation_measures import ESTIMATORS, held_out, variances
from benchmarks.distillation_report import show
from benchmarks.grpo_learning import Run, claim, evaluated, kept, one_thread, tell, train
from benchmarks.grpo_learning import recipe_of as recipe_of_grpo
from benchmarks.trails.making import Sizes, Start, make_start, start_seconds

TEACHER_SEED = 100
"""Of the teacher's reinforcement; no student has it."""

LOGGED = ("step", "loss", "grad_norm", "reward", "turns", "errors", "rows", "turns_without_tokens")
"""What is kept of each step, beside `distill/…`."""


def recipe_of(start: Start, teacher: Path, *, seed: int, steps: int, learning_rate: float, **distill: Any) -> Any:
    """The recipe of `apr train distill`: that of reinforcement with a teacher, and with 16 trajectories of 8 films."""
    made = recipe_of_grpo(start, Run("none", seed), steps, learning_rate)
    del made["credit"]
    for name in ("loss_type", "epsilon", "epsilon_high"):
        del made["trainer"][name]
    return made | {
        "teacher": {"pretrained": str(teacher)},
        "distill": distill,
        "generations": 2,
        "questions_per_step": 8,
    }


class Steps:
    """Standard output of a trainer: goes to a file, and every tenth step is told."""

    def __init__(self, file: TextIO, words: str) -> None:
        self.file, self.words, self.count = file, words, 0

    def write(self, text: str) -> int:
        """Keep the text; a line of the trainer's log is a step."""
        if text.startswith("{'loss'"):
            self.count += 1
            if self.count % 10 == 0:
                tell(f"{self.words}: step {self.count}")
        return self.file.write(text)

    def flush(self) -> None:
        """As a file."""
        self.file.flush()


@contextlib.contextmanager
def steps_of(file: Path, words: str) -> Iterator[None]:
    """What a trainer prints goes to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as opened, contextlib.redirect_stdout(Steps(opened, words)):
        yield


def once(file: Path, words: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a part of the benchmark found, from its file if it is finished.

    Args:
        file: For the result.
        words: What it is.
        make: Does it; processor and wall seconds are added to what it finds.
    """
    if not file.is_file():
        tell(words)
        began = time.process_time(), time.monotonic()
        with steps_of(file.with_suffix(".log"), words):
            found = make()
        spent = {"cpu_s": time.process_time() - began[0], "wall_s": time.monotonic() - began[1]}
        kept(file, found | {name: round(value, 1) for name, value in spent.items()})
    read: dict[str, Any] = json.loads(file.read_text())
    return read


def distilled(recipe: dict[str, Any], start: Start, folder: Path) -> dict[str, Any]:
    """Train, and measure the checkpoint; a run that did not end begins anew."""
    from apr_plugin.training.distill.recipe import DistillRecipe
    from apr_plugin.training.distill.running import run_distill

    shutil.rmtree(folder, ignore_errors=True)
    final = run_distill(DistillRecipe.model_validate(recipe), folder)
    log = json.loads((final / "training.json").read_text())["log"]
    return {
        "estimator": recipe["distill"]["estimator"],
        "seed": recipe["seed"],
        "steps": [
            {name: one[name] for name in one if name in LOGGED or name.startswith("distill/")}
            for one in log
            if "loss" in one
        ],
        "kl": held_out(_held_out_recipe(recipe, start, final), folder / "held_out"),
        "reward": evaluated(final, start),
    }


def _held_out_recipe(recipe: dict[str, Any], start: Start, student: Path) -> dict[str, Any]:
    """Rollouts about held-out films, with the same seeds for every student."""
    return recipe | {"student": {"pretrained": str(student)}, "questions": [str(start.held_out)], "seed": 17}


def measured(args: argparse.Namespace, sizes: Sizes) -> dict[str, Any]:
    """All parts, finished ones from their files."""
    work, began = args.work, time.monotonic()
    with steps_of(work / "start.log", "supervised training"):
        start = make_start(work, sizes, tell)

    def reinforced() -> dict[str, Any]:
        return train(start, Run("none", TEACHER_SEED), args.teacher_steps, args.learning_rate, work / "teacher")

    found: dict[str, Any] = {"teacher": once(work / "teacher.result.json", "the teacher's reinforcement", reinforced)}

    def recipe(name: str, seed: int) -> dict[str, Any]:
        rate = args.learning_rate
        made: dict[str, Any] = recipe_of(
            start, work / "teacher" / "final", seed=seed, steps=args.steps, learning_rate=rate, estimator=name
        )
        return made

    first = recipe("top_k", 5)
    found["before"] = once(
        work / "before.json",
        "the student before",
        lambda: {
            "kl": held_out(_held_out_recipe(first, start, start.checkpoint), work / "before"),
            "reward": evaluated(start.checkpoint, start),
        },
    )
    found["variance"] = once(
        work / "variance.json", "gradient variance", lambda: variances(first, work / "variance", args.rollouts, tell)
    )
    found["runs"] = []
    for seed in range(args.seeds):
        for name in ESTIMATORS:
            run = f"{name}-{seed}"
            found["runs"].append(
                once(
                    work / "runs" / f"{run}.json",
                    f"distillation {run}",
                    lambda name=name, seed=seed, run=run: distilled(recipe(name, seed), start, work / "runs" / run),
                )
            )
    trained = {"student": {"pretrained": str(work / "runs" / "top_k-0" / "final")}}
    found["variance_after"] = once(
        work / "variance_after.json",
        "gradient variance after training",
        lambda: variances(first | trained, work / "variance_after", args.rollouts, tell),
    )
    parts = [found[name] for name in ("teacher", "before", "variance", "variance_after")] + found["runs"]
    found["cpu_s"] = {
        **start_seconds(work),
        "teacher": found["teacher"]["cpu_s"],
        "all": round(sum(start_seconds(work).values()) + sum(one["cpu_s"] for one in parts), 1),
    }
    found["wall_s_of_this_call"] = round(time.monotonic() - began, 1)
    return found


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="all figures, and the log of each step")
    parser.add_argument("--steps", type=int, default=30, help="of distillation; at least 5")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--rollouts", type=int, default=16, help="of the gradient's variance; at least 3")
    parser.add_argument("--teacher-steps", type=int, default=32, help="of reinforcement")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--taught", type=int, default=Sizes.taught, help="films that the first checkpoint learns from")
    parser.add_argument("--sft-steps", type=int, default=Sizes.sft_steps)
    parser.add_argument("--held-out", type=int, default=Sizes.held_out, help="films of the evaluation; at least 8")
    parser.add_argument("--work", type=Path, default=Path("build/distillation"))
    args = parser.parse_args(given)
    for name, least in (("steps", 5), ("seeds", 1), ("rollouts", 3), ("held_out", 8)):
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} is at least {least}")
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    from apr_plugin.report.machine import hardware

    one_thread()
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    sizes = {"taught": args.taught, "sft_steps": args.sft_steps, "held_out": args.held_out}
    settings = {name: getattr(args, name) for name in ("steps", "rollouts", "teacher_steps", "learning_rate")} | sizes
    claim(args.work, settings)
    load = os.getloadavg()[0]
    found = measured(args, replace(Sizes(), **sizes))
    found |= {
        "settings": settings,
        "machine": hardware(),
        "load": [round(one, 2) for one in (load, os.getloadavg()[0])],
    }
    if args.json is not None:
        kept(args.json, found)
    show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
