"""Measures on-policy distillation: the loss, the held-out divergence, and how steady two forms of the gradient are.

    python -m benchmarks.distillation [--json FILE] [--steps 20] [--rollouts 12] [--seeds 1]

Teacher and student are random Qwen2.5-VL models, the student smaller, both with all of their code real. Both are first
trained on scripted turns about small films (`apr train sft`'s trainer), the student for a fraction of the steps, so
that it writes turns that can be read. Then the student learns from the teacher on its own investigations, with the
trainer of `apr train distill`, once with each estimator from the same weights and with the same seeds.

| figure | how |
|---|---|
| loss | as the trainer logs it, step by step; means over seeds |
| held-out KL | reverse KL over the whole vocabulary, in nats a token, on the student's own rollouts about films that \
were in no training, before and after |
| gradient variance | trace of the covariance of the gradient over fresh rollouts at the first weights, for both \
estimators on the same rollouts; and the same over the squared length of the mean gradient (noise to signal) |

Intervals are 95%: over trajectories by bootstrap for the held-out KL, over rollouts by jackknife for the variances.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

ESTIMATORS = ("top_k", "sampled")
FILMS, HELD_OUT = 8, 3
WORDS = ("red", "blue", "a cup", "a door", "nobody", "a face", "dark", "a road")
INSTRUCTIONS = "Look at the video, then answer."
TOKENS = 110
"""Longest turn of a rollout."""


def make_model(folder: Path, hidden: int, seed: int) -> Path:
    """A random Qwen2.5-VL of that width."""
    import tiny_models

    tiny_models.HIDDEN, tiny_models.HEADS, tiny_models.KV_HEADS = hidden, hidden // 32, max(1, hidden // 64)
    return tiny_models.save_tiny("qwen2_5_vl", folder, seed=seed)


def make_films(folder: Path) -> list[Path]:
    from apr_testing import make_video_file

    folder.mkdir()
    return [
        make_video_file(folder / f"{number}.mp4", frames=40 + 5 * number, size=(112, 64))
        for number in range(FILMS + HELD_OUT)
    ]


def write_questions(path: Path, films: Sequence[Path]) -> Path:
    path.write_text(
        "".join(
            json.dumps(
                {
                    "id": film.stem,
                    "video": str(film),
                    "question": f"what is shown in {film.stem}?",
                    "kind": "mcq",
                    "options": ["one", "two"],
                    "answer": "AB"[int(film.stem) % 2],
                }
            )
            + "\n"
            for film in films
        )
    )
    return path


def scripted_rows(student: Any, films: Sequence[Path], folder: Path) -> Path:
    """Rows of three investigations of each film, whose words differ."""
    from row_making import Speaker, played, question

    from apr_plugin.loop import Budget, EpisodeConfig, Sampling
    from apr_plugin.training.making import RowSettings, Source, make_rows
    from apr_plugin.training.rows import write_rows

    budget = Budget(turns=4, frame_pixels=4 * 784)
    config = EpisodeConfig(budget=budget, sampling=Sampling(max_new_tokens=300), system_prompt=INSTRUCTIONS)
    chance = random.Random(0)

    def turn(**action: Any) -> str:
        seen, thought = chance.sample(WORDS, 2)
        whole = {"observation": seen, "think": thought, "confidence": chance.choice((0.2, 0.5, 0.9)), "action": action}
        return json.dumps(whole)

    for film in films:
        for attempt in range(3):
            start = chance.randint(0, 2)
            says = [
                turn(type="get_frames", start=0.0, end=3.0, num=2),
                turn(type="get_frames", start=float(start), end=float(start + 1), num=1),
                turn(type="answer", content="AB"[int(film.stem) % 2]),
            ]
            asked = question(film, doc_id=f"{film.stem}-{attempt}", text=f"what is shown in {film.stem}?")
            run = played(folder, asked, Speaker(student, says), config)
    made = make_rows([Source(run.file, run.card)], student, RowSettings(validation=0.0))
    write_rows(folder / "rows.jsonl", made)
    return folder / "rows.jsonl"


def fine_tuned(model: Path, rows: Path, steps: int, out: Path) -> tuple[Path, float]:
    """The checkpoint after so many steps on the scripted turns, and its last loss."""
    from apr_plugin.training.sft.recipe import Recipe
    from apr_plugin.training.sft.running import run_sft

    trainer = {"use_cpu": True, "bf16": False, "learning_rate": 3e-3, "max_steps": steps, "disable_tqdm": True}
    trainer |= {"activation_checkpointing": False, "lr_scheduler_type": "linear", "save_strategy": "no"}
    recipe = {"student": {"pretrained": str(model)}, "rows": str(rows), "rows_per_step": 12, "trainer": trainer}
    recipe |= {"learn": {"towers": "trained"}, "forward": {"token_budget": 4000}}
    with contextlib.redirect_stdout(sys.stderr):
        final = run_sft(Recipe.model_validate(recipe), out)
    return final, float(json.loads((final / "training.json").read_text())["losses"][-1]["loss"])


def make_distillation(student: Path, teacher: Path, questions: Path, out: Path, **more: Any) -> Any:
    """The trainer of `apr train distill`."""
    from apr_plugin.training.distill.making import make_trainer
    from apr_plugin.training.distill.recipe import DistillRecipe
    from apr_plugin.training.grpo.running import usable_questions
    from apr_plugin.training.sft.running import student_of
    from apr_plugin.training.synthesis.questions import load_questions

    (words := questions.with_name("instructions.txt")).write_text(INSTRUCTIONS)
    trainer = {"use_cpu": True, "bf16": False, "learning_rate": 3e-4, "lr_scheduler_type": "constant"}
    trainer |= {"activation_checkpointing": False, "save_strategy": "no", "disable_tqdm": True}
    recipe = DistillRecipe.model_validate(
        {
            "student": {"pretrained": str(student)},
            "teacher": {"pretrained": str(teacher)},
            "questions": [str(questions)],
            "generations": 2,
            "questions_per_step": 2,
            "system_prompt": str(words),
            "budget": {"turns": 4, "frame_pixels": 4 * 784, "clip_pixels": 4 * 784},
            "sampling": {"max_new_tokens": TOKENS, "concurrency": 8},
            "learn": {"towers": "trained"},
            "samples": {"trajectories": 0},
            "forward": {"token_budget": 4000},
            "seed": more.pop("seed", 0),
            "distill": more.pop("distill", {}),
            "trainer": trainer | more,
        }
    )
    usable = usable_questions(load_questions(recipe.questions), recipe, quiet())
    return make_trainer(recipe, usable.questions, usable.durations, student_of(recipe.student), out)


def quiet() -> Any:
    from rich.console import Console

    return Console(quiet=True)


def rollout(trainer: Any, step: int, questions: Sequence[int]) -> Any:
    """The rows of a fresh rollout about some questions."""
    trainer.state.global_step = step
    each = trainer.recipe.generations
    (part,) = trainer._generate_and_score_completions([{"question": n} for n in questions for _ in range(each)])
    return part


def held_out(student: Path, teacher: Path, questions: Path, folder: Path, rollouts: int = 4) -> dict[str, Any]:
    """The reverse KL over the whole vocabulary on the student's own rollouts: mean over tokens, and its interval."""
    import torch

    from apr_plugin.training.distill.losses import whole_reverse_kl

    trainer = make_distillation(student, teacher, questions, folder, max_steps=1, seed=17)
    sums: dict[str, list[float]] = {}
    with torch.no_grad():
        for number in range(rollouts):
            for pack in rollout(trainer, number, range(HELD_OUT)).packs:
                taught = trainer.teacher.logits(pack).values
                head = trainer.model.get_output_embeddings()
                own = trainer.forward.logits(trainer.model, head, pack, trainer.accelerator.device).values
                words = min(own.shape[-1], taught.shape[-1])
                values = whole_reverse_kl(own[..., :words], taught[..., :words])
                for row, of in zip(pack, values, strict=True):
                    learned = torch.tensor(trainer._learned(row))
                    name = f"{number} {row.where.rpartition(',')[0]}"
                    one = sums.setdefault(name, [0.0, 0.0])
                    one[0] += float(of[: len(learned)][learned].sum())
                    one[1] += float(learned.sum())
    trainer.rollouts.close()
    pairs = np.array([one for one in sums.values() if one[1]])
    chance = np.random.default_rng(0)
    drawn = pairs[chance.integers(0, len(pairs), (2000, len(pairs)))].sum(axis=1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], (0.025, 0.975))
    total = pairs.sum(axis=0)
    return {"kl": float(total[0] / total[1]), "low": float(low), "high": float(high), "trajectories": len(pairs)}


