"""Recipes of GRPO: those of the package fit TRL and accelerate; mistakes are named; budgets; the contract with TRL."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")

import trl
from dev_server import dev_server
from grpo_making import recipe_of, write_questions
from typer.testing import CliRunner

from apr_plugin.errors import AprError
from apr_plugin.loop import EpisodeConfig, MediaRef, Question
from apr_plugin.training.commands import app
from apr_plugin.training.grpo.budgets import group_budgets
from apr_plugin.training.grpo.contract import METHODS, RANGE, check_trl
from apr_plugin.training.grpo.making import arguments, episode_config, make_trainer
from apr_plugin.training.grpo.recipe import FOLDER, OURS, BudgetDraws, GrpoRecipe, read_recipe
from apr_plugin.training.recipe_file import RecipeError
from apr_plugin.training.synthesis.questions import load_questions

RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def test_the_published_numbers() -> None:
    """arXiv 2606.19341, section 4: G = 8, 32 questions, 150 steps, 1e-6 constant, clipping 0.20/0.30, films < 300 s."""
    recipe = read_recipe("grpo-paper-7b")
    assert (recipe.generations, recipe.questions_per_step, recipe.longest_s) == (8, 32, 300)
    told = {"max_steps": 150, "learning_rate": 1e-6, "lr_scheduler_type": "constant", "loss_type": "dapo"}
    assert (told | {"epsilon": 0.2, "epsilon_high": 0.3}).items() <= recipe.trainer.items()
    assert recipe.credit.rule == "taura" and recipe.groups.scale_rewards == "group"
    assert recipe.student.context_tokens == 65_536 + recipe.sampling.max_new_tokens
    assert recipe.draws.turns == (5, 10) and recipe.sampling.temperature == 1.0
    from accelerate.commands.config.config_args import load_config_from_file

    for name in ("fsdp2-16gpu", "zero3-16gpu"):
        config = load_config_from_file(str(FOLDER.parent / "accelerate" / f"{name}.yaml"))
        assert recipe.sampled_questions * recipe.generations % config.num_processes == 0


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_makes_a_trainer(
    name: str, tiny: Any, student: Callable[..., Any], shared_videos: dict[str, Path], tmp_path: Path
) -> None:
    """With a small checkpoint of the same family, on the CPU."""
    questions = write_questions(tmp_path / "q.jsonl", shared_videos)
    recipe = read_recipe(name, questions=[str(questions)], student={"pretrained": str(tiny("qwen2_5_omni"))})
    recipe.check_trainer()
    assert {"source", "ran", "memory"} <= recipe.about.keys()
    small = recipe.student.model_copy(update={"context_tokens": None, "attn_implementation": None})
    trainer = recipe.trainer | {"use_cpu": True, "disable_tqdm": True}
    recipe = recipe.model_copy(update={"student": small, "trainer": trainer, "questions_per_step": 3})
    with dev_server() as server:
        if recipe.rollouts.servers:
            there = recipe.rollouts.model_copy(update={"servers": (server.address,)})
            recipe = recipe.model_copy(update={"rollouts": there})
        made = make_trainer(recipe, load_questions(recipe.questions), {}, student(), tmp_path / "out")
    assert made.rollouts.foreign is (name == "grpo-paper-7b")
    assert made.args.max_steps == recipe.trainer["max_steps"] and made.epsilon_high == 0.3 and made.beta == 0
    assert made.args.per_device_train_batch_size == 3 * recipe.generations
    trained = [key for key, weight in made.model.named_parameters() if weight.requires_grad]
    assert trained and not any("visual" in key or "audio_tower" in key for key in trained)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"generatons": 8}, "no setting 'generatons' .did you mean 'generations'"),
        ({"sampling": {"temprature": 1}}, r"sampling\.temprature.* .did you mean 'temperature'"),
        ({"sampling": {"temperature": 0}}, r"sampling\.temperature: .*greater than 0"),
        ({"generations": 1}, "generations: .*greater than or equal to 2"),
        ({"credit": {"rule": "tuara"}}, "no rule of credit 'tuara' .did you mean 'taura'"),
        ({"reward": {"formt": 0.1}}, "reward: there is no setting 'formt' .did you mean 'format'"),
        ({"groups": {"scale_rewards": "all"}}, "groups: scale_rewards='all'"),
        ({"draws": {"turns": [10, 5]}}, r"draws: turns: \[10, 5\] is no range"),
        ({"budget": {"turns": 0}}, r"budget\.turns: .*greater than or equal to 1"),
        ({"trainer": {"beta": -0.04}}, "trainer: beta=-0.04: it must be a number of at least 0"),
        ({"trainer": {"beta": True}}, "trainer: beta=True: it must be a number"),
        ({"trainer": {"sync_ref_model": True}}, "sync_ref_model is not set in a recipe: the reference of `beta` stays"),
        ({"trainer": {"use_vllm": True}}, "use_vllm is not set in a recipe"),
        ({"learn": {"what": "lora", "towers": "trained"}}, "towers: frozen only"),
        ({"student": None}, "student: "),
    ],
)
def test_a_mistake_is_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    import json

    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(recipe_of("x", tmp_path / "q.jsonl") | change))
    with pytest.raises(RecipeError, match=said):
        read_recipe(str(path))


def test_more_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.yaml"
    for text, said in (
        ("[1, 2]", "a recipe is a mapping"),
        ("student: [", "cannot read this YAML"),
        ("student: !!python/object/apply:os.system ['true']", "cannot read this YAML"),
        ("a: &x [1]\nb: *x", "YAML anchors"),
    ):
        path.write_text(text)
        with pytest.raises(RecipeError, match=said):
            read_recipe(str(path))
    with pytest.raises(RecipeError, match=r"no recipe 'grpo-paper'.*did you mean 'grpo-paper-7b'"):
        read_recipe("grpo-paper")
    recipe = GrpoRecipe.model_validate(recipe_of("x", tmp_path / "q.jsonl", trainer={"learning_rat": 1}))
    with pytest.raises(AprError, match=r"GRPOConfig has no field 'learning_rat' \(did you mean 'learning_rate'"):
        recipe.check_trainer()
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(RecipeError, match=r"2 trajectories, which 4 processes .* can't share equally; .*multiple of 4"):
        arguments(GrpoRecipe.model_validate(recipe_of("x", tmp_path / "q.jsonl")), tmp_path)
    monkeypatch.delenv("WORLD_SIZE")
    wrong = GrpoRecipe.model_validate(recipe_of("x", tmp_path / "q.jsonl", trainer={"optim": "none_such"}))
    with pytest.raises(RecipeError, match=r"recipe: trainer: .*none_such"):
        arguments(wrong, tmp_path)
    wide = GrpoRecipe.model_validate(recipe_of("x", tmp_path / "q.jsonl", draws={"frames": [1, 10**7]}))
    with pytest.raises(AprError, match=r"draws\.frames: \[1, 10000000\]: both must be a whole number from 1"):
        episode_config(wide, {})
    shown = CliRunner().invoke(app, ["grpo", "--config", "none", "--out", str(tmp_path / "out")])
    assert shown.exit_code != 0 and "there is no recipe 'none'" in str(shown.exception)


def test_what_a_recipe_cannot_set_exists_in_trl() -> None:
    assert set(OURS) <= {field.name for field in dataclasses.fields(trl.GRPOConfig)}


def test_budgets_are_drawn_for_groups() -> None:
    """All trajectories of a group have one budget; the next visit has another; long films keep their turns."""
    draws = BudgetDraws(frames=(30, 60), clip_s=(30, 60), audio_s=(150, 300), turns=(5, 10))
    durations = {("t", "", "short"): 299.0, ("t", "", "long"): 301.0}
    config = group_budgets(EpisodeConfig(seed=3), draws, 4, durations)

    def budget(name: str, repeat: int) -> Any:
        asked = Question(
            text="?", kind="free_form", videos=(MediaRef(path="f.mp4"),), task="t", doc_id=name, repeat=repeat
        )
        return config.for_question(asked).budget

    visits = [[budget("short", 4 * visit + at) for at in range(4)] for visit in range(30)]
    assert all(len(set(map(str, group))) == 1 for group in visits)
    firsts = [group[0] for group in visits]
    assert {one.turns for one in firsts} == {5, 6, 7, 8, 9, 10}
    for field, low, high in (("frames_per_look", 30, 60), ("clip_s", 30, 60), ("audio_s", 150, 300)):
        values = {getattr(one, field) for one in firsts}
        assert len(values) > 5 and low <= min(values) <= max(values) <= high
    assert {budget("long", repeat).turns for repeat in range(0, 80, 4)} == {None}
    assert {budget("unknown", 0).turns} == {None}
    again = group_budgets(EpisodeConfig(seed=3), draws, 4, durations)
    other = group_budgets(EpisodeConfig(seed=4), draws, 4, durations)
    asked = Question(text="?", kind="free_form", task="t", doc_id="short")
    assert again.for_question(asked).budget == firsts[0] != other.for_question(asked).budget


def test_the_contract_with_trl() -> None:
    """The installed TRL has what is used; a release that changed it is named, with those that fit."""
    check_trl()

    class Changed(trl.GRPOTrainer):  # type: ignore[misc]
        def _get_per_token_logps_and_entropies(self, model: Any, ids: Any) -> None: ...

        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            return inputs["advantages"]

    with pytest.raises(AprError) as told:
        check_trl(Changed)
    message = str(told.value)
    assert f"TRL {trl.__version__} differs" in message and f"trl{RANGE}" in message
    for part in ("_get_per_token_logps_and_entropies(model, input_ids", "does not read 'old_per_token_logps'"):
        assert part in message
    for name in METHODS:
        gone = type("Gone", (), {other: getattr(trl.GRPOTrainer, other) for other in METHODS if other != name})
        with pytest.raises(AprError, match=rf"{name}\(.*\) is gone"):
            check_trl(gone)
    pinned = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert f'"trl{RANGE}"' in pinned
