"""The demo's tables, from made-up rows, and its closing commands, which the README shows."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from apr_plugin.cli.demo import Scored, closing_commands, print_tables
from apr_plugin.loop.question import Question, QuestionKind
from apr_plugin.loop.trajectory import Shown, StopReason, Timings, Trajectory, Turn
from apr_plugin.tasks.needle.make import NeedleSpec, planned_docs

README = Path(__file__).parents[2] / "README.md"


def _scored(
    bucket: str, doc: str, score: float, task: str = "apr_needle_glyph", turns: int = 3
) -> tuple[tuple[str, str], Scored]:
    shown = Shown(kind="frames", times_s=(1.0, 2.0), visual_tokens=128)
    trajectory = Trajectory(
        question=Question(text="q", kind=QuestionKind.MCQ, task=task, doc_id=doc),
        turns=tuple(Turn(text="t", shown=shown) for _ in range(turns)),
        stop_reason=StopReason.ANSWERED,
        timings=Timings(total_s=0.5),
    )
    return (task, doc), Scored(bucket, task, score, trajectory)


def test_tables() -> None:
    agent = dict(_scored(bucket, f"{bucket}{n}", 1.0) for bucket in ("10m", "1m", "120m") for n in range(8))
    agent |= dict([_scored("1m", "w", 0.75, "apr_needle_when")])
    passive = dict(
        _scored(bucket, f"{bucket}{n}", float(bucket == "1m"), turns=1)
        for bucket in ("10m", "1m", "120m")
        for n in range(8)
    )
    passive |= dict([_scored("1m", "w", 0.25, "apr_needle_when", turns=1)])
    console = Console(file=io.StringIO(), width=160)
    print_tables(console, {"agent": agent, "passive 32": passive})
    text = console.file.getvalue()  # type: ignore[attr-defined]
    rows = [line.replace("│", " ").split() for line in text.splitlines()]
    right, cost = (
        [row for row in rows if row and row[0] in ("1", "10", "120", "all")][half]
        for half in (slice(0, 4), slice(4, 8))
    )
    assert [row[:2] for row in right] == [["1", "9"], ["10", "8"], ["120", "8"], ["all", "25"]]
    assert (right[0][2], right[0][4]) == ("1.00", "0.89") and (right[3][2], right[3][4]) == ("1.00", "0.32")
    assert float(right[1][6]) < 0.05 < float(right[0][6])
    assert (
        [row[0] for row in cost] == ["1", "10", "120", "all"]
        and cost[0][1:5] == ["3.0", "6", "0", "384"]
        and cost[0][6:] == ["0.75", "0.25"]
    )


def test_readme_shows_the_commands_that_the_demo_ends_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The set comes from a seed, so names, questions and answers are the same on every machine."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "demo_out"
    docs = [doc | {"video": str(out / "needle" / doc["video"])} for doc in planned_docs(NeedleSpec())]
    commands = closing_commands(".venv/bin/apr", out, docs)
    shown = [line.strip() for line in README.read_text("utf-8").splitlines()]
    assert [f"{command}  # {remark}" if remark else command for command, remark in commands] == [
        line for line in shown if line.startswith(".venv/bin/apr")
    ]
    for command, remark in commands:
        words = shlex.split(command)
        if words[1] == "ask":
            (doc,) = (doc for doc in docs if doc["question"] == words[3] and doc["video"] == str(tmp_path / words[2]))
            assert remark.startswith(str(doc["answer"]))
