"""Plots and tables: what is drawn and written, and that odd texts and missing figures do no harm."""

from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path

import pytest
from report_making import interval, made_comparison, made_summary, share

from apr_plugin.compare.joined import Comparison
from apr_plugin.errors import AprError
from apr_plugin.report import plots

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return made_comparison(tmp_path_factory.mktemp("made"), 30)


def test_every_plot_is_a_picture_and_the_same_each_time(made: Comparison, tmp_path: Path) -> None:
    first, second = (plots.write(made_summary(made), tmp_path / name) for name in ("one", "two"))
    names = ("score_duration", "cost_duration", "score_frames", "scaling", "stops")
    assert [path.name for path in first] == [f"{name}.{form}" for name in names for form in plots.FORMATS]
    for path, again in zip(first, second, strict=True):
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml") and len(data) > 5000
        assert data == again.read_bytes()


def test_what_has_no_figures_is_left_out(made: Comparison, tmp_path: Path) -> None:
    summary = made_summary(made, sweep=None, buckets=[], published=[])
    assert {path.stem for path in plots.write(summary, tmp_path)} == {"score_frames", "stops"}
    assert plots.write({}, tmp_path / "empty") == []
    nothing = {"value": None, "low": None, "high": None, "n": 0}
    bare = {"arms": [{"name": "_a", "score": {"value": 0.5, "low": None, "high": None}, "cost": {"frames": None}}]}
    buckets = [{"name": "all", "n": 1, "arms": {"_a": nothing}, "cost": {"_a": None}}]
    assert plots.write({**bare, "buckets": buckets}, tmp_path / "bare") == []


def test_texts_are_not_read_as_formulas(made: Comparison, tmp_path: Path) -> None:
    odd = "$\\frac{1}{$ <b> _x\x07 \ud800"
    arms = [
        {"name": odd, "stops": {"answered": 3}, "score": share([True, False]), "cost": {"frames": interval([3, 5])}}
    ]
    sweep = {"setting": odd, "points": [{"value": f"{odd}{n}", "arm": odd, "score": share([True])} for n in range(3)]}
    published = [{"system": odd, "metric": "accuracy (%)", "value": 40.0, "frames": 9.0}]
    buckets = [{"name": odd, "n": 2, "arms": {odd: share([True])}, "cost": {odd: {"frames": interval([3])}}}]
    summary = {"arms": arms, "sweep": sweep, "published": published, "buckets": buckets}
    assert len(plots.write(summary, tmp_path)) == 10


def test_published_points_are_hollow(made: Comparison, tmp_path: Path) -> None:
    def hollow(summary: dict[str, object], folder: str) -> int:
        plots.write(summary, tmp_path / folder)
        return len(
            re.findall(r'<use [^>]*style="fill-opacity: 0', (tmp_path / folder / "score_frames.svg").read_text())
        )

    assert hollow(made_summary(made), "with") - hollow(made_summary(made, published=[]), "without") >= 2


def test_tables_hold_every_question_turn_and_pair(made: Comparison, tmp_path: Path) -> None:
    summary = made_summary(made)
    questions, turns, pairs = (list(csv.DictReader(path.open())) for path in plots.tables_csv(made, summary, tmp_path))
    assert len(questions) == 30 * 3
    first = made.arms[0]
    for row in questions:
        arm = next(arm for arm in made.arms if arm.name == row["comparison_arm"])
        outcome = arm.outcome((row["task"], row["split"], row["doc_id"], int(row["repeat"])))
        assert (row["status"], row["right"] == "1") == (outcome.status, outcome.right)
        assert row["score"] == (str(outcome.score) if outcome.status == "scored" else "")
    taken = {key: trajectory for key in made.keys if (trajectory := first.trajectory(key)) is not None}
    own = [row for row in turns if row["comparison_arm"] == first.name]
    assert len(own) == sum(len(trajectory.turns) for trajectory in taken.values())
    assert [(row["a"], row["b"]) for row in pairs if not row["bucket"]] == [
        (pair["a"], pair["b"]) for pair in summary["pairs"]
    ]
    assert [float(row["diff"]) for row in pairs if not row["bucket"]] == [
        pytest.approx(pair["diff"]["value"]) for pair in summary["pairs"]
    ]


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"), ("+a", "'+a"), ("@x", "'@x"), ("-2.5", "-2.5"), ("-2.5+1", "'-2.5+1"),
        ("[[1, 2]]", "[[1, 2]]"), ("A", "A"), ("\ud800", "?"), (-3, -3), (None, None),
    ],
)  # fmt: skip
def test_a_cell_is_never_a_formula(text: object, cell: object) -> None:
    assert plots._cell(text) == cell


def test_a_table_holds_nothing_that_a_terminal_obeys(made: Comparison, tmp_path: Path) -> None:
    first, *others = made.arms
    named = dataclasses.replace(made, arms=[dataclasses.replace(first, name="a\x1b[31m\u202e\nb"), *others])
    text = plots.tables_csv(named, made_summary(made), tmp_path)[0].read_text()
    assert "\x1b" not in text and "\u202e" not in text and "a\ufffd[31m" in text


def test_a_folder_that_cant_be_written_is_named(made: Comparison, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AprError, match=r"questions\.csv: cannot write this table"):
        plots.tables_csv(made, made_summary(made), tmp_path / "file")
    with pytest.raises(AprError, match=r"score_duration\.png: cannot write this plot"):
        plots.write(made_summary(made), tmp_path / "file")
