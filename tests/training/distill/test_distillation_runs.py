"""Whole runs of `apr train distill`: the loss falls, they continue, two processes make the step of one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

import distill_ranks  # noqa: E402 - after the libraries it needs
from distill_making import distill_recipe  # noqa: E402
from grpo_making import LOOKS, said, scripted, write_questions  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from sharding import SHARDED  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from apr_plugin.policies.hf import sample  # noqa: E402
from apr_plugin.training.commands import app  # noqa: E402
from apr_plugin.training.distill.making import make_trainer  # noqa: E402
from apr_plugin.training.distill.recipe import FOLDER, DistillRecipe, read_recipe  # noqa: E402
from apr_plugin.training.distill.running import run_distill  # noqa: E402
from apr_plugin.training.distill.teacher import check_teacher  # noqa: E402
from apr_plugin.training.recipe_file import RecipeError  # noqa: E402
from apr_plugin.training.synthesis.questions import load_questions  # noqa: E402

pytestmark = pytest.mark.xdist_group("ranks")

VL, OMNI = "qwen2_5_vl", "qwen2_5_omni"


def log_of(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "final" / "training.json").read_text())["log"]
    return found


def test_the_loss_falls_and_a_run_continues(
    tiny: Any,
    student: Callable[..., Any],
    teachers: Callable[[str], Path],
    shared_videos: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four steps, and the last two again from a checkpoint of the second."""
    questions = write_questions(tmp_path / "q.jsonl", shared_videos, ["sound"])
    steps = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 3e-3}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(distill_recipe("none", "none", questions, trainer=steps, distill={"top_k": 16})))
    names = {"student": {"pretrained": str(tiny(VL))}, "teacher": {"pretrained": str(teachers(VL))}}
    recipe = read_recipe(str(path), **names)
    says = scripted(student(VL), recipe, lambda _, __: [LOOKS[0], said(type="answer", content="A")])
    monkeypatch.setattr(sample, "_draw", says)
    options = [f"--{name}={told['pretrained']}" for name, told in names.items()]
    shown = CliRunner().invoke(app, ["distill", "--config", str(path), "--out", str(tmp_path / "whole"), *options])
    assert shown.exit_code == 0, shown.exception
    log = log_of(tmp_path / "whole")
    losses = [line["loss"] for line in log]
    assert len(losses) == 4 and losses[-1] < 0.7 * losses[0], losses
    assert log[-1]["distill/kl_top_k"] == pytest.approx(losses[-1], rel=1e-3)
    assert log[0]["rows"] == 4 and log[0]["groups/kept"] == 1, "equal rewards are learned from too"
    page = (tmp_path / "whole" / "final" / "README.md").read_text()
    assert "on-policy distillation" in page and f"| teacher | {teachers(VL)} |" in page and "- distillation" in page

    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "final")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-4")
    final = run_distill(recipe, tmp_path / "cut")
    whole, again = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole" / "final", final))
    for name in whole:
        torch.testing.assert_close(again[name], whole[name], atol=1e-6, rtol=1e-5)
    assert [line["loss"] for line in log_of(tmp_path / "cut")] == pytest.approx(losses, rel=1e-4)


