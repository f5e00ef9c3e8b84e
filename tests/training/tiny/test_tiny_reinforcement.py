"""The last part of the recipe: runs by rule and seed on filmed worlds, and a gate that keeps the better weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from typer.testing import CliRunner  # noqa: E402 - after the libraries it needs

from apr_plugin.errors import AprError  # noqa: E402
from apr_plugin.models.profile import profile_of_checkpoint  # noqa: E402
from apr_plugin.training.commands import app  # noqa: E402
from apr_plugin.training.grpo.making import episode_config  # noqa: E402
from apr_plugin.training.grpo.recipe import GrpoRecipe  # noqa: E402
from apr_plugin.training.named import OURS  # noqa: E402
from apr_plugin.training.recipe_file import RecipeError  # noqa: E402
from apr_plugin.training.tiny import recipe, reinforcing  # noqa: E402
from apr_plugin.training.tiny.model import Size  # noqa: E402
from apr_plugin.training.tiny.prompts import PROFILE  # noqa: E402
from apr_plugin.training.tiny.start import make_start  # noqa: E402

SMALL = Size(hidden=64, layers=1, heads=2, kv_heads=1, inner=64, vision_hidden=32, audio_hidden=32, audio_layers=1)
SETTINGS = {
    "generations": 2,
    "questions_per_step": 1,
    "sampling": {"max_new_tokens": 24, "kv_cache_gb": 0},
    # A random model earns nothing by its answers; its tokens earn something by their number.
    "reward": {"length": 1.0, "length_of": "turns"},
    "trainer": {"use_cpu": True, "max_steps": 1, "disable_tqdm": True, "save_strategy": "no"},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the stages leave one."""
    return make_start(tmp_path_factory.mktemp("tiny") / "trained", size=SMALL)


def written(tmp_path: Path, **gate: Any) -> str:
    """A recipe file with a reinforcement of one step."""
    data = {
        "evaluation": [{"seed": 0}],
        "synthesis": {"videos": {"1m": 1}},
        "training": {"stages": [{"name": "x", "mix": [{"made": "needle_captions"}], "length": {"steps": 1}}]},
        "reinforcement": {"settings": SETTINGS, "gate": {"given": {"per_kind": 1, "buckets": ["1m"]}} | gate},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(data))
    return str(file)