def gradients(trainer: Any, part: Any) -> dict[str, Any]:
    """The gradient of the same rows with each estimator, as a vector."""
    import torch

    found, was = {}, trainer.recipe
    for name in ESTIMATORS:
        trainer.recipe = was.model_copy(update={"distill": was.distill.model_copy(update={"estimator": name})})
        trainer.model.train()
        trainer.accelerator.backward(trainer.compute_loss(trainer.model, part))
        parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in trainer.model.parameters()]
        found[name] = torch.cat([one.flatten() for one in parts]).double()
        trainer.model.zero_grad()
    trainer.recipe = was
    return found


def spread(gram: Any) -> tuple[float, float]:
    """From the products of n gradients with each other: the trace of their covariance, and their mean's square length.

    Both estimates are unbiased: the mean's own noise is not in its length.
    """
    n = len(gram)
    apart = (gram.sum() - np.trace(gram)) / (n * (n - 1))
    return float(np.trace(gram) / n - apart), float(apart) if apart > 0 else math.nan


def jackknife(of: Callable[[Any], float], n: int) -> dict[str, float]:
    """A statistic of n rollouts, and its 95% interval; `of` takes the numbers of the rollouts that are used."""
    every = np.arange(n)
    value = of(every)
    left_out = np.array([of(np.delete(every, at)) for at in every])
    error = math.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    return {"value": value, "low": value - 1.96 * error, "high": value + 1.96 * error}


