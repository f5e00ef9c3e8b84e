"""Log-probabilities of labels, from the model's own head and only where labels are.

TRL 1.16 replaces a model's `forward` by one that multiplies with the head's weight itself. Under FSDP2 that gives a
wrong gradient: each process keeps its own rows' gradient for its part of the head, and nothing is averaged (the step of
two processes was 9% off on a small model, all of it in `lm_head.weight`). Here the head is called as a module, so that
sharding, adapters and autocast see it. Its input is cut to the positions from the first label on: labels are at the end
of a row, and logits of a long prompt never exist.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from apr_plugin.models.batch import IGNORED


def read_only_labels(model: Any) -> None:
    """Let `model(..., labels=…, fused_lm_head=True)` give what TRL's trainers ask for.

    Args:
        model: A model of transformers, without adapters or wrappers; TRL's fused head on it is replaced. Called without
            `fused_lm_head` it is unchanged.
    """
    plain = type(model).forward

    @functools.wraps(plain)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **more: Any) -> Any:
        if not fused_lm_head:
            return plain(self, *args, **more, **({} if labels is None else {"labels": labels}))
        from trl.trainer.utils import FusedCausalLMOutput, selective_log_softmax_and_entropy

        first = first_label(labels)
        with last_positions(self.base_model, first):
            out = plain(self, *args, **{**more, "use_cache": False})
        wanted = labels[:, first + 1 :]
        mask = wanted != IGNORED
        logits = out.logits[:, :-1].float()
        log_probs, entropy = selective_log_softmax_and_entropy(logits, wanted.clamp(min=0), entropy_requires_grad=False)
        count = more.get("num_items_in_batch")
        log_probs = log_probs.masked_fill(~mask, 0.0)
        return FusedCausalLMOutput(
            loss=-log_probs.sum() / (mask.sum().clamp(min=1) if count is None else count),
            log_probs=log_probs,
            entropy=entropy.masked_fill(~mask, 0.0),
            is_top1=(logits.argmax(-1) == wanted) & mask,
            label_mask=mask,
            aux_loss=getattr(out, "aux_loss", None),
        )

    model.forward = types.MethodType(forward, model)


def first_label(labels: Any) -> int:
    """The position before the first label of any row, from which on hidden states are needed; 0 if there is none.

    Args:
        labels: Shape (rows, tokens).
    """
    labelled = (labels != IGNORED).any(0).nonzero()
    return max(0, int(labelled[0]) - 1) if len(labelled) else 0


@contextmanager
def last_positions(backbone: Any, first: int) -> Iterator[None]:
    """Within it, a backbone gives its hidden states from position `first` on."""

    def cut(_: Any, __: Any, out: Any) -> Any:
        out.last_hidden_state = out.last_hidden_state[:, first:]
        return out

    hook = backbone.register_forward_hook(cut)
    try:
        yield
    finally:
        hook.remove()
