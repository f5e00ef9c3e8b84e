"""On-policy distillation on small models: the step is the mean over learned tokens, and top-K is steadier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from distill_making import distill_recipe  # noqa: E402 - after the libraries it needs
from grpo_making import plan, scripted, write_questions  # noqa: E402

from apr_plugin.loop.policy import Generation  # noqa: E402
from apr_plugin.models.batch import Example, batch_of  # noqa: E402
from apr_plugin.policies.hf import sample  # noqa: E402
from apr_plugin.training.distill.making import make_trainer  # noqa: E402
from apr_plugin.training.distill.recipe import DistillRecipe  # noqa: E402
from apr_plugin.training.distill.trainer import masked_tokens  # noqa: E402
from apr_plugin.training.grpo.forward import RowForward  # noqa: E402
from apr_plugin.training.grpo.frozen import Frozen  # noqa: E402
from apr_plugin.training.grpo.rows import Part, padding_row, together  # noqa: E402
from apr_plugin.training.sft.recipe import StudentSettings  # noqa: E402
from apr_plugin.training.synthesis.questions import load_questions  # noqa: E402

VL = "qwen2_5_vl"


@pytest.fixture(scope="module")
def learning(
    tiny: Any,
    student: Callable[..., Any],
    teachers: Callable[[str], Path],
    shared_videos: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """A trainer with the rows of its first rollout, as `part`: two turns and five, one of them refused."""
    folder = tmp_path_factory.mktemp("distill")
    questions = write_questions(folder / "q.jsonl", shared_videos, ["sound"])
    recipe = DistillRecipe.model_validate(
        distill_recipe(tiny(VL), teachers(VL), questions, distill={"top_k": 8, "weighting": "turn_entropy"})
    )
    reads, asked = student(VL), load_questions(recipe.questions)
    trainer = make_trainer(recipe, asked, {}, reads, folder / "out")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sample, "_draw", scripted(reads, recipe, lambda _, repeat: plan(3 * (1 - repeat), False)))
        (trainer.part,) = trainer._generate_and_score_completions([{"question": 0}] * 2)
    yield trainer
    trainer.rollouts.close()


def step(trainer: Any, part: Part, **settings: Any) -> tuple[float, Any]:
    """The loss and the gradient of a step with other settings of the loss."""
    was = trainer.recipe
    trainer.recipe = was.model_copy(update={"distill": was.distill.model_copy(update=settings)})
    try:
        trainer.model.train()
        loss = trainer.compute_loss(trainer.model, part)
        trainer.accelerator.backward(loss)
        flat = torch.cat([weight.grad.flatten() for weight in trainer.model.parameters() if weight.grad is not None])
        trainer.model.zero_grad(set_to_none=False)
        return float(loss.detach()), flat
    finally:
        trainer.recipe = was


def rows_in(trainer: Any) -> list[Any]:
    return [row for pack in trainer.part.packs for row in pack]


def plainly(trainer: Any, model: Any, row: Any) -> Any:
    """Logits where a row has its target, by the whole forward of a model, without the trainer's code."""
    encoder, family = trainer.rollouts.student.encoder, trainer.rollouts.student.family
    encoded = encoder.encode(row.prompt)
    batch = batch_of([Example(encoded, row.target)], family, pad=0)
    batch.pop("labels")
    values = model(**batch).logits[0, len(encoded.ids) - 1 : -1].float().clone()
    values[:, list(encoder.never_written)] = -torch.inf
    return values


def test_the_step_is_the_weighted_mean_over_learned_tokens(learning: Any) -> None:
    """Against whole forwards and sums by hand: both estimators, row by row and in packs, with padding rows."""
    trainer, reads = learning, learning.rollouts.student
    rows = rows_in(trainer)
    assert len(rows) == 7 and {row.advantage for row in rows} != {1.0}
    assert sum(row.advantage for row in rows) / len(rows) == pytest.approx(1, abs=1e-6)
    learned = [[token not in reads.special | reads.ends for token in row.target] for row in rows]
    assert all(not of[-1] for of in learned), "the end of a turn is masked"
    count = sum(map(sum, learned))
    assert trainer.part.tokens == count == sum(len(row.target) - 1 for row in rows)
    top_k = sampled = 0.0
    for row, of in zip(rows, learned, strict=True):
        own = plainly(trainer, trainer.model, row)
        with torch.no_grad():
            taught = plainly(trainer, trainer.teacher.model, row)
        support = taught[:, : len(reads.tokenizer)].topk(8).indices  # not what only fills up the last layer
        p, q = taught.gather(1, support).softmax(1), own.gather(1, support).softmax(1)
        target = torch.tensor(row.target)[:, None]
        logq, logp = (values.log_softmax(1).gather(1, target)[:, 0] for values in (own, taught))
        keep = torch.tensor(of)
        top_k = top_k + row.advantage * ((q * (q / p).log()).sum(1) * keep).sum() / count
        sampled = sampled + row.advantage * (logq * (logq - logp).detach() * keep).sum() / count
    padding = padding_row(reads.end)
    packed = replace(trainer.part, packs=(*together(rows, 3 * max(row.tokens for row in rows)), (padding,)))
    assert max(map(len, packed.packs)) > 1
    for exact, name in ((top_k, "top_k"), (sampled, "sampled")):
        trainer.model.zero_grad()
        exact.backward(retain_graph=True)
        wanted = torch.cat([one.grad.flatten() for one in trainer.model.parameters() if one.grad is not None])
        trainer.model.zero_grad(set_to_none=False)
        for part in (trainer.part, packed):
            loss, found = step(trainer, part, estimator=name)
            assert float((found - wanted).norm() / wanted.norm()) < 1e-4, name
            if name == "top_k":
                assert loss == pytest.approx(float(exact.detach()), rel=1e-4)
    shown = {name: values[-1] for name, values in trainer._metrics["train"].items() if name.startswith("distill/")}
    assert shown["distill/kl_top_k"] > 0 and 0 < shown["distill/mass"] < 1
    assert shown["distill/masked"] == pytest.approx(7 / (count + 7))


