"""The summary of a comparison: what it counts, what it says first, and that it is plain JSON."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
from making import TASK, answered, arm_of, look, store_run, trajectory

pytest.importorskip("statsmodels")

from apr_plugin.compare.cost import Price
from apr_plugin.compare.joined import arm_of_run, join
from apr_plugin.compare.summary import summarise
from apr_plugin.loop.trajectory import StopReason
from apr_plugin.report.tables import markdown, tables
from apr_plugin.scoring.truth import Evidence, Truth


def test_a_comparison_of_two_runs(tmp_path: Path) -> None:
    truths = {str(n): Truth("A", (Evidence(10, 20),)) for n in range(8)}
    agent = [trajectory(n, [look(0, 100), look(8, 22), answered("A")], "A") for n in range(7)]
    agent.append(trajectory(7, [], None, stop_reason=StopReason.MEDIA_UNREADABLE))
    passive = [
        trajectory(n, [answered("A" if n < 2 else "B")], "A" if n < 2 else "B", first_shown=(look(60, 100).shown,))
        for n in range(8)
    ]
    ours = store_run(tmp_path / "agent", agent, {str(n): 1.0 for n in range(7)} | {"7": 0.0}, truths)
    theirs = store_run(tmp_path / "passive", passive, {str(n): float(n < 2) for n in range(8)}, truths, arm="passive")
    comparison = join([arm_of_run("agent", ours), arm_of_run("passive 4", theirs)])
    figure = {"system": "Other", "benchmark": "x", "metric": "accuracy (%)", "value": 50.5, "frames": None}
    summary = summarise(comparison, command="apr compare …", published=[figure | {"source": "a paper", "note": ""}])
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    first, second = summary["arms"]
    assert (first["n"], first["scored"], first["failed"], summary["common"]) == (8, 7, 1, 7)
    assert (
        first["accuracy"]["value"] == 7 / 8
        and second["accuracy"]["value"] == 0.25
        and first["common_score"]["value"] == 1
    )
    (pair,) = summary["pairs"]
    assert (pair["only_a"], pair["only_b"], pair["n"]) == (5, 0, 8) and pair["diff"]["value"] == pytest.approx(0.625)
    assert first["cost"]["turns"]["value"] == pytest.approx(3) and first["stops"] == {
        "answered": 7,
        "media_unreadable": 1,
    }
    assert summary["aiming"]["agent"]["hit"]["value"] == 1 and summary["aiming"]["passive 4"]["hit"]["value"] == 0
    assert summary["aiming"]["passive 4"]["unsupported"]["value"] > 0
    assert any("1 of 8 questions have no answer" in line for line in summary["headline"])
    page = markdown(summary)
    assert "| agent | all turns over all hours | 108.00" in page  # 3 turns over 100 s
    assert "| agent | 8 | 0.88" in page and "not tested against" in page and "a paper" in page
    assert next(table.title for table in tables(summary)).startswith("Right answers")


def test_where_prices_are_from_is_said(tmp_path: Path) -> None:
    made = [trajectory(n, [look(0, 50), answered("B")], "B") for n in range(3)]
    run = store_run(tmp_path / "run", made, {str(n): 1.0 for n in range(3)})
    named = copy.copy(run)
    named.card = {**run.card, "policy": {"pretrained": "m/M"}}
    comparison = join([arm_of_run("ours", named), arm_of_run("other", run)])
    prices = {"m/M": Price("2026-11-01", "an invoice", gpu_hour=3600.0)}
    summary = summarise(comparison, prices=prices)
    assert [arm["cost"]["usd"] is None for arm in summary["arms"]] == [False, True]
    assert summary["notes"][1:] == [
        "ours: US dollars by the prices of 2026-11-01 (an invoice)",
        "other: the file of prices has no entry for its model, so its cost in money is unknown",
    ]
    assert not [note for note in summarise(comparison)["notes"] if "price" in note]


def test_an_agent_below_the_passive_arm_of_its_model_is_said_first(tmp_path: Path) -> None:
    made = [trajectory(n, [look(0, 50), answered("B")], "B") for n in range(6)]
    agent = store_run(tmp_path / "agent", made, {str(n): 0.0 for n in range(6)})
    passive = store_run(tmp_path / "passive", made, {str(n): 1.0 for n in range(6)}, arm="passive")
    summary = summarise(join([arm_of_run("agent", agent), arm_of_run("passive", passive)]))
    assert any("below the passive arm passive of the same model" in line for line in summary["headline"])
    other = summarise(join([arm_of_run("passive", passive), arm_of_run("agent", agent)]))  # in any order
    assert any("below the passive arm passive of the same model" in line for line in other["headline"])
    better = summarise(join([arm_of_run("agent", agent), arm_of_run("agent too", agent)]))
    assert not any("below the passive arm" in line for line in better["headline"])


def test_words_and_signs_agree_and_few_videos_are_said() -> None:
    ours, theirs = (
        arm_of(name, dict.fromkeys(range(40), value), per_video=5) for name, value in (("ours", 0.0), ("theirs", 1.0))
    )
    (line,) = summarise(join([ours, theirs]))["headline"]
    assert line.startswith("ours is right on 100.0 percentage points (+") and "fewer of the questions" in line
    (note,) = summarise(join([ours, theirs]))["notes"]
    assert note.startswith("the 40 questions are about 8 videos")
    two = [arm_of(name, {n: value for n in range(8)}, per_video=4) for name, value in (("a", 1.0), ("b", 0.0))]
    summary = summarise(join(two))  # sign flips of two videos: p is 0.5 at least
    assert summary["pairs"][0]["p"] == 0.5 and summary["pairs"][0]["visible"] is None
    assert "which can show" not in summary["headline"][0] and "no difference can reach p < 0.05" in summary["notes"][0]
    few = [
        arm_of(name, {n: float(n in right) for n in range(6)}) for name, right in (("ours", {0}), ("theirs", {0, 1, 2}))
    ]
    summary = summarise(join(few))
    assert "the difference is -33.3 percentage points (-" in summary["headline"][0] and summary["notes"] == []


def test_rows_without_trajectories() -> None:
    summary = summarise(
        join([arm_of("ours", dict.fromkeys(range(5), 1.0)), arm_of("theirs", dict.fromkeys(range(5), 1.0))])
    )
    assert summary["arms"][0]["cost"] is None and summary["aiming"] == {} and summary["ladder"] is None
    assert "can't be told apart" in summary["headline"][0] and summary["title"] == TASK
    one = summarise(join([arm_of("alone", {1: None})]))
    assert one["pairs"] == [] and "1 of 1 questions have no answer" in one["headline"][0]


def test_a_run_that_goes_on_does_not_look_wrong() -> None:
    """lmms-eval scores at the end; until then an arm has answers and no score."""
    ours, theirs = (arm_of(name, dict.fromkeys(range(8), 1.0)) for name in ("ours", "theirs"))
    for key, outcome in theirs.outcomes.items():
        theirs.outcomes[key] = dataclasses.replace(outcome, status="missing", score=0.0)
    failed = arm_of("failed", dict.fromkeys(range(8)))
    for arms in ([ours, theirs, failed], [theirs, ours]):
        summary = summarise(join(arms))
        of = {arm["name"]: arm for arm in summary["arms"]}
        assert of["theirs"]["accuracy"] is of["theirs"]["score"] is summary["buckets"][0]["arms"]["theirs"] is None
        assert of["ours"]["accuracy"]["value"] == 1
        assert not [pair for pair in summary["pairs"] if "theirs" in (pair["a"], pair["b"])]
        assert any(line.startswith("theirs has no scores yet") for line in summary["headline"])
        assert "| theirs | 8 | - | - |" in markdown(summary)
    assert of.keys() == {"theirs", "ours"} and summary["pairs"] == []
    (pair,) = summarise(join([ours, failed]))["pairs"]  # it could not answer, which counts as wrong
    assert pair["diff"]["value"] == 1
