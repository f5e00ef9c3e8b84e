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
class Logits:
    """What a model gives for every token of the vocabulary, where rows have targets."""

    values: Any
    """Shape (rows, longest target, vocabulary), float32, divided by the temperature; -inf for what is never written."""
    targets: Any
    """The tokens of the rows, shape (rows, longest target); anything for padding."""
    wrote: Any
    """False for padding, shape (rows, longest target)."""


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
        banned: Tokens that have no probability; by default those that the student never writes.
        same_ids: Whether prompts must have the tokens that they had in sampling.
    """

    def __init__(
        self,
        student: Student,
        temperature: float,
        complete: Complete | None = None,
        *,
        banned: Sequence[int] | None = None,
        same_ids: bool = True,
    ) -> None:
        self.student = student
        self.temperature = temperature
        self.complete = complete
        self.banned = student.encoder.never_written if banned is None else tuple(banned)
        self.same_ids = same_ids

    def __call__(self, model: Any, head: Any, rows: Sequence[TurnRow], device: Any) -> Scored:
        """Log-probabilities and entropies of the targets of these rows; see `logits`."""
        return scored(self.logits(model, head, rows, device))

    def logits(self, model: Any, head: Any, rows: Sequence[TurnRow], device: Any) -> Logits:
        """What the model gives where these rows have targets, and nowhere else.

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
            if self.same_ids and row.ids and example.encoded.ids.tolist() != list(row.ids):
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
        banned = torch.tensor(self.banned, device=device)
        values = out.logits.float().index_fill(-1, banned, -math.inf) / self.temperature
        return Logits(values, targets.clamp(min=0), wrote)


def scored(given: Logits) -> Scored:
    """Log-probabilities and entropies of the targets."""
    import torch

    logprobs = torch.log_softmax(given.values, dim=-1)
    chosen = logprobs.gather(-1, given.targets[..., None])[..., 0]
    with torch.no_grad():
        entropies = torch.special.entr(logprobs.detach().exp()).sum(-1)
    return Scored(torch.where(given.wrote, chosen, 0.0), torch.where(given.wrote, entropies, 0.0))


def padded(values: Sequence[Any], longest: int, device: Any) -> Any:
    """Tensors of shape (target,), one for each row, as one of shape (rows, longest), filled up with 0."""
    import torch

    found = torch.zeros(len(values), longest, device=device)
    for number, of in enumerate(values):
        found[number, : len(of)] = of.to(device)
    return found


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
