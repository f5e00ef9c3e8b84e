"""What the trainer computes: the numbers of sampling, and the plain sum over all turns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from apr_plugin.errors import AprError  # noqa: E402 - after the libraries it needs
from apr_plugin.models.batch import Example, batch_of  # noqa: E402
from apr_plugin.policies.hf import sample  # noqa: E402
from apr_plugin.runs.opened import open_run  # noqa: E402
from apr_plugin.training.grpo.keeping import WrongNumbers  # noqa: E402
from apr_plugin.training.grpo.rollouts import Rollouts  # noqa: E402
from apr_plugin.training.grpo.rows import Part, TurnRow, padding_row, together  # noqa: E402

Rolled = Callable[[str], Any]
OMNI, VL = "qwen2_5_omni", "qwen2_5_vl"


def rows_of(trainer: Any) -> list[TurnRow]:
    return [row for pack in trainer.part.packs for row in pack]


def plain_logprobs(trainer: Any, row: TurnRow) -> Any:
    """By the whole forward of the model, without the trainer's code."""
    encoder = trainer.rollouts.student.encoder
    encoded = encoder.encode(row.prompt)
    batch = batch_of([Example(encoded, row.target)], trainer.rollouts.student.family, pad=0)
    batch.pop("labels")
    logits = trainer.model(**batch).logits[0, len(encoded.ids) - 1 : -1].float()
    logits[:, list(encoder.never_written)] = -torch.inf
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(row.target)[:, None])[:, 0]


def gradient(trainer: Any) -> Any:
    """Of all weights, as one vector; it is cleared."""
    flat = torch.cat(
        [
            (torch.zeros_like(weight) if weight.grad is None else weight.grad).flatten()
            for weight in trainer.model.parameters()
        ]
    )
    trainer.model.zero_grad()
    return flat


def step(trainer: Any, part: Part) -> tuple[float, Any]:
    """The loss and the gradient of an optimizer step."""
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, part)
    trainer.accelerator.backward(loss)
    return float(loss.detach()), gradient(trainer)


def distance(found: Any, wanted: Any) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("name", [OMNI, VL])
def test_rows_have_the_numbers_of_sampling(rolled: Rolled, name: str) -> None:
    """Frames, sound, a clip, an error and text alone: log-probabilities and entropies agree within 1e-4."""
    trainer = rolled(name)
    rows = rows_of(trainer)
    assert len(rows) == 7 and all(row.ids and row.trained for row in rows)
    media = {type(part).__name__ for row in rows for message in row.prompt.messages for part in message.parts}
    assert media >= {"ImagePart", "VideoPart", "TextPart"} | ({"AudioPart"} if name == OMNI else set())
    with torch.no_grad():
        for row in rows:
            trainer._rows = (row,)
            logprobs, entropies, _ = trainer._get_per_token_logps_and_entropies(
                trainer.model, None, None, 0, compute_entropy=True
            )
            torch.testing.assert_close(logprobs[0], torch.tensor(row.logprobs), atol=1e-4, rtol=0)
            torch.testing.assert_close(entropies[0], torch.tensor(row.entropies), atol=1e-4, rtol=0)
            torch.testing.assert_close(logprobs[0], plain_logprobs(trainer, row), atol=1e-4, rtol=0)


def test_the_gradient_is_the_sum_over_all_turns(rolled: Rolled) -> None:
    """Of each type of loss, row by row and in packs, with padding rows; and each turn has a share in it."""
    trainer = rolled(OMNI)
    rows = rows_of(trainer)
    sums, means = [], []
    for row in rows:
        logprobs = plain_logprobs(trainer, row)
        (-row.advantage * logprobs.sum()).backward()
        sums.append(gradient(trainer))
        means.append(sums[-1] / len(row.target))
        assert float(sums[-1].norm()) > 0
    tokens = sum(len(row.target) for row in rows)
    by_token, by_row = sum(sums) / tokens, sum(means) / len(rows)
    longest = trainer.max_completion_length
    wanted = {
        ("dapo", "token"): by_token,
        ("cispo", "token"): by_token,
        ("bnpo", "token"): by_token,
        ("grpo", "token"): by_row,
        ("grpo", "sequence"): by_row,
        ("dr_grpo", "token"): sum(sums) / len(rows) / longest,
    }
    padding = padding_row(trainer.rollouts.student.end)
    padded = replace(trainer.part, packs=(*trainer.part.packs, (padding,)))
    longest_row = max(row.tokens for row in rows)
    packed = replace(trainer.part, packs=tuple(together(rows, 3 * longest_row)))
    assert len(packed.packs) < len(rows) and max(map(len, packed.packs)) > 1
    was = trainer.loss_type, trainer.importance_sampling_level
    trainer.epsilon_high = 5.0  # CISPO cuts off ratios above it
    try:
        for (loss_type, level), exact in wanted.items():
            trainer.loss_type, trainer.importance_sampling_level = loss_type, level
            assert distance(step(trainer, trainer.part)[1], exact) < 1e-5, (loss_type, level)
        for part in (padded, packed):
            for loss_type, exact in (("dapo", by_token), ("grpo", by_row)):
                trainer.loss_type, trainer.importance_sampling_level = loss_type, "token"
                assert distance(step(trainer, part)[1], exact) < 1e-5, loss_type
    finally:
        trainer.loss_type, trainer.importance_sampling_level = was
        trainer.epsilon_high = 0.2


