"""Whole runs of `apr train grpo` on small models: they continue, survive broken films, and stop where they must."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from grpo_making import LOOKS, WATCHES, recipe_of, said, scripted, write_questions  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from apr_plugin.cli.show import run_show  # noqa: E402
from apr_plugin.errors import AprError  # noqa: E402
from apr_plugin.loop.profile_file import read_profile  # noqa: E402
from apr_plugin.policies.hf import HfPolicy, sample  # noqa: E402
from apr_plugin.runs.opened import open_run  # noqa: E402
from apr_plugin.training.grpo.recipe import GrpoRecipe  # noqa: E402
from apr_plugin.training.grpo.running import run_grpo  # noqa: E402

VL = "qwen2_5_vl"
SGD = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
Says = Callable[[str, int], Sequence[str]]


@pytest.fixture
def prepare(
    tiny: Any, student: Any, shared_videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., GrpoRecipe]:
    """A recipe about some films, whose draws are scripted."""

    def make(
        names: Sequence[str] = ("sound",), says: Says | None = None, films: dict[str, Path] | None = None, **more: Any
    ) -> GrpoRecipe:
        questions = write_questions(tmp_path / "q.jsonl", films or shared_videos, names)
        recipe = GrpoRecipe.model_validate(recipe_of(tiny(VL), questions, **more))
        monkeypatch.setattr(sample, "_draw", scripted(student(VL), recipe, says))
        return recipe

    return make


def log_of(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "final" / "training.json").read_text())["log"]
    return found


def weights(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = load_file(folder / "model.safetensors")
    return found


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {key for key in before if not torch.equal(before[key], after[key])}


def shown(out: Path, step: int) -> list[tuple[Any, ...]]:
    """The trajectories that were kept at a step: question, number, and what was said."""
    (folder,) = (out / "samples" / f"step-{step:06}").glob("*/")
    return sorted(
        (one.question.key, one.seed, tuple(turn.text for turn in one.turns)) for one in open_run(folder).trajectories
    )


def test_a_run_continues_as_if_it_had_not_stopped(
    prepare: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Begun in a running event loop, as in a notebook. Questions, seeds, texts and weights are those of one run."""
    recipe = prepare(["sound", "silent", "long"], trainer={"max_steps": 3, "save_strategy": "steps", "save_steps": 1})

    async def notebook() -> None:
        run_grpo(recipe, tmp_path / "whole")

    asyncio.run(notebook())
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in ("checkpoint-2", "checkpoint-3", "final", "samples"):
        shutil.rmtree(tmp_path / "cut" / name)
    run_grpo(recipe, tmp_path / "cut")
    assert not (tmp_path / "cut" / "samples" / "step-000000").exists(), "the first step was not done again"
    for step in (1, 2):
        assert shown(tmp_path / "cut", step) == shown(tmp_path / "whole", step) != []
    one, two = weights(tmp_path / "whole" / "final"), weights(tmp_path / "cut" / "final")
    for key in one:
        torch.testing.assert_close(two[key], one[key], atol=1e-5, rtol=1e-4)
    carried = read_profile(tmp_path / "cut" / "final")
    assert carried.limits == recipe.budget and carried.sampling.max_new_tokens == recipe.sampling.max_new_tokens
    assert carried.sampling.temperature is None and read_profile(tmp_path / "whole" / "checkpoint-2") == carried
    assert carried.digest in (tmp_path / "cut" / "final" / "README.md").read_text()
    logs = log_of(tmp_path / "cut")
    assert [log["step"] for log in logs] == [1, 2, 3] and all(log["rows"] > 0 for log in logs)
    asked = {key[2] for step in range(3) for key, _, _ in shown(tmp_path / "whole", step)}
    assert asked == {"sound", "silent", "long"}
    told = json.loads((tmp_path / "cut" / "samples" / "step-000001" / "rewards.json").read_text())
    assert [one["reward"] for one in told] == [1.0, 0.0] and all(one["learned_from"] for one in told)

    capsys.readouterr()
    run_show(tmp_path / "cut" / "samples" / "step-000002", None, None, False)
    assert "answered 2" in capsys.readouterr().out
    run_grpo(recipe, tmp_path / "cut")  # is finished
    assert "nothing was trained" in capsys.readouterr().err
    other = recipe.model_copy(update={"generations": 4})
    with pytest.raises(AprError, match=r"other settings was begun here .*generations"):
        run_grpo(other, tmp_path / "cut")


