"""The benchmark of distillation: its statistics, its recipe, and that a finished part is not repeated.

The benchmark itself takes minutes; what it found is in benchmarks/README.md.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.distillation import once, recipe_of, steps_of
from benchmarks.distillation_measures import compared, spread
from benchmarks.distillation_report import falls, kl_change, kl_of, show
from benchmarks.trails.making import Start


def grams(noise: float, rollouts: int = 40, seed: int = 0) -> dict[str, Any]:
    """Products of gradients around one mean, of squared length 50; those of single tokens have more noise, if any."""
    chance = np.random.default_rng(seed)
    top_k = 1.0 + chance.normal(size=(rollouts, 50))
    both = {"top_k": top_k, "sampled": top_k + noise * chance.normal(size=(rollouts, 50))}
    return {name: of @ of.T for name, of in both.items()}


def test_the_spread_of_gradients_is_estimated_without_bias() -> None:
    """50 numbers of variance 1 around a mean of squared length 50, from three gradients at a time."""
    found = np.array([spread(grams(0.0, rollouts=3, seed=seed)["top_k"]) for seed in range(400)])
    assert found.mean(axis=0) == pytest.approx([50, 50], rel=0.03)
    variance, square = spread(np.zeros((4, 4)))
    assert math.isnan(variance) and math.isnan(square), "no gradient at all has no ratio"


def test_the_noisier_form_is_told_from_an_equal_one() -> None:
    found = compared(grams(2.0))
    assert found["variance_ratio"]["low"] > 3.5 and found["variance_ratio"]["high"] < 6.5, "1 + 2 ** 2"
    assert found["noise_ratio"]["low"] > 3
    assert found["top_k"]["variance"]["low"] < 50 < found["top_k"]["variance"]["high"]
    equal = compared(grams(0.0))["variance_ratio"]
    assert equal == pytest.approx({"value": 1, "low": 1, "high": 1})
    zeros = compared({name: np.zeros((5, 5)) for name in ("top_k", "sampled")})
    assert zeros["variance_ratio"] == zeros["noise_ratio"] == {"value": None, "low": None, "high": None}


def run(estimator: str, seed: int, losses: list[float], kl: float) -> dict[str, Any]:
    steps = [{"loss": loss, "distill/kl_top_k": loss, "grad_norm": 1.0} for loss in losses]
    reward = {way: {"reward": 0.9 + 0.01 * seed} for way in ("greedy", "sampled")}
    return {"estimator": estimator, "seed": seed, "steps": steps, "reward": reward, "kl": films(kl)}


def films(kl: float) -> dict[str, tuple[float, int]]:
    """Twelve films with 10 to 120 tokens, whose divergences are 0.2 to 2.4 times that."""
    return {f"film{n}": (kl * n / 5 * 10 * n, 10 * n) for n in range(1, 13)}


def test_the_fall_of_the_loss_is_over_seeds_and_that_of_held_out_films_paired() -> None:
    runs = [run("top_k", seed, [1.0 + 0.1 * seed] * 2 + [0.5] * 6 + [0.1] * 2, 0.1) for seed in range(3)]
    of = falls(runs, "loss")
    assert of["first"][0] == pytest.approx(1.1) and of["last"] == pytest.approx((0.1, 0.1, 0.1))
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert of["change"] == pytest.approx((-1.0, -1.0 - half, -1.0 + half), rel=1e-5)
    before = films(0.4)
    mean = sum(total for total, _ in before.values()) / sum(tokens for _, tokens in before.values())
    assert kl_of([before])[0] == pytest.approx(mean)
    value, low, high = kl_change(before, [one["kl"] for one in runs])
    assert value == pytest.approx(-0.75 * mean) and low < value < high < 0
    assert kl_change(before, [before, before]) == pytest.approx((0, 0, 0))
    missing = {name: of for name, of in before.items() if name != "film3"}
    assert math.isfinite(kl_change(before, [missing])[0]), "a film may have no learned token"


def test_the_tables_hold_both_estimators(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [run(name, seed, [1.0] * 5 + [0.2] * 5, 0.1) for seed in range(2) for name in ("top_k", "sampled")]
    reward = {way: {"reward": 0.4} for way in ("greedy", "sampled")}
    variance = compared(grams(2.0)) | {"rollouts": 40, "trajectories": 16, "cosine_of_means": 0.9}
    found = {"runs": runs, "before": {"kl": films(0.4), "reward": reward}, "teacher": {"after": reward}}
    found |= {
        "variance": variance,
        "variance_after": variance | {"noise_ratio": dict.fromkeys(("value", "low", "high"))},
    }
    show(found | {"cpu_s": {"all": 1.0}, "wall_s_of_this_call": 2.0, "load": [1.0, 1.0]})
    said = capsys.readouterr().out
    assert "| top_k | loss | 1 (1 to 1) | 0.2 (0.2 to 0.2) | -0.8 (-0.8 to -0.8) |" in said
    assert said.count("not known") == 1, "no ratio to a mean that is lost in noise"
    assert "| student before |" in said and "| after, sampled |" in said and "| variance (trace) |" in said


def test_its_recipe_is_one_of_distillation(tmp_path: Path) -> None:
    from apr_plugin.training.distill.recipe import DistillRecipe

    start = Start(tmp_path / "student", tmp_path / "q.jsonl", tmp_path / "held_out.jsonl", tmp_path / "words.txt")
    made = recipe_of(start, tmp_path / "teacher", seed=3, steps=7, learning_rate=1e-4, estimator="sampled")
    read = DistillRecipe.model_validate(made)
    assert read.distill.estimator == "sampled" and read.teacher.pretrained == str(tmp_path / "teacher")
    assert (read.seed, read.trainer["max_steps"], read.trainer["learning_rate"]) == (3, 7, 1e-4)


def test_a_finished_part_is_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A part that was stopped leaves no result; the trainer's words go to a file, and every tenth step is told."""
    file = tmp_path / "runs" / "one.json"

    def stopped() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        once(file, "one", stopped)
    assert not file.exists()
    found = once(file, "one", lambda: {"value": 5})
    assert found["value"] == 5 and found["cpu_s"] >= 0
    assert once(file, "one", stopped) == found
    with steps_of(tmp_path / "steps.log", "a run"):
        for _ in range(10):
            print({"loss": "0.1"})
    said = capsys.readouterr()
    assert said.out == "" and "a run: step 10" in said.err
    assert len((tmp_path / "steps.log").read_text().splitlines()) == 10
