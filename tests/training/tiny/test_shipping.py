"""`apr train ship`: what it writes is the run's checkpoint in bfloat16, and its card has the run's figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from apr_plugin.errors import AprError  # noqa: E402
from apr_plugin.models.checkpoint import load_checkpoint  # noqa: E402
from apr_plugin.training.tiny import shipping  # noqa: E402
from apr_plugin.training.tiny.shipping import COPIED, check_same, ship  # noqa: E402

FILES = {*COPIED, "model.safetensors", "apr_agent.json", "README.md"}


@pytest.fixture(scope="module")
def made(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent of a run with random weights."""
    return ship(small_run, tmp_path_factory.mktemp("ship") / "agent")


def test_only_what_is_needed_is_written_and_it_is_small(small_run: Path, made: Path) -> None:
    assert {file.name for file in made.iterdir()} == FILES and not list(made.parent.glob(".*.part"))
    assert sum(file.stat().st_size for file in made.iterdir()) < 20e6
    assert all(file.stat().st_mode & 0o044 for file in made.iterdir()), "other users can read it"
    stored, trained = load_file(made / "model.safetensors"), load_file(small_run / "final" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    assert set(stored) == {f"thinker.{name}" for name in trained}
    for name, value in trained.items():
        assert torch.equal(stored[f"thinker.{name}"], value.to(torch.bfloat16))


def test_it_loads_as_the_same_model_in_single_precision(small_run: Path, made: Path) -> None:
    loaded = load_checkpoint(str(made), device="cpu")
    assert loaded.dtype_name == "float32" and loaded.identity["weights"] == check_same(small_run / "final", made)
    broken = shutil.copytree(made, made.parent / "broken", dirs_exist_ok=True)
    weights = load_file(broken / "model.safetensors")
    name = next(name for name, value in weights.items() if value.dim() == 2)
    weights[name][0, 0] += 1
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AprError, match=r"is not that of .*final in bfloat16"):
        check_same(small_run / "final", broken)


def test_the_card_has_the_figures_of_the_run(small_run: Path, made: Path) -> None:
    card = (made / "README.md").read_text("utf-8")
    assert "license: apache-2.0" in card and "policy=hf,pretrained=apr-tiny" in card
    assert "2,254,208 parameters" in card and "A trial" not in card
    assert "| captions | needle_captions 100% | 3 | 2,400 | 6 | 5 |" in card
    assert "| agents | needle_agents 75%, needle_captions 25% | 4 | 4,800 | 6 | 5 |" in card
    assert "| tokens | 7,200, over all starts |" in card and "12 seconds, 10 CPU seconds" in card
    assert "| asked for | 0.95 |  | |" in card and "| 4 | 0.969 | 3.250 | yes |" in card
    assert "| 2 | 0.500 | no |" in card and "2 cores, a processor, 8.0 GiB" in card
    assert "/home/" not in card and str(small_run) not in card, "no folder of a machine"
    told = json.loads((small_run / "run.json").read_text())
    trial = shutil.copytree(small_run, made.parent / "trial")
    (trial / "run.json").write_text(json.dumps(told | {"shrink": 200.0}))
    card = (ship(trial, made.parent / "of a trial") / "README.md").read_text("utf-8")
    assert "**A trial:** every length was divided by 200" in card


def test_a_stage_is_written_alone(small_run: Path, made: Path) -> None:
    out = ship(small_run, made.parent / "stage", "captions", "It was *begun* twice.")
    about, card = json.loads((out / "apr_agent.json").read_text()), (out / "README.md").read_text("utf-8")
    assert about["stage"] == "captions" and about["needle_kinds"] == []
    assert sum(file.stat().st_size for file in out.iterdir()) < 5e6
    assert "\n\nIt was *begun* twice.\n\n| | |\n" in card
    assert "before it plays" in card and "| agents |" not in card and "| tokens | 2,400, over" in card
    assert ship(small_run, out) == out, "what was shipped before is replaced"
    assert json.loads((out / "apr_agent.json").read_text())["stage"] is None


def test_what_is_not_whole_is_refused_and_nothing_is_left(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def refused(run: Path, words: str, stage: str | None = None) -> None:
        with pytest.raises(AprError, match=words):
            ship(run, out, stage)
        assert not out.exists() and not list(tmp_path.glob(".*.part"))

    refused(small_run, "no finished stage 'describing'; finished are captions, agents", "describing")
    monkeypatch.setattr(shipping, "STAGE_MB", 1.0)
    refused(small_run, r"it would have 4\.\d MB, and at most 1 MB travel", "agents")
    run = shutil.copytree(small_run, tmp_path / "run")
    (run / "stages" / "01-captions" / "final" / "apr_profile.json").unlink()
    refused(run, "it has no apr_profile.json", "captions")
    weights = load_file(run / "final" / "model.safetensors")
    weights[next(iter(weights))].view(-1)[0] = float("nan")
    save_file(weights, run / "final" / "model.safetensors", metadata={"format": "pt"})
    refused(run, "has values that are no finite numbers")
    shutil.rmtree(run / "final")
    refused(run, r"it has no final/.* --stage \(captions, agents\)")
    out.mkdir()
    (out / "mine.txt").touch()
    with pytest.raises(AprError, match="is no shipped agent; name a new folder"):
        ship(small_run, out)
    assert (out / "mine.txt").exists()
