"""Options of the trainer for small models: weights of tokens, rates of groups, distinct pictures, batched attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from safetensors.torch import load_file  # noqa: E402 - after the libraries it needs
from sft_making import of, recipe_of, rows_of  # noqa: E402

from apr_plugin.loop.policy import ImagePart, Message, Prompt, TextPart  # noqa: E402
from apr_plugin.models.batch import Example, batch_of  # noqa: E402
from apr_plugin.training import named  # noqa: E402
from apr_plugin.training.loading import RowCollator, RowLoader  # noqa: E402
from apr_plugin.training.recipe_file import RecipeError  # noqa: E402
from apr_plugin.training.rows import read_rows  # noqa: E402
from apr_plugin.training.sft import trainer as trainers  # noqa: E402
from apr_plugin.training.sft.head import read_only_labels  # noqa: E402
from apr_plugin.training.sft.learner import load_learner  # noqa: E402
from apr_plugin.training.sft.pictures import BY_LENGTH, batch_attention, by_length  # noqa: E402
from apr_plugin.training.sft.recipe import Recipe, StudentSettings  # noqa: E402
from apr_plugin.training.sft.running import last_checkpoint, run_sft  # noqa: E402
from apr_plugin.training.sft.weights import TargetText, Weighing  # noqa: E402
from apr_plugin.training.student import Student  # noqa: E402

OMNI = "qwen2_5_omni"


def by_place(target: TargetText) -> Sequence[float]:
    """A weigher: the first token counts 6, every third nothing, the others a third of their place."""
    return [6.0 if n == 0 else 0.0 if n % 3 == 0 else n / 3 for n in range(len(target.ids))]


def one_too_few(target: TargetText) -> Sequence[float]:
    """A weigher with a fault."""
    return [1.0] * (len(target.ids) - 1)


@pytest.fixture(autouse=True)
def _weighers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("by_place", "one_too_few"):
        monkeypatch.setitem(named.OURS["weighers"], name, f"{__name__}:{name}")


@pytest.fixture(scope="module")
def rows(student: Callable[..., Student], shared_videos: dict[str, Path], tmp_path_factory: Any) -> Path:
    return rows_of(student(OMNI), shared_videos, tmp_path_factory.mktemp("rows"))


def test_weights_of_tokens_are_those_of_a_plain_computation(tiny: Any, rows: Path, tmp_path: Path) -> None:
    """One step of plain SGD over three forwards moves each weight by the gradient of sum(w * ce) / sum(w)."""
    plain = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "save_strategy": "no", "max_steps": 1}
    recipe = Recipe.model_validate(
        recipe_of(
            tiny(OMNI), rows, weights="by_place", rows_per_step=9, trainer=plain | {"lr_scheduler_type": "constant"}
        )
    )
    student = Student.from_pretrained(str(tiny(OMNI)))
    train = read_rows(rows)
    trainer = trainers.make_trainer(recipe, train, student, tmp_path / "out")
    before = {key: value.clone() for key, value in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.args.gradient_accumulation_steps == len(train.rows) == 9

    model = load_learner(StudentSettings(pretrained=str(tiny(OMNI))))
    loader, weighing = RowLoader(student), Weighing("by_place", student)
    above = below = torch.zeros(())
    for row in train.rows:
        example = weighing(loader.example(row), "x")
        batch = batch_of([example], student.family, pad=0)
        labels, weights = batch.pop("labels")[:, 1:], batch.pop("loss_weights")[:, 1:]
        logits = model(**batch, use_cache=False).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits[0], labels[0], reduction="none", ignore_index=-100)
        assert list(example.weights or ()) == by_place(TargetText(tuple(example.target), (), "", 0))
        above, below = above + (losses * weights[0]).sum(), below + weights.sum()
    loss = above / below
    loss.backward()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), abs=1e-5)
    moved = dict(trainer.model.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and moved[name].requires_grad:
            torch.testing.assert_close(moved[name] - before[name], -0.1 * parameter.grad, atol=2e-6, rtol=1e-3)
    assert sum(parameter.grad is not None for parameter in model.parameters()) > 20


def test_weighers_that_are_unknown_or_wrong(student: Callable[..., Student], rows: Path) -> None:
    with pytest.raises(RecipeError, match=r"no weigher of tokens 'by_plac' \(did you mean 'by_place'"):
        Weighing("by_plac", student(OMNI))
    example = RowLoader(student(OMNI)).example(read_rows(rows).rows[0])
    with pytest.raises(RecipeError, match="one_too_few gave"):
        Weighing("one_too_few", student(OMNI))(example, "x")
    with pytest.raises(ValueError, match="weights for a target of"):
        batch_of([replace(example, weights=(1.0,))], student(OMNI).family, pad=0)
    with pytest.raises(ValueError, match="loss_type: nll"):
        Recipe.model_validate(recipe_of("x", rows, weights="by_place", trainer={"loss_type": "dft"}))


RATES = [
    {"match": "*embed_tokens*", "learning_rate": 3e-3, "weight_decay": 0.0},
    {"match": "*language_model*", "learning_rate": 2e-3, "optimizer": "muon"},
    {"match": "*visual.patch_embed*", "learning_rate": 1e-4, "weight_decay": 0.25},
]


def test_rates_of_groups_and_how_a_run_with_them_continues(tiny: Any, rows: Path, tmp_path: Path) -> None:
    """Each group has its optimizer and rate; a run that was cut ends with the weights of the undisturbed one."""
    steps = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "lr_scheduler_type": "linear"}
    recipe = Recipe.model_validate(
        recipe_of(tiny(OMNI), rows, learn={"towers": "trained"}, rates=RATES, rows_per_step=2, trainer=steps)
    )
    student = Student.from_pretrained(str(tiny(OMNI)))
    trainer = trainers.make_trainer(recipe, read_rows(rows), student, tmp_path / "looked_at")
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    optimizer = trainer.create_optimizer()
    muon = optimizer.parts[1]
    assert type(muon).__name__ == "Muon"
    taken = [names[id(p)] for group in muon.param_groups for p in group["params"]]
    assert taken and all("language_model.layers" in name for name in taken)
    found = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert found.keys() == {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    for name, group in found.items():
        want = 3e-3 if "embed_tokens" in name else 1e-4 if "patch_embed" in name else 2e-3 if name in taken else 1e-3
        # What Muon does not take (norms and biases of the language model) has the trainer's own rate.
        assert group["lr"] == want, name
        if "patch_embed" in name:
            assert group["weight_decay"] == 0.25

    run_sft(recipe, tmp_path / "whole")
    run_sft(recipe, tmp_path / "cut")
    for folder in ("checkpoint-2", "checkpoint-3", "final"):
        (tmp_path / "cut" / folder).rename(tmp_path / f"gone-{folder}")
    assert last_checkpoint(tmp_path / "cut") == tmp_path / "cut" / "checkpoint-1"
    run_sft(recipe, tmp_path / "cut")
    one, other = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[key], other[key]) for key in one)

    wrong = recipe.model_copy(update={"rates": (*recipe.rates, recipe.rates[0].model_copy(update={"match": "*eyes*"}))})
    with pytest.raises(RecipeError, match=r"rates\.3\.match: '\*eyes\*' takes no parameter"):
        trainers.make_trainer(wrong, read_rows(rows), student, tmp_path / "wrong").create_optimizer()


def frames(*colours: int) -> tuple[ImagePart, ...]:
    """Pictures of one colour with a gradient, equal if the numbers are."""
    ramp = np.arange(112, dtype=np.uint8)[None, :, None]
    return tuple(ImagePart(np.broadcast_to(ramp + np.uint8(colour), (84, 112, 3)).copy()) for colour in colours)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("qwen2_5_omni", 1),
        ("qwen2_5_omni", 2),
        ("qwen2_5_vl", 1),
        ("qwen3_vl", 1),
        ("qwen3_omni_moe", 1),
        ("qwen3_omni_moe", 2),
    ],
)
def test_equal_pictures_are_seen_once(name: str, sizes: int, tiny: Any, student: Callable[..., Student]) -> None:
    """Loss and gradients are those of the plain forward, deepstack features included; the tower sees fewer pictures."""
    learner = student(name)
    shown = [frames(0, 60, 0, 0), frames(60, 90), ()]
    examples = []
    for number, pictures in enumerate(shown):
        parts = (TextPart("Frames "), *pictures, TextPart("Which is first?"))
        examples.append(
            Example(learner.encoder.encode(Prompt((Message("user", parts),))), (5 + number, 9, learner.end))
        )
    if sizes == 2:  # with pictures of one size, positions and windows are those of the first, repeated
        other = ImagePart(np.zeros((56, 84, 3), np.uint8))
        prompt = Prompt((Message("user", (other, other, TextPart("x"))),))
        examples.append(Example(learner.encoder.encode(prompt), (7, learner.end)))
    results = []
    for distinct in (False, True):
        model = load_learner(StudentSettings(pretrained=str(tiny(name))))
        read_only_labels(model, right_padded=distinct)
        assert not distinct or batch_attention(model)
        patches: list[int] = []
        model.base_model.visual.patch_embed.register_forward_hook(
            lambda _, given, __, p=patches: p.append(len(given[0]))
        )
        batch = batch_of(examples, learner.family, pad=learner.pad, mask=True, distinct=distinct)
        assert ("picture_places" in batch) == distinct
        out = model(**batch, fused_lm_head=True)
        out.loss.backward()
        grads = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        results.append((out.loss.item(), grads, sum(patches)))
    (loss, grads, many), (once, others, few) = results
    assert few < 0.6 * many
    assert once == pytest.approx(loss, abs=1e-5) and grads.keys() == others.keys()
    assert any("visual" in key and value.abs().max() > 1e-6 for key, value in grads.items())
    for key in grads:
        torch.testing.assert_close(others[key], grads[key], atol=1e-5, rtol=1e-4)


def test_attention_by_length() -> None:
    """Stretches of several lengths, in any order, attend within themselves."""
    torch.manual_seed(0)
    lengths = (4, 2, 4, 7, 2)
    ends = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    query, key, value = (torch.randn(1, 3, sum(lengths), 8) for _ in range(3))
    out, _ = by_length(None, query, key, value, None, scaling=0.3, cu_seq_lens_q=ends)
    for begin, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        weights = (query[0, :, begin:end] @ key[0, :, begin:end].transpose(1, 2) * 0.3).softmax(-1)
        wanted = (weights @ value[0, :, begin:end]).transpose(0, 1)
        torch.testing.assert_close(out[0, begin:end], wanted, atol=1e-6, rtol=1e-5)


def test_a_trained_checkpoint_says_nothing_of_the_attention(tiny: Any, tmp_path: Path) -> None:
    model = load_learner(StudentSettings(pretrained=str(tiny(OMNI))))
    assert batch_attention(model) and model.base_model.visual.config._attn_implementation == BY_LENGTH
    model.save_pretrained(tmp_path)
    assert BY_LENGTH not in (tmp_path / "config.json").read_text()


def test_distinct_pictures_through_the_trainer(
    tiny: Any, student: Callable[..., Student], rows: Path, tmp_path: Path
) -> None:
    """The option reaches the collator, and a step is the same with it."""
    losses = []
    for distinct in (False, True):
        recipe = Recipe.model_validate(
            recipe_of(tiny(OMNI), rows, forward={"distinct_pictures": distinct, "token_budget": 10_000})
        )
        trainer = trainers.make_trainer(recipe, read_rows(rows), student(OMNI), tmp_path / str(distinct))
        collator = trainer.data_collator.collator
        assert isinstance(collator, RowCollator) and collator.distinct == distinct
        example = collator.loader.example(of(read_rows(rows), "frames"))
        batch = collator.batch([example, example])
        assert ("picture_places" in batch) == distinct
        losses.append(trainer.compute_loss(trainer.model.train(), batch).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
