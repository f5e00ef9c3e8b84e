"""Shows whether reinforcement on whole investigations learns, and compares rules of credit, on the CPU.

    python -m benchmarks.grpo_learning [--seeds 5] [--rules none,taura,empg,shuffled] [--out results/runs/grpo-learning]

A small Qwen2.5-VL imitates a teacher that perceives well and acts badly (`benchmarks/trails`). From this one checkpoint
the trainer of `apr train grpo` runs once for each seed and rule of credit, over real episodes on real video files. All
rules of a seed ask the same questions in the same order, and begin with the same rollout, so rules are compared within
seeds. Measured are the reward of held-out questions before and after (greedy, and sampled), and the reward of all
rollouts of the training. Intervals are Student's t over seeds.

`--work` keeps films, checkpoints and finished runs: after a kill the same command goes on, and repeats no finished run.
Two processes train at a time, each in one thread. CPU seconds are user and system time of the process that trained.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.trails.making import BUDGET, MOST_TOKENS, Sizes, Start, earned, make_start

RULES = ("none", "taura", "empg", "shuffled")
LOGGED = ("reward", "right", "turns", "errors", "completion_tokens", "grad_norm", "credit/std", "groups/kept", "rows")
"""What is kept of each step, beside the entropies of turns."""


@dataclass(frozen=True)
class Run:
    """One training run."""

    rule: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.rule}-{self.seed}"


def recipe_of(start: Start, run: Run, steps: int, learning_rate: float) -> dict[str, Any]:
    """The recipe of `apr train grpo`."""
    return {
        "student": {"pretrained": str(start.checkpoint)},
        "questions": [str(start.questions)],
        "generations": 8,
        "questions_per_step": 2,
        "budget": BUDGET,
        "system_prompt": str(start.instructions),
        "sampling": {"max_new_tokens": MOST_TOKENS, "concurrency": 16, "kv_cache_gb": 0},
        "credit": {"rule": run.rule, "seed": run.seed},
        "learn": {"what": "full", "towers": "frozen"},
        "forward": {"token_budget": 4000},
        "samples": {"every": 1000, "trajectories": 0},
        "seed": run.seed,
        "trainer": {
            "use_cpu": True,
            "bf16": False,
            "max_steps": steps,
            "learning_rate": learning_rate,
            "lr_scheduler_type": "constant",
            "loss_type": "dapo",
            "epsilon": 0.2,
            "epsilon_high": 0.3,
            "activation_checkpointing": False,
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            "seed": run.seed,
        },
    }


def train(start: Start, run: Run, steps: int, learning_rate: float, folder: Path) -> dict[str, Any]:
    """Train, evaluate, and keep the result in the folder; a run that did not end begins anew."""
    from apr_plugin.training.grpo.recipe import GrpoRecipe
    from apr_plugin.training.grpo.running import run_grpo

    shutil.rmtree(folder, ignore_errors=True)
    clock, cpu = time.monotonic(), time.process_time()
    final = run_grpo(GrpoRecipe.model_validate(recipe_of(start, run, steps, learning_rate)), folder)
    trained_s, trained_cpu_s = time.monotonic() - clock, time.process_time() - cpu
    log = json.loads((final / "training.json").read_text())["log"]
    found = {
        "rule": run.rule,
        "seed": run.seed,
        "after": evaluated(final, start),
        "train_cpu_s": round(trained_cpu_s, 1),
        "train_wall_s": round(trained_s, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "wall_s": round(time.monotonic() - clock, 1),
        "steps": [
            {name: one[name] for name in one if name in (*LOGGED, "step") or name.startswith("entropy/turn_")}
            for one in log
        ],
    }
    kept(folder / "result.json", found)
    return found


def evaluated(checkpoint: Path, start: Start) -> dict[str, Any]:
    """What a checkpoint earns on held-out questions."""
    return {
        "greedy": earned(checkpoint, start.held_out, 0.0),
        "sampled": earned(checkpoint, start.held_out, 1.0, seed=99),
    }


def kept(file: Path, found: Any) -> None:
    """Write JSON so that the file is whole or absent."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.replace(file)


def one_thread() -> None:
    """Of a worker process."""
    import torch

    torch.set_num_threads(1)


def run_all(start: Start, runs: Sequence[Run], args: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs, finished ones from their files."""
    results, waiting = {}, []
    for run in runs:
        if (file := args.work / "runs" / run.name / "result.json").is_file():
            results[run] = json.loads(file.read_text())
        else:
            waiting.append(run)
    tell(f"{len(runs)} runs, of which {len(results)} are finished")
    given = {run: (start, run, args.steps, args.learning_rate, args.work / "runs" / run.name) for run in waiting}
    for run, found in _trained(given, args.processes):
        results[run] = found
        after = found["after"]["greedy"]["reward"]
        tell(f"{len(results)}/{len(runs)} {run.name}: greedy reward {after:.3f}, {found['cpu_s']} CPU s")
    return [results[run] for run in runs]


def _trained(given: dict[Run, tuple[Any, ...]], processes: int) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Each run when it is finished; a single process is this one."""
    if processes == 1:
        for run, args in given.items():
            yield run, train(*args)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), one_thread) as pool:
        jobs = {pool.submit(train, *args): run for run, args in given.items()}
        for done in as_completed(jobs):
            yield jobs[done], done.result()


def tell(words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def before_training(start: Start, work: Path) -> dict[str, Any]:
    """What the checkpoint earns that all runs begin with."""
    file = work / "before.json"
    if not file.is_file():
        tell("evaluating the checkpoint that all runs begin with")
        kept(file, evaluated(start.checkpoint, start))
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0")
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--processes", type=int, default=2, help="that train at a time; 1 is this one")
    parser.add_argument("--taught", type=int, default=Sizes.taught, help="films that the teacher plays")
    parser.add_argument("--sft-steps", type=int, default=Sizes.sft_steps)
    parser.add_argument("--held-out", type=int, default=Sizes.held_out, help="films of the evaluation")
    parser.add_argument("--work", type=Path, default=Path("build/grpo-learning"))
    parser.add_argument("--out", type=Path, default=Path("results/runs/grpo-learning"))
    args = parser.parse_args(given)
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    from apr_plugin.training.grpo.credit import rule_named

    rules = args.rules.split(",")
    for rule in rules:
        rule_named(rule)
    one_thread()
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    claim(args.work, {"steps": args.steps, "learning_rate": args.learning_rate, **_sizes(args)})
    start = make_start(args.work, replace(Sizes(), **_sizes(args)), tell)
    before = before_training(start, args.work)
    tell(f"before: greedy {before['greedy']['reward']:.3f}, sampled {before['sampled']['reward']:.3f}")
    runs = [Run(rule, seed) for seed in range(args.seeds) for rule in rules]
    results = run_all(start, runs, args)
    from benchmarks.grpo_learning_report import write_report

    write_report(args.out, before, results, recipe_of(start, runs[0], args.steps, args.learning_rate), args)
    tell(f"{args.out}: written")
    return 0


def _sizes(args: argparse.Namespace) -> dict[str, int]:
    return {"taught": args.taught, "sft_steps": args.sft_steps, "held_out": args.held_out}


def claim(work: Path, mine: dict[str, Any]) -> None:
    """Finished runs of other settings must not be mixed with these."""
    file = work / "settings.json"
    if file.is_file() and (found := json.loads(file.read_text())) != mine:
        sys.exit(f"{work} has runs of other settings ({found}); name another folder with --work, or remove it")
    file.write_text(json.dumps(mine) + "\n")


if __name__ == "__main__":
    sys.exit(main())
