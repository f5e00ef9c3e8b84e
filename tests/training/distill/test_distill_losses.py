"""The losses of distillation: against plain sums over the vocabulary, and what their gradients estimate."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from apr_plugin.training.distill.losses import (  # noqa: E402 - after the library it needs
    sampled_reverse_kl,
    teacher_support,
    top_k_reverse_kl,
    whole_reverse_kl,
)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_top_k_is_the_sum_over_the_renormalised_support() -> None:
    student, teacher = drawn(2, 3, 9), drawn(2, 3, 9, seed=1)
    ids, among = teacher_support(teacher, 4)
    found = top_k_reverse_kl(student, ids, among)
    for row in range(2):
        for token in range(3):
            p, q = teacher[row, token].softmax(-1), student[row, token].softmax(-1)
            support = sorted(range(9), key=lambda at, p=p: -float(p[at]))[:4]
            assert sorted(ids[row, token].tolist()) == sorted(support)
            p_s = [float(p[at] / sum(p[other] for other in support)) for at in support]
            q_s = [float(q[at] / sum(q[other] for other in support)) for at in support]
            assert float(found[row, token]) == pytest.approx(
                sum(b * math.log(b / a) for a, b in zip(p_s, q_s, strict=True))
            )
    whole = top_k_reverse_kl(student, *teacher_support(teacher, 100))
    assert torch.allclose(whole, whole_reverse_kl(student, teacher)), "on the whole vocabulary it is the whole KL"
    assert torch.allclose(top_k_reverse_kl(teacher, ids, among), torch.zeros(2, 3, dtype=torch.float64), atol=1e-12)


def test_what_can_not_be_written_has_no_part() -> None:
    """Neither NaN in the value nor in the gradient, also if the support reaches into it."""
    student, teacher = drawn(1, 1, 6).requires_grad_(), drawn(1, 1, 6, seed=1)
    banned = torch.tensor([0, 5])
    values = student.index_fill(-1, banned, -torch.inf)
    ids, among = teacher_support(teacher.index_fill(-1, banned, -torch.inf), 6)
    found = top_k_reverse_kl(values, ids, among)
    shorter = top_k_reverse_kl(student[..., 1:5], *teacher_support(teacher[..., 1:5], 4))
    assert float(found.detach()) == pytest.approx(float(shorter.detach()))
    found.sum().backward()
    assert student.grad is not None and student.grad.isfinite().all() and not student.grad[..., banned].any()


def test_the_sampled_token_estimates_the_whole_divergence_and_its_gradient() -> None:
    """Averaged exactly over what the student draws; and again with weights from before an update."""
    student, teacher = drawn(1, 1, 7).requires_grad_(), drawn(1, 1, 7, seed=1)
    exact = whole_reverse_kl(student, teacher).sum()
    (wanted,) = torch.autograd.grad(exact, student)
    logq, logp = student.log_softmax(-1), teacher.log_softmax(-1)
    each = sampled_reverse_kl(logq, logp)
    mean = (logq.detach().exp() * each).sum()
    (found,) = torch.autograd.grad(mean, student, retain_graph=True)
    assert float(mean.detach()) == pytest.approx(float(exact.detach()))
    assert torch.allclose(found, wanted, atol=1e-10)
    before = drawn(1, 1, 7, seed=2).log_softmax(-1)
    (again,) = torch.autograd.grad((before.exp() * sampled_reverse_kl(logq, logp, before)).sum(), student)
    assert torch.allclose(again, wanted, atol=1e-10)