def test_one_unpadded_row_goes_through_the_model_at_a_time(rolled: Rolled, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = rolled(OMNI)
    seen: list[tuple[Any, Any]] = []
    heads: list[int] = []
    forward = trainer.model.forward

    def noted(**given: Any) -> Any:
        seen.append((tuple(given["input_ids"].shape), given.get("attention_mask")))
        out = forward(**given)
        heads.append(out.logits.shape[1])
        return out

    monkeypatch.setattr(trainer.model, "forward", noted)
    step(trainer, trainer.part)
    rows = rows_of(trainer)
    assert seen == [((1, row.tokens), None) for row in rows], "the longest first"
    assert heads == [len(row.target) for row in rows], "the last layer reads the targets' positions only"


def test_taura_needs_no_forward_beyond_rollout_and_update(rolled: Rolled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entropies come with sampling: a step has the forwards of `policy=hf` and one for each row, as plain GRPO has."""
    trainer = rolled(VL)
    monkeypatch.setattr(sample, "_draw", trainer.says)
    where = ["between"]
    seen: list[str] = []
    in_rollout = trainer.rollouts.sample

    def sampled(*given: Any) -> Any:
        where.append("rollout")
        try:
            return in_rollout(*given)
        finally:
            where.pop()

    monkeypatch.setattr(trainer.rollouts, "sample", sampled)
    hook = trainer.model.register_forward_pre_hook(lambda *_: seen.append(where[-1]))
    counts = {}
    try:
        for rule in ("none", "taura"):
            credit = trainer.recipe.credit.model_copy(update={"rule": rule})
            monkeypatch.setattr(trainer, "recipe", trainer.recipe.model_copy(update={"credit": credit}))
            seen.clear()
            (part,) = trainer._generate_and_score_completions([{"question": 0}] * 2)
            assert "between" not in seen, "making rows and credit needs no forward"
            where.append("update")
            step(trainer, part)
            where.pop()
            assert seen.count("update") == len(part.packs) == part.rows
            counts[rule] = (seen.count("rollout"), seen.count("update"))
            assert len(seen) == sum(counts[rule])
            if rule == "taura":
                weights = {round(row.advantage, 4) for pack in part.packs for row in pack}
                assert len(weights) > 2, "turns of one trajectory have different credit"
    finally:
        hook.remove()
    # How many tokens are written together depends on which episode waits for what, so rollouts may differ by a few.
    assert counts["taura"][1] == counts["none"][1] and min(counts["taura"][0], counts["none"][0]) > 7


def test_kept_keys_can_be_switched_off(rolled: Rolled) -> None:
    """`sampling.kv_cache_gb: 0` is a value of the recipe; the policy itself takes none below it."""
    trainer = rolled(VL)
    given = trainer.recipe.sampling.model_copy(update={"kv_cache_gb": 0.0})
    rollouts = Rollouts(trainer.rollouts.student, trainer.rollouts.config, given, quiet=True)
    (done,) = rollouts.sample(trainer.model, [trainer.questions[0].attempt(7)], "step 0")
    rollouts.close()
    assert done.turns and not done.trajectory.stop_reason.failed
    assert all(turn.generation.usage.cached_tokens == 0 for turn in done.turns.values())


def test_a_step_without_rows_changes_nothing(rolled: Rolled) -> None:
    trainer = rolled(VL)
    padding = padding_row(trainer.rollouts.student.end)
    for loss_type in ("dapo", "grpo"):
        trainer.loss_type = loss_type
        loss, flat = step(trainer, Part(((padding,), (padding,)), 0, 0))
        assert loss == 0 and not flat.any()
    trainer.loss_type = "dapo"


def test_numbers_that_cannot_be_trained_on_stop_before_the_step(rolled: Rolled) -> None:
    """A loss that is no number; log-probabilities of other weights. The step's trajectories are kept."""
    trainer = rolled(VL)
    rows = rows_of(trainer)
    broken = replace(rows[0], advantage=math.nan)
    with pytest.raises(WrongNumbers, match="step 0: the loss is nan; training stopped before the weights changed"):
        step(trainer, replace(trainer.part, packs=((broken,), (rows[1],))))
    trainer.model.zero_grad()
    folder = next((trainer.keep_stopped() or trainer).glob("*/card.json")).parent
    run = open_run(folder)
    assert len(run.trajectories) == 2
    trainer._fresh = True
    far = replace(rows[0], logprobs=tuple(value - 0.01 for value in rows[0].logprobs))
    try:
        with pytest.raises(WrongNumbers, match=r"sound, trajectory \d, turn \d: .*differ .* by up to 0.01"):
            step(trainer, replace(trainer.part, packs=((far,),)))
        with pytest.raises(AprError, match="its prompt has other tokens than when it was sampled"):
            step(trainer, replace(trainer.part, packs=((replace(rows[0], ids=(1, 2)),),)))
    finally:
        trainer._fresh = False
        trainer.model.zero_grad()
