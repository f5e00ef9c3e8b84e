"""Two processes on gloo: DDP and FSDP2 make the step that one process makes, with a picture on one of them only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from safetensors.torch import load_file  # noqa: E402 - after the libraries it needs
from sft_making import of, recipe_of, rows_of, write_recipe  # noqa: E402
from sharding import SHARDED  # noqa: E402

from apr_plugin.training.rows import RowSet, read_rows, write_rows  # noqa: E402
from apr_plugin.training.sft.recipe import read_recipe  # noqa: E402
from apr_plugin.training.sft.running import run_sft  # noqa: E402
from apr_plugin.training.student import Student  # noqa: E402

pytestmark = pytest.mark.xdist_group("ranks")


def test_the_step_of_two_processes_is_that_of_one(
    tiny: Any,
    student: Callable[..., Student],
    shared_videos: dict[str, Path],
    start_ranks: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """The towers are trained and sharded too, and tokens have weights.

    Without dummies the process with the picture waits for the other.
    """
    rows = read_rows(rows_of(student(), shared_videos, tmp_path))
    two = RowSet([of(rows, "text"), of(rows, "frames")], [], rows.about)
    write_rows(tmp_path / "two.jsonl", two)
    plain = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "save_strategy": "no", "max_steps": 1}
    plain |= {"lr_scheduler_type": "constant"}
    gloo = {"ddp_backend": "gloo", "ddp_timeout": 120}
    recipes = {
        name: write_recipe(
            tmp_path / f"{name}.json",
            recipe_of(
                tiny("qwen2_5_omni"),
                tmp_path / "two.jsonl",
                rows_per_step=2,
                learn={"towers": "trained"},
                weights="needle_turn",
                trainer=plain | more,
            ),
        )
        for name, more in {"one": {}, "ddp": gloo, "fsdp": gloo}.items()
    }
    words = [part for name in ("ddp", "fsdp") for part in (name, recipes[name], tmp_path / name)]
    ranks = start_ranks(Path(__file__).with_name("ranks.py"), *words)
    run_sft(read_recipe(str(recipes["one"])), tmp_path / "one")
    ranks.end()
    assert (tmp_path / "fsdp" / SHARDED).exists() and not (tmp_path / "ddp" / SHARDED).exists()
    before = load_file(tiny("qwen2_5_omni") / "model.safetensors")
    one, ddp, sharded = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("one", "ddp", "fsdp"))
    assert any(not torch.equal(before[key], one[key]) for key in one if "visual" in key)
    for other in (ddp, sharded):
        assert one.keys() == other.keys()
        for key in one:
            torch.testing.assert_close(other[key], one[key], atol=1e-6, rtol=1e-5)
    losses = {
        name: json.loads((tmp_path / name / "final" / "training.json").read_text()) for name in ("one", "ddp", "fsdp")
    }
    assert losses["one"]["losses"][0]["loss"] == pytest.approx(losses["ddp"]["losses"][0]["loss"], abs=1e-5)
    assert losses["one"]["losses"][0]["loss"] == pytest.approx(losses["fsdp"]["losses"][0]["loss"], abs=1e-5)
    assert losses["ddp"]["processes"] == losses["fsdp"]["processes"] == 2
