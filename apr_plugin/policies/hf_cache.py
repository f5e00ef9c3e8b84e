"""Key-value caches of prompts already read, so that the next turn of an episode computes only what is new.

A prompt of the loop begins with everything of the one before it, except for the newest percept: that has lost its media and is words now. So the
longest common beginning is looked up among the prompts kept, its keys and values are taken over, and the rest is computed. Media counts by content
(`Encoded.keys`), and positions (M-RoPE) are compared too: keys and values hold both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Layers = list[tuple[Any, Any]]
"""Keys and values of each layer, each of shape (rows, heads, tokens, head size)."""

_SHORTEST = 16
"""Common beginnings below this many tokens are not worth the bookkeeping."""

_SUPERSEDED = 0.875
"""A kept prompt is dropped for one that shares this much of it: an earlier turn of the same episode."""


def layers_of(cache: Any) -> Layers:
    """Keys and values of a transformers cache."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def cache_of(layers: Layers) -> Any:
    """A transformers cache that holds copies of these keys and values; empty for no layers."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for number, (keys, values) in enumerate(layers):
        cache.update(keys, values, number)
    return cache


@dataclass(frozen=True)
class _Kept:
    keys: NDArray[np.int64]
    positions: NDArray[np.float64]
    layers: Layers
    bytes: int


class PrefixStore:
    """Beginnings of prompts with their keys and values, the latest used last; bounded by memory. For one thread.

    Args:
        most_bytes: Memory for keys and values; the longest unused go first.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._kept: list[_Kept] = []

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Memory in use."""
        return sum(kept.bytes for kept in self._kept)

    def longest(self, keys: NDArray[np.int64], positions: NDArray[np.float64]) -> tuple[int, Layers]:
        """The longest beginning that is kept.

        Args:
            keys: Of the prompt, shape (n,).
            positions: Of its tokens, shape (3, n).

        Returns:
            Its length in tokens, never the whole prompt (the last token has to be computed to write on), and views of its keys and values.
        """
        shared = [_shared(kept, keys, positions) for kept in self._kept]
        best = max(range(len(shared)), key=shared.__getitem__, default=None)
        if best is None or (length := min(shared[best], len(keys) - 1)) < _SHORTEST:
            return 0, []
        kept = self._kept.pop(best)
        self._kept.append(kept)
        return length, [(keys_[:, :, :length], values[:, :, :length]) for keys_, values in kept.layers]

    def keep(self, keys: NDArray[np.int64], positions: NDArray[np.float64], layers: Layers) -> None:
        """Keep a beginning of `len(keys)` tokens; its keys and values are copied.

        Args:
            keys: Shape (n,).
            positions: Shape (3, n).
            layers: One row, at least n tokens.
        """
        n = len(keys)
        if n < _SHORTEST:
            return
        size = sum(2 * pair[0][:, :, :n].nbytes for pair in layers)
        if size > self.most_bytes:
            return
        self._kept = [kept for kept in self._kept if _shared(kept, keys, positions) < _SUPERSEDED * len(kept.keys)]
        while self._kept and self.bytes + size > self.most_bytes:
            self._kept.pop(0)
        copied = [(k[:, :, :n].clone(), v[:, :, :n].clone()) for k, v in layers]
        self._kept.append(_Kept(keys.copy(), positions.copy(), copied, size))

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()


def _shared(kept: _Kept, keys: NDArray[np.int64], positions: NDArray[np.float64]) -> int:
    n = min(len(kept.keys), len(keys))
    differs = (kept.keys[:n] != keys[:n]) | (kept.positions[:, :n] != positions[:, :n]).any(axis=0)
    return int(differs.argmax()) if differs.any() else n