def test_a_student_that_is_its_teacher_learns_nothing(learning: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning.teacher, "model", learning.model)
    monkeypatch.setattr(learning.teacher, "_head", learning.model.get_output_embeddings())
    for name in ("top_k", "sampled"):
        loss, flat = step(learning, learning.part, estimator=name)
        assert abs(loss) < 1e-5 and float(flat.norm()) < 1e-4


def test_what_is_not_learned(learning: Any) -> None:
    """A turn that was cut off is no row; `special_tokens: learned` learns the end, and placeholders never."""
    reads = learning.rollouts.student
    assert reads.end in masked_tokens(reads, "masked") and reads.end not in masked_tokens(reads, "learned")
    assert set(reads.encoder.never_written) <= masked_tokens(reads, "learned")
    _, judged, _ = learning._latest
    assert judged.kept == (True, True) and judged.advantages == (1.0, 1.0)
    assert {row.where.split(", ")[1] for row in rows_in(learning)} == {"trajectory 0", "trajectory 1"}
    failed = replace(judged.records[0], failed=True)
    again = learning._judged([failed, judged.records[1]], 0)
    assert again.kept == (False, True) and again.chosen.groups == (0,)


def test_a_teacher_of_another_family_reads_with_its_own_processor(
    learning: Any, tiny: Any, student: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Qwen2.5-Omni that teaches a Qwen2.5-VL: the same words, other placeholders and positions.

    A turn with a token that is a placeholder of the teacher's is no row.
    """
    omni = student("qwen2_5_omni")
    own, theirs = learning.rollouts.student.encoder.never_written, omni.encoder.never_written
    forward = RowForward(omni, 1.0, banned=sorted({*own, *theirs}), same_ids=False)
    frozen = Frozen(StudentSettings(pretrained=str(tiny("qwen2_5_omni"))), forward, learning)
    monkeypatch.setattr(learning, "masked", learning.masked)
    monkeypatch.setattr(learning, "teacher", learning.teacher)
    learning.learn_from(frozen)
    assert set(theirs) <= learning.masked and set(theirs) != set(own)
    read = [(row, omni.encoder.encode(row.prompt)) for row in rows_in(learning)]
    row, encoded = next((row, encoded) for row, encoded in read if encoded.media)
    batch = batch_of([Example(encoded, row.target)], omni.family, pad=0)
    batch.pop("labels")
    with torch.no_grad():
        plain = frozen.model(**batch).logits[0, len(encoded.ids) - 1 : -1]
    found = frozen.logits((row,)).values[0]
    written = found.isfinite()
    assert written.sum(-1).tolist() == [plain.shape[1] - len({*own, *theirs})] * len(row.target)
    torch.testing.assert_close(found[written], plain[written], atol=1e-4, rtol=0)
    said = [Generation("", token_ids=row.target) for row, _ in read]
    readable = [row for (row, _), one in zip(read, said, strict=True) if learning.learnable(one)]
    assert readable and not learning.learnable(Generation("", token_ids=(theirs[-1],)))
    assert not learning.learnable(Generation("", finish_reason="length", token_ids=(5,)))
    part = Part(tuple((row,) for row in readable), len(readable), learning._trained_tokens(readable))
    for name in ("top_k", "sampled"):
        loss, flat = step(learning, part, estimator=name)
        assert loss > 0 and flat.isfinite().all() and float(flat.norm()) > 0


def test_the_teacher_is_no_part_of_what_is_trained(learning: Any) -> None:
    frozen = learning.teacher.model
    assert not frozen.training and not any(weight.requires_grad for weight in frozen.parameters())
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    step(learning, learning.part)
    assert all(weight.grad is None for weight in frozen.parameters())
    assert all(torch.equal(before[name], value) for name, value in frozen.state_dict().items())
    trained = {id(weight) for weight in learning.model.parameters()}
    assert trained.isdisjoint(id(weight) for weight in frozen.parameters())


def test_top_k_is_steadier_than_the_single_token(learning: Any) -> None:
    """Over tokens that the student draws anew for the same prompts, the gradient varies less."""
    rows = rows_in(learning)
    chance = torch.Generator().manual_seed(0)
    masked = learning.masked
    found: dict[str, list[Any]] = {"top_k": [], "sampled": []}
    was = learning._fresh
    learning._fresh = False
    try:
        with torch.no_grad():
            given = [plainly(learning, learning.model, row) for row in rows[-2:]]
        for _ in range(6):
            again = []
            for row, values in zip(rows[-2:], given, strict=True):
                values = values.clone()
                values[:, sorted(masked)] = -torch.inf
                drawn = torch.multinomial(values.softmax(1), 1, generator=chance)[:, 0].tolist()
                again.append(replace(row, target=tuple(drawn[:24]), old=None, advantage=1.0))
            part = Part(tuple((row,) for row in again), len(again), learning._trained_tokens(again))
            for name, flats in found.items():
                flats.append(step(learning, part, estimator=name)[1])
    finally:
        learning._fresh = was
    noise = {}
    for name, flats in found.items():
        stacked = torch.stack(flats)
        noise[name] = float(stacked.var(0).sum() / stacked.mean(0).square().sum())
    assert noise["top_k"] < noise["sampled"], noise
