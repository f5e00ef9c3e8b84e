"""The small agent of this package by its name."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from bundled_testing import SmallAgent, shipped

from apr_plugin.errors import AprError
from apr_plugin.models import bundled
from apr_plugin.models.checkpoint import checkpoint_source
from apr_plugin.models.profile import profile_of_checkpoint
from apr_plugin.runs.settings import read_settings

ARGUMENTS = {"policy": "hf", "pretrained": bundled.NAME, "device": "cpu"}


def test_its_name_means_its_folder_wherever_a_checkpoint_is_named(
    small_agent: SmallAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the working directory has a folder of that name, which is `./apr-tiny`."""
    (tmp_path / bundled.NAME).mkdir()
    monkeypatch.chdir(tmp_path)
    with shipped(small_agent):
        assert (
            checkpoint_source(bundled.NAME, "hf") == checkpoint_source(bundled.NAME, "vllm") == str(small_agent.folder)
        )
        assert checkpoint_source(f"./{bundled.NAME}", "hf") == bundled.NAME
        profile = profile_of_checkpoint(bundled.NAME, "hf")
        assert profile is not None and profile.wire == "compact" and profile.limits.turns == 9
    with pytest.raises(AprError, match=r"a name on the hub \(owner/model\), or apr-tiny"):
        checkpoint_source("apr-tinny", "hf")


def test_a_run_with_it_records_its_name_and_its_weights_and_no_path(
    small_agent: SmallAgent, capfd: pytest.CaptureFixture[str]
) -> None:
    with shipped(small_agent):
        settings = read_settings(ARGUMENTS)
    try:
        told = settings.policy.describe()
        assert told["pretrained"] == "apr-tiny" and told["weights"].startswith("digest ") and told["dtype"] == "float32"
        assert str(small_agent.folder) not in json.dumps(told)
        assert settings.config.wire == "compact" and settings.config.profile == profile_digest(small_agent)
        assert settings.config.sampling.temperature == 0
    finally:
        settings.policy.close()
    again = read_settings(ARGUMENTS | {"pretrained": str(small_agent.folder)}).policy
    assert again.describe()["weights"] == told["weights"], "the same weights by their path"
    again.close()
    assert "Model config:" not in capfd.readouterr().err


def profile_digest(agent: SmallAgent) -> str:
    profile = profile_of_checkpoint(str(agent.folder), "hf")
    assert profile is not None
    return profile.digest


def test_training_takes_it_by_its_name(small_agent: SmallAgent) -> None:
    from apr_plugin.training.sft.learner import load_learner
    from apr_plugin.training.sft.recipe import StudentSettings
    from apr_plugin.training.student import Student

    with shipped(small_agent):
        student = Student.from_pretrained(bundled.NAME)
        learner = load_learner(StudentSettings(pretrained=bundled.NAME))
    assert student.name == "apr-tiny" and student.family.visual_token.side_px == 56
    assert sum(weight.numel() for weight in learner.parameters()) < 5_000_000


def test_an_installation_without_its_files_says_so(
    small_agent: SmallAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = shutil.copytree(small_agent.folder, tmp_path / "part")
    (part / "model.safetensors").unlink()
    for folder, missing in ((tmp_path / "none", "config.json"), (part, "model.safetensors")):
        monkeypatch.setattr(bundled, "FOLDER", folder)
        assert not bundled.is_shipped() and bundled.bundled_agent() is None and not bundled.needle_kinds()
        with pytest.raises(AprError, match=f"apr-tiny is the small agent that comes with apr-plugin.* no {missing}"):
            read_settings(ARGUMENTS)


def test_it_answers_by_default_only_where_it_can_run(
    small_agent: SmallAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    with shipped(small_agent):
        assert bundled.bundled_agent() == "policy=hf,pretrained=apr-tiny"
        assert {"glyph", "when"} <= bundled.needle_kinds()
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchvision" else find(name))
        assert bundled.bundled_agent() is None
    broken = shutil.copytree(small_agent.folder, tmp_path / "broken")
    (broken / bundled.ABOUT).write_text("[]")
    monkeypatch.setattr(bundled, "FOLDER", broken)
    with pytest.raises(AprError, match=r"apr_agent\.json: cannot read what apr-tiny was trained for"):
        bundled.needle_kinds()
