"""Measures what a rule of credit costs: TAURA against plain GRPO on the same rollouts, and the memory of a step.

    python -m benchmarks.grpo_cost [--json FILE] [--rollouts 12] [--questions 4]

The student and films are those of `grpo_learning`, the weights random or `--student`. A rollout is sampled once. Then
both rules make their rows of it and update, one after the other, and change places with each rollout; so the difference
of a pair is the rule's alone. The learning rate is 0, so that a rollout stays one of the present weights. Times are CPU
seconds of the process. A hook counts the forwards of the model:

- `rollout`: by `policy=hf`, for prompts and tokens;
- `update`: one for each pack of rows;
- `extra`: all others. With one update of a rollout there is none: entropies come with sampling. With several updates
  (`updates_per_rollout`, or `num_iterations` of TRL) the log-probabilities before the first one are computed again, for
  plain GRPO as well; TAURA adds nothing to that.

Memory is the highest resident size of a step of one process above that before it, for rows of several lengths and
numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.trails.films import write_set
from benchmarks.trails.making import BUDGET, LEARN, MOST_TOKENS
from benchmarks.trails.student import INSTRUCTIONS, save_student

RULES = ("none", "taura")
PARTS = ("rollout", "old log-probabilities", "credit and rows", "forward", "backward", "optimizer")


@dataclass
class Meter:
    """CPU seconds and forwards by the part of a step that runs."""

    seconds: Counter[str] = field(default_factory=Counter)
    forwards: Counter[str] = field(default_factory=Counter)
    now: str = "other"

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs inside counts to this part; a part within a part counts to the inner one alone."""
        outer, self.now = self.now, name
        began, inside = time.process_time(), sum(self.seconds.values())
        try:
            yield
        finally:
            self.now = outer
            self.seconds[name] += time.process_time() - began - (sum(self.seconds.values()) - inside)

    def during(self, name: str, call: Callable[..., Any], but: str = "") -> Callable[..., Any]:
        """The function, measured as a part, except within the part `but`."""

        def measured(*args: Any, **given: Any) -> Any:
            with self.part(name if self.now != but else but):
                return call(*args, **given)

        return measured


def make_trainer_of(student: Path, questions: Path, out: Path, updates: int, per_step: int) -> Any:
    """A trainer with one thread, whose steps leave the weights as they are."""
    from apr_plugin.training.grpo.making import make_trainer
    from apr_plugin.training.grpo.recipe import GrpoRecipe
    from apr_plugin.training.student import Student
    from apr_plugin.training.synthesis.questions import load_questions

    (words := out.with_name("instructions.txt")).write_text(INSTRUCTIONS)
    trainer = {"use_cpu": True, "bf16": False, "max_steps": 1, "learning_rate": 0.0, "disable_tqdm": True}
    trainer |= {"activation_checkpointing": False, "save_strategy": "no", "lr_scheduler_type": "constant"}
    recipe = GrpoRecipe.model_validate(
        {
            "student": {"pretrained": str(student)},
            "questions": [str(questions)],
            "generations": 8,
            "questions_per_step": per_step,
            "updates_per_rollout": updates,
            "budget": BUDGET,
            "system_prompt": str(words),
            "sampling": {"max_new_tokens": MOST_TOKENS, "concurrency": 32, "kv_cache_gb": 0.5},
            "samples": {"trajectories": 0},
            "trainer": trainer,
        }
    )
    made = make_trainer(recipe, load_questions(recipe.questions), {}, Student.from_pretrained(str(student)), out)
    made.create_optimizer()
    made.accelerator.prepare(made.optimizer)
    return made


@contextlib.contextmanager
def metered(trainer: Any, meter: Meter) -> Iterator[None]:
    """Measure a trainer: its parts are replaced by measured ones, and every forward of its model is counted."""
    hook = trainer.model.register_forward_pre_hook(lambda *_: meter.forwards.update([meter.now]))
    was = (trainer.forward, trainer._with_old, trainer.accelerator.backward)
    trainer.forward = meter.during("forward", was[0], but="old log-probabilities")
    trainer._with_old = meter.during("old log-probabilities", was[1])
    trainer.accelerator.backward = meter.during("backward", was[2])
    try:
        yield
    finally:
        trainer.forward, trainer._with_old, trainer.accelerator.backward = was
        hook.remove()