def test_rules_and_seeds_side_by_side(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """From one checkpoint: the recipe's own run is the result, others lie beside it; nothing is trained twice."""
    name, out = written(tmp_path), tmp_path / "out"
    final = recipe.run_recipe(name, out, trained=trained)
    assert final == out / "final" and profile_of_checkpoint(str(final), "hf") == PROFILE
    own = out / "reinforcement" / "grpo-0"
    assert json.loads((own / "gate.json").read_text())["kept"], "a score of 0 that stays 0 did not fall"
    assert "1 steps" in (final / "README.md").read_text() or "GRPO" in (final / "README.md").read_text()
    films = {file: file.stat().st_mtime_ns for file in (out / "synthesis" / "videos").glob("*.mp4")}
    weights = (final / "model.safetensors").read_bytes()
    arguments = ["recipe", name, "--out", str(out), "--from", str(trained), "--credit", "taura", "--seed", "1"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    other = out / "reinforcement" / "taura-1"
    told = json.loads((other / "final" / "training.json").read_text())
    assert told["recipe"]["credit"]["rule"] == "taura" and told["recipe"]["seed"] == 1
    assert (final / "model.safetensors").read_bytes() == weights
    assert {file: file.stat().st_mtime_ns for file in (out / "synthesis" / "videos").glob("*.mp4")} == films
    capfd.readouterr()
    assert recipe.run_recipe(name, out, trained=trained, credit="taura", seed=1) == other / "final"
    assert recipe.run_recipe(name, out, trained=trained) == final
    said = capfd.readouterr().err
    assert "trained before" in said and "this run is finished" in said
    with pytest.raises(AprError, match=r"other settings .*from changed"):
        recipe.run_recipe(name, out)


@pytest.mark.parametrize(("scores", "kept"), [((0.5, 0.5), True), ((0.5, 0.4), False)])
def test_the_gate_keeps_the_better_weights(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: tuple[float, float], kept: bool
) -> None:
    given = iter(scores)
    monkeypatch.setitem(OURS["measures"], "told", f"{__name__}:told")
    monkeypatch.setitem(globals(), "told", lambda **_: lambda model: {"score": next(given)})
    file = written(tmp_path, measure="told", given={}, mean_of=["score"])
    changed = {"trainer": SETTINGS["trainer"] | {"learning_rate": 0.1, "weight_decay": 0.5}}  # type: ignore[operator]
    data = json.loads(Path(file).read_text())
    data["reinforcement"]["settings"] |= changed
    Path(file).write_text(json.dumps(data))
    final = recipe.run_recipe(file, tmp_path / "out", trained=trained)
    after = tmp_path / "out" / "reinforcement" / "grpo-0" / "training" / "final" / "model.safetensors"
    before = trained / "model.safetensors"
    assert after.read_bytes() != before.read_bytes(), "something was trained"
    assert (final / "model.safetensors").read_bytes() == (after if kept else before).read_bytes()
    gate = json.loads((tmp_path / "out" / "reinforcement" / "grpo-0" / "gate.json").read_text())
    assert (gate["mean_before"], gate["mean_after"], gate["kept"]) == (*scores, kept)


def test_what_a_recipe_may_say(tmp_path: Path) -> None:
    given = reinforcing.ReinforcementSettings(credit="shuffled", seed=3, settings=SETTINGS)
    made = given.recipe(tmp_path / "s", tmp_path / "q.jsonl")
    assert (made.credit.rule, made.credit.seed, made.seed, made.trainer["seed"]) == ("shuffled", 3, 3, 3)
    base = episode_config(made, {}).base
    assert (base.form.references, base.form.frame_times, base.budget) == (True, False, PROFILE.limits)
    assert reinforcing.ReinforcementSettings().recipe(tmp_path, tmp_path).credit.rule == "none"
    with pytest.raises(ValueError, match=r"credit.*its rule is `reinforcement.credit`"):
        reinforcing.ReinforcementSettings(settings={"credit": {"rule": "taura"}})
    with pytest.raises(ValueError, match="strict parsing reads no names of frames"):
        GrpoRecipe.model_validate({"student": {"pretrained": "x"}, "wire": "compact", "parsing": "strict"})
    data = json.loads(Path(written(tmp_path)).read_text())
    made_recipe = recipe.MadeRecipe.model_validate(data | {"training": rows_of_synthesis(data["training"])})
    (stage,) = made_recipe.staged(tmp_path / "start").stages
    assert stage.mix[0].rows == str(tmp_path / "synthesis" / "rows.jsonl")
    with pytest.raises(ValueError, match="it asks about the worlds of `synthesis`, which is missing"):
        recipe.MadeRecipe.model_validate({key: value for key, value in data.items() if key != "synthesis"})
    alone = {key: value for key, value in data.items() if key not in ("synthesis", "reinforcement")}
    with pytest.raises(RecipeError, match="a mix has `rows: synthesis`, and the recipe has no `synthesis`"):
        recipe.MadeRecipe.model_validate(alone | {"training": rows_of_synthesis(data["training"])}).staged(tmp_path)
    refused = CliRunner().invoke(app, ["recipe", "tiny", "--out", str(tmp_path / "x"), "--credit", "none"])
    assert refused.exit_code != 0 and "one of grpo, taura, empg, shuffled" in str(refused.exception)


def rows_of_synthesis(training: dict[str, Any]) -> dict[str, Any]:
    """The same stage with the rows of `synthesis`."""
    return {"stages": [training["stages"][0] | {"mix": [{"rows": "synthesis"}]}]}