def variances(student: Path, teacher: Path, questions: Path, folder: Path, rollouts: int) -> dict[str, Any]:
    """How much the gradient varies from rollout to rollout, with each estimator."""
    import torch

    trainer = make_distillation(student, teacher, questions, folder, max_steps=1, seed=5)
    flats: dict[str, list[Any]] = {name: [] for name in ESTIMATORS}
    for number in range(rollouts):
        tell(f"gradient variance: rollout {number + 1} of {rollouts}")
        first = 2 * number % FILMS
        for name, flat in gradients(trainer, rollout(trainer, number, (first, first + 1))).items():
            flats[name].append(flat)
    trainer.rollouts.close()
    stacked = {name: torch.stack(of) for name, of in flats.items()}
    grams = {name: (of @ of.T).numpy() for name, of in stacked.items()}
    means = {name: of.mean(0) for name, of in stacked.items()}

    def part(name: str, of: Any) -> tuple[float, float]:
        return spread(grams[name][np.ix_(of, of)])

    found: dict[str, Any] = {
        name: {
            "variance": jackknife(lambda of, name=name: part(name, of)[0], rollouts),
            "mean_square": part(name, np.arange(rollouts))[1],
            "noise_to_signal": jackknife(lambda of, name=name: part(name, of)[0] / part(name, of)[1], rollouts),
        }
        for name in ESTIMATORS
    }

    def log_ratio(of: Any, relative: bool) -> float:
        one, other = (part(name, of) for name in ("sampled", "top_k"))
        return math.log(one[0] / other[0]) - (math.log(one[1] / other[1]) if relative else 0.0)

    for name, relative in (("variance_ratio", False), ("noise_ratio", True)):
        logs = jackknife(lambda of, relative=relative: log_ratio(of, relative), rollouts)
        found[name] = {key: math.exp(value) for key, value in logs.items()}
    lengths = [float(mean.norm()) for mean in means.values()]
    found["cosine_of_means"] = float(means["top_k"] @ means["sampled"]) / math.prod(lengths)
    return found


def learned(student: Path, teacher: Path, questions: Path, folder: Path, estimator: str, steps: int, seed: int) -> Any:
    """The log of a run, and the folder of its checkpoint."""
    trainer = make_distillation(
        student,
        teacher,
        questions,
        folder,
        max_steps=steps,
        seed=seed,
        distill={"estimator": estimator},
        max_grad_norm=1.0,
    )
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train()
    trainer.model.save_pretrained(folder / "final")
    trainer.rollouts.student.encoder.processor.save_pretrained(folder / "final")
    trainer.rollouts.close()
    return [line for line in trainer.state.log_history if "loss" in line], folder / "final"


def tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def interval(one: dict[str, float], digits: int = 3) -> str:
    key = "kl" if "kl" in one else "value"
    return f"{one[key]:.{digits}g} ({one['low']:.{digits}g} to {one['high']:.{digits}g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=20, help="of distillation")
    parser.add_argument("--rollouts", type=int, default=12, help="of the gradient's variance; at least 3")
    parser.add_argument("--seeds", type=int, default=1, help="runs with each estimator")
    parser.add_argument("--teacher-steps", type=int, default=100, help="of fine-tuning")
    parser.add_argument("--student-steps", type=int, default=140)
    args = parser.parse_args()
    import torch

    from apr_plugin.training.student import Student

    torch.set_num_threads(1)
    began = time.process_time(), time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        films = make_films(folder / "films")
        asked = write_questions(folder / "train.jsonl", films[:FILMS])
        apart = write_questions(folder / "held_out.jsonl", films[FILMS:])
        plain = {
            "teacher": make_model(folder / "teacher", 128, 1),
            "student": make_model(folder / "student", 64, 0),
        }
        rows = scripted_rows(Student.from_pretrained(str(plain["teacher"])), films[:FILMS], folder / "rows")
        tuned, sft = {}, {}
        for name, steps in (("teacher", args.teacher_steps), ("student", args.student_steps)):
            tell(f"fine-tuning the {name}, {steps} steps")
            tuned[name], sft[name] = fine_tuned(plain[name], rows, steps, folder / f"sft_{name}")
        student, teacher = tuned["student"], tuned["teacher"]
        found: dict[str, Any] = {
            "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "sft_loss": sft,
            "variance": variances(student, teacher, asked, folder / "variance", args.rollouts),
            "before": held_out(student, teacher, apart, folder / "before"),
            "runs": {name: [] for name in ESTIMATORS},
        }
        save(found, args.json)
        for name in ESTIMATORS:
            for seed in range(args.seeds):
                tell(f"distillation, {name}, seed {seed}")
                place = folder / f"{name}_{seed}"
                log, final = learned(student, teacher, asked, place, name, args.steps, seed)
                after = held_out(final, teacher, apart, folder / f"{name}_{seed}_after")
                found["runs"][name].append({"log": log, "after": after})
                save(found, args.json)  # a stop keeps what was measured
    found["cpu_s"], found["wall_s"] = time.process_time() - began[0], time.perf_counter() - began[1]
    show(found)
    save(found, args.json)


def save(found: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(found, indent=2) + "\n")


def show(found: dict[str, Any]) -> None:
    """Print the tables."""
    print("last loss of fine-tuning: " + ", ".join(f"{name} {loss:.3f}" for name, loss in found["sft_loss"].items()))
    runs = found["runs"]
    print("\n| step | " + " | ".join(f"{name}: loss | {name}: top-K KL" for name in ESTIMATORS) + " |")
    print("|---:|" + "---:|" * 2 * len(ESTIMATORS))
    steps = len(runs["top_k"][0]["log"])
    for at in sorted({0, *range(3, steps, 4), steps - 1}):
        cells = [
            f"{np.mean([run['log'][at][value] for run in runs[name]]):.3f}"
            for name in ESTIMATORS
            for value in ("loss", "distill/kl_top_k")
        ]
        print(f"| {at + 1} | " + " | ".join(cells) + " |")
    print("\n| held-out reverse KL, nats a token | value |\n|---|---|")
    print(f"| before ({found['before']['trajectories']} trajectories) | {interval(found['before'])} |")
    for name in ESTIMATORS:
        for seed, run in enumerate(runs[name]):
            print(f"| after, {name}, seed {seed} | {interval(run['after'])} |")
    spreads = found["variance"]
    print("\n| gradient | top_k | sampled | sampled / top_k |\n|---|---|---|---|")
    for label, key, ratio in (
        ("variance (trace)", "variance", "variance_ratio"),
        ("variance / squared mean", "noise_to_signal", "noise_ratio"),
    ):
        cells = [interval(spreads[name][key]) for name in ESTIMATORS]
        print(f"| {label} | {' | '.join(cells)} | {interval(spreads[ratio])} |")
    print(f"\ncosine of the two mean gradients: {spreads['cosine_of_means']:.3f}")
    print(f"{found['cpu_s']:.0f} CPU s, {found['wall_s']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
