"""Mixes of row sources without an end: which row comes when, and which rows share a forward.

Everything follows from the recipe and a number: the n-th row of a source, the rows of the n-th stretch, the n-th pack.
So a run that was stopped continues where it was without reading what it has read. Rows of files come once in each pass
over their file, in another order each time. Rows that are made (`RowMaker`) never repeat.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from apr_plugin.models.batch import Example
from apr_plugin.training.named import named
from apr_plugin.training.rows import Row, RowError
from apr_plugin.training.sft.packs import WINDOW, packs
from apr_plugin.training.student import Student

SAMPLE = 64
"""Rows from which the average length is taken."""


class RowMaker(Protocol):
    """Makes rows; a recipe names a factory of it, which gets `student`, `seed` and the arguments of the recipe."""

    def __call__(self, index: int) -> Example:
        """The row of this number: the same one each time, whatever was made before.

        It is called twice, for the row's length and for the row, unless the maker has a method `tokens(index)` that
        gives the length.
        """
        ...


class Source:
    """Where rows of a mix come from.

    Args:
        name: Its name in counts, and for a weigher.
        share: Its share of the mix's rows.
        at: Gives its n-th row.
        rows: Those of a file.
        length: Gives the tokens of its n-th row; default: of what `at` gives.
    """

    def __init__(
        self,
        name: str,
        share: float,
        at: Callable[[int], Row | Example],
        rows: Sequence[Row] = (),
        length: Callable[[int], int] | None = None,
    ) -> None:
        self.rows = rows
        self.length = length or (lambda number: tokens(at(number)))
        self.name = name
        self.title = name
        """Its name in counts, where several sources have one name."""
        self.share = share
        self.at = at


def made(name: str, share: float, student: Student, seed: int, given: Mapping[str, Any]) -> Source:
    """A source of made rows.

    Raises:
        AprError: there is no such maker, or it refuses its arguments.
    """
    try:
        maker: RowMaker = named("row_makers", name)(student=student, seed=seed, **given)
    except TypeError as error:
        raise RowError(f"maker of rows {name}: {error}") from error
    return Source(name, share, maker, length=getattr(maker, "tokens", None))


def of_rows(name: str, share: float, rows: Sequence[Row], seed: int) -> Source:
    """A source of rows of a file; each comes once in each pass."""

    @lru_cache(maxsize=2)
    def order(epoch: int) -> list[int]:
        drawn = list(range(len(rows)))
        random.Random(f"{seed}:{epoch}").shuffle(drawn)
        return drawn

    return Source(name, share, lambda number: rows[order(number // len(rows))[number % len(rows)]], rows)


class Mix:
    """The packs of a mix, by number.

    Rows are taken in stretches. Within one, each source has its share, and rows of similar length share a pack.

    Args:
        sources: At least one.
        token_budget: Most tokens of a pack, padding included; `None`: each row is alone.
        seed: It draws which rows meet, and the order of packs.
        length: Most packs that are asked for.
        counts: A file in which the number of packs of each stretch is kept, so that another process need not make the
            rows of all earlier stretches again. It decides nothing.
        writes: Whether this process writes it.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        token_budget: int | None,
        seed: int,
        *,
        length: int = 0,
        counts: Path | None = None,
        writes: bool = True,
    ) -> None:
        whole = sum(source.share for source in sources)
        # What is left over by rounding goes to the last one, so that is the largest.
        self.sources = sorted(sources, key=lambda source: source.share)
        self._shares = [source.share / whole for source in self.sources]
        self._budget = token_budget
        self._seed = seed
        self.length = length
        self._file = counts
        self._writes = writes
        first = [source.length(number) for source, number in self._slots(0, SAMPLE)]
        self.row_tokens = sum(first) / len(first)
        """The average length of its first rows."""
        if token_budget is None:
            self._stretch = WINDOW
        else:
            self._stretch = max(SAMPLE, round(WINDOW * token_budget / self.row_tokens))
        self._packs = lru_cache(maxsize=2)(self._made)
        self._counts: list[int] | None = None
        self._ends: list[int] = [0]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Sequence[tuple[Row | Example, str]]:
        """The rows of a pack, each with the name of its source."""
        if not 0 <= number < self.length:
            raise IndexError(number)
        while self._ends[-1] <= number:
            self._ends.append(self._ends[-1] + self._count(len(self._ends) - 1))
        stretch = next(n for n in reversed(range(len(self._ends))) if self._ends[n] <= number)
        # Rows are made when they are needed: those of a stretch with their pictures are too many to keep.
        slots = self._packs(stretch)[number - self._ends[stretch]]
        return [(source.at(place), source.name) for source, place, _ in slots]

    @property
    def pack_rows(self) -> float:
        """Rows of an average pack of the first stretch."""
        return self._stretch / self._count(0)

    def _slots(self, begin: int, end: int) -> list[tuple[Source, int]]:
        """The sources of the rows from one place to another of the whole mix, and their numbers in these sources."""
        made_before, made_after = self._drawn(begin), self._drawn(end)
        return [
            (source, number)
            for source, before, after in zip(self.sources, made_before, made_after, strict=True)
            for number in range(before, after)
        ]

    def _drawn(self, slot: int) -> list[int]:
        """Rows of each source before a place."""
        few = [int(slot * share + 1e-9) for share in self._shares[:-1]]
        return [*few, slot - sum(few)]

    def _made(self, stretch: int) -> list[list[tuple[Source, int, int]]]:
        begin = stretch * self._stretch
        slots = self._slots(begin, begin + self._stretch)
        rows = [(source, number, source.length(number)) for source, number in slots]
        return packs(rows, self._budget, f"{self._seed}:{stretch}", length=lambda row: row[2])

    def _count(self, stretch: int) -> int:
        if self._counts is None:
            self._counts = _read(self._file)
        if stretch < len(self._counts):
            return self._counts[stretch]
        count = len(self._packs(stretch))
        self._counts.append(count)
        if self._file is not None and self._writes and _first_worker():
            with self._file.open("a", encoding="utf-8") as file:
                file.write(f"{count}\n")
        return count


def tokens(row: Row | Example) -> int:
    """The length of a row."""
    return row.tokens if isinstance(row, Row) else len(row)


def _read(file: Path | None) -> list[int]:
    """The counts of a file up to its first line that is no whole one."""
    if file is None or not file.exists():
        return []
    *lines, _ = file.read_text("utf-8").split("\n")
    found: list[int] = []
    for line in lines:
        if not line.isdecimal() or line == "0":
            break
        found.append(int(line))
    if len(found) != len(lines):
        file.write_text("".join(f"{count}\n" for count in found), "utf-8")
    return found


def _first_worker() -> bool:
    from torch.utils.data import get_worker_info

    info = get_worker_info()
    return info is None or info.id == 0


def shares_told(sources: Sequence[Source]) -> str:
    """The shares in words."""
    whole = sum(source.share for source in sources)
    return ", ".join(f"{source.title} {source.share / whole:.0%}" for source in sources)
