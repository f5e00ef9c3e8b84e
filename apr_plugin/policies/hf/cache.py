"""Key-value caches of prompts that were read, so that the next turn of an episode computes only what is new.

A prompt of the loop begins with everything in the one before it, except for the newest percept, whose media has been
replaced by text. So the store looks up the longest common beginning among the kept prompts, its keys and values are
reused, and the rest is computed. Media is compared by content (`Encoded.keys`), and positions (M-RoPE) are compared
too, because keys and values depend on both.

A linear attention layer (Qwen3.5) has no keys and values but one state, of all tokens up to the last one that was read.
A state can't be cut back to fewer tokens, so a kept beginning of such a model is reused as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apr_plugin.models.compat import new_cache, states_of


class KeysValues(NamedTuple):
    """What an attention layer keeps."""

    keys: Any
    """Shape (rows, heads, tokens, head size)."""
    values: Any
    """The same shape."""


class State(NamedTuple):
    """What a linear attention layer keeps."""

    convolution: Any
    """The last inputs of its convolution, shape (rows, channels, kernel size)."""
    recurrence: Any
    """Shape (rows, heads, key size, value size)."""


Layers = Sequence[KeysValues | State]
"""What each layer keeps."""

_SHORTEST = 16
"""Common beginnings of fewer tokens are not reused, because the bookkeeping costs more."""

_SUPERSEDED = 0.875
"""A kept prompt is dropped for one that shares this much of it, because it is an earlier turn of the same episode."""


def layers_of(cache: Any) -> Layers:
    """The content of each layer of a transformers cache."""
    held = [(layer, states_of(layer)) for layer in cache.layers]
    return [KeysValues(layer.keys, layer.values) if states is None else State(*states) for layer, states in held]


def cache_of(layers: Layers, config: Any = None) -> Any:
    """Make a transformers cache with copies of these layers; it is empty for no layers.

    Args:
        layers: What each layer keeps.
        config: The model's configuration, needed if it has linear attention.
    """
    cache = new_cache(config)
    for number, layer in enumerate(layers):
        if isinstance(layer, State):
            cache.update_conv_state(layer.convolution, number)
            cache.update_recurrent_state(layer.recurrence, number)
        else:
            cache.update(layer.keys, layer.values, number)
    return cache


def beginning(layers: Layers, length: int) -> Layers:
    """Views of the first `length` tokens; a state is always the state at its own last token."""
    return [
        layer if isinstance(layer, State) else KeysValues(*(each[:, :, :length] for each in layer)) for layer in layers
    ]


def joined(one: Layers, other: Layers, length: int) -> Layers:
    """The rows of both; keys and values are padded on the left to `length` tokens."""
    import torch

    return [
        type(a)(
            *(
                torch.cat(both if isinstance(a, State) else [_filled(each, length) for each in both])
                for both in zip(a, b, strict=True)
            )
        )
        for a, b in zip(one, other, strict=True)
    ]


def rows_of(layers: Layers, rows: list[int], length: int) -> Layers:
    """Only these rows; of keys and values the last `length` tokens."""
    return [
        State(*(each[rows] for each in layer))
        if isinstance(layer, State)
        else KeysValues(*(each[rows][:, :, each.shape[2] - length :] for each in layer))
        for layer in layers
    ]


def _filled(tensor: Any, length: int) -> Any:
    """Keys or values of shape (rows, heads, tokens, size), padded on the left to `length` tokens."""
    import torch

    return torch.nn.functional.pad(tensor, (0, 0, length - tensor.shape[2], 0))


@dataclass(frozen=True)
class _Kept:
    keys: NDArray[np.int64]
    positions: NDArray[Any]
    layers: Layers
    bytes: int


class PrefixStore:
    """Beginnings of prompts with their keys and values, the last used last; bounded by memory, for one thread.

    Args:
        most_bytes: Memory for what the layers keep; the least recently used go first.
        whole: Whether a beginning is reused whole or not at all, as linear attention requires.
    """

    def __init__(self, most_bytes: int, *, whole: bool = False) -> None:
        self.most_bytes = most_bytes
        self.whole = whole
        self._kept: list[_Kept] = []

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Memory in use."""
        return sum(kept.bytes for kept in self._kept)

    def longest(self, keys: NDArray[np.int64], positions: NDArray[Any]) -> tuple[int, Layers]:
        """The longest beginning that is kept.

        Args:
            keys: Keys of the prompt, shape (n,).
            positions: Positions of its tokens, shape (3, n).

        Returns:
            Its length in tokens, never the whole prompt (the last token has to be computed to continue), and views of
            its keys and values.
        """
        shared = [_shared(kept, keys, positions) for kept in self._kept]
        if self.whole:
            shared = [
                length if length == len(kept.keys) < len(keys) else 0
                for kept, length in zip(self._kept, shared, strict=True)
            ]
        best = max(range(len(shared)), key=shared.__getitem__, default=None)
        if best is None or (length := min(shared[best], len(keys) - 1)) < _SHORTEST:
            return 0, []
        kept = self._kept.pop(best)
        self._kept.append(kept)
        return length, beginning(kept.layers, length)

    def keep(self, keys: NDArray[np.int64], positions: NDArray[Any], layers: Layers) -> None:
        """Keep a beginning of `len(keys)` tokens; its keys and values are copied.

        Args:
            keys: Shape (n,).
            positions: Shape (3, n).
            layers: One row, at least n tokens; states are those of the n-th token.
        """
        n = len(keys)
        if n < _SHORTEST:
            return
        wanted = beginning(layers, n)
        size = sum(each.nbytes for layer in wanted for each in layer)
        if size > self.most_bytes:
            return
        self._kept = [kept for kept in self._kept if _shared(kept, keys, positions) < _SUPERSEDED * len(kept.keys)]
        while self._kept and self.bytes + size > self.most_bytes:
            self._kept.pop(0)
        copied = [type(layer)(*(each.clone() for each in layer)) for layer in wanted]
        self._kept.append(_Kept(keys.copy(), positions.copy(), copied, size))

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()


def _shared(kept: _Kept, keys: NDArray[np.int64], positions: NDArray[Any]) -> int:
    n = min(len(kept.keys), len(keys))
    differs = (kept.keys[:n] != keys[:n]) | (kept.positions[:, :n] != positions[:, :n]).any(axis=0)
    return int(differs.argmax()) if differs.any() else n