def step(trainer: Any, rule: str, sampled: Sequence[Any], inputs: Sequence[Any], meter: Meter) -> None:
    """Everything of a step but its rollout."""
    trainer.recipe = trainer.recipe.model_copy(
        update={"credit": trainer.recipe.credit.model_copy(update={"rule": rule})}
    )
    trainer._sample = lambda *_: list(sampled)
    trainer._fresh = True  # log-probabilities are compared with those of sampling, as in a first update
    with metered(trainer, meter):
        with meter.part("credit and rows"):
            parts = trainer._generate_and_score_completions(list(inputs))
        for part in parts:
            trainer.model.train()
            with meter.part("forward"):
                loss = trainer.compute_loss(trainer.model, part)
            trainer.accelerator.backward(loss)
            with meter.part("optimizer"):
                trainer.optimizer.step()
                trainer.model.zero_grad()
    meter.forwards["rows"] += sum(part.rows for part in parts)
    meter.forwards["packs"] += sum(len(part.packs) for part in parts)


def compare(trainer: Any, rollouts: int, per_step: int) -> dict[str, Any]:
    """Both rules on the same rollouts.

    Returns:
        By rule the seconds of each rollout's step by part, and the forwards; of both together the turns.
    """
    from apr_plugin.training.grpo import trainer as module

    found: dict[str, Any] = {rule: {"seconds": [], "forwards": Counter()} for rule in RULES}
    generations, turns = trainer.recipe.generations, 0
    own, module.record_of = module.record_of, _spread(module.record_of, generations)
    try:
        for number in range(rollouts + 1):  # the first one warms up
            asked = [(number * per_step + at) % len(trainer.questions) for at in range(per_step)]
            inputs = [{"question": at} for at in asked for _ in range(generations)]
            questions = [
                trainer.questions[one["question"]].attempt(number * generations + at % generations)
                for at, one in enumerate(inputs)
            ]
            shared = Meter()
            hook = trainer.model.register_forward_pre_hook(lambda *_, m=shared: m.forwards.update(["rollout"]))
            with shared.part("rollout"):
                sampled = type(trainer)._sample(trainer, questions, number)
            hook.remove()
            for rule in RULES if number % 2 else RULES[::-1]:
                meter = Meter()
                step(trainer, rule, sampled, inputs, meter)
                if number:
                    found[rule]["seconds"].append({**meter.seconds, **shared.seconds})
                    found[rule]["forwards"] += meter.forwards + shared.forwards
            turns += sum(len(one.turns) for one in sampled) if number else 0
            tell(f"rollout {number}/{rollouts}")
    finally:
        module.record_of = own
    return {**found, "turns": turns}


def _spread(record_of: Any, generations: int) -> Any:
    """Every second trajectory of a group earns 1: the random student earns nothing, and then nothing is trained."""
    from dataclasses import replace

    count = iter(range(10**9))

    def changed(*given: Any) -> Any:
        record, at = record_of(*given), next(count)
        earned = replace(record.reward, total=float(at % generations % 2), parts={}, score=0.0)
        return replace(record, reward=earned)

    return changed


