"""The rules of credit in two real processes, joined by gloo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from apr_plugin.training.grpo.credit import RULES, CreditSettings, credit
from apr_plugin.training.grpo.turns import Turns


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    chance = np.random.default_rng(0)
    trajectory = np.repeat(np.arange(4), [3, 2, 4, 1])
    n = len(trajectory)
    arrays = {
        "group": trajectory // 2,
        "trajectory": trajectory,
        "number": np.concatenate([np.arange(1, many + 1) for many in (3, 2, 4, 1)]),
        "entropy": chance.uniform(0.1, 2, n),
        "tokens": chance.integers(1, 60, n),
        "counted": np.ones(n, dtype=bool),
        "action_entropy": chance.uniform(0.1, 2, n),
        "probability": chance.random((n, 2)),
        "reward": np.array([1.0, 0.0, 0.5, 0.0])[trajectory],
    }
    advantages = np.array([1.0, -1.0, 0.7, -0.7])[trajectory]
    rank = np.array([0, 1, 0, 1, 1, 0, 0, 0, 1, 0])  # 6 turns and 4
    np.savez(tmp_path / "turns.npz", **arrays, rank=rank, advantages=advantages)
    ranks = Path(__file__).with_name("credit_ranks.py")
    subprocess.run([sys.executable, "-P", str(ranks), str(tmp_path)], check=True, timeout=300)

    parts = [np.load(tmp_path / f"{number}.npz") for number in (0, 1)]
    turns = Turns(**arrays, groups=2, trajectories=4)
    for rule in RULES:
        whole = credit(turns, advantages, CreditSettings(rule=rule, seed=1), step=2)
        for number, part in enumerate(parts):
            assert part[f"{rule}.weights"] == pytest.approx(whole.weights[rank == number], abs=1e-12), rule
            assert part[f"{rule}.advantages"] == pytest.approx(whole.advantages[rank == number], abs=1e-12), rule
            assert float(part[f"{rule}.mean"]) == pytest.approx(whole.metrics["mean"])
    joined = np.empty(n)
    for number, part in enumerate(parts):
        joined[rank == number] = part["taura.weights"]
    for group in (0, 1):
        assert joined[trajectory // 2 == group].mean() == pytest.approx(1, abs=1e-6)
