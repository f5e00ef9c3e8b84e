"""Model `apr` inside the real VLMEvalKit: its own runner in both modes, on needle videos, beside lmms-eval."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from vlmeval_testing import Ended, Warm

from apr_plugin.compare.joined import arm_of_rows, arm_of_run, join
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.runs.opened import Run, open_run
from apr_plugin.tasks.needle.make import NeedleSpec, make_needle

pytestmark = pytest.mark.xdist_group("vlmeval")  # loading VLMEvalKit takes longer than all of these tests

KINDS = ("glyph", "when", "sound", "count", "order")

API = ("apr_needle_when", "apr_needle_count")
"""What the API mode is asked: there VLMEvalKit starts processes for each data set."""


@pytest.fixture(scope="module")
def needles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("needles")
    return Path(
        make_needle(folder, NeedleSpec(buckets=("1m",), videos_per_bucket=1, questions_per_kind=1), progress=False)
    )


@pytest.fixture(scope="module")
def runs(vlmeval: Warm, needles: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[Path, Ended]]:
    """The needle questions in VLMEvalKit's local mode and in its API mode, and in lmms-eval."""
    out = tmp_path_factory.mktemp("both")
    arguments = ["--model_args", "policy=needle,concurrency=2"]
    commands: dict[str, list[str | Path]] = {
        "local": ["vlmeval", "--data", "apr_needle", *arguments, "--work-dir", out / "local"],
        "api": ["vlmeval", "--data", *API, *arguments, "--work-dir", out / "api", "--api-mode"],
        "lmms": ["eval", "--tasks", "apr_needle", *arguments, "--output_path", out / "lmms", "--log_samples"],
    }
    ended = vlmeval.run(*commands.values(), environment={"APR_NEEDLE_DIR": str(needles)})
    return {name: (out / name, how) for name, how in zip(commands, ended, strict=True)}


def test_importing_vlmevalkit_leaves_the_process_as_it_was(vlmeval: Warm) -> None:
    """TLS verification, gradients, random states, the environment and limits on untrusted input."""
    report = vlmeval.loaded
    assert report["before"]["tls"] and report["before"]["gradients"]
    for name, value in report["before"].items():
        assert report["after"][name] == value, name


def test_both_modes_end_well_and_score_as_lmms_eval_does(runs: Mapping[str, tuple[Path, Ended]]) -> None:
    scores = {}
    for name, (folder, ended) in runs.items():
        assert ended.status == 0, ended.text
        results = json.loads(next(folder.rglob("*_results.json")).read_text())["results"]
        scores[name] = {
            task: {metric: value for metric, value in results[task].items() if _is_figure(metric, value)}
            for task in results
            if task != "apr_needle"  # the group, under lmms-eval
        }
    assert len(scores["local"]) == len(KINDS) and scores["local"] == scores["lmms"]
    assert scores["api"] == {task: scores["lmms"][task] for task in API}
    assert scores["lmms"]["apr_needle_when"]["iou_set,none"] == 1
    assert scores["lmms"]["apr_needle_count"]["n_1m,none"] == 1


def _is_figure(metric: str, value: object) -> bool:
    return "stderr" not in metric and isinstance(value, int | float)


def test_the_trajectories_are_those_of_lmms_eval(runs: Mapping[str, tuple[Path, Ended]]) -> None:
    """Word for word, seeds and configuration included; only what is measured in seconds differs."""
    opened = {name: open_run(folder) for name, (folder, _) in runs.items()}
    assert opened["local"].config_hash == opened["api"].config_hash == opened["lmms"].config_hash
    assert len(opened["lmms"]) == len(KINDS)
    assert opened["local"].truths == opened["lmms"].truths != {}
    assert opened["api"].truths.items() <= opened["lmms"].truths.items()
    for trajectory in opened["lmms"]:
        key = trajectory.question.key
        expected = _without_seconds(trajectory)
        assert _without_seconds(opened["local"][key]) == expected
        if key[0] in API:
            assert _without_seconds(opened["api"][key]) == expected


def _without_seconds(trajectory: Trajectory) -> Any:
    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items() if key not in MEASURED}
        return [clean(item) for item in value] if isinstance(value, list) else value

    return clean(json.loads(trajectory.to_json()))


MEASURED = ("timings", "model_s", "media_s", "decode_s", "packets")


def test_every_score_is_joined_to_its_trajectory(runs: Mapping[str, tuple[Path, Ended]]) -> None:
    """`open_run` reads a run of VLMEvalKit without problems, and `join` puts it beside one of lmms-eval."""
    opened: dict[str, Run] = {name: open_run(folder) for name, (folder, _) in runs.items()}
    assert not opened["local"].problems and not opened["api"].problems
    assert {score.value for score in opened["local"].scores.values()} == {1.0}
    arms = [arm_of_run(name, run) for name, run in opened.items()]
    arms.append(arm_of_rows("rows", next(runs["local"][0].glob("*_samples_apr_needle_glyph.jsonl"))))
    comparison = join(arms)
    assert len(comparison.keys) == len(KINDS)
    assert not [note for note in comparison.notes if not note.startswith(("rows", "api lacks"))]
    for key in comparison.keys:
        assert [arm.outcome(key).status for arm in (arms[0], arms[2])] == ["scored"] * 2
        assert arms[1].outcome(key).status == ("scored" if key[0] in API else "missing")
        assert comparison.bucket(key) == "1m"
    assert arms[0].task_versions == {f"apr_needle_{kind}": "2.0" for kind in KINDS}


def test_compare_takes_a_run_of_either_harness(
    vlmeval: Warm, runs: Mapping[str, tuple[Path, Ended]], tmp_path: Path
) -> None:
    pytest.importorskip("statsmodels")
    (ended,) = vlmeval.run(["compare", runs["local"][0], runs["lmms"][0], "--out", tmp_path / "report"], timeout_s=200)
    assert ended.status == 0, ended.text
    assert (tmp_path / "report").is_dir()


@pytest.mark.slow
def test_its_card_runs_it_again(
    runs: Mapping[str, tuple[Path, Ended]], vlmeval: Warm, needles: Path, tmp_path: Path
) -> None:
    """`apr reproduce` starts VLMEvalKit, not lmms-eval, with what the run was asked, and finds the same scores."""
    folder, _ = runs["api"]
    commands: list[list[str | Path]] = [
        ["export", "card", folder, "--out", tmp_path / "card"],
        ["reproduce", tmp_path / "card", "--out", tmp_path / "dry", "--dry-run"],
        ["reproduce", tmp_path / "card", "--out", tmp_path / "again"],
    ]
    made, dry, done = vlmeval.run(*commands, environment={"APR_NEEDLE_DIR": str(needles)})
    assert made.status == 0 and dry.status == 0, made.text + dry.text
    command = next(line for line in dry.text.splitlines() if line.startswith("apr "))
    assert command == (
        f"apr vlmeval --data {' '.join(sorted(API))} --model_args=policy=needle,concurrency=2 "
        f"--work-dir={tmp_path / 'dry'}"
    )
    assert "further options" in dry.text and "--api-mode" in dry.text and not (tmp_path / "dry").exists()
    assert done.status == 0, done.text
    assert "Every score is identical" in done.text and "answers: the same to all 2 questions" in done.text
    card = (tmp_path / "again" / "card.yaml").read_text()
    assert "harness: vlmeval" in card and "name: ms-vlmeval" in card
