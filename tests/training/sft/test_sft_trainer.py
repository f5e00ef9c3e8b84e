"""The trainer: what changes the loss, which weights move, what a forward holds, how a run continues."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from safetensors.torch import load_file  # noqa: E402 - after the libraries it needs
from sft_making import QUICK, of, recipe_of, rows_of  # noqa: E402

from apr_plugin.errors import AprError  # noqa: E402
from apr_plugin.loop.profile_file import read_profile  # noqa: E402
from apr_plugin.models.batch import IGNORED, Example  # noqa: E402
from apr_plugin.training.loading import RowCollator, RowLoader  # noqa: E402
from apr_plugin.training.recipe_file import RecipeError  # noqa: E402
from apr_plugin.training.rows import NoRows, RowError, RowSet, read_rows, write_rows  # noqa: E402
from apr_plugin.training.sft import trainer as trainers  # noqa: E402
from apr_plugin.training.sft.dummies import Dummies  # noqa: E402
from apr_plugin.training.sft.packs import packs  # noqa: E402
from apr_plugin.training.sft.recipe import Recipe  # noqa: E402
from apr_plugin.training.sft.running import last_checkpoint, run_sft  # noqa: E402
from apr_plugin.training.student import Student  # noqa: E402

Students = Callable[..., Student]
OMNI, VL = "qwen2_5_omni", "qwen2_5_vl"


@pytest.fixture(scope="module")
def made(student: Students, shared_videos: dict[str, Path], tmp_path_factory: Any) -> Callable[[str], Path]:
    files: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in files:
            files[name] = rows_of(student(name), shared_videos, tmp_path_factory.mktemp(f"rows_{name}"))
        return files[name]

    return get


@pytest.fixture
def setup(tiny: Any, student: Students, made: Any, tmp_path: Path) -> Callable[..., Any]:
    """`setup("qwen2_5_vl", learn=…)`: a trainer, its rows, its student."""

    def make(name: str = OMNI, **more: Any) -> Any:
        recipe = Recipe.model_validate(recipe_of(tiny(name), made(name), **more))
        rows = read_rows(recipe.rows)
        return trainers.make_trainer(recipe, rows, student(name), tmp_path / "out"), rows, student(name)

    return make


def loss_of(trainer: Any, student: Student, examples: list[Example]) -> Any:
    collator = RowCollator(RowLoader(student), side="right", mask=True)
    collator.loader.example = lambda row: row  # type: ignore[method-assign, assignment, return-value]
    batch = collator(examples)  # type: ignore[arg-type]
    trainer.model.train()
    return trainer.compute_loss(trainer.model, dict(batch))


def gradient(trainer: Any) -> Any:
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def test_pixels_sound_and_clips_change_the_loss(setup: Any) -> None:
    trainer, rows, student = setup()
    loader = RowLoader(student)

    def changed(example: Example, what: str) -> Example:
        media = [
            replace(medium, **{what: getattr(medium, what) + 0.5 * torch.randn_like(getattr(medium, what))})
            if getattr(medium, what) is not None
            else medium
            for medium in example.encoded.media
        ]
        return replace(example, encoded=replace(example.encoded, media=media))

    torch.manual_seed(0)
    for kind, whats in (("frames", ["pixels"]), ("sound", ["mel"]), ("clip", ["pixels", "mel"])):
        example = loader.example(of(rows, kind))
        plain = loss_of(trainer, student, [example]).item()
        assert plain == loss_of(trainer, student, [example]).item()
        for what in whats:
            assert abs(loss_of(trainer, student, [changed(example, what)]).item() - plain) > 1e-5, (kind, what)


@pytest.mark.parametrize("name", [OMNI, VL])
def test_only_positions_with_labels_reach_the_head(setup: Any, name: str) -> None:
    """Loss, metrics and gradient are those of TRL's own head, and of plain transformers."""
    from trl.trainer.utils import add_fused_lm_head

    trainer, rows, student = setup(name, learn={"towers": "trained"})
    loader, model = RowLoader(student), trainer.model
    examples = [loader.example(of(rows, kind)) for kind in ("text", "frames")]
    counts: list[int] = []
    hook = model.lm_head.register_forward_pre_hook(lambda _, given: counts.append(given[0].shape[:2].numel()))
    cut = loss_of(trainer, student, examples)
    cut.backward()
    mine, metrics = gradient(trainer), {key: list(value) for key, value in trainer._metrics["train"].items()}
    assert counts == [sum(len(example.target) for example in examples)]
    hook.remove()
    model.zero_grad()
    batch = RowCollator(loader, side="left", mask=True)([of(rows, "text"), of(rows, "frames")])
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}, use_cache=False).logits
    plain = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED
    )
    trainer._metrics["train"].clear()
    model.forward = type(model).forward.__get__(model)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    whole = trainer.compute_loss(model, dict(batch))
    whole.backward()
    theirs = gradient(trainer)
    assert cut.item() == pytest.approx(whole.item(), abs=1e-5) == pytest.approx(plain.item(), abs=1e-5)
    for key in ("entropy", "mean_token_accuracy"):
        value = metrics[key]
        assert value == pytest.approx(trainer._metrics["train"][key], abs=1e-4), key
    assert mine.keys() == theirs.keys()
    for key in mine:
        torch.testing.assert_close(mine[key], theirs[key], atol=1e-5, rtol=1e-3)


