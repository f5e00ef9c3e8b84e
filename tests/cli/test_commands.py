"""`apr ask`, `show`, `doctor`, `tasks`, `needle make`, as a user runs them."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import warm_apr

from apr_plugin.loop.trajectory import VERSION, StopReason, Trajectory

ESCAPE = "\x1b[31mred\x1b]0;title\x07 [bold]markup[/bold] [/nonsense] \u202egnilleps"


def apr(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    ran = warm_apr.run(*arguments, cwd=cwd, environment=os.environ | {"COLUMNS": "160"} | environment)
    done = subprocess.CompletedProcess(ran.args, ran.returncode, ran.stdout.decode(), ran.stderr.decode())
    assert "Traceback" not in done.stdout + done.stderr
    return done


def write_script(path: Path, *turns: object) -> Path:
    path.write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    return path


def turn(observation: str, **action: object) -> dict[str, object]:
    return {"observation": observation, "think": "because", "confidence": 0.5, "action": action}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return write_script(
        tmp_path / "script.jsonl",
        turn(ESCAPE, type="get_frames", start=0, end=2, num=3),
        "no JSON " + ESCAPE,
        turn("heard nothing", type="get_frames", start=0, end=900, num=3),
        turn("enough", type="answer", content="A"),
    )


def test_ask_streams_the_trace(script: Path, shared_videos: Mapping[str, Path], tmp_path: Path) -> None:
    saved = tmp_path / "ask.jsonl"
    done = apr(
        "ask",
        shared_videos["sound"],
        "Which?",
        "-o",
        "A. red",
        "-o",
        "B. Dr. No",
        "-m",
        f"policy=scripted,script={script}",
        "--save",
        saved,
    )
    assert done.returncode == 0, done.stderr
    for words in (
        "Which?",
        "turn 1",
        "get_frames",
        "3 frames of",
        "visual tokens",
        "turn 4",
        "error",
        "answer A",
        "(answered)",
        "4 of 5 turns",
    ):
        assert words in done.stdout, done.stdout
    assert "\x1b" not in done.stdout and "\x07" not in done.stdout and "\u202e" not in done.stdout
    assert "[bold]markup[/bold] [/nonsense]" in done.stdout
    (trajectory,) = Trajectory.read(saved)
    assert trajectory.answer == "A" and [option.text for option in trajectory.question.options] == ["red", "Dr. No"]

    shown = apr("show", saved)
    assert (
        shown.returncode == 0
        and "turn 4" in shown.stdout
        and "\x1b" not in shown.stdout
        and "[bold]markup" in shown.stdout
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "A. red", "-o", "A. blue"], "two options have the same label: A, A"),
        (["-o", " "], "option 1 is empty"),
        (["--kind", "essay"], "kind must be one of mcq, grounding, number, free_form, not 'essay'"),
        (["--kind", "mcq"], "needs options"),
        (["-m", "policy"], "'policy' is not key=value"),
        (["-m", "policy=gess"], "did you mean 'guess'"),
        (["-m", "policy=guess,max_turn=3"], "did you mean 'max_turns'"),
        (["-m", "policy=guess", "--save", "/nowhere/x.jsonl"], "/nowhere/x.jsonl: cannot write"),
    ],
)
def test_ask_refuses_in_one_line(arguments: Sequence[str], words: str, shared_videos: Mapping[str, Path]) -> None:
    done = apr("ask", shared_videos["silent"], "What?", *arguments)
    assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_ask_about_a_file_that_is_not_there(tmp_path: Path) -> None:
    done = apr("ask", tmp_path / "gone.mp4", "What?", "-m", "policy=guess")
    assert done.returncode == 3 and f"media_unreadable: {tmp_path / 'gone.mp4'}" in done.stdout.replace("\n", "")
    assert apr("ask", "only one").returncode == 2


def test_show(script: Path, shared_videos: Mapping[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    for question, video in (("one", shared_videos["silent"]), ("two", tmp_path / "gone.mp4")):
        apr("ask", video, question, "-m", f"policy=scripted,script={script}", "--save", folder / "ask.jsonl")
    lines = (folder / "ask.jsonl").read_text().splitlines()
    second = json.loads(lines[1])
    second["question"]["doc_id"] = "7"
    (folder / "ask.jsonl").write_text(f"{lines[0]}\n{json.dumps(second)}\n{lines[0][:50]}")
    (folder / "20260101_samples_x.jsonl").write_text('{"doc_id": 0, "resps": [["A"]]}\n')

    table = apr("show", folder)
    assert table.returncode == 0 and "2 trajectories" in table.stdout and "media_unreadable 1" in table.stdout, (
        table.stderr
    )
    failed = apr("show", folder, "--failed")
    assert (
        failed.returncode == 0
        and "gone.mp4" in failed.stdout
        and "doc 7" in failed.stdout
        and "doc 0" not in failed.stdout
    )
    chosen = apr("show", folder, "--id", "0")
    assert chosen.returncode == 0 and "turn 1" in chosen.stdout
    none = apr("show", folder, "--id", "99")
    assert none.returncode == 1 and "holds 2 trajectories; none matches" in none.stderr


def test_show_says_what_is_wrong(script: Path, shared_videos: Mapping[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    apr("ask", shared_videos["silent"], "one", "-m", f"policy=scripted,script={script}", "--save", file)
    line = file.read_text()
    empty = tmp_path / "empty"
    empty.mkdir()
    for path, content, words in (
        (tmp_path / "nothing.jsonl", None, "no such file"),
        (empty, None, "holds no trajectory files"),
        (tmp_path / "damaged.jsonl", line + "{damaged\n", "damaged.jsonl, line 2: not JSON"),
        (
            tmp_path / "newer.jsonl",
            line.replace(f'"version":{VERSION}', f'"version":{VERSION + 1}', 1),
            f"version {VERSION + 1} is newer than {VERSION}",
        ),
        (tmp_path / "other.jsonl", '{"a": 1}\n', "other.jsonl, line 1: this is not an apr.trajectory line"),
        (tmp_path / "torn.jsonl", line[:100], "holds no finished trajectories"),
        (tmp_path / "binary.jsonl", "\x00\x01\n", "binary.jsonl, line 1: not JSON"),
    ):
        if content is not None:
            path.write_text(content)
        done = apr("show", path)
        assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_doctor_and_tasks(tmp_path: Path) -> None:
    made = tmp_path / "[bold]home" / "vllm-cpu-1" / "bin" / "python"
    made.parent.mkdir(parents=True)
    made.touch()
    doctor = apr("doctor", "--fast", APR_HOME=str(tmp_path / "[bold]home"), OPENAI_API_KEY="sk-very-secret")
    assert doctor.returncode == 0
    assert "OPENAI_API_KEY is set" in doctor.stdout and "sk-very" not in doctor.stdout
    assert "OPENAI_API_KEY is not set" in apr("doctor", "--fast", OPENAI_API_KEY="").stdout
    assert "vllm-cpu-1" in doctor.stdout and "Policies that are installed: guess, " in doctor.stdout
    for words in (
        platform.python_version(),
        "libavcodec",
        "h264 read yes",
        "GPU",
        "not made yet",
        "pip install 'apr-plugin[",
        "apr ask",
    ):
        assert words in doctor.stdout
    assert "[bold]home" in doctor.stdout
    tasks = apr("tasks")
    assert tasks.returncode == 0 and "apr_needle_glyph" in tasks.stdout and "videomme*" in tasks.stdout


@pytest.mark.parametrize(
    "command", [[], ["ask"], ["show"], ["demo"], ["doctor"], ["tasks"], ["needle"], ["needle", "make"], ["eval"]]
)
def test_help(command: Sequence[str]) -> None:
    done = apr(*command, "--help")
    assert done.returncode == 0 and "Usage" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--buckets", "7m"], "buckets"),
        (["--buckets", ""], "buckets"),
        (["--videos", "0"], "--videos"),
        (["--questions", "0"], "--questions"),
        (["--width", "7"], "width"),
        (["--fps", "0"], "fps"),
        (["--fps", "nan"], "fps"),
        (["--gop", "50"], "--gop"),
        (["--decoys", "2"], "decoys"),
        (["--event-length", "9"], "--event-length"),
        (["--workers", "0"], "workers"),
    ],
)
def test_needle_make_refuses_bad_values(arguments: Sequence[str], words: str, tmp_path: Path) -> None:
    done = apr("needle", "make", "--out", tmp_path / "needle", *arguments)
    assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_needle_make_into_a_place_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    done = apr("needle", "make", "--out", tmp_path / "file" / "needle", "--buckets", "1m", "--videos", "1")
    assert done.returncode == 1 and str(tmp_path / "file") in done.stderr, done.stderr


def test_ctrl_c(shared_videos: Mapping[str, Path], tmp_path: Path) -> None:
    """A running question is stopped, its turns so far are shown, and it is saved as cancelled."""
    looks = [turn("o", type="get_frames", start=n / 100, end=n / 100 + 20, num=60) for n in range(400)]
    script = write_script(tmp_path / "s.jsonl", *looks)
    command = [
        "ask",
        shared_videos["long"],
        "What?",
        "-m",
        f"policy=scripted,script={script},turns=400",
        "--save",
        tmp_path / "t.jsonl",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "apr_plugin.cli", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while "turn 2" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    began = time.perf_counter()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in out + err and "cancelled" in out
    assert time.perf_counter() - began < 90
    (trajectory,) = Trajectory.read(tmp_path / "t.jsonl")
    assert trajectory.stop_reason is StopReason.CANCELLED and len(trajectory.turns) >= 1


def test_probe_tells_what_the_reader_sees(shared_videos: Mapping[str, Path], tmp_path: Path) -> None:
    done = apr("probe", shared_videos["sound"])
    assert done.returncode == 0
    for words in ("6.000 s, by the video stream", "h264 320x64", "10.000 frames per second", "aac", "the only one"):
        assert words in done.stdout, done.stdout
    odd = tmp_path / "odd \u00e9\x1b[31m.mp4"
    odd.write_bytes(shared_videos["ears"].read_bytes())
    assert "picture" in (out := apr("probe", odd).stdout) and "none" in out and "\x1b" not in out
    (tmp_path / "text.mp4").write_text("no video at all")
    failed = apr("probe", tmp_path / "text.mp4")
    assert failed.returncode == 1 and "text.mp4: cannot open" in failed.stderr
