"""Groups: advantages as TRL computes them, which groups are kept and why others are not, rows over processes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_plugin.training.grpo.groups import (
    Fate,
    GroupError,
    GroupSettings,
    Scale,
    advantages,
    as_array,
    choose,
    rebalance,
)
from apr_plugin.training.grpo.rewards import Reward

_REWARD = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, float("nan")]))
_GROUPS = st.integers(2, 5).flatmap(
    lambda many: st.lists(st.lists(_REWARD, min_size=many, max_size=many), min_size=1, max_size=5)
)
SCALES: tuple[Scale, ...] = ("group", "batch", "none")


def test_advantages_by_hand() -> None:
    rewards, group = [1, 0, 0, 0.5, 0.5, np.nan], [7, 7, 7, 2, 2, 2]
    third = np.array([2, -1, -1]) / 3
    spread = np.std([1, 0, 0], ddof=1)
    assert advantages(rewards, group) == pytest.approx([*third / (spread + 1e-4), 0, 0, 0])
    assert advantages(rewards, group, "none") == pytest.approx([*third, 0, 0, 0])
    whole = np.std([1, 0, 0, 0.5, 0.5], ddof=1)
    assert advantages(rewards, group, "batch") == pytest.approx([*third / (whole + 1e-4), 0, 0, 0])
    assert advantages([1.0, np.nan], [0, 0]).tolist() == [0, 0], "alone in its group"
    assert advantages([], []).shape == (0,)
    assert as_array([Reward(0.5), Reward(None)]).tolist() == pytest.approx([0.5, np.nan], nan_ok=True)


@pytest.mark.slow
@given(_GROUPS, st.sampled_from(SCALES))
@settings(deadline=None, max_examples=80)
def test_advantages_are_those_of_trl(groups: list[list[float]], scale: Scale) -> None:
    """The lines of `_generate_and_score_completions`, with TRL's own `nanstd`."""
    pytest.importorskip("trl")
    import torch
    from trl.trainer.utils import nanstd

    rewards = torch.tensor(groups, dtype=torch.float64).flatten()
    many = len(groups[0])
    found = rewards - torch.nanmean(rewards.view(-1, many), dim=1).repeat_interleave(many)
    if scale != "none":
        of_group = nanstd(rewards.view(-1, many), dim=1).repeat_interleave(many)
        found = found / ((of_group if scale == "group" else nanstd(rewards).expand_as(rewards)) + 1e-4)
    expected = torch.nan_to_num(found, nan=0.0).numpy()
    ours = advantages(rewards.numpy(), np.repeat(np.arange(len(groups)), many), scale)
    assert ours == pytest.approx(expected, abs=1e-6), "its correction of the deviation is in single precision"


