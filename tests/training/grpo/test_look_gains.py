"""`apr train gain`: what each look told, on planted effects and on real trajectories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("statsmodels")

from apr_plugin.errors import AprError
from apr_plugin.runs.truths import write_truths
from apr_plugin.scoring.truth import Evidence, Truth
from apr_plugin.training.commands import app
from apr_plugin.training.gain_command import GAINS, PROBABILITIES
from apr_plugin.training.grpo.gains import asked
from apr_plugin.training.look_gains import LookGain, analyse_gains, spearman

VL = "qwen2_5_vl"


def planted(slope: float, bonus: float, many: int = 120) -> list[LookGain]:
    """Looks whose gain follows their entropy, and is larger where they showed evidence."""
    chance = np.random.default_rng(3)
    found = []
    for at in range(many):
        entropy, hit = float(chance.exponential(0.4)), bool(chance.random() < 0.4)
        gain = float(np.clip(slope * entropy + bonus * hit + chance.normal(0, 0.05), -1, 1))
        found.append(LookGain(f"film{at % 20}", "frames", gain, entropy, hit, at % 3 > 0))
    return found


def test_planted_effects_are_found_and_none_is_invented() -> None:
    found = analyse_gains([*planted(0.3, 0.2), LookGain("film0", "refused", 0.0, None, None, True)])
    for interval in (found.difference, found.with_entropy, found.with_hit):
        assert interval is not None and interval.low is not None and interval.low > 0 and interval.n == 120
    assert found.difference is not None and found.difference.value == pytest.approx(0.2, abs=0.06)
    named = dict(found.rows)
    assert named["looks"].n == 120 and named["refused turns"].value == 0  # type: ignore[union-attr]
    assert named["looks that showed evidence"].value > named["looks that missed evidence"].value  # type: ignore[union-attr]
    nothing = analyse_gains(planted(0.0, 0.0))
    for interval in (nothing.difference, nothing.with_entropy, nothing.with_hit):
        assert interval is not None and interval.low is not None and interval.high is not None
        assert interval.low < 0 < interval.high
    bare = analyse_gains([LookGain("a", "audio", 0.1, None, None, None)])
    assert bare.difference is bare.with_entropy is bare.with_hit is None and dict(bare.rows).keys() == {
        "looks",
        "audio",
    }


def test_rank_correlation_by_hand() -> None:
    assert spearman(np.array([[1.0, 10], [2, 100], [3, 1000]])) == pytest.approx(1)
    assert spearman(np.array([[1.0, 3], [2, 1], [3, 2]])) == pytest.approx(-0.5)
    assert np.isnan(spearman(np.array([[1.0, 3], [2, 3]])))


def test_stored_trajectories_are_scored_as_in_training(rolled: Callable[[str], Any], tiny: Any, tmp_path: Path) -> None:
    """From a kept rollout: the same probabilities as its rows in memory; a second call scores nothing again."""
    trainer = rolled(VL)
    trainer.args.output_dir = str(tmp_path / "out")
    kept = trainer.keep_stopped()
    assert kept is not None
    (folder,) = (path.parent for path in kept.glob("*/card.json"))
    command = ["gain", str(folder), "--model", str(tiny(VL)), "--out", str(tmp_path / "gain")]
    bare = CliRunner().invoke(app, command)
    assert isinstance(bare.exception, AprError) and "no trajectory can be scored: no_truth 2" in str(bare.exception)
    truth = Truth("A", (Evidence(0.0, 1.5),))
    write_truths(folder, {trainer.questions[0].key: truth})
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.exception
    assert "2 trajectories scored" in shown.output and "looks that showed evidence" in shown.output
    (place,) = (tmp_path / "gain").iterdir()
    lines = [json.loads(line) for line in (place / PROBABILITIES).read_text().splitlines()]
    found = sorted(tuple(line["p"]) for line in lines)
    wanted: dict[str, list[float]] = {}
    for row in sorted((row for pack in trainer.part.packs for row in pack), key=lambda row: row.where):
        one = asked(row.prompt, row.ids, truth, trainer.rollouts.student, row.where)
        values, _ = trainer.scores(one.rows, compare=False)
        wanted.setdefault(row.where.rpartition(",")[0], []).append(one.probability([values[0].detach().numpy()]))
    for here, there in zip(found, sorted(map(tuple, wanted.values())), strict=True):
        assert here == pytest.approx(there, rel=1e-3)
    data = json.loads((place / GAINS).read_text())
    assert data["counted"] == 2 and data["turns"] == 5
    # One turn was refused; looks at 0 to 4 s showed the evidence.
    assert data["mean"]["refused turns"]["n"] == 1 and data["mean"]["looks"]["n"] == 4
    assert data["mean"]["looks that showed evidence"]["n"] >= 2 and data["with_entropy"] is not None

    # A kill in the middle of a line: the next call scores that trajectory alone.
    whole = (place / PROBABILITIES).read_bytes()
    (place / PROBABILITIES).write_bytes(whole[:-20])
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0 and json.loads((place / GAINS).read_text())["mean"] == data["mean"]
    assert len((place / PROBABILITIES).read_bytes().splitlines()) == 3
