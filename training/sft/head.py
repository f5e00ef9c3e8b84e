"""Log-probabilities of labels, from the model's own head and only where labels are.

TRL 1.16 replaces a model's `forward` by one that multiplies with the head's weight itself. Under FSDP2 that gives a
wrong gradient: each process keeps its own rows' gradient for its part of the head, and nothing is averaged (the step of
two processes was 9% off on a small model, all of it in `lm_head.weight`). Here the head is called as a module, so that
sharding, adapters and autocast see it. Its input is cut to the positions that predict a label, so that logits of a
prompt never exist.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from apr_plugin.models.batch import IGNORED
from apr_plugin.training.sft.pictures import seen_once


def read_only_labels(model: Any, *, right_padded: bool = False) -> None:
    """Let `model(..., labels=…, fused_lm_head=True)` give what TRL's trainers ask for.

    Beside what the model takes, that call takes `loss_weights`, one for each label, with which its log-probability is
    multiplied, and `picture_places` (`pictures.seen_once`).

    Args:
        model: A model of transformers, without adapters or wrappers; TRL's fused head on it is replaced. Called without
            `fused_lm_head` it is unchanged.
        right_padded: Whether rows are padded on the right only. Then nothing that has a label can see padding, and with
            `sdpa` no mask is made, which is faster.
    """
    plain = type(model).forward

    @functools.wraps(plain)
    def forward(
        self: Any,
        *args: Any,
        fused_lm_head: bool = False,
        labels: Any = None,
        loss_weights: Any = None,
        picture_places: Any = None,
        **more: Any,
    ) -> Any:
        if not fused_lm_head:
            with seen_once(self.base_model, picture_places):
                return plain(self, *args, **more, **({} if labels is None else {"labels": labels}))
        from trl.trainer.utils import FusedCausalLMOutput, selective_log_softmax_and_entropy

        # The router of a mixture of experts counts the tokens that the mask has.
        if right_padded and not more.get("output_router_logits") and self.config._attn_implementation == "sdpa":
            more.pop("attention_mask", None)
        wanted = labels[:, 1:]
        mask = wanted != IGNORED
        picked = mask.flatten().nonzero()[:, 0]
        with seen_once(self.base_model, picture_places), only_positions(self.base_model, mask):
            out = plain(self, *args, **{**more, "use_cache": False})
        logits = out.logits.float()
        wanted = wanted.flatten()[picked][None]
        log_probs, entropy = selective_log_softmax_and_entropy(logits, wanted, entropy_requires_grad=False)
        count = more.get("num_items_in_batch")
        if loss_weights is not None:
            log_probs = log_probs * loss_weights[:, 1:].flatten()[picked][None].to(log_probs.dtype)
        return FusedCausalLMOutput(
            loss=-log_probs.sum() / (len(picked) or 1 if count is None else count),
            log_probs=log_probs,
            entropy=entropy,
            is_top1=logits.argmax(-1) == wanted,
            label_mask=mask.flatten()[picked][None],
            aux_loss=getattr(out, "aux_loss", None),
        )

    model.forward = types.MethodType(forward, model)


@contextmanager
def only_positions(backbone: Any, predicts: Any) -> Iterator[None]:
    """Within it, a backbone gives the hidden states of some positions only, those of all rows in one row.

    Args:
        backbone: The model without its head.
        predicts: Shape (rows, tokens - 1): whether the state at a position is needed.
    """

    def pick(_: Any, __: Any, out: Any) -> Any:
        out.last_hidden_state = out.last_hidden_state[:, :-1][predicts][None]
        return out

    hook = backbone.register_forward_hook(pick)
    try:
        yield
    finally:
        hook.remove()
