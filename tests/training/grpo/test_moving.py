"""Rows that travel between processes: who gets what, and what arrives."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from moving_ranks import HELD, row_of

from apr_plugin.training.grpo.groups import rebalance
from apr_plugin.training.grpo.moving import plan


def test_a_plan_by_hand() -> None:
    """The share with the longest row stays where that row is; what is even stays as it is."""
    assert plan(np.array([9, 7, 2]), np.array([1, 1, 1]), 2).tolist() == [1, 0, 0]
    assert plan(np.array([5, 9, 1, 7, 6]), np.array([1, 1, 0, 0, 0]), 2).tolist() == [1, 1, 0, 0, 0]
    assert plan(np.array([4, 4]), np.array([1, 0]), 2).tolist() == [1, 0]
    assert plan(np.array([8, 4, 2, 2]), np.array([0, 1, 1, 1]), 2, even_rows=True).tolist() == [0, 1, 1, 0]
    assert plan(np.array([], dtype=np.int64), np.array([], dtype=np.int64), 3).tolist() == []


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 4)), max_size=30), st.integers(1, 5), st.booleans())
@settings(deadline=None, max_examples=80)
def test_a_plan_is_that_of_rebalance_or_no_worse(rows: list[tuple[int, int]], processes: int, even: bool) -> None:
    tokens = np.array([row[0] for row in rows], dtype=np.int64)
    home = np.array([row[1] % processes for row in rows], dtype=np.int64)
    goes = plan(tokens, home, processes, even_rows=even)
    loads = np.bincount(goes, weights=tokens, minlength=processes)
    wanted = rebalance(tokens, processes, even_rows=even).tokens
    if (goes != home).any():
        assert sorted(loads) == sorted(wanted)
    else:
        assert loads.max(initial=0) <= wanted.max(initial=0) or sorted(loads) == sorted(wanted)
    assert plan(tokens, home, processes, even_rows=even).tolist() == goes.tolist()


def test_rows_arrive_whole(tmp_path: Path) -> None:
    """Pictures, tokens, numbers; every row once, in the order of all rows; and then nothing moves."""
    ranks = Path(__file__).with_name("moving_ranks.py")
    subprocess.run([sys.executable, "-P", str(ranks), str(tmp_path)], check=True, timeout=300)
    found = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in (0, 1)]
    lengths = [[row.tokens for row in of[0][0]] for of in found]
    assert lengths == [[900], [700, 30, 20, 10]]
    for of in found:
        for row in of[0][0]:
            sent = row_of(row.tokens)
            (picture, words), (wanted, same) = row.prompt.messages[0].parts, sent.prompt.messages[0].parts
            assert np.array_equal(picture.image, wanted.image) and words == same
            assert (row.ids, row.target, row.logprobs, row.entropies) == (
                sent.ids, sent.target, sent.logprobs, sent.entropies,
            )  # fmt: skip
            assert (row.where, row.advantage) == (sent.where, sent.advantage)
    first, second = found[0][0][1], found[0][1][1]
    assert first["before"] == 2 and first["after"] == pytest.approx(900 / 830) and first["moved"] == 0.8
    assert first["megabytes"] > 4 * 28 * 28 * 3 / 1e6 and sum(map(len, HELD)) == 5
    assert second["moved"] == 0 and second["megabytes"] == 0 and second["before"] == second["after"]
