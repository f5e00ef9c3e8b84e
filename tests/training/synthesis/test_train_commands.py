"""`apr train synthesize|audit|funnel` on real needle videos: what they print, write and refuse."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apr_testing import answer, look
from chat_server import ChatServer, one_tls_context  # noqa: F401 - a fixture
from typer.testing import CliRunner, Result

from apr_plugin import policies
from apr_plugin.errors import AprError, WrongUsage
from apr_plugin.training.commands import app
from apr_plugin.training.rows import read_rows
from apr_plugin.training.synthesis import funnel


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The scripted teacher and judge by name, also where this package's entry points are of an older install."""
    for name, place in (("needle_teacher", "NeedleTeacher"), ("needle_judge", "NeedleJudge")):
        monkeypatch.setitem(policies.POLICIES, name, f"apr_plugin.training.synthesis.scripted:{place}")
    monkeypatch.setenv("APR_NEEDLE_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("COLUMNS", "200")


def _train(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_from_questions_to_rows(train_needle: Path, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    synthesize = (
        "synthesize",
        "-q",
        f"needle:{train_needle}",
        "--teacher",
        "policy=needle_teacher,seed=2",
        "--out",
        out,
    )
    before = _train(*synthesize, "--estimate")
    assert before.exit_code == 0 and "estimate, from the settings" in before.output, before.output
    assert "10 " in before.output and not list(out.glob("trajectories/*/*.jsonl"))
    made = _train(*synthesize)
    assert made.exit_code == 0, made.output
    assert "0 of 10 questions refused" in made.output and "at the first attempt" in made.output
    again = _train(*synthesize)
    assert (
        again.exit_code == 0 and "every question is finished" in again.output and "are not made again" in again.output
    )
    rated = _train("audit", out, "--judge", "policy=needle_judge")
    assert rated.exit_code == 0 and "right trajectories pass at 3 or more" in rated.output, rated.output
    assert "0 turns rated" in _train("audit", out, "--judge", "policy=needle_judge").output
    told = _train("funnel", out)
    assert told.exit_code == 0 and "manifest.jsonl" in told.output, told.output
    kept = list(funnel.kept(out))
    assert len(kept) > 4 and {path.name for path in out.iterdir()} >= {
        "funnel.md",
        "funnel.png",
        "funnel.svg",
        "manifest.jsonl",
    }
    assert f"| kept | {len(kept)} | {len(kept)} |" in (out / "funnel.md").read_text()

    rows = ("rows", out, "--student", tiny("qwen2_5_omni"), "--file", tmp_path / "rows.jsonl", "--validation", "0")
    made = _train(*rows)
    assert made.exit_code == 0, made.output
    written = read_rows(tmp_path / "rows.jsonl")
    assert f"{len(written)} rows ({len(written)} for train, 0 for validation)" in made.output
    turns = sum(len(trajectory.turns) for _, trajectory, _ in kept)
    reasons = [pair for by_source in written.about["dropped"].values() for pair in by_source.items()]
    assert len(written) > 0 and len(written) + sum(n["turns"] for why, n in reasons if why != "not_kept") == turns
    chats = tmp_path / "chats.jsonl"
    said = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}."}] for n in range(20)]
    chats.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in said) + "{\n")
    count = len(written)
    mixed = _train(*rows, "--chats", chats, "--chat-share", "0.2")
    assert mixed.exit_code == 0, mixed.output
    found = [row for row in read_rows(tmp_path / "rows.jsonl").rows if row.target == "chat"]
    assert len(found) == round(count / 4) > 1 and f"{len(found)} of the train rows are chats of" in mixed.output
    few = _train(*rows, "--chats", chats, "--chat-share", "0.9", "--replies", "last")
    words = " ".join(few.output.split())
    assert few.exit_code == 0 and f"it gave 20 of the {count * 9} train rows that a share of 0.9" in words, words
    assert "broken_line 1" in words
    for wrong in (
        ("--chats", tmp_path / "x" / ".." / "rows.jsonl"),
        ("--chat-share", "0.2"),
        ("--chats", chats, "--chat-share", "1"),
        ("--chats", chats, "--replies", "x"),
    ):
        assert isinstance(_train(*rows, *wrong).exception, WrongUsage)
    short = _train(*rows, "--context-tokens", "300")
    assert isinstance(short.exception, AprError) and "nothing to train on" in str(short.exception)
    assert isinstance(_train(*rows, "--repaired", "guess").exception, WrongUsage)
    assert isinstance(_train(*rows[:-3], tmp_path / "rows.txt").exception, WrongUsage)


