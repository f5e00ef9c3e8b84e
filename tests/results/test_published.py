"""Published figures: every file is valid and has no duplicates, and the command prints them or suggests a name."""

from __future__ import annotations

import json
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest
from pydantic import ValidationError

from apr_plugin.cli.published import run_published
from apr_plugin.errors import AprError
from apr_plugin.report.published import PublishedScore, benchmarks, published

ROW = {
    "system": "s",
    "benchmark": "b",
    "metric": "accuracy (%)",
    "value": 1.0,
    "frames": None,
    "source": "Table 1",
    "note": "",
}


def test_the_data_lies_in_the_repository() -> None:
    assert Path(str(files("apr_plugin.results"))) == Path(__file__).parents[2] / "results"
    assert {
        "lvbench",
        "videomme",
        "mlvu",
        "minerva",
        "vsibench",
        "dailyomni",
        "worldsense",
        "omnivideobench",
        "longvale",
        "vue_tr",
    } <= set(benchmarks())


@pytest.mark.parametrize("benchmark", benchmarks())
def test_every_file_is_valid(benchmark: str) -> None:
    scores = published(benchmark)
    assert scores
    for score in scores:
        assert score.benchmark == benchmark
        if "%" in score.metric:
            assert score.value <= 100, score
    twice = [key for key, n in Counter((score.system, score.metric, score.source) for score in scores).items() if n > 1]
    assert not twice
    assert scores == sorted(scores, key=lambda score: (score.metric, -score.value, score.system)), (
        "metric by metric, the best first"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"value": float("nan")},
        {"value": -1},
        {"value": None},
        {"frames": 0},
        {"source": " "},
        {"system": ""},
        {"extra": 1},
        {"note": None},
    ],
)
def test_what_the_schema_refuses(change: dict[str, object]) -> None:
    PublishedScore.model_validate(ROW)
    with pytest.raises(ValidationError):
        PublishedScore.model_validate({**ROW, **change})


@pytest.mark.parametrize("field", list(ROW))
def test_every_field_is_needed(field: str) -> None:
    with pytest.raises(ValidationError):
        PublishedScore.model_validate({key: value for key, value in ROW.items() if key != field})


def test_figures_of_the_paper() -> None:
    """A few cells, read again from the tables."""
    of = {(score.system, score.metric, score.source): score for score in published("apr_lvbench")}
    omni = "OmniAgent, arXiv 2606.19341"
    assert of["OmniAgent-7B", "accuracy (%)", f"{omni}, Table 1"].value == 50.5
    assert of["OmniAgent-7B", "accuracy (%)", f"{omni}, Table 1"].frames == 203
    assert of["Qwen2.5-VL-72B", "accuracy (%)", f"{omni}, Table 1 and Figure 3"].value == 47.3
    bins = [
        score
        for score in published("lvbench")
        if score.source.endswith("Table 5") and score.metric.startswith("accuracy")
    ]
    questions = [int(score.note.split()[0]) for score in bins]
    assert sum(questions) == 1549
    assert sum(n * score.value for n, score in zip(questions, bins, strict=True)) / 1549 == pytest.approx(
        50.5, abs=0.05
    )


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    run_published("lvbench", as_json=False)
    out = capsys.readouterr().out
    assert (
        "lvbench, accuracy (%): published, not measured here" in out
        and "OmniAgent-7B" in out
        and "Table 1" in out
        and "50.5" in out
    )
    run_published("lvbench", as_json=True)
    assert [PublishedScore.model_validate(row) for row in json.loads(capsys.readouterr().out)] == published("lvbench")
    run_published(None, as_json=False)
    listed = capsys.readouterr().out
    assert all(name in listed for name in benchmarks())
    run_published(None, as_json=True)
    assert json.loads(capsys.readouterr().out) == {name: len(published(name)) for name in benchmarks()}


@pytest.mark.parametrize(
    ("typed", "meant"), [("lvbnch", "; did you mean lvbench?"), ("video-mme", "; did you mean videomme?"), ("xyz", ".")]
)
def test_a_typo_suggests(typed: str, meant: str) -> None:
    with pytest.raises(AprError) as caught:
        run_published(typed, as_json=False)
    assert str(caught.value).startswith(f"no published figures of '{typed}'{meant} There are: activitynet_captions, ")
