"""Two processes on gloo: DDP and FSDP2 make the step that one process makes, with ragged turns and an empty process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

import grpo_ranks  # noqa: E402 - after the libraries it needs
from grpo_making import recipe_of, write_questions  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from sharding import SHARDED  # noqa: E402

from apr_plugin.training.grpo.recipe import read_recipe  # noqa: E402

pytestmark = pytest.mark.xdist_group("ranks")

PLAIN = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0, "save_strategy": "no"}
TWICE: dict[str, Any] = {"questions_per_step": 1, "groups": {"oversample": 2.0}}
"""Two questions are sampled, and the one with spread is kept."""
GLOO = {"ddp_backend": "gloo", "ddp_timeout": 240}


def test_the_step_of_two_processes_is_that_of_one(
    tiny: Any,
    student: Callable[..., Any],
    shared_videos: dict[str, Path],
    start_ranks: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Ragged: two steps, each process has rows. Empty: a question has rewards without spread, its process no rows.

    Weights are sharded in the others, one of which reduces gradients after each forward. Rows travel to the process
    that has fewer, but in that one.
    """
    asked = {
        "ragged": write_questions(tmp_path / "ragged.jsonl", shared_videos, ["sound", "long"]),
        "empty": write_questions(tmp_path / "empty.jsonl", shared_videos, ["sound", "silent"]),
    }
    runs = {
        "ragged_one": ("ragged", {"max_steps": 2}, {}),
        "ragged_ddp": ("ragged", {"max_steps": 2} | GLOO, {}),
        "empty_one": ("empty", {"max_steps": 1}, TWICE),
        "empty_fsdp": ("empty", {"max_steps": 1} | GLOO, TWICE),
        "each_fsdp": ("empty", {"max_steps": 1} | GLOO, TWICE | {"forward": {"reduce_each": True, "rebalance": False}}),
    }
    recipes = {}
    for name, (questions, trainer, more) in runs.items():
        more = {"questions_per_step": 2} | more
        made = recipe_of(tiny("qwen2_5_omni"), asked[questions], trainer=PLAIN | trainer, **more)
        recipes[name] = tmp_path / f"{name}.yaml"
        recipes[name].write_text(json.dumps(made))
    words = [
        part
        for name in ("ragged_ddp", "empty_fsdp", "each_fsdp")
        for part in (name.split("_")[1], recipes[name], tmp_path / name)
    ]
    ranks = start_ranks(Path(__file__).with_name("grpo_ranks.py"), *words)
    for name in ("ragged_one", "empty_one"):
        grpo_ranks.run(read_recipe(str(recipes[name])), tmp_path / name)
    ranks.end()

    before = load_file(tiny("qwen2_5_omni") / "model.safetensors")
    pairs = (("ragged_one", "ragged_ddp"), ("empty_one", "empty_fsdp"), ("empty_one", "each_fsdp"))
    for one, two in pairs:
        assert (tmp_path / two / SHARDED).exists() == two.endswith("fsdp")
        single, both = (load_file(tmp_path / name / "final" / "model.safetensors") for name in (one, two))
        assert single.keys() == both.keys()
        for key in single:
            torch.testing.assert_close(both[key], single[key], atol=2e-6, rtol=1e-5)
        moved = [key for key in single if not torch.equal(before[key], single[key])]
        assert all(any(tower in key for key in moved) for tower in ("visual", "audio_tower"))
        cards = [json.loads((tmp_path / name / "final" / "training.json").read_text()) for name in (one, two)]
        assert [card["processes"] for card in cards] == [1, 2]
        logs = [card["log"] for card in cards]
        for here, there in zip(*logs, strict=True):
            for name in ("loss", "reward", "turns", "frames", "rows", "grad_norm"):
                assert here[name] == pytest.approx(there[name], rel=1e-3, abs=2e-5), name
        for card in cards:
            assert all(log["sampling/logp_difference"] < 1e-4 for log in card["log"])
            assert all(log["sampling/entropy_difference"] < 1e-4 for log in card["log"])
    moved, stayed, ragged = (
        json.loads((tmp_path / name / "final" / "training.json").read_text())["log"][0]
        for name in ("empty_fsdp", "each_fsdp", "ragged_ddp")
    )
    assert moved["groups/kept"] == 0.5 and moved["groups/all_zero"] == 0.5
    assert stayed["forwards"] == stayed["rows"] and "balance/moved" not in stayed
    assert moved["forwards"] == -(-moved["rows"] // 2) and moved["balance/before"] == 2
    assert moved["balance/after"] < 1.3 and 0 < moved["balance/moved"] <= 0.5 and moved["balance/megabytes"] > 0
    assert ragged["balance/after"] <= ragged["balance/before"]