def test_data_of_a_benchmark_is_refused(train_needle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APR_NEEDLE_DIR", str(train_needle))
    done = _train(
        "synthesize", "-q", f"needle:{train_needle}", "--teacher", "policy=needle_teacher", "--out", tmp_path / "o"
    )
    assert isinstance(done.exception, AprError) and "all 10 questions come from benchmarks' own videos" in str(
        done.exception
    )
    assert "10 of 10 questions refused" in done.output and not (tmp_path / "o").exists()


def test_videos_that_are_gone(train_needle: Path, tmp_path: Path) -> None:
    video = next((train_needle / "videos").glob("*.mp4"))
    line = {"question": "What?", "kind": "free_form", "answer": "x"}
    file = tmp_path / "q.jsonl"
    file.write_text(
        "\n".join(
            json.dumps(line | {"id": name, "video": str(path)}) for name, path in (("a", video), ("b", "gone.mp4"))
        )
    )
    command = ("synthesize", "-q", file, "--teacher", "policy=guess", "--attempts", 2, "--out", tmp_path / "out")
    done = _train(*command)
    assert done.exit_code == 3 and "0 of 2 questions won" in done.output, done.output
    assert "1 could not be asked (media_unreadable)" in done.output
    file.write_text(json.dumps(line | {"id": "b", "video": "gone.mp4"}))
    done = _train(*command)
    assert isinstance(done.exception, AprError) and "no video of any question was found" in str(done.exception)

    nothing = _train("audit", tmp_path / "out", "--judge", "policy=needle_judge")
    assert isinstance(nothing.exception, AprError) and "no trajectory has a right answer" in str(nothing.exception)
    empty = _train("funnel", tmp_path / "out", "--without-audit")
    assert isinstance(empty.exception, AprError) and "nothing is kept" in str(empty.exception)
    assert "2: the answer is wrong" in str(empty.exception), "it says why"


def test_a_served_teacher_and_what_it_costs(train_needle: Path, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    prices = tmp_path / "prices.json"
    price = {"input": 1.0, "output": 4.0, "date": "2026-11-27", "source": "made up"}
    prices.write_text(json.dumps({"small": price}))
    file = tmp_path / "q.jsonl"
    line = {"question": "Which?", "kind": "mcq", "options": ["A. a", "B. b"]}
    video = str(next((train_needle / "videos").glob("*.mp4")))
    lines = [line | {"id": str(number), "video": video, "answer": "AB"[number % 2]} for number in range(4)]
    file.write_text("\n".join(map(json.dumps, lines)))
    with ChatServer([look(0, 9, 2), answer("B")]) as server:
        teacher = f"policy=openai,base_url={server.url},model=small"
        command = ("synthesize", "-q", file, "--teacher", teacher, "--out", tmp_path / "out", "--prices", prices)
        done = _train(*command, "--attempts", 2)
        more = _train(*command, "--attempts", 3, "--estimate")
    assert done.exit_code == 0 and "2 of 4 questions won, 2 at the first attempt" in done.output, done.output
    assert "temperature=0: attempts at one question differ only by their budgets" in done.output
    assert re.search(r"attempts +6 +3\.0", done.output) and re.search(r"US dollars +0\.\d\d +0\.\d{4}", done.output)
    assert re.search(r"prompt tokens +[1-9][\d,]+ ", done.output) and "completion tokens" in done.output
    assert "estimate, from the mean of the attempts that are done" in more.output, more.output
    assert re.search(r"questions left +2 +2\b", more.output) and re.search(r"attempts +2 +2\b", more.output)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--teacher", "policy=needle_teacher,frames_per_look=9"), "frames_per_look is drawn for each attempt"),
        (("--teacher", "policy=needle_teacher,trajectories=x"), "trajectories= is set by --out"),
        (("--teacher", "policy=needle_teacher,arm=passive"), "arm=passive: only trajectories of an agent"),
        (("--teacher", "policy=nedle"), "did you mean 'needle'"),
        (("--teacher", "policy=needle_teacher", "--frames", "x"), "--frames='x': write a range"),
        (("--teacher", "policy=needle_teacher", "--clip", "60-30"), "clip_s=60-30: the first number"),
        (("--teacher", "policy=needle_teacher", "--iou", "0"), "iou=0: it must be above 0"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(arguments: tuple[str, ...], words: str, train_needle: Path, tmp_path: Path) -> None:
    done = _train("synthesize", "-q", f"needle:{train_needle}", "--out", tmp_path / "out", *arguments)
    assert isinstance(done.exception, AprError) and words in str(done.exception), done.exception
    assert not list(tmp_path.glob("out/trajectories/*"))