def ratio(found: dict[str, Any], parts: Sequence[str]) -> tuple[float, float, float]:
    """TAURA's time over plain GRPO's in these parts: of the sums, with a 95% bootstrap interval over rollouts."""
    times = np.array([[sum(one.get(part, 0.0) for part in parts) for one in found[rule]["seconds"]] for rule in RULES])
    rng = np.random.default_rng(0)
    draws = rng.integers(0, times.shape[1], (4000, times.shape[1]))
    several = times[1][draws].sum(1) / times[0][draws].sum(1)
    low, high = np.quantile(several, [0.025, 0.975])
    return float(times[1].sum() / times[0].sum()), float(low), float(high)


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Numbers to show, from `compare`."""
    made: dict[str, Any] = {"turns": found["turns"], "ratio": ratio(found, PARTS)}
    made["ratio_without_rollout"] = ratio(found, PARTS[1:])
    for rule in RULES:
        every = found[rule]["seconds"]
        seconds = {part: sum(one.get(part, 0.0) for one in every) / len(every) for part in PARTS}
        forwards = dict(found[rule]["forwards"])
        counts = {name: forwards.get(name, 0) for name in ("rollout", "packs", "rows")}
        counts["update"] = forwards.get("forward", 0)
        counts["extra"] = sum(
            count for name, count in forwards.items() if name not in ("rollout", "forward", "packs", "rows")
        )
        made[rule] = {"seconds": seconds, "step_s": sum(seconds.values()), "forwards": counts}
    return made


def memory(trainer: Any, lengths: Sequence[int], numbers: Sequence[int]) -> list[dict[str, Any]]:
    """MiB of a step of so many rows of text, the longest of so many tokens, above what the process had before."""
    from apr_plugin.loop.policy import Message, Prompt, TextPart
    from apr_plugin.training.grpo.rows import Part, TurnRow, together

    student = trainer.rollouts.student

    def row(tokens: int) -> Any:
        prompt = Prompt((Message("user", (TextPart("-" * tokens),)),))
        ids = tuple(student.encoder.encode(prompt).ids.tolist())
        return TurnRow(prompt, ids, (student.end,) * 10, advantage=1.0)

    found = []
    for length in lengths:
        for number in numbers:
            rows = [row(length), *(row(length // 2) for _ in range(number - 1))]
            part = Part(tuple(together(rows, None)), number, 10 * number)
            trainer.model.train()
            before = _settled()
            Path("/proc/self/clear_refs").write_text("5")  # the highest size is that from now on
            trainer.accelerator.backward(trainer.compute_loss(trainer.model, part))
            highest = _status("VmHWM")
            trainer.model.zero_grad(set_to_none=False)
            found.append({"longest": max(one.tokens for one in rows), "rows": number, "mib": highest - before})
            tell(f"memory: {found[-1]}")
    return found


def _settled() -> float:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the last step freed goes back to the system
    return _status("VmRSS")


def _status(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def show(name: str, one: dict[str, Any]) -> None:
    value, low, high = one["ratio"]
    print(f"\n{name}: a step with taura takes {value:.4f} of one with none (95%: {low:.4f} to {high:.4f}), ", end="")
    value, low, high = one["ratio_without_rollout"]
    print(f"without the rollout {value:.4f} ({low:.4f} to {high:.4f}); {one['turns']} turns")
    print("\n| rule | " + " | ".join(f"{part}, CPU ms (share)" for part in PARTS) + " |\n|---|" + "---|" * len(PARTS))
    for rule in RULES:
        total = one[rule]["step_s"]
        cells = [f"{1000 * one[rule]['seconds'][p]:.1f} ({one[rule]['seconds'][p] / total:.1%})" for p in PARTS]
        print(f"| `{rule}` | " + " | ".join(cells) + " |")
    print("\n| rule | forwards a turn in the rollout | in the update | extra | packs a turn |\n|---|---|---|---|---|")
    for rule in RULES:
        counts, turns = one[rule]["forwards"], one["turns"]
        each = [f"{counts[part] / turns:.3f}" for part in ("rollout", "update", "extra", "packs")]
        print(f"| `{rule}` | " + " | ".join(each) + " |", flush=True)


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--student", type=Path, help="a checkpoint of grpo_learning (WORK/sft/final); default: random")
    parser.add_argument("--rollouts", type=int, default=12)
    parser.add_argument("--questions", type=int, default=4, help="of a rollout, with 8 trajectories each")
    parser.add_argument("--lengths", default="1000,2000,4000", help="tokens of the longest row, for memory")
    parser.add_argument("--numbers", default="1,4,16", help="rows of a step, for memory")
    args = parser.parse_args(given)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        student = args.student or save_student(folder / "student")
        questions = write_set(folder / "films", "cost", range(LEARN, LEARN + max(8, args.questions)))
        for updates in (1, 2):
            name = f"{updates} update{'s' if updates > 1 else ''} of a rollout"
            tell(name)
            trainer = make_trainer_of(student, questions, folder / f"out{updates}", updates, args.questions)
            try:
                found[name] = summary(compare(trainer, args.rollouts, args.questions))
                show(name, found[name])
                if updates == 1:
                    lengths, numbers = ([int(one) for one in text.split(",")] for text in (args.lengths, args.numbers))
                    found["memory"] = memory(trainer, lengths, numbers)
            finally:
                trainer.rollouts.close()
    print("\n| longest row, tokens | rows | MiB of a step |\n|---|---|---|")
    for one in found["memory"]:
        print(f"| {one['longest']:,} | {one['rows']} | {one['mib']:.1f} |")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(math.isfinite(found[name]["ratio"][0]) for name in found if name != "memory") else 1


if __name__ == "__main__":
    sys.exit(main())
