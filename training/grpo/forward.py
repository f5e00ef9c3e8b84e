"""Log-probabilities and entropies of rows, as a trainer computes them.

They are those of `policy=hf`: at the sampling temperature, over the whole vocabulary without the tokens that are never
written (`PromptEncoder.never_written`), with the positions of `models.positions`. The last layer reads only the
positions that predict a target, so the logits of a long prompt are never made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from apr_plugin.errors import AprError
from apr_plugin.models.batch import Example, batch_of
from apr_plugin.training.grpo.rows import TurnRow
from apr_plugin.training.student import Student

Complete = Callable[[Sequence[Example]], list[Example]]


@dataclass(frozen=True)
class Scored:
    """What a forward gives of the targets of some rows; all tensors have shape (rows, longest target)."""

    logprobs: Any
    """Of each token, with gradients if they are on; 0 for padding."""
    entropies: Any
    """In nats, without gradients; 0 for padding."""


class RowForward:
    """Runs a model on rows.

    Args:
        student: Encodes prompts.
        temperature: Of sampling.
        complete: Adds what a batch lacks, where every forward has to run the same modules (`sft.dummies`).
    """

    def __init__(self, student: Student, temperature: float, complete: Complete | None = None) -> None:
        self.student = student
        self.temperature = temperature
        self.complete = complete

    def __call__(self, model: Any, head: Any, rows: Sequence[TurnRow], device: Any) -> Scored:
        """Log-probabilities and entropies of the targets of these rows.

        Args:
            model: What is called, wrappers included.
            head: Its last layer (`get_output_embeddings`).
            rows: At least one; a single one is not padded.
            device: Where the model is.

        Raises:
            AprError: a prompt is encoded otherwise than when it was sampled.
        """
        import torch

        encoder = self.student.encoder
        examples = [Example(encoder.encode(row.prompt), row.target) for row in rows]
        for row, example in zip(rows, examples, strict=True):
            if row.ids and example.encoded.ids.tolist() != list(row.ids):
                raise AprError(f"{row.where}: its prompt has other tokens than when it was sampled")
        starts = torch.tensor([len(example.encoded.ids) for example in examples])
        lengths = torch.tensor([len(row.target) for row in rows])
        if self.complete is not None:
            examples = self.complete(examples)
        batch = batch_of(examples, self.student.family, pad=self.student.pad, placeholders=encoder.ids_of.values())
        labels = batch.pop("labels")
        steps = torch.arange(int(lengths.max()))
        wrote = (steps[None] < lengths[:, None]).to(device)
        # The token at a position is predicted by the position before it.
        before = (starts[:, None] - 1 + steps[None]).clamp(max=labels.shape[1] - 1)
        targets = labels.gather(1, (before + 1).clamp(max=labels.shape[1] - 1)).to(device)
        with _only_positions(head, before.to(device)):
            out = model(**{name: value.to(device) for name, value in batch.items()}, use_cache=False)
        logits = out.logits.float()
        banned = torch.tensor(encoder.never_written, device=device)
        scaled = torch.log_softmax(logits.index_fill(-1, banned, -math.inf) / self.temperature, dim=-1)
        chosen = scaled.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        with torch.no_grad():
            entropies = torch.special.entr(scaled.detach().exp()).sum(-1)
        return Scored(torch.where(wrote, chosen, 0.0), torch.where(wrote, entropies, 0.0))


@contextmanager
def _only_positions(head: Any, positions: Any) -> Iterator[None]:
    """The last layer reads only these positions, shape (rows, n)."""

    def pick(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = given[0]
        return (hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1])), *given[1:])

    hook = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        hook.remove()
