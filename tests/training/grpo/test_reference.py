"""`beta`: TRL's KL term to a reference model, on turn rows; with and without adapters."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from grpo_making import LOOKS, recipe_of, said, scripted, write_questions  # noqa: E402 - after the libraries it needs

from apr_plugin.policies.hf import sample  # noqa: E402
from apr_plugin.training.grpo.recipe import GrpoRecipe  # noqa: E402
from apr_plugin.training.grpo.running import run_grpo  # noqa: E402

VL = "qwen2_5_vl"


@pytest.mark.parametrize("what", ["full", "lora"])
def test_the_reference_is_the_student_as_it_was(
    what: str,
    tiny: Any,
    student: Callable[..., Any],
    shared_videos: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The divergence is 0 before the first update and grows after it."""
    questions = write_questions(tmp_path / "q.jsonl", shared_videos, ["sound"])
    trainer = {"max_steps": 2, "beta": 0.5, "optim": "sgd", "learning_rate": 0.3, "max_grad_norm": 1.0}
    learn = {"what": what} | ({"lora": {"r": 4}} if what == "lora" else {})
    recipe = GrpoRecipe.model_validate(recipe_of(tiny(VL), questions, trainer=trainer, learn=learn))
    says = scripted(student(VL), recipe, lambda _, repeat: [LOOKS[0], said(type="answer", content="AB"[repeat % 2])])
    monkeypatch.setattr(sample, "_draw", says)
    final = run_grpo(recipe, tmp_path / "out")
    first, second = json.loads((final / "training.json").read_text())["log"]
    assert first["kl"] == pytest.approx(0, abs=1e-6) and second["kl"] > 1e-5
    assert all(log["sampling/logp_difference"] < 1e-4 for log in (first, second))


def test_the_gradient_has_the_divergence_of_each_token(rolled: Callable[[str], Any]) -> None:
    """The sum by hand over all turns, divided by the number of tokens; also in packs, with padding."""
    from apr_plugin.training.grpo.rows import padding_row, together

    trainer = rolled(VL)
    rows = [row for pack in trainer.part.packs for row in pack]
    chance = torch.Generator().manual_seed(0)
    count = sum(len(row.target) for row in rows)
    marked = [
        replace(row, reference=torch.tensor(row.logprobs) + torch.randn(len(row.target), generator=chance) / 2)
        for row in rows
    ]
    padding = replace(padding_row(trainer.rollouts.student.end), reference=torch.zeros(1))

    def gradient(packs: Any) -> Any:
        trainer.model.train()
        trainer.accelerator.backward(trainer.compute_loss(trainer.model, replace(trainer.part, packs=tuple(packs))))
        flat = torch.cat([one.grad.flatten() for one in trainer.model.parameters() if one.grad is not None])
        trainer.model.zero_grad(set_to_none=False)
        return flat

    plain = gradient([(row,) for row in rows])
    trainer.model.zero_grad(set_to_none=False)
    for row in marked:
        trainer._rows = (row,)
        logprobs, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, None, None, 0)
        trainer._rows = ()
        apart = row.reference[None] - logprobs
        ratio = (logprobs - logprobs.detach()).exp()  # TRL multiplies by it (use_bias_correction_kl)
        ((apart.exp() - apart - 1) * ratio * 0.5 / count).sum().backward()
    added = torch.cat([one.grad.flatten() for one in trainer.model.parameters() if one.grad is not None])
    trainer.model.zero_grad(set_to_none=False)
    trainer.beta = 0.5
    try:
        longest = max(row.tokens for row in rows)
        for packs in ([(row,) for row in marked], [*together(marked, 3 * longest), (padding,)]):
            found = gradient(packs)
            assert float((found - plain - added).norm() / (plain + added).norm()) < 1e-4
    finally:
        trainer.beta = 0.0
        trainer.model.zero_grad()
