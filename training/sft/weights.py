"""Weights of tokens in the loss: what a weigher sees, and how a step is normalised.

The loss of a step is sum(w * ce) / sum(w) over all of its target tokens, over all forwards and processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from apr_plugin.models.batch import IGNORED, Example
from apr_plugin.training.named import named
from apr_plugin.training.recipe_file import RecipeError
from apr_plugin.training.student import Student


@dataclass(frozen=True)
class TargetText:
    """The target of a row, as a weigher sees it."""

    ids: tuple[int, ...]
    """Its tokens; the last one ends the turn."""
    pieces: tuple[str, ...]
    """The text of each token."""
    source: str
    """Name of the source of the row."""
    visual_tokens: int
    """Tokens of pictures in its prompt."""
    audio_tokens: int = 0
    """Tokens of sound in its prompt."""


Weigher = Callable[[TargetText], Sequence[float]]
"""One weight, from 0 up, for each token. A weigher is pure: the same target has the same weights."""


class Weighing:
    """Gives examples their weights.

    Args:
        name: The weigher (`named.OURS`, or an entry point of `apr_plugin.weighers`).
        student: Its tokenizer gives the pieces.

    Raises:
        RecipeError: there is no weigher of that name.
    """

    def __init__(self, name: str, student: Student) -> None:
        self._name = name
        self._weigher: Weigher = named("weighers", name)
        self._student = student
        self._pieces: dict[int, str] = {}

    def __call__(self, example: Example, source: str) -> Example:
        """The same example, with weights.

        Raises:
            RecipeError: the weigher gives other weights than one for each token.
        """
        ids = tuple(int(number) for number in example.target)
        pieces = tuple(self._piece(number) for number in ids)
        size = example.encoded.size
        target = TargetText(ids, pieces, source, size.visual, size.audio)
        weights = tuple(float(weight) for weight in self._weigher(target))
        if len(weights) != len(ids) or not all(weight >= 0 for weight in weights):
            raise RecipeError(
                f"weights: {self._name} gave {len(weights)} weights for {len(ids)} tokens, or one below 0 (a row of "
                f"{source!r})"
            )
        return replace(example, weights=weights)

    def _piece(self, number: int) -> str:
        if number not in self._pieces:
            self._pieces[number] = str(self._student.tokenizer.decode([number], skip_special_tokens=False))
        return self._pieces[number]


def mean_one(batches: Sequence[dict[str, Any]], gather: Callable[[Any], Any]) -> None:
    """Scale the weights of the batches of a step so that their mean over its target tokens is 1.

    A trainer that divides the sum of weighted losses by the number of target tokens then divides by the sum of weights.

    Args:
        batches: All batches of a step in this process; their `loss_weights` are replaced.
        gather: Joins the tensors of all processes.
    """
    import torch

    weighted = [batch for batch in batches if batch.get("loss_weights") is not None]
    if not weighted:
        return
    sums = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        labelled = batch["labels"][:, 1:] != IGNORED
        sums[0] += float(labelled.sum())
        weights = batch.get("loss_weights")
        sums[1] += float(labelled.sum() if weights is None else weights[:, 1:][labelled].double().sum())
    tokens, whole = gather(sums[None]).sum(0).tolist()
    if whole <= 0:
        return
    for batch in batches:
        weights = batch.get("loss_weights")
        if weights is None:
            weights = (batch["labels"] != IGNORED).float()
        batch["loss_weights"] = weights * (tokens / whole)
