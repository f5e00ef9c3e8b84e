"""The credit of turns: means of one, whole and split over processes, by hand, and whatever the order of the rows."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_plugin.training.grpo.across import FloatArray, OneProcess
from apr_plugin.training.grpo.credit import (
    RULES,
    CreditSettings,
    credit,
    information_gain,
    local_sums,
    rule_named,
    weights_from,
)
from apr_plugin.training.grpo.settings import SettingsError
from apr_plugin.training.grpo.turns import CreditError, Turns, turns_of_tokens

WEIGHTED = ("none", "taura", "taura_clipped", "taura_action", "shuffled")
"""Rules whose weights have a mean of one over the turns of each group."""


def turns_of(*groups: list[list[float]], tokens: int = 4, **more: Any) -> Turns:
    """Turns from their mean entropies: `turns_of([[.4, .8], [.2]], ...)` is a group of two trajectories."""
    rows = [
        (group, trajectory, number, entropy)
        for trajectory, (group, entropies) in enumerate(
            (group, entropies) for group, of in enumerate(groups) for entropies in of
        )
        for number, entropy in enumerate(entropies, 1)
    ]
    group, trajectory, number = (np.array([row[at] for row in rows], dtype=np.int64) for at in range(3))
    return Turns(
        group=group,
        trajectory=trajectory,
        number=number,
        entropy=np.array([row[3] for row in rows]),
        tokens=np.full(len(rows), tokens),
        counted=np.ones(len(rows), dtype=bool),
        groups=len(groups),
        trajectories=sum(map(len, groups)),
        **more,
    )


def taken(turns: Turns, rows: Any) -> Turns:
    """Some of the turns, as one process of several holds them."""
    chosen = {name: value[rows] if isinstance(value, np.ndarray) else value for name, value in vars(turns).items()}
    return Turns(**chosen)


def across_ranks(parts: list[Turns], advantages: list[FloatArray], chosen: CreditSettings) -> list[Any]:
    """Run the ranks in lockstep: each call of `Across` waits in a thread until all ranks have made it."""
    n = len(parts)
    barrier, box, results = threading.Barrier(n), [None] * n, [None] * n  # type: ignore[var-annotated]

    class Lockstep:
        def __init__(self, rank: int) -> None:
            self.rank = rank

        def _all(self, values: FloatArray) -> list[FloatArray]:
            box[self.rank] = values.copy()  # type: ignore[call-overload]
            barrier.wait(20)
            every = list(box)
            barrier.wait(20)
            return every  # type: ignore[return-value]

        def add(self, values: FloatArray) -> FloatArray:
            return reduce(np.add, self._all(values))

        def highest(self, values: FloatArray) -> FloatArray:
            return reduce(np.maximum, self._all(values))

        def gather(self, rows: FloatArray) -> tuple[FloatArray, int]:
            every = self._all(rows)
            return np.concatenate(every), sum(map(len, every[: self.rank]))

    def run(rank: int) -> None:
        results[rank] = credit(parts[rank], advantages[rank], chosen, Lockstep(rank))  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


_ENTROPY = st.floats(0.01, 5)
_GROUP = st.lists(st.lists(_ENTROPY, min_size=1, max_size=4), min_size=1, max_size=4)
_BATCH = st.lists(_GROUP, min_size=1, max_size=3)


def full(turns: Turns, seed: int = 0) -> tuple[Turns, FloatArray]:
    """The turns with everything that any rule reads, and an advantage for each trajectory."""
    chance = np.random.default_rng(seed)
    of = chance.normal(size=turns.trajectories)
    action = chance.uniform(0.1, 2, len(turns))
    action[chance.random(len(turns)) < 0.2] = np.nan
    turns = replace(turns, action_entropy=action, tokens=chance.integers(1, 50, len(turns)))
    turns = turns.with_probabilities(
        chance.random((len(turns), 2)), chance.random(turns.trajectories)[turns.trajectory]
    )
    return turns, of[turns.trajectory]


def test_an_example_by_hand() -> None:
    turns = turns_of([[0.4, 0.8], [0.6]], [[1.0, 3.0]])
    found = credit(turns, [1, 1, -2, 1, 1])
    assert found.weights == pytest.approx([0.4 / 0.6, 0.8 / 0.6, 1.0, 0.5, 1.5])
    assert found.advantages == pytest.approx([0.4 / 0.6, 0.8 / 0.6, -2.0, 0.5, 1.5])
    assert found.metrics == pytest.approx(
        {"turns": 5, "not_counted": 0, "mean": 1.0, "std": np.std(found.weights), "min": 0.5, "max": 1.5}
    )


def test_other_rules_by_hand() -> None:
    turns = turns_of([[0.4, 0.8], [0.6]])
    turns = replace(turns, tokens=np.array([10, 10, 30]), action_entropy=np.array([0.1, np.nan, 0.3]))

    def weights(rule: str, **more: Any) -> FloatArray:
        return credit(turns, np.ones(3), CreditSettings(rule=rule, **more)).weights

    assert weights("none") == pytest.approx([1, 1, 1])
    assert weights("taura_trajectory") == pytest.approx([0.4 / 0.6, 0.8 / 0.6, 1.0])
    assert weights("taura_action") == pytest.approx([0.5, 1.0, 1.5]), "a turn without an action has weight one"
    by_token = (10 * 0.4 + 10 * 0.8 + 30 * 0.6) / 50
    assert weights("taura_tokens") == pytest.approx([0.4 / by_token, 0.8 / by_token, 0.6 / by_token])
    assert np.average(weights("taura_tokens"), weights=turns.tokens) == pytest.approx(1)
    clipped = np.array([0.9, 1.1, 1.0])
    assert weights("taura_clipped", clip_low=0.9, clip_high=1.1) == pytest.approx(clipped / clipped.mean())


def test_empg_by_hand() -> None:
    """Two turns of one trajectory and one of another; Hn is 0, 1 and 0.5."""
    turns = turns_of([[0.4, 0.8], [0.6]])
    found = credit(turns, [1.0, 1.0, -1.0], CreditSettings(rule="empg", empg_zeta=0.1))
    g = np.exp([0, -1, -0.5])
    g /= g.mean()
    mixed = np.array([g[0] + 0.1 * np.exp(-1), g[1], -g[2]])
    assert found.weights == pytest.approx(g, abs=1e-6)
    assert found.advantages == pytest.approx(mixed - mixed.mean(), abs=1e-6)


def test_information_gain_by_hand() -> None:
    """Two trajectories: gains .2 and .3 and a right answer; a loss of .1 and a wrong one."""
    turns = turns_of([[1, 1, 1], [1, 1]])
    probability = [[0.1, 0.3], [0.3, 0.6], [np.nan, np.nan], [0.1, 0.0], [0.0, np.nan]]
    turns = turns.with_probabilities(probability, [1, 1, 1, 0, 0])
    rewards = np.array([0.2, 0.3, 1.0, -0.1, 0.0])
    normal = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    found = credit(turns, np.zeros(5), CreditSettings(rule="information_gain", gamma=0.5))
    first = normal[0] + 0.5 * (normal[1] + 0.5 * normal[2])
    expected = [first, normal[1] + 0.5 * normal[2], normal[2], normal[3] + 0.5 * normal[4], normal[4]]
    assert found.advantages == pytest.approx(expected)
    assert information_gain([[0.1, 0.3], [0.5, 0.25]]) == pytest.approx([0.2, -0.25])
    with pytest.raises(CreditError, match=r"row 1: 1.5 is not a probability"):
        information_gain([[0, 1], [1.5, 0]])
    with pytest.raises(CreditError, match=r"trajectory 0, turn 2: -0.1 and 0.3 are not both probabilities"):
        turns.with_probabilities([[0, 1], [-0.1, 0.3], [0, 1], [0, 1], [0, 1]], [1] * 5)
    lost = turns.with_probabilities([[np.nan, 0.3], *probability[1:]], [1] * 5)
    with pytest.raises(CreditError, match="trajectory 0, turn 1: it has no probability before or after it"):
        credit(lost, np.zeros(5), CreditSettings(rule="information_gain"))
    unpaid = turns.with_probabilities(probability, [1, 1, np.nan, 0, 0])
    with pytest.raises(CreditError, match="trajectory 0, turn 3: its trajectory has no reward"):
        credit(unpaid, np.zeros(5), CreditSettings(rule="information_gain"))


@given(_BATCH, st.sampled_from(WEIGHTED), st.integers(1, 5), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_the_mean_weight_of_a_group_is_one(batch: Any, rule: str, seed: int, chance: Any) -> None:
    turns, advantages = full(turns_of(*batch), seed)
    chosen = CreditSettings(rule=rule, seed=seed)
    found = credit(turns, advantages, chosen)
    for group in range(turns.groups):
        assert found.weights[turns.group == group].mean() == pytest.approx(1, abs=1e-6)
    assert found.advantages == pytest.approx(advantages * found.weights)


@given(_BATCH, st.sampled_from(sorted(RULES)), st.integers(1, 3), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_split_over_ranks(batch: Any, rule: str, ranks: int, chance: Any) -> None:
    """Any split of the rows gives each turn the credit that it has in one process; a rank may hold nothing."""
    turns, advantages = full(turns_of(*batch))
    chosen = CreditSettings(rule=rule, seed=3)
    whole = credit(turns, advantages, chosen)
    where = np.array([chance.randrange(ranks) for _ in range(len(turns))])
    rows = [np.flatnonzero(where == rank) for rank in range(ranks)]
    parts = across_ranks([taken(turns, of) for of in rows], [advantages[of] for of in rows], chosen)
    for of, part in zip(rows, parts, strict=True):
        assert part.weights == pytest.approx(whole.weights[of], abs=1e-9)
        assert part.advantages == pytest.approx(whole.advantages[of], abs=1e-9)
        assert part.metrics == pytest.approx(whole.metrics, abs=1e-7)


def test_the_two_parts_of_a_rule() -> None:
    """What two processes hold, added, gives weights with a mean of one over both."""
    turns = turns_of([[0.4, 0.8], [0.6, 0.1]], [[2.0, 1.0]])
    halves = [np.array([0, 3, 4]), np.array([1, 2, 5])]
    ones = np.ones(3, dtype=bool)
    sums = sum(local_sums(turns.entropy[half], turns.group[half], ones, 2) for half in halves)
    assert sums == pytest.approx(np.array([[1.9, 4], [3.0, 2]]))  # type: ignore[comparison-overlap]
    parts = [weights_from(turns.entropy[half], turns.group[half], ones, np.asarray(sums)) for half in halves]
    weights = np.empty(6)
    for half, part in zip(halves, parts, strict=True):
        weights[half] = part
    assert weights[:4].mean() == pytest.approx(1, abs=1e-12) and weights[4:].mean() == pytest.approx(1, abs=1e-12)


@given(_BATCH, st.sampled_from(sorted(RULES)), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_the_order_of_rows_does_not_matter(batch: Any, rule: str, chance: Any) -> None:
    turns, advantages = full(turns_of(*batch))
    order = list(range(len(turns)))
    chance.shuffle(order)
    chosen = CreditSettings(rule=rule, seed=5)
    before, after = credit(turns, advantages, chosen), credit(taken(turns, order), advantages[order], chosen)
    assert after.weights == pytest.approx(before.weights[order])
    assert after.advantages == pytest.approx(before.advantages[order], abs=1e-12)


@given(_BATCH, st.sampled_from(sorted(RULES)), st.integers(0, 4), st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_padding_and_copies_do_not_matter(batch: Any, rule: str, padding: int, copies: int) -> None:
    turns, advantages = full(turns_of(*batch))
    chosen = CreditSettings(rule=rule, seed=5)
    before = credit(turns, advantages, chosen)
    extra = np.concatenate([np.zeros(padding, dtype=int), np.arange(copies) % len(turns)])
    rows = np.concatenate([np.arange(len(turns)), extra])
    longer = {name: value[rows] if isinstance(value, np.ndarray) else value for name, value in vars(turns).items()}
    longer["counted"][len(turns) : len(turns) + padding] = False
    longer["entropy"] = longer["entropy"].copy()
    longer["entropy"][len(turns) : len(turns) + padding] = np.nan
    after = credit(Turns(**longer), advantages[rows], chosen)
    assert after.weights[: len(turns)] == pytest.approx(before.weights)
    assert after.advantages[: len(turns)] == pytest.approx(before.advantages, abs=1e-12)
    assert not after.weights[len(turns) :].any() and not after.advantages[len(turns) :].any()
    assert after.metrics["not_counted"] == padding + copies


@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_uncertain_turns_are_amplified_in_both_signs(advantage: float) -> None:
    turns = turns_of([[0.2, 1.0]], [[0.5]])
    found = credit(turns, np.full(3, advantage))
    low, high, alone = abs(found.advantages)
    assert low < abs(advantage) < high and alone == pytest.approx(abs(advantage))
    assert (np.sign(found.advantages) == np.sign(advantage)).all()
    damped = credit(turns, np.full(3, advantage), CreditSettings(rule="empg", empg_zeta=0)).weights
    assert damped[0] > damped[1], "EMPG does the opposite"


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"information_gain", "empg"}))
def test_zero_entropy_everywhere_and_a_single_turn(rule: str) -> None:
    for of in ([[0.0, 0.0], [0.0]], [[0.7]], [[0.0]]):
        turns = replace(turns_of(of), action_entropy=np.zeros(sum(map(len, of))))
        assert credit(turns, np.ones(len(turns)), CreditSettings(rule=rule)).weights == pytest.approx(1)


def test_empg_where_all_are_equal() -> None:
    found = credit(turns_of([[0.5, 0.5]]), [1, 1], CreditSettings(rule="empg"))
    assert found.weights == pytest.approx(1) and found.advantages.sum() == pytest.approx(0)


def test_shuffled_is_a_permutation_that_the_seed_and_step_decide() -> None:
    turns = turns_of([list(np.linspace(0.1, 1, 8)), list(np.linspace(1, 2, 8))], [[3.0, 4.0]])
    ones = np.ones(len(turns))

    def weights(seed: int, step: int = 0) -> FloatArray:
        return credit(turns, ones, CreditSettings(rule="shuffled", seed=seed), step=step).weights

    plain = credit(turns, ones).weights
    assert sorted(weights(1)[:16]) == pytest.approx(sorted(plain[:16])) and weights(1)[:16] != pytest.approx(plain[:16])
    assert weights(1) == pytest.approx(weights(1))
    assert weights(1) != pytest.approx(weights(2)) and weights(1) != pytest.approx(weights(1, step=1))
    assert sorted(weights(1)[16:]) == pytest.approx([6 / 7, 8 / 7]), "only within the question"


def test_values_that_are_missing_name_their_turn() -> None:
    for wrong in (np.nan, np.inf, -0.5):
        with pytest.raises(CreditError, match="question 1, trajectory 1, turn 2: its entropy is"):
            turns_of([[0.1]], [[0.2, wrong]])
    assert turns_of([[0.1, -1e-7]]).entropy[1] == 0, "a rounding error"
    with pytest.raises(CreditError, match="question 0, trajectory 1, turn 1: the advantage of its trajectory is nan"):
        credit(turns_of([[0.1], [0.2]]), [1, np.nan])
    entropies, mask = np.full((2, 3), 0.5), np.array([[0, 1, 1], [1, 1, 0]], dtype=bool)
    ids: dict[str, Any] = {"group": [0, 0], "trajectory": [0, 1], "number": [1, 1], "groups": 1, "trajectories": 2}
    entropies[0, 0] = entropies[1, 2] = np.nan
    assert turns_of_tokens(entropies, mask, **ids, top_k=None).entropy == pytest.approx(0.5), "padding is ignored"
    entropies[0, 2] = np.nan
    with pytest.raises(CreditError, match="question 0, trajectory 0, turn 1: the entropy of its token 2 is NaN"):
        turns_of_tokens(entropies, mask, **ids, top_k=None)
    assert len(turns_of_tokens(entropies, mask, **ids, top_k=None, counted=[False, True])) == 2
    with pytest.raises(CreditError, match="trajectory 1, turn 1: it has no token"):
        turns_of_tokens(np.zeros((2, 3)), [[1, 1, 1], [0, 0, 0]], **ids, top_k=None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"group": [0, 1]}, "group goes from 0 to 1; it must be from 0 to 0"),
        ({"trajectory": [-1, 0]}, "trajectory goes from -1 to 0"),
        ({"number": [1]}, "number has shape"),
        ({"counted": [True]}, "counted has shape"),
        ({"action": [[True]]}, r"action has shape \(1, 1\)"),
    ],
)
def test_arrays_that_do_not_fit(change: dict[str, Any], words: str) -> None:
    ids = {"group": [0, 0], "trajectory": [0, 0], "number": [1, 2], "groups": 1, "trajectories": 1} | change
    with pytest.raises(CreditError, match=words):
        turns_of_tokens(np.ones((2, 3)), np.ones((2, 3)), **ids, top_k=None)  # type: ignore[arg-type]
    with pytest.raises(CreditError, match="entropies have shape"):
        turns_of_tokens(np.ones((2, 3)), np.ones((2, 2)), **ids, top_k=None)  # type: ignore[arg-type]
    with pytest.raises(CreditError, match="there are 1 turns, and advantages of shape"):
        credit(turns_of([[1.0]]), [1, 2])


def test_entropies_of_a_few_tokens_are_refused_unless_asked_for() -> None:
    turns = turns_of([[0.4, 0.8]], top_k=20)
    for rule in sorted(set(RULES) - {"none", "information_gain", "taura_action"}):
        with pytest.raises(CreditError, match=f"over the likeliest 20 tokens, and the rule {rule} means"):
            credit(turns, [1, 1], CreditSettings(rule=rule))
    assert credit(turns, [1, 1], CreditSettings(entropies="top_k")).weights == pytest.approx([2 / 3, 4 / 3])
    assert credit(turns, [1, 1], CreditSettings(rule="none")).weights == pytest.approx(1), "it reads no entropy"
    with pytest.raises(CreditError, match="taura_action needs to know which tokens are the action"):
        credit(turns_of([[1.0]]), [1], CreditSettings(rule="taura_action"))
    with pytest.raises(CreditError, match="information_gain needs probabilities and rewards"):
        credit(turns_of([[1.0]]), [1], CreditSettings(rule="information_gain"))


def test_settings_from_yaml(tmp_path: Path) -> None:
    file = tmp_path / "credit.yaml"
    file.write_text("rule: taura_clipped\nclip_high: 3\n")
    assert CreditSettings.read(file) == CreditSettings(rule="taura_clipped", clip_high=3.0)
    unknown = r"there is no rule of credit 'tuara' \(did you mean 'taura'\?\); the rules are none, taura,"
    with pytest.raises(CreditError, match=unknown):
        rule_named("tuara")
    with pytest.raises(ValueError, match=unknown):
        CreditSettings(rule="tuara")
    for text, words in {
        "rule: tuara": rf"credit.yaml: rule='tuara': {unknown}",
        "rule: 3": "credit.yaml: rule=3: Input should be a valid string",
        "entropies: some": "entropies='some': Input should be 'full' or 'top_k'",
        "clip_low: 1.0": "clip_low=1.0: Input should be less than 1",
        "empg_zet: 1": r"there is no setting 'empg_zet' \(did you mean 'empg_zeta'\?\)",
    }.items():
        file.write_text(text)
        with pytest.raises(SettingsError, match=words):
            CreditSettings.read(file)


def test_nothing_loads_torch() -> None:
    modules = ["across", "credit", "groups", "rewards", "settings", "turns", "action_tokens"]
    code = f"import sys; {'; '.join(f'import apr_plugin.training.grpo.{name}' for name in modules)}; "
    code += "print(*{'torch', 'transformers', 'scipy', 'statsmodels', 'yaml'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []


def test_no_turns_at_all() -> None:
    nothing = taken(turns_of([[1.0]]), [])
    for rule in RULES:
        turns = replace(nothing, action_entropy=np.zeros(0)).with_probabilities(np.zeros((0, 2)), [])
        found = credit(turns, [], CreditSettings(rule=rule), OneProcess())
        assert len(found.advantages) == 0 and found.metrics == {"turns": 0.0, "not_counted": 0.0}