@given(_GROUPS, st.sampled_from(SCALES), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_advantages_sum_to_zero_and_follow_the_rows(groups: list[list[float]], scale: Scale, chance: Any) -> None:
    rewards = np.array(groups).flatten()
    group = np.repeat(np.arange(len(groups)), len(groups[0]))
    found = advantages(rewards, group, scale)
    assert (found[np.isnan(rewards)] == 0).all()
    for number in range(len(groups)):
        assert found[group == number].sum() == pytest.approx(0, abs=1e-6)
    order = list(range(len(rewards)))
    chance.shuffle(order)
    assert advantages(rewards[order], group[order], scale) == pytest.approx(found[order], abs=1e-9)


def test_arrays_that_do_not_fit() -> None:
    with pytest.raises(GroupError, match=r"rewards have shape \(2,\) and groups \(1,\)"):
        advantages([1, 2], [0])
    with pytest.raises(GroupError, match=r"the reward of trajectory 1 \(group 4\) is inf"):
        advantages([1, np.inf], [3, 4])
    with pytest.raises(GroupError, match="it is group, batch or none"):
        advantages([1], [0], "all")  # type: ignore[arg-type]
    with pytest.raises(GroupError, match="0 groups are wanted"):
        choose([1], [0], 0)
    with pytest.raises(GroupError, match="broken has shape"):
        choose([1], [0], broken=[True, False])


def test_which_groups_are_kept() -> None:
    nan = np.nan
    rewards = [0, 0, 0, 1, 1, 1, 1, 0, 0, 0.4, 0.4, 0.4, 0, 0.5, 1, 1, 0, nan, nan, nan, nan, 0.5, 0.6, 0.5]
    group = np.repeat(np.arange(8), 3)
    found = choose(rewards, group)
    assert found.groups == (2, 4, 7) and found.fates == {
        0: Fate.ALL_ZERO,
        1: Fate.ALL_ONE,
        2: Fate.KEPT,
        3: Fate.NO_SPREAD,
        4: Fate.KEPT,
        5: Fate.BROKEN,
        6: Fate.BROKEN,
        7: Fate.KEPT,
    }
    assert found.shares() == {
        "kept": 3 / 8, "broken": 2 / 8, "too_few": 0.0, "all_zero": 1 / 8, "all_one": 1 / 8, "no_spread": 1 / 8,
        "surplus": 0.0,
    }  # fmt: skip
    two = choose(rewards, group, 2)
    assert two.groups == (2, 4) and two.fates[7] is Fate.SURPLUS
    gentle = choose(rewards, group, settings=GroupSettings(broken="leave_out"))
    assert gentle.groups == (5, 2, 4, 7) and gentle.fates[6] is Fate.TOO_FEW, "the spread of 1 and 0 is the largest"
    long = np.zeros(24, dtype=bool)
    long[6] = True
    assert choose(rewards, group, broken=long).fates[2] is Fate.BROKEN
    assert choose([1, 0, 1, 0], [5, 5, 3, 3], 1).groups == (3,), "of equal spreads the lower number"
    assert choose([1.0], [0]).fates == {0: Fate.TOO_FEW} and choose([], []).groups == ()


@given(_GROUPS, st.integers(1, 4), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_choosing_does_not_depend_on_the_order_of_rows(groups: list[list[float]], wanted: int, chance: Any) -> None:
    rewards = np.array(groups).flatten()
    group = np.repeat(np.arange(len(groups)), len(groups[0]))
    order = list(range(len(rewards)))
    chance.shuffle(order)
    found, again = choose(rewards, group, wanted), choose(rewards[order], group[order], wanted)
    assert found == again and len(found.groups) <= wanted
    assert set(found.groups) == {number for number, fate in found.fates.items() if fate is Fate.KEPT}
    assert sum(found.shares().values()) == pytest.approx(1)
    for number in found.groups:
        assert np.ptp(rewards[group == number]) > 0


def test_rows_over_processes_by_hand() -> None:
    shares = rebalance([5, 9, 1, 7, 6], 2)
    assert [rows.tolist() for rows in shares.rows] == [[0, 1], [2, 3, 4]] and shares.tokens.tolist() == [14, 14]
    assert shares.longest == 1.0
    assert [rows.tolist() for rows in rebalance([3, 3, 3, 3], 3).rows] == [[0, 3], [1], [2]]
    even = rebalance([100, 1, 1, 1], 2, even_rows=True)
    assert [rows.tolist() for rows in even.rows] == [[0, 3], [1, 2]] and even.tokens.tolist() == [101, 2]
    assert rebalance([], 3).longest == 1.0
    with pytest.raises(GroupError, match="0 processes"):
        rebalance([1], 0)
    with pytest.raises(GroupError, match="at least 0"):
        rebalance([1, -1], 2)


@given(st.lists(st.integers(0, 5000), max_size=40), st.integers(1, 8), st.booleans())
@settings(deadline=None)
def test_every_row_is_somewhere_once_and_loads_are_even(tokens: list[int], processes: int, even: bool) -> None:
    shares = rebalance(tokens, processes, even_rows=even)
    assert Counter(int(row) for rows in shares.rows for row in rows) == Counter(range(len(tokens)))
    assert [sum(tokens[row] for row in rows) for rows in shares.rows] == shares.tokens.tolist()
    if even:
        assert max(map(len, shares.rows)) <= -(-len(tokens) // processes)
    elif tokens:
        assert shares.tokens.max() <= sum(tokens) / processes + max(tokens), "Graham's bound for any list schedule"
    again = rebalance(tokens, processes, even_rows=even)
    assert [rows.tolist() for rows in again.rows] == [rows.tolist() for rows in shares.rows]