def test_a_pack_and_dummies_give_the_gradient_of_single_rows(setup: Any) -> None:
    """Padded together or one by one; and dummies change neither the loss nor the gradient."""
    trainer, rows, student = setup(learn={"towers": "trained"})
    loader = RowLoader(student)
    examples = [loader.example(of(rows, kind)) for kind in ("text", "frames", "sound", "clip")]
    total = sum(len(example.target) for example in examples)

    def run(batches: list[list[Example]]) -> tuple[float, dict[str, Any]]:
        trainer.model.zero_grad()
        value = 0.0
        for batch in batches:
            loss = loss_of(trainer, student, batch) * sum(len(example.target) for example in batch) / total
            loss.backward()
            value += loss.item()
        return value, gradient(trainer)

    single, alone = run([[example] for example in examples])
    packed, together = run([examples])
    complete = Dummies(student).complete
    full = [complete([example]) for example in examples]
    assert all(batch[0].dummy is not None for batch in full)
    assert complete([examples[1], examples[3]])[-1].dummy is None or student.family.hears
    dummied, beside = run(full)
    assert single == pytest.approx(packed, abs=1e-5) and single == pytest.approx(dummied, abs=1e-5)
    norm = sum(float(value.norm() ** 2) for value in alone.values()) ** 0.5
    for other in (together, beside):
        gone = [alone[key] - other[key] for key in alone]
        assert sum(float(value.norm() ** 2) for value in gone) ** 0.5 < 2e-5 * norm
        assert all(not value.any() for key, value in other.items() if key not in alone)


@pytest.mark.parametrize(("name", "towers"), [(OMNI, "frozen"), (OMNI, "projector"), (OMNI, "trained"), (VL, "frozen")])
def test_what_moves(setup: Any, name: str, towers: str) -> None:
    trainer, _, _ = setup(name, learn={"towers": towers}, trainer={"learning_rate": 1e-2})
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.train()
    moved = {key for key, value in trainer.model.state_dict().items() if not torch.equal(value, before[key])}
    for key in before:
        tower = next((part for part in ("visual.", "audio_tower.") if part in key), None)
        if tower is None:
            free = True
        elif towers == "projector":
            free = ".merger." in key or "audio_tower.proj." in key
        else:
            free = towers == "trained"
        if "audio_bos_eos_token" in key:  # of real-time speech; no forward uses it
            free = False
        assert (key in moved) == free, key
    assert trainer.state.log_history[0]["loss"] > 0


