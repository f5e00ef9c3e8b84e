"""What the rules of credit need of several processes: sums, maxima and gathered rows. One process needs nothing."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class Across(Protocol):
    """All processes of a training run. Every process makes the same calls in the same order."""

    def add(self, values: FloatArray) -> FloatArray:
        """The sum over all processes of an array that has the same shape in each."""
        ...

    def highest(self, values: FloatArray) -> FloatArray:
        """The element-wise maximum over all processes of an array that has the same shape in each."""
        ...

    def gather(self, rows: FloatArray) -> tuple[FloatArray, int]:
        """The rows of all processes, in the order of their ranks, and where this process's own rows begin.

        Args:
            rows: Shape (n, columns); n may differ between processes, and may be 0.
        """
        ...


class OneProcess:
    """Everything is here already."""

    def add(self, values: FloatArray) -> FloatArray:
        """The array itself."""
        return values

    def highest(self, values: FloatArray) -> FloatArray:
        """The array itself."""
        return values

    def gather(self, rows: FloatArray) -> tuple[FloatArray, int]:
        """The rows themselves."""
        return rows, 0


class TorchProcesses:
    """The processes of `torch.distributed`, which must be initialised.

    Args:
        device: Where the arrays travel: `cpu` with gloo, `cuda` with NCCL.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = device

    def add(self, values: FloatArray) -> FloatArray:
        """An all-reduce with SUM, in float64."""
        return self._reduced(values, "SUM")

    def highest(self, values: FloatArray) -> FloatArray:
        """An all-reduce with MAX, in float64."""
        return self._reduced(values, "MAX")

    def gather(self, rows: FloatArray) -> tuple[FloatArray, int]:
        """An all-gather of the row counts, then one of the rows, padded to the longest."""
        import torch
        import torch.distributed as dist

        n, columns = rows.shape
        sizes = [torch.zeros(1, dtype=torch.int64, device=self._device) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, torch.tensor([n], dtype=torch.int64, device=self._device))
        counts = [int(size) for size in sizes]
        padded = self._tensor(np.concatenate([rows, np.zeros((max(counts) - n, columns))]))
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        every = [part.cpu().numpy()[:count] for part, count in zip(parts, counts, strict=True)]
        return np.concatenate(every), sum(counts[: dist.get_rank()])

    def _reduced(self, values: FloatArray, operation: str) -> FloatArray:
        import torch.distributed as dist

        tensor = self._tensor(values)
        dist.all_reduce(tensor, getattr(dist.ReduceOp, operation))
        reduced: FloatArray = tensor.cpu().numpy()
        return reduced

    def _tensor(self, values: FloatArray) -> Any:
        import torch

        return torch.tensor(np.ascontiguousarray(values), dtype=torch.float64, device=self._device)
