"""Rows travel between processes, so that all have about as many tokens.

Which groups are learned from is known after sampling only, and a process whose groups are dropped would wait for the
others. A row is sent with its pictures as bytes: encoded, as the model reads them, they are several times larger. The
gradient is a sum over all rows, so it does not matter where a row is.

Rows are pickled between the processes of one training run, which trust each other; nothing else is read.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from apr_plugin.training.grpo.across import Across
from apr_plugin.training.grpo.groups import rebalance
from apr_plugin.training.grpo.rows import TurnRow
from apr_plugin.training.grpo.turns import IntArray


def plan(tokens: IntArray, home: IntArray, processes: int, *, even_rows: bool = False) -> IntArray:
    """Where each row goes: as `groups.rebalance` shares them out, or where it is if that is no worse.

    Shares are given to processes so that many tokens stay where they are: the share and the process that have the most
    in common first.

    Args:
        tokens: Shape (n,): the length of each row, of all processes.
        home: Shape (n,): the process that has it.
        processes: How many there are.
        even_rows: See `groups.rebalance`.

    Returns:
        Shape (n,): a process for each row; the same in each process that calls it with the same rows.
    """
    loads = np.bincount(home, weights=tokens, minlength=processes)
    counts = np.bincount(home, minlength=processes)
    shares = rebalance(tokens, processes, even_rows=even_rows)
    uneven = even_rows and counts.max() > max(map(len, shares.rows))
    if loads.max(initial=0) <= shares.tokens.max(initial=0) and not uneven:
        return home.copy()
    common = np.stack([np.bincount(home[of], weights=tokens[of], minlength=processes) for of in shares.rows])
    goes = np.empty(len(tokens), dtype=np.int64)
    free = set(range(processes))
    for at in np.argsort(-common, axis=None, kind="stable").tolist():
        share, process = divmod(at, processes)
        if process in free and not np.isnan(common[share]).any():
            goes[shares.rows[share]] = process
            free.discard(process)
            common[share] = np.nan
    return goes


class RowExchange:
    """Sends rows to other processes, over gloo, through the machines' memory whatever the accelerators are."""

    def __init__(self) -> None:
        self._group: Any = None

    def balanced(
        self, rows: Sequence[TurnRow], across: Across, rank: int, processes: int, *, even_rows: bool
    ) -> tuple[list[TurnRow], dict[str, float]]:
        """The rows of this process after all have been shared out anew, and numbers for a log. All must call it.

        Args:
            rows: Those that it has.
            across: The processes.
            rank: Its number.
            processes: How many there are.
            even_rows: Whether all processes get about as many rows, see `groups.rebalance`.

        Returns:
            Its rows in the order of all processes' rows; and `before` and `after`, the tokens of the busiest process
            over the mean, `moved`, the share of rows that travelled, `megabytes` of all processes, and `seconds`.
        """
        began = time.monotonic()
        own = np.array([[rank, row.tokens] for row in rows], dtype=float).reshape(-1, 2)
        every, start = across.gather(own)
        home, tokens = every[:, 0].astype(np.int64), every[:, 1].astype(np.int64)
        goes = plan(tokens, home, processes, even_rows=even_rows)
        told = {"before": _busiest(tokens, home, processes), "after": _busiest(tokens, goes, processes)}
        told["moved"] = float((home != goes).mean()) if len(goes) else 0.0
        numbered = list(enumerate(rows, start))
        stay = [one for one in numbered if goes[one[0]] == rank]
        sent = 0
        if (home != goes).any():
            out = [[one for one in numbered if goes[one[0]] == other != rank] for other in range(processes)]
            came, sent = self._exchanged(out)
            stay = sorted([*stay, *came], key=lambda one: one[0])
        told["megabytes"] = float(across.add(np.array([sent / 1e6]))[0])
        told["seconds"] = time.monotonic() - began
        return [row for _, row in stay], told

    def _exchanged(self, out: Sequence[Sequence[tuple[int, TurnRow]]]) -> tuple[list[tuple[int, TurnRow]], int]:
        """Send each process its rows; gives what came, and how many bytes were sent."""
        import torch
        import torch.distributed as dist

        if self._group is None:
            self._group = dist.new_group(backend="gloo")
        packed = [pickle.dumps(list(rows), protocol=5) if rows else b"" for rows in out]
        sizes = torch.tensor([len(one) for one in packed])
        coming = torch.empty_like(sizes)
        dist.all_to_all_single(coming, sizes, group=self._group)
        sending = torch.frombuffer(bytearray(b"".join(packed) or b"\0"), dtype=torch.uint8)[: int(sizes.sum())]
        arrived = torch.empty(int(coming.sum()), dtype=torch.uint8)
        dist.all_to_all_single(arrived, sending, coming.tolist(), sizes.tolist(), group=self._group)
        bounds = np.cumsum([0, *coming.tolist()])
        data = memoryview(arrived.numpy())
        rows = [one for low, high in pairwise(bounds.tolist()) if high > low for one in pickle.loads(data[low:high])]
        return rows, int(sizes.sum())


def _busiest(tokens: IntArray, where: IntArray, processes: int) -> float:
    loads = np.bincount(where, weights=tokens, minlength=processes)
    return float(loads.max() / loads.mean()) if loads.any() else 1.0
