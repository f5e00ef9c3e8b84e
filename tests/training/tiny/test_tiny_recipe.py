"""The recipe of the small agent: what it is made of, first judgements, and how a run that was killed goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")

import easy_world

from apr_plugin.errors import AprError
from apr_plugin.models.profile import profile_of_checkpoint
from apr_plugin.training.recipe_file import RecipeError
from apr_plugin.training.sft.gates import GateMissed
from apr_plugin.training.sft.learner import load_learner
from apr_plugin.training.sft.recipe import StudentSettings
from apr_plugin.training.sft.running import last_checkpoint
from apr_plugin.training.sft.telling import spent
from apr_plugin.training.student import Student
from apr_plugin.training.tiny import looking, playing, recipe, worlds
from apr_plugin.training.tiny.notes import observe
from apr_plugin.training.tiny.prompts import PROFILE

STEPS = 240
"""Of the stage in which a small agent learns to play."""

SMALL = {"hidden": 64, "layers": 1, "heads": 2, "kv_heads": 1, "inner": 64, "vision_hidden": 32, "audio_hidden": 32}


def test_the_recipe_has_a_gate_after_each_stage(tmp_path: Path) -> None:
    made = recipe.read_made("tiny")
    staged = made.staged(tmp_path)
    staged.check_trainer()
    assert [stage.name for stage in staged.stages] == ["captions", "named", "describing", "agents"]
    assert all(stage.gate is not None and stage.gate.reach for stage in staged.stages)
    assert recipe.check_apart(made) == sum(5 * spec.videos_per_bucket for spec in made.evaluation)
    with pytest.raises(RecipeError, match=r"no recipe 'tinny' \(did you mean 'tiny'"):
        recipe.read_made("tinny")
    with pytest.raises(RecipeError, match="no stage 'agent'; there are captions, named, describing, agents"):
        recipe.run_recipe("tiny", tmp_path / "out", stop_after="agent")


def test_a_shrunk_recipe_is_shorter_in_everything_and_asks_nothing(tmp_path: Path) -> None:
    whole = recipe.read_made("tiny").staged(tmp_path)
    short = recipe.shrunk(whole, 100)
    for one, other in zip(whole.stages, short.stages, strict=True):
        assert one.gate is not None and other.gate is not None
        assert other.mix == one.mix and other.length.tokens == (one.length.tokens or 0) // 100
        assert other.gate.at_most == other.length and set(other.gate.reach.values()) == {0.0}
        assert other.gate.given.get("per_kind", 2) <= one.gate.given.get("per_kind", 2)
    assert short.trainer["save_steps"] == 1 and short.stages[0].trainer["warmup_steps"] == 1


def test_a_set_that_training_meets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "TRAINING", range(0, 2**64))
    with pytest.raises(AprError, match="seed 0 has 1000 worlds that training uses too"):
        recipe.check_apart(recipe.read_made("tiny"))


def test_only_first_judgements_count() -> None:
    found = looking.looks(0, 40, 4, 4)
    assert len({look.prompt.text for look in found}) > 30 and sum(len(look.labels) for look in found) > 120
    for look in found:
        right = looking.judged(look.asked, look.labels, observe(look.asked, look.labels))
        assert all(all(found) for found in right.values())
        assert len(right["colour"]) == len({label[0] for label in look.labels})
        nothing = looking.judged(look.asked, look.labels, "")
        assert {name: len(found) for name, found in nothing.items()} == {n: len(f) for n, f in right.items()}
        assert not any(any(found) for found in nothing.values())
    # The second of two equal frames can be copied: right or wrong, it is not counted.
    look = next(look for look in found if len(set(look.labels)) < len(look.labels))
    entries = observe(look.asked, look.labels).split("#")[1:]
    again = next(n for n, label in enumerate(look.labels) if label in look.labels[:n])
    entries[again] = f"{again + 1} nothing;"
    judged = looking.judged(look.asked, look.labels, "".join(f"#{entry}" for entry in entries))
    assert all(all(found) for found in judged.values())


def small(tmp_path: Path, **stage: Any) -> Path:
    """A recipe file with a smaller model and one stage of captions."""
    captions_stage = {
        "name": "captions",
        "mix": [{"made": "needle_captions"}],
        "length": {"steps": 2},
        "gate": {
            "measure": "needle_looks",
            "reach": {"first": 0.0},
            "given": {"count": 4},
            "every": 2,
            "at_most": {"steps": 2},
        },
    }
    training = {
        "learn": {"towers": "trained"},
        "rows_per_step": 8,
        "trainer": {"use_cpu": True, "disable_tqdm": True, "activation_checkpointing": False, "save_steps": 1},
        "stages": [captions_stage | stage],
    }
    file = tmp_path / "small.yaml"
    file.write_text(
        json.dumps({"start": {"size": SMALL | {"audio_layers": 1}}, "evaluation": [{"seed": 0}], "training": training})
    )
    return file


def test_a_missed_gate_ends_the_run_and_the_same_command_goes_on(tmp_path: Path) -> None:
    gate = {"measure": "needle_looks", "reach": {"first": 1.0}, "given": {"count": 4}, "at_most": {"steps": 2}}
    file = small(tmp_path, gate=gate)
    out = tmp_path / "out"
    for steps in (2, 4):
        with pytest.raises(GateMissed, match=rf"after {steps} steps .* first is 0, not 1.* same command trains it as"):
            recipe.run_recipe(str(file), out)
        found = last_checkpoint(out / "stages" / "01-captions")
        assert found is not None and found.name == f"checkpoint-{steps}"
    assert not (out / "final").exists()


def test_the_whole_way_with_a_smaller_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    final = recipe.run_recipe(str(small(tmp_path)), out)
    assert final == out / "final" and profile_of_checkpoint(str(final), "hf") == PROFILE
    assert "## Stage captions" in (final / "README.md").read_text()
    told = capfd.readouterr().err
    assert "10 worlds of evaluation sets" in told and "01-captions: " in told
    assert recipe.run_recipe(str(small(tmp_path)), out) == final
    assert "this run is finished" in capfd.readouterr().err
    with pytest.raises(AprError, match=r"other settings.*shrink"):
        recipe.run_recipe(str(small(tmp_path)), out, shrink=2)


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """Killed within a stage, the same command goes on from a checkpoint, and what was spent before counts too."""
    file, out = small(tmp_path, length={"steps": 15}, gate=None), tmp_path / "out"
    command = [sys.executable, "-P", "-m", "apr_plugin", "train", "recipe", str(file), "--out", str(out)]
    stage = out / "stages" / "01-captions"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        until = time.monotonic() + 500
        while last_checkpoint(stage) is None and time.monotonic() < until and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    cut = last_checkpoint(stage)
    assert cut is not None and not (stage / "final").exists(), "it was killed within the stage"
    before = spent(stage)["tokens"]
    assert recipe.run_recipe(str(file), out) == out / "final"
    assert spent(stage)["tokens"] > before > 0
    told = json.loads((stage / "final" / "training.json").read_text())
    assert told["stages"][0]["steps"] == 15


@pytest.mark.slow
def test_a_small_agent_learns_to_play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed loop, in a much simplified world: from random weights to notes with the right colours, and an answer."""
    easy_world.simplify(monkeypatch)
    out = tmp_path / "out"
    final = recipe.run_recipe(easy_world.recipe_file(tmp_path / "easy.yaml", STEPS, seed=0), out)
    (after,) = [json.loads(line) for line in (out / "stages" / "01-agents" / "measured.jsonl").read_text().splitlines()]
    student = Student.from_pretrained(str(out / "start"))
    measure = playing.measure(student=student, per_kind=16, buckets=["1m"])
    before = measure(load_learner(StudentSettings(pretrained=str(out / "start"))).eval())
    assert (before["answered"], before["colour"], before["turns"]) == (0.0, 0.0, 1.0)
    assert after["answered"] > 0.3 and after["colour"] > 0.4 and after["turns"] > 1.5
    assert profile_of_checkpoint(str(final), "hf") == PROFILE


def test_a_folder_called_like_a_recipe_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert recipe.read_made("tiny").evaluation
    (tmp_path / "other").mkdir()
    with pytest.raises(RecipeError, match="other: cannot read it"):
        recipe.read_made("other")