def test_a_token_budget(setup: Any, made: Any) -> None:
    rows = read_rows(made(OMNI)).rows
    longest = max(row.tokens for row in rows)
    for budget in (longest, 2 * longest, 10**6):
        made_packs = packs(rows, budget, seed=3)
        assert sorted(row.where for pack in made_packs for row in pack) == sorted(row.where for row in rows)
        assert all(len(pack) * max(row.tokens for row in pack) <= budget for pack in made_packs)
        assert made_packs == packs(rows, budget, seed=3)
    assert len(packs(rows, 10**6, 0)) == 1 and len(packs(rows, None, 0)) == len(rows)
    with pytest.raises(RowError, match="raise it to the longest row"):
        packs(rows, longest - 1, 0)
    trainer, _, _ = setup(forward={"token_budget": 2 * longest}, rows_per_step=len(rows))
    trainer.train()
    assert trainer.state.global_step == 1
    assert trainer.state.log_history[0]["num_tokens"] >= sum(row.tokens for row in rows)


def test_checkpointing_and_bfloat16(setup: Any) -> None:
    """Recomputed activations give the same steps; in bfloat16 the loss is about the same."""
    losses = {}
    for kind, more in (
        ("plain", {}),
        ("checkpointing", {"gradient_checkpointing": True}),
        ("bfloat16", {"bf16": True}),
    ):
        trainer, _, _ = setup(rows_per_step=1, trainer=more | {"max_steps": 2})
        trainer.train()
        losses[kind] = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses["plain"] == losses["checkpointing"]
    np.testing.assert_allclose(losses["bfloat16"], losses["plain"], rtol=0.05)
    assert losses["bfloat16"] != losses["plain"]


class Stop(Exception):
    pass