def test_kept_caches_of_old_weights_are_noticed(prepare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If `weights_changed` is not called, prompts are continued from the keys and values of earlier weights."""
    recipe = prepare(trainer={"max_steps": 2} | SGD)
    monkeypatch.setattr(HfPolicy, "weights_changed", lambda self, weights=None: None)
    with pytest.raises(AprError, match=r"step 1: .*differ from those in sampling .* sampled with other weights"):
        run_grpo(recipe, tmp_path / "out")
    assert list((tmp_path / "out" / "stopped" / "step-000001").glob("*/q.jsonl"))
    assert not (tmp_path / "out" / "final").exists()


def test_a_film_that_breaks_ends_one_trajectory(prepare: Any, make_video: Any, tmp_path: Path) -> None:
    """The film is overwritten while the last of three trajectories looks at it; the other two are learned from."""
    film = make_video("film.mp4", frames=60)

    def says(_: str, repeat: int) -> list[str]:
        if repeat == 2:
            film.write_bytes(b"no film any more")
        return [LOOKS[0], LOOKS[1], said(type="answer", content="AB"[repeat % 2])]

    more = {"generations": 3, "groups": {"broken": "leave_out"}, "sampling": {"max_new_tokens": 150, "concurrency": 1}}
    run_grpo(prepare(["film"], says, {"film": film}, trainer=SGD, **more), tmp_path / "out")
    (log,) = log_of(tmp_path / "out")
    assert log["stop/media_unreadable"] == pytest.approx(1 / 3) and log["stop/answered"] == pytest.approx(2 / 3)
    assert log["rows"] == 6 and log["reward"] == 0.5 and log["groups/kept"] == 1 and log["grad_norm"] > 0


def test_equal_rewards_and_failing_steps(prepare: Any, tiny: Any, tmp_path: Path) -> None:
    """A step whose groups have no spread leaves the weights as they are; one that fails as a whole stops."""

    def wrong(_: str, __: int) -> list[str]:
        return [LOOKS[0], said(type="answer", content="B")]

    run_grpo(prepare(says=wrong, trainer=SGD), tmp_path / "equal")
    (log,) = log_of(tmp_path / "equal")
    assert log["groups/all_zero"] == 1 and log["rows"] == 0 and log["loss"] == 0 and log["grad_norm"] == 0
    assert not changed(weights(tiny(VL)), weights(tmp_path / "equal" / "final"))

    wild = prepare(trainer={"max_steps": 3} | SGD | {"learning_rate": 1e25})
    with pytest.raises(AprError, match=r"step 1: all 2 trajectories failed; .*policy_unavailable: .*not finite"):
        run_grpo(wild, tmp_path / "wild")
    assert not (tmp_path / "wild" / "final").exists()


def test_adapters_several_updates_and_more_groups_than_are_kept(prepare: Any, tiny: Any, tmp_path: Path) -> None:
    """Two groups are sampled and the one with spread is kept; its turns are in two updates, each done twice."""

    def says(name: str, repeat: int) -> list[str]:
        return [LOOKS[0], WATCHES, said(type="answer", content="B" if name == "silent" else "AB"[repeat % 2])]

    recipe = prepare(
        ["sound", "silent"],
        says,
        groups={"oversample": 2.0},
        updates_per_rollout=2,
        learn={"what": "lora", "lora": {"r": 4}},
        credit={"rule": "taura_action"},
        forward={"token_budget": 4000},
        trainer={"max_steps": 4, "num_iterations": 2, "activation_checkpointing": True, "learning_rate": 0.05},
    )
    final = run_grpo(recipe, tmp_path / "out")
    moved = changed(weights(tiny(VL)), weights(final))
    assert moved and all("visual" not in key and key.split(".")[-2].endswith("_proj") for key in moved)
    logs = log_of(tmp_path / "out")
    assert len(logs) == 4 and [("reward" in log) for log in logs] == [True, False, False, False], "one rollout"
    first = logs[0]
    assert first["groups/kept"] == first["groups/all_zero"] == 0.5 and first["rows"] == 6 and first["forwards"] == 2
    assert first["credit/mean"] == pytest.approx(1) and first["credit/turns"] == 6
    assert logs[-1]["clip_ratio/region_mean"] > 0, "later updates are compared with the log-probabilities before"
    assert [("sampling/logp_difference" in log) for log in logs] == [True, False, False, False]


def test_what_is_wrong_is_said_before_training(prepare: Any, make_video: Any, tmp_path: Path) -> None:
    films = {"good": make_video("good.mp4", frames=20), "bad": tmp_path / "bad.mp4", "far": make_video("far.mp4")}
    films["bad"].write_bytes(b"this is no film")
    recipe = prepare(list(films), films=films, longest_s=3.0)
    with pytest.raises(AprError, match=r"the films of 1 questions can't be opened .*bad\.mp4.*unreadable: skip"):
        run_grpo(recipe, tmp_path / "out")
    with pytest.raises(AprError, match=r"a rollout takes 2 questions .* there are 1"):
        run_grpo(recipe.model_copy(update={"unreadable": "skip", "questions_per_step": 2}), tmp_path / "two")
    with pytest.raises(AprError, match=r"no question is left.* too_long 2, unreadable 1"):
        run_grpo(recipe.model_copy(update={"unreadable": "skip", "longest_s": 0.5}), tmp_path / "none")
    with pytest.raises(AprError, match="names no questions"):
        run_grpo(recipe.model_copy(update={"questions": []}), tmp_path / "none")
    with pytest.raises(AprError, match=r"system_prompt: .*gone\.txt: cannot read it"):
        run_grpo(recipe.model_copy(update={"unreadable": "skip", "system_prompt": "gone.txt"}), tmp_path / "gone")
