"""Which rows are used for what: no equal rows, a train and a validation part that share no video, balanced sources.

Everything depends only on the rows and a seed, not on their order.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from apr_plugin.training.rows import Row, RowError

Balance = Literal["none", "equal"] | Mapping[str, float]
"""`none`; `equal`: as many rows of each source; or the share of each source by its name."""


def without_duplicates(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The first of each set of equal rows (`Row.content`), and the others."""
    seen: set[str] = set()
    kept: list[Row] = []
    others: list[Row] = []
    for row in rows:
        (others if row.content in seen else kept).append(row)
        seen.add(row.content)
    return kept, others


def split_by_video(rows: Sequence[Row], share: float, seed: int) -> list[Row]:
    """The rows in the same order, each with its part.

    All rows that share a video, directly or through a question about several, are in one part. A part is drawn for each
    such group by a number from its name, so it does not change if other videos are added. If there are two groups or
    more, both parts have one.

    Args:
        rows: The rows.
        share: About which share of the groups is for validation, 0 to 1; with 0 nothing is.
        seed: Another seed draws other groups.
    """
    names = _groups(rows)
    groups = sorted(set(names), key=lambda name: drawn(seed, name))
    chosen = {name for name in groups if drawn(seed, name) < share}
    if share > 0 and len(groups) > 1:
        chosen = (chosen | {groups[0]}) - ({groups[-1]} if len(chosen) == len(groups) else set())
    elif share > 0:
        chosen = set()
    return [
        row.model_copy(update={"split": "validation" if name in chosen else "train"})
        for row, name in zip(rows, names, strict=True)
    ]


def balanced(rows: Sequence[Row], balance: Balance, seed: int) -> tuple[list[Row], list[Row]]:
    """As many train rows as the shares of the sources allow, and the others; validation rows all stay.

    Args:
        rows: The rows, with their parts.
        balance: The shares.
        seed: It draws which rows of a source stay.

    Raises:
        RowError: a source has no share or a share names no source.
    """
    counts = Counter(row.source for row in rows if row.split == "train")
    if balance == "none" or not counts:
        return list(rows), []
    shares = dict.fromkeys(counts, 1.0) if isinstance(balance, str) else dict(balance)
    if shares.keys() != counts.keys() or not all(value > 0 and math.isfinite(value) for value in shares.values()):
        raise RowError(
            f"the shares {shares} must give each source that has rows a positive number; the sources are "
            f"{', '.join(f'{name!r} ({count} rows)' for name, count in sorted(counts.items()))}"
        )
    scale = min(counts[name] / value for name, value in shares.items())
    left = {name: max(1, min(counts[name], math.floor(scale * value + 1e-9))) for name, value in shares.items()}
    stays: set[int] = set()
    order = sorted(range(len(rows)), key=lambda n: (drawn(seed, rows[n].content + rows[n].where), n))
    for number in order:
        row = rows[number]
        if row.split != "train":
            stays.add(number)
        elif left[row.source]:
            left[row.source] -= 1
            stays.add(number)
    kept = [row for number, row in enumerate(rows) if number in stays]
    return kept, [row for number, row in enumerate(rows) if number not in stays]


def _groups(rows: Sequence[Row]) -> list[str]:
    """For each row the name of its group: the first name of all that are connected to it."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    def names(row: Row) -> list[str]:
        return list(row.videos) or [f"question {row.key}"]

    for row in rows:
        first, *others = names(row)
        for other in others:
            one, two = sorted((root(first), root(other)))
            parent[two] = one
    return [root(names(row)[0]) for row in rows]


def drawn(seed: int, name: str) -> float:
    """A number from 0 to 1 that a seed and a name decide."""
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