def test_a_run_continues_in_the_middle_of_an_epoch(
    tiny: Any, student: Students, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses and weights equal those of the undisturbed run, bit for bit, with data loaded in another process."""
    more = {"trainer": {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 1, "dataloader_num_workers": 1}}
    recipe = Recipe.model_validate(recipe_of(tiny(OMNI), made(OMNI), rows_per_step=2, **more))
    run_sft(recipe, tmp_path / "whole")

    from apr_plugin.training.sft import finishing

    def stop(self: Any, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.global_step == 3:  # the third step is lost, and so is the checkpoint that was begun
            raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(finishing.StopAtNan, "on_log", stop)
        run_sft(recipe, tmp_path / "cut")
    shutil.copytree(tmp_path / "cut" / "checkpoint-2", tmp_path / "cut" / "checkpoint-3")
    (tmp_path / "cut" / "checkpoint-3" / "trainer_state.json").write_text('{"global_step": 3')
    assert last_checkpoint(tmp_path / "cut") == tmp_path / "cut" / "checkpoint-2"
    run_sft(recipe, tmp_path / "cut")
    one, other = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "cut"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    cards = [json.loads((tmp_path / name / "final" / "training.json").read_text()) for name in ("whole", "cut")]
    carried = read_profile(tmp_path / "whole" / "final")
    assert carried.limits == QUICK.budget and carried.sampling.max_new_tokens == QUICK.sampling.max_new_tokens
    assert cards[0]["profile"]["digest"] == carried.digest and cards[0]["profile"]["origin"] == "of all rows"
    for place in (*(tmp_path / "whole").glob("checkpoint-*"), tmp_path / "cut" / "final"):
        assert read_profile(place) == carried
    assert f"apr_profile.json, digest {carried.digest}" in (tmp_path / "whole" / "final" / "README.md").read_text()
    assert cards[0]["losses"] == cards[1]["losses"] and len(cards[0]["losses"]) == cards[0]["steps"] >= 4

    # A finished run is not trained again, and its folder is not taken for another recipe.
    before = (tmp_path / "cut" / "final" / "model.safetensors").stat().st_mtime_ns
    run_sft(recipe, tmp_path / "cut")
    assert (tmp_path / "cut" / "final" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(AprError, match=r"other settings.*trainer\.learning_rate"):
        run_sft(recipe.model_copy(update={"trainer": recipe.trainer | {"learning_rate": 0.5}}), tmp_path / "cut")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(AprError, match="no folder of a training run"):
        run_sft(recipe, tmp_path / "other")


def test_adapters(tiny: Any, student: Students, made: Any, tmp_path: Path) -> None:
    """Only adapters are trained; the checkpoint has them merged, in its own type and form."""
    recipe = Recipe.model_validate(
        recipe_of(tiny(VL), made(VL), learn={"what": "lora", "lora": {"r": 4}}, trainer={"learning_rate": 1e-2})
    )
    final = run_sft(recipe, tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny(VL), final))
    assert before.keys() == after.keys()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved and all("visual" not in key and key.split(".")[-2].endswith("_proj") for key in moved)
    adapters = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert adapters and all("visual" not in key for key in adapters)
    assert read_profile(tmp_path / "out" / "adapter") == read_profile(final)
    card = json.loads((final / "training.json").read_text())
    assert card["parameters"]["trained"] == sum(value.numel() for value in adapters.values())
    with pytest.raises(ValueError, match="towers: frozen only"):
        Recipe.model_validate(recipe_of("x", Path("y"), learn={"what": "lora", "towers": "trained"}))


def test_what_is_wrong_is_said_before_training(
    tiny: Any, student: Students, made: Any, make_video: Any, tmp_path: Path
) -> None:
    """A gone or changed video, a changed line, rows for another student, no rows; nothing is trained."""
    videos = {name: make_video(f"{name}.mp4", frames=60, sound_s=6.0) for name in ("sound", "silent")}
    videos["long"] = make_video("long.mp4", frames=150, fps=2, gop=10)
    file = rows_of(student(OMNI), videos, tmp_path / "rows")
    recipe = Recipe.model_validate(recipe_of(tiny(OMNI), file))
    make_video("silent.mp4", frames=50)  # another film under this name
    with pytest.raises(RowError, match=r"1 trajectories can't be rebuilt.*silent\.mp4.*bad_rows: skip"):
        run_sft(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    final = run_sft(recipe.model_copy(update={"bad_rows": "skip"}), tmp_path / "out")
    card = json.loads((final / "training.json").read_text())
    assert card["rows"]["unreadable"] == 1 and card["rows"]["train"] == len(read_rows(file).rows) - 3
    assert "1 trajectories could not be rebuilt" in (final / "README.md").read_text()
    for path in videos.values():
        path.unlink()
    with pytest.raises(NoRows, match="nothing to train on"):
        run_sft(recipe.model_copy(update={"bad_rows": "skip"}), tmp_path / "gone")
    with pytest.raises(RowError, match="made for a student that reads prompts differently"):
        run_sft(Recipe.model_validate(recipe_of(tiny(VL), file)), tmp_path / "gone")
    rows = read_rows(made(OMNI))
    lies = RowSet(
        [row.model_copy(update={"prompt_tokens": row.prompt_tokens + 1}) for row in rows.rows], [], rows.about
    )
    write_rows(tmp_path / "lies.jsonl", lies)
    with pytest.raises(RowError, match="tokens, and had"):
        run_sft(Recipe.model_validate(recipe_of(tiny(OMNI), tmp_path / "lies.jsonl")), tmp_path / "gone")
    short = Recipe.model_validate(recipe_of(tiny(OMNI), made(OMNI)))
    short = short.model_copy(update={"student": short.student.model_copy(update={"context_tokens": 300})})
    with pytest.raises(RowError, match="the student's context is 300"):
        run_sft(short, tmp_path / "gone")
    with pytest.raises(RecipeError, match="names no rows"):
        run_sft(recipe.model_copy(update={"rows": None}), tmp_path / "gone")


def test_a_loss_that_is_no_number_stops(tiny: Any, made: Any, tmp_path: Path) -> None:
    wild = {"learning_rate": 1e12, "optim": "sgd", "max_grad_norm": 0.0, "num_train_epochs": 4}
    with pytest.raises(AprError, match=r"step \d+: (loss|grad_norm) is (nan|inf); training stopped"):
        run_sft(Recipe.model_validate(recipe_of(tiny(OMNI), made(OMNI), trainer=wild)), tmp_path / "out")
    assert not (tmp_path / "out" / "final").exists()
