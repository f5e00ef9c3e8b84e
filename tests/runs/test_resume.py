"""Runs that are killed at any moment and started again: every question once, with the answers of an undisturbed run."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from apr_testing import answer, look

from apr_plugin.loop import Question, StopReason, Trajectory, TrajectoryError
from apr_plugin.loop.files import append_line
from apr_plugin.runs import TrajectoryStore
from apr_plugin.tasks.needle.make import NeedleSpec, load_docs, make_needle

KILLS = 20
MOMENTS = ("write", "half", "fsync", "synced", "generate", "look", "seconds")
Run = Callable[..., int]


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Ten needle questions about one minute of video."""
    folder = tmp_path_factory.mktemp("needle")
    spec = NeedleSpec(buckets=("1m",), videos_per_bucket=1, width=112, height=112, fps=5)
    make_needle(folder, spec, workers=1, progress=False)
    return [{**doc, "video": str(folder / doc["video"])} for doc in load_docs(folder)]  # type: ignore[list-item]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """`run(folder=…, policy=…, docs=…, kill=…)`: the exit status of that run, negative for a signal."""
    child = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("resume_child.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None and child.stdout is not None

    def one(**order: Any) -> int:
        child.stdin.write(json.dumps(order, default=str) + "\n")
        child.stdin.flush()
        return int(child.stdout.readline())

    yield one
    child.stdin.close()
    assert child.wait(60) == 0


def saved(folder: Path) -> list[Trajectory]:
    return [trajectory for path in folder.glob("*/*.jsonl") for trajectory in Trajectory.read(path)]


def done(doc_id: str) -> Trajectory:
    asked = Question(text="what?", kind="free_form", doc_id=doc_id, task="t")  # type: ignore[arg-type]
    return Trajectory(
        question=asked, stop_reason=StopReason.ANSWERED, config_hash="c", question_hash=asked.content_hash()
    )


def said(folder: Path) -> dict[Any, Any]:
    return {t.question.key: (t.answer, t.stop_reason, [turn.text for turn in t.turns]) for t in saved(folder)}


@pytest.mark.parametrize("name", ["scripted", "needle"])
def test_twenty_kills(name: str, run: Run, docs: list[dict[str, Any]], tmp_path: Path) -> None:
    policy: dict[str, Any] = {"name": name}
    if name == "scripted":
        policy["script"] = str(tmp_path / "script.jsonl")
        Path(policy["script"]).write_text(
            "\n".join([look(0, 60, 9), look(20, 30, 9), answer("B"), answer("[[1, 2]]"), answer("3")]) + "\n"
        )
    # A scripted question takes milliseconds, and some are finished before each kill.
    repeats = 8 if name == "scripted" else 2
    order = {"policy": policy, "docs": docs, "repeats": repeats}
    assert run(folder=tmp_path / "whole", **order) == 0
    expected = said(tmp_path / "whole")
    assert len(expected) == repeats * len(docs) and all(
        reason is StopReason.ANSWERED for _, reason, _ in expected.values()
    )

    rng = random.Random(11)
    moments = [*MOMENTS, *(rng.choice(MOMENTS) for _ in range(KILLS - len(MOMENTS)))]
    rng.shuffle(moments)
    finished = []
    for at in moments:
        n = (
            rng.uniform(0, 0.15)
            if at == "seconds"
            else rng.choice([1, 1, 2])
            if at in MOMENTS[:4]
            else rng.randint(1, 6)
        )
        assert run(folder=tmp_path / "killed", kill={"at": at, "n": n}, **order) == -signal.SIGKILL, f"{at} {n}"
        finished.append(len(saved(tmp_path / "killed")))
    assert finished == sorted(finished), "what was finished is never lost"
    assert 0 < finished[-1] < len(expected)

    assert run(folder=tmp_path / "killed", **order) == 0
    assert set(Counter(t.question.key for t in saved(tmp_path / "killed")).values()) == {1}
    assert said(tmp_path / "killed") == expected
    before = [path.read_bytes() for path in (tmp_path / "killed").glob("*/*.jsonl")]
    assert run(folder=tmp_path / "killed", **order) == 0
    assert [path.read_bytes() for path in (tmp_path / "killed").glob("*/*.jsonl")] == before, (
        "a finished run asks nothing"
    )


def test_a_kill_while_files_are_merged(run: Run, docs: list[dict[str, Any]], tmp_path: Path) -> None:
    order = {"folder": tmp_path, "policy": {"name": "guess"}, "docs": docs}
    assert run(**order) == 0
    (path,) = tmp_path.glob("*/needle.jsonl")
    expected, lines = said(tmp_path), path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:6]))
    path.with_name("needle.rank1.jsonl").write_bytes(b"".join(lines[4:]))
    assert run(kill={"at": "merge", "n": 1}, **order) == -signal.SIGKILL
    assert said(tmp_path) == expected
    assert run(**order) == 0
    assert path.read_bytes().count(b"\n") == 10 and said(tmp_path) == expected
    assert sorted(p.name for p in path.parent.iterdir() if not p.name.startswith(".")) == ["card.json", "needle.jsonl"]


def test_a_folder_that_has_become_read_only(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
        ).returncode
        != 0
    ):
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        with TrajectoryStore(disk, "c", {}) as store:
            store.save(done("0"))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(TrajectoryError, match=r"t\.jsonl: cannot write trajectories: Read-only file system"):
            append_line(store.path("t"), done("1").to_json())
        with pytest.raises(
            TrajectoryError,
            match=r"disk/c: cannot write there: Read-only file system\. Choose a folder you can write to",
        ):
            TrajectoryStore(disk, "c", {}).__enter__()
        assert [t.question.doc_id for t in saved(disk)] == ["0"]
    finally:
        subprocess.run(["umount", str(disk)], check=False)
