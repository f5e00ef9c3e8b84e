"""A model that is not trained and scores the rows of one that is: a reference, or a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apr_plugin.training.grpo.forward import Logits, RowForward, Scored, scored
from apr_plugin.training.grpo.rows import TurnRow
from apr_plugin.training.sft.learner import load_learner
from apr_plugin.training.sft.recipe import StudentSettings


class Frozen:
    """A checkpoint beside a trainer: in evaluation mode, without gradients, in no checkpoint of the run.

    It is sharded as the trained model is; otherwise each process holds the whole of it. Where it is sharded, all
    processes must score as many packs of rows.

    Args:
        settings: The checkpoint.
        forward: Encodes and scores rows for it.
        trainer: The trainer beside which it stands, before `train()`.

    Raises:
        AprError: the checkpoint can't be loaded.
    """

    def __init__(self, settings: StudentSettings, forward: RowForward, trainer: Any) -> None:
        self.forward = forward
        self.accelerator = trainer.accelerator
        model = load_learner(settings).requires_grad_(False).eval()
        if trainer.is_deepspeed_enabled:
            from trl.models.utils import prepare_deepspeed

            self.model = prepare_deepspeed(model, self.accelerator)
        elif trainer.is_fsdp_enabled:
            from trl.models.utils import prepare_fsdp

            self.model = prepare_fsdp(model, self.accelerator)
        else:
            self.model = model.to(self.accelerator.device)
        self._head = model.get_output_embeddings()

    def logits(self, rows: Sequence[TurnRow]) -> Logits:
        """What it gives where these rows have targets."""
        import torch

        with torch.no_grad(), self.accelerator.autocast():
            return self.forward.logits(self.model, self._head, rows, self.accelerator.device)

    def scored(self, rows: Sequence[TurnRow]) -> Scored:
        """Log-probabilities and entropies of the targets of these rows."""
        return scored(self.logits(rows))
