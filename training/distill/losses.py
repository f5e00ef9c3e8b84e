"""How far a student is from its teacher, token by token: the losses of on-policy distillation.

From "Revisiting On-Policy Distillation: Empirical Failure Modes and Simple Fixes" (Fu, Huang, Jiang, Zhu, Zhao; arXiv
2603.25562) come the top-K form, the renormalisation of both distributions on the teacher's K = 32 likeliest tokens, the
reverse KL, and the mask over special tokens. Its third part, sampling rollouts with top_p = 0.9, is not taken: here
turns are drawn from the student's whole distribution, as for GRPO, so that both trainers sample alike. The single-token
form is the usual one (thinkingmachines.ai/blog/on-policy-distillation): the reverse KL of one token as its cost.

Both are token-level: what a token does to later ones is not credited to it. All functions are pure; tensors have the
shape (rows, tokens), and logits a last dimension more.
"""

from __future__ import annotations

from typing import Any


def teacher_support(teacher: Any, top_k: int) -> tuple[Any, Any]:
    """The teacher's likeliest tokens, and its log-probabilities among them.

    Args:
        teacher: Logits, shape (rows, tokens, vocabulary); -inf for what can't be written.
        top_k: How many; of a smaller vocabulary all.

    Returns:
        The ids and the renormalised log-probabilities, both of shape (rows, tokens, top_k).
    """
    import torch

    values, ids = teacher.topk(min(top_k, teacher.shape[-1]), dim=-1)
    return ids, torch.log_softmax(values, dim=-1)


def top_k_reverse_kl(student: Any, ids: Any, teacher: Any) -> Any:
    """Sum over S of q log(q / p), with the student's q and the teacher's p renormalised on the support S, in nats.

    Args:
        student: Logits, shape (rows, tokens, vocabulary); what the whole vocabulary adds up to is not needed.
        ids: The support, see `teacher_support`.
        teacher: Its renormalised log-probabilities.
    """
    import torch

    never = ~teacher.isfinite()
    own = torch.log_softmax(student.gather(-1, ids).masked_fill(never, -torch.inf), dim=-1)
    # 0 * inf would be NaN, in the value and in the gradient.
    return (own.exp() * (own.masked_fill(never, 0.0) - teacher.masked_fill(never, 0.0))).sum(-1)


def sampled_reverse_kl(student: Any, teacher: Any, old: Any = None) -> Any:
    """The single-token estimate log q(y) - log p(y) for the sampled token y, with the gradient of a policy gradient.

    The gradient is (log q(y) - log p(y)) times that of log q(y), the difference being a constant; its mean over tokens
    drawn from q is the gradient of the whole reverse KL at that position.

    Args:
        student: log q(y) over the whole vocabulary, with gradients.
        teacher: log p(y) over the whole vocabulary.
        old: log q(y) when y was drawn, if the weights are others now; it weighs the token by q / q_old.
    """
    now = student.detach()
    return (student - (now if old is None else old)).exp() * (now - teacher)


def whole_reverse_kl(student: Any, teacher: Any) -> Any:
    """The reverse KL over the whole vocabulary, to measure with.

    Args:
        student: Logits, shape (rows, tokens, vocabulary).
        teacher: Logits of the same shape.
    """
    import torch

    own, other = torch.log_softmax(student, dim=-1), torch.log_softmax(teacher, dim=-1)
    return torch.where(own.isfinite() & other.isfinite(), own.exp() * (own - other), 0.0).sum(-1)
