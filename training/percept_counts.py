"""`PerceptCounts`: what a cache of percepts did, in this process and in the workers that it started."""

from __future__ import annotations

import ctypes
import multiprocessing
import sys
from dataclasses import dataclass, fields
from multiprocessing import context
from typing import Any


@dataclass(frozen=True)
class PerceptCounts:
    """Looks and bytes since the cache was made."""

    hits: int = 0
    """Looks that were found."""
    misses: int = 0
    """Looks that had to be decoded, those with a damaged entry included."""
    damaged: int = 0
    """Entries that could not be used: damaged, truncated, of something else, or unreadable."""
    evicted: int = 0
    """Entries that were removed to make room."""
    not_kept: int = 0
    """Decoded looks that were not written: larger than the cache, no room, or writing has stopped."""
    bytes_read: int = 0
    """Bytes of the entries that were found."""
    bytes_written: int = 0
    """Bytes of the entries that were written."""


_NAMES = tuple(field.name for field in fields(PerceptCounts))
_ROWS = 128


class Tally:
    """Counts in memory that a process shares with the workers of its `DataLoader`s, whether they are forked or spawned.

    Each worker has a row of its own, by its number, and row 0 is the process itself: so there is no lock, which a
    killed worker would leave locked. Workers of two loaders that run at the same time share rows, and may lose counts.
    A copy that is pickled for anything else than a new process begins at 0.
    """

    def __init__(self) -> None:
        self._rows = _zeros()

    def __getstate__(self) -> dict[str, Any]:
        return {"rows": self._rows if context.get_spawning_popen() is not None else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._rows = state["rows"] or _zeros()

    def add(self, **numbers: int) -> None:
        """Add to the counts of this process."""
        start = _row() * len(_NAMES)
        for name, number in numbers.items():
            self._rows[start + _NAMES.index(name)] += number

    def total(self) -> PerceptCounts:
        """The counts of all processes together."""
        return PerceptCounts(*(sum(self._rows[place :: len(_NAMES)]) for place in range(len(_NAMES))))


def _zeros() -> Any:
    try:
        return multiprocessing.RawArray("q", _ROWS * len(_NAMES))
    except OSError:  # no room in /dev/shm or in the folder of temporary files: each process counts for itself
        return (ctypes.c_longlong * (_ROWS * len(_NAMES)))()


def _row() -> int:
    data = sys.modules.get("torch.utils.data")  # a worker of a loader has imported it
    info = data.get_worker_info() if data is not None else None
    return 0 if info is None else 1 + info.id % (_ROWS - 1)
