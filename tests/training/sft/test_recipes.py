"""Recipes: those of the package load, fit TRL and accelerate, and train a small student; mistakes are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")

from sft_making import recipe_of, rows_of, write_recipe

from apr_plugin.errors import AprError
from apr_plugin.training.recipe_file import RecipeError
from apr_plugin.training.sft.recipe import FOLDER, OURS, read_recipe
from apr_plugin.training.sft.running import run_sft
from apr_plugin.training.student import Student

RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def test_the_published_numbers() -> None:
    """arXiv 2606.19341, section 4: 2 epochs, 1e-5, batch 64, AdamW, towers frozen; warm-up of the released code."""
    recipe = read_recipe("paper-7b")
    assert recipe.rows_per_step == 64 and recipe.learn.what == "full" and recipe.learn.towers == "frozen"
    told = {"num_train_epochs": 2, "learning_rate": 1e-5, "optim": "adamw_torch", "warmup_steps": 0.03}
    assert told.items() <= recipe.trainer.items()


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_trains_a_small_student(
    name: str, tiny: Any, student: Callable[..., Student], shared_videos: dict[str, Path], tmp_path: Path
) -> None:
    """The same settings, on the CPU, with a small checkpoint of the same family; one step."""
    rows = rows_of(student(), shared_videos, tmp_path)
    recipe = read_recipe(name, rows=str(rows), student={"pretrained": str(tiny("qwen2_5_omni"))})
    recipe.check_trainer()
    assert {"ran", "memory"} <= recipe.about.keys()
    small = {"context_tokens": None, "attn_implementation": None}
    trainer = recipe.trainer | {"use_cpu": True, "max_steps": 1, "dataloader_num_workers": 0, "disable_tqdm": True}
    trainer.pop("dataloader_prefetch_factor", None)
    percepts = {"folder": str(tmp_path / "percepts")} if recipe.percepts.folder else {}
    recipe = recipe.model_copy(
        update={
            "student": recipe.student.model_copy(update=small),
            "trainer": trainer,
            "rows_per_step": 2,
            "percepts": recipe.percepts.model_copy(update=percepts),
        }
    )
    assert (run_sft(recipe, tmp_path / "out") / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["fsdp2-16gpu", "zero3-16gpu"])
def test_accelerate_reads_its_files(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(FOLDER / "accelerate" / f"{name}.yaml"))
    assert (config.num_processes, config.num_machines, config.mixed_precision) == (16, 2, "bf16")
    if name.startswith("fsdp2"):
        import transformers

        layers = config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"].split(",")
        module = transformers.models.qwen2_5_omni.modeling_qwen2_5_omni
        assert config.fsdp_config["fsdp_version"] == 2 and all(hasattr(module, layer) for layer in layers)
    else:
        assert config.deepspeed_config["zero_stage"] == 3 and config.deepspeed_config["zero3_save_16bit_model"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learn": {"whta": "full"}}, r"no setting 'learn\.whta'.*did you mean 'what'"),
        ({"rows_per_step": 0}, "rows_per_step: "),
        ({"learn": {"what": "lora", "towers": "trained"}}, "towers: frozen only"),
        ({"trainer": {"packing": True}}, "packing is not set in a recipe: a forward is one row"),
        ({"student": None}, "student: "),
        ({"forward": {"token_budget": -1}}, r"forward\.token_budget"),
    ],
)
def test_a_mistake_is_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", recipe_of("x", tmp_path / "rows.jsonl") | change)
    with pytest.raises(RecipeError, match=said):
        read_recipe(str(path))


def test_more_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    for text, said in (
        ("[1, 2]", "a recipe is a mapping"),
        ("student: [", "cannot read this YAML"),
        ("student: !!python/object/apply:os.system ['true']", "cannot read this YAML"),
    ):
        path.write_text(text)
        with pytest.raises(RecipeError, match=said):
            read_recipe(str(path))
    with pytest.raises(RecipeError, match="cannot read it: No such file"):
        read_recipe(str(tmp_path / "none.yaml"))
    with pytest.raises(RecipeError, match=r"no recipe 'paper-7'.*did you mean 'paper-7b'"):
        read_recipe("paper-7")
    write_recipe(path, recipe_of("x", tmp_path / "rows.jsonl", trainer={"learning_rat": 1}))
    with pytest.raises(AprError, match=r"SFTConfig has no field 'learning_rat' \(did you mean 'learning_rate'"):
        read_recipe(str(path)).check_trainer()


def test_what_a_recipe_cannot_set_exists_in_trl() -> None:
    import dataclasses

    from trl import SFTConfig

    assert set(OURS) <= {field.name for field in dataclasses.fields(SFTConfig)}