@pytest.mark.slow
def test_two_processes_make_the_step_of_one(
    tiny: Any,
    teachers: Callable[[str], Path],
    shared_videos: dict[str, Path],
    start_ranks: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """DDP and FSDP2 on gloo, with ragged turns, weighted by entropy; the teacher is sharded as the student is."""
    questions = write_questions(tmp_path / "q.jsonl", shared_videos, ["sound", "long"])
    plain = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0}
    gloo = {"ddp_backend": "gloo", "ddp_timeout": 240}
    recipes = {}
    for name, trainer in (("one", {}), ("ddp", gloo), ("fsdp", gloo)):
        made = distill_recipe(
            tiny(OMNI),
            teachers(OMNI),
            questions,
            questions_per_step=2,
            distill={"top_k": 16, "weighting": "turn_entropy"},
            trainer=plain | trainer,
        )
        recipes[name] = tmp_path / f"{name}.yaml"
        recipes[name].write_text(json.dumps(made))
    words = [part for name in ("ddp", "fsdp") for part in (name, recipes[name], tmp_path / name)]
    ranks = start_ranks(Path(__file__).with_name("distill_ranks.py"), *words)
    distill_ranks.run(read_recipe(str(recipes["one"])), tmp_path / "one")
    ranks.end()
    before = load_file(tiny(OMNI) / "model.safetensors")
    single = load_file(tmp_path / "one" / "final" / "model.safetensors")
    assert sum(not torch.equal(before[key], single[key]) for key in single) > len(single) / 2
    (alone,) = log_of(tmp_path / "one")
    for name in ("ddp", "fsdp"):
        assert (tmp_path / name / SHARDED).exists() == (name == "fsdp")
        both = load_file(tmp_path / name / "final" / "model.safetensors")
        for key in single:
            torch.testing.assert_close(both[key], single[key], atol=2e-6, rtol=1e-5)
        (log,) = log_of(tmp_path / name)
        for value in ("loss", "rows", "grad_norm", "distill/kl_top_k", "distill/kl_sampled", "distill/mass"):
            assert log[value] == pytest.approx(alone[value], rel=1e-3), (name, value)
        assert log["sampling/logp_difference"] < 1e-4


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_each_recipe_of_distillation_makes_a_trainer(
    name: str,
    tiny: Any,
    student: Callable[..., Any],
    teachers: Callable[[str], Path],
    shared_videos: dict[str, Path],
    tmp_path: Path,
) -> None:
    questions = write_questions(tmp_path / "q.jsonl", shared_videos)
    places = {"student": {"pretrained": str(tiny(VL))}, "teacher": {"pretrained": str(teachers(VL))}}
    recipe = read_recipe(name, questions=[str(questions)], **places)
    recipe.check_trainer()
    assert {"source", "ran", "memory"} <= recipe.about.keys() and recipe.distill.top_k == 32
    small = recipe.student.model_copy(update={"context_tokens": None, "attn_implementation": None})
    taught = recipe.teacher.model_copy(update={"attn_implementation": None})
    trainer = recipe.trainer | {"use_cpu": True, "disable_tqdm": True}
    changes = {"student": small, "teacher": taught, "trainer": trainer, "questions_per_step": 2}
    made = make_trainer(
        recipe.model_copy(update=changes), load_questions(recipe.questions), {}, student(VL), tmp_path / "out"
    )
    assert made.teacher.forward.same_ids and made.args.max_steps == recipe.trainer["max_steps"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teacher": None}, "teacher: "),
        ({"distill": {"topk": 3}}, r"no setting 'distill\.topk' .did you mean 'top_k'"),
        ({"distill": {"top_k": 1}}, r"distill\.top_k: .*greater than or equal to 2"),
        ({"credit": {"rule": "taura"}}, "credit: distillation learns from every trajectory"),
        ({"groups": {"oversample": 2.0}}, "groups: distillation learns from every trajectory"),
        ({"trainer": {"loss_type": "grpo"}}, "loss_type is not set in a recipe: the loss is the reverse KL"),
        ({"trainer": {"num_iterations": 2}}, "num_iterations is not set in a recipe: each row is learned once"),
    ],
)
def test_a_mistake_in_a_recipe_of_distillation_is_named(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(distill_recipe("x", "y", tmp_path / "q.jsonl") | change))
    with pytest.raises(RecipeError, match=words):
        read_recipe(str(path))


def test_a_teacher_that_does_not_fit_is_refused(
    tiny: Any, student: Callable[..., Any], shared_videos: dict[str, Path], tmp_path: Path
) -> None:
    """Other words, ears that are missing, a shorter context; a teacher that perceives more is taken."""
    check_teacher(student(OMNI), student(VL))
    with pytest.raises(RecipeError, match=r"teacher: .*\(Qwen2\.5-VL\) can't perceive audio"):
        check_teacher(student(VL), student(OMNI))
    with pytest.raises(RecipeError, match=r"reads 100 tokens, and the student .* 32,768; lower student\."):
        check_teacher(student(VL, context_tokens=100), student(VL))
    other = tmp_path / "other"
    shutil.copytree(tiny(VL), other)
    words = json.loads((other / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.__getitem__)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(words))
    questions = write_questions(tmp_path / "q.jsonl", shared_videos, ["sound"])
    recipe = DistillRecipe.model_validate(distill_recipe(tiny(VL), other, questions))
    asked = load_questions(recipe.questions)
    with pytest.raises(RecipeError, match=r"another tokenizer than the student .*: 2 tokens differ, .*301 and 300"):
        make_trainer(recipe, asked, {}, student(VL), tmp_path / "out")
    wide = DistillRecipe.model_validate(distill_recipe(tiny(VL), tiny(VL), questions, distill={"top_k": 10_000}))
    with pytest.raises(RecipeError, match=r"top_k is 10,000, and the student writes \d+ tokens"):
        make_trainer(wide, asked, {}, student(VL), tmp_path / "out")
