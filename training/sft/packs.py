"""Which rows go through the model together.

Alone, a row needs no padding. Short rows are faster together: a pack is rows of similar length, padded to the longest,
within a budget of tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from apr_plugin.training.rows import RowError

R = TypeVar("R")

WINDOW = 16
"""Rows are sorted by length within so many times the rows of an average pack, not over the whole set: with strict
sorting the packs of a step differ in kind, which gave spikes of the gradient on a small agent."""


def _tokens(row: Any) -> int:
    return int(row.tokens)


def packs(
    rows: Sequence[R], token_budget: int | None, seed: int | str, *, length: Callable[[R], int] = _tokens
) -> list[list[R]]:
    """Share out the rows, each to one pack.

    Args:
        rows: The rows.
        token_budget: Most tokens of a pack: its rows times the longest of them. `None`: each row is alone.
        seed: It draws which rows meet.
        length: Gives the tokens of a row.

    Raises:
        RowError: a row is longer than the budget.
    """
    if token_budget is None:
        return [[row] for row in rows]
    if over := max((row for row in rows if length(row) > token_budget), key=length, default=None):
        where = f"{over.where}: " if hasattr(over, "where") else ""
        raise RowError(
            f"{where}a row has {length(over)} tokens, and forward.token_budget is {token_budget}; raise it to the "
            "longest row"
        )
    draw = random.Random(seed)
    order = list(rows)
    draw.shuffle(order)
    average = sum(map(length, order)) / max(1, len(order))
    window = max(1, round(WINDOW * token_budget / max(1.0, average)))
    made: list[list[R]] = []
    for first in range(0, len(order), window):
        pack: list[R] = []
        for row in sorted(order[first : first + window], key=length):
            if pack and (len(pack) + 1) * length(row) > token_budget:
                made.append(pack)
                pack = []
            pack.append(row)
        made.append(pack)
    draw.shuffle(made)
    return made
