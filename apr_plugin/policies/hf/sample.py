"""Choosing the next token of each row: greedy or sampled, with its log-probability and the entropy.

The entropy is over the whole vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from apr_plugin.loop.policy import Sampling


@dataclass
class Draws:
    """How one generation is sampled, and what it has written.

    A row draws from its own seeded generator, one number per token, so that other rows of the batch do not change it.
    """

    sampling: Sampling
    repetition_penalty: float = 1.0
    """Above 1, tokens that are already in the prompt or the answer become less likely (arXiv 1909.05858)."""
    prompt: Any = None
    """Ids of the prompt, shape (n,); only the penalty needs them."""
    tokens: list[int] = field(default_factory=list)
    """The ids that were written."""
    logprobs: list[float] = field(default_factory=list)
    """Log-probability of each token, under the distribution scaled by the temperature, before `top_p` and `top_k`.

    It is unscaled at temperature 0. Banned tokens are not part of the distribution.
    """
    entropies: list[float] = field(default_factory=list)
    """Entropy of the same distribution, in nats, over the whole vocabulary."""
    broken: bool = False
    """Whether the model's output was not finite, so that no token could be chosen."""
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.sampling.seed)


def choose(logits: Any, rows: Sequence[Draws], banned: Sequence[int] = ()) -> None:
    """Choose and record the next token of each row, or mark the row as broken.

    Args:
        logits: Shape (rows, vocabulary).
        rows: What each row has written so far; the choice is added.
        banned: Tokens that are never chosen; log-probabilities and entropies are over the others.
    """
    import torch

    logits = logits.float()
    if banned:
        out = torch.tensor(banned, device=logits.device)
        logits = logits.index_fill(-1, out, -math.inf)
    picked = []
    for row, values in zip(rows, logits, strict=True):
        if row.repetition_penalty != 1.0:
            seen = torch.cat([row.prompt, torch.tensor(row.tokens, dtype=torch.long, device=values.device)]).unique()
            now = values[seen]
            values[seen] = torch.where(now > 0, now / row.repetition_penalty, now * row.repetition_penalty)
        temperature = row.sampling.temperature
        logprobs = torch.log_softmax(values / temperature if temperature > 0 else values, dim=-1)
        token = logprobs.argmax() if temperature <= 0 else _draw(logprobs, row)
        entropy = torch.special.entr(logprobs.exp()).sum()
        picked.append(torch.stack([token.double(), logprobs[token].double(), entropy.double()]))
    for row, (token, logprob, entropy) in zip(rows, torch.stack(picked).tolist(), strict=True):
        if not math.isfinite(logprob) or not math.isfinite(entropy):
            row.broken = True
            continue
        row.tokens.append(int(token))
        row.logprobs.append(logprob)
        row.entropies.append(max(0.0, entropy))


def _draw(logprobs: Any, row: Draws) -> Any:
    """Draw a token by inverse transform sampling, from the most likely ones within `top_k` and `top_p`."""
    import torch

    ordered, tokens = logprobs.sort(descending=True, stable=True)
    if row.sampling.top_k > 0:
        ordered, tokens = ordered[: row.sampling.top_k], tokens[: row.sampling.top_k]
    shares = ordered.exp()
    upto = shares.cumsum(0)
    if row.sampling.top_p < 1:
        inside = int((upto - shares < row.sampling.top_p * upto[-1]).sum())
        upto, tokens = upto[: max(1, inside)], tokens[: max(1, inside)]
    place = int(torch.searchsorted(upto, row.rng.random() * float(upto[-1]), right=True))
    return tokens[min(place, len(tokens) - 1)]
