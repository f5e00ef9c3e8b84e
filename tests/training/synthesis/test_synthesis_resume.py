"""A synthesis run and an audit, killed (SIGKILL) at any moment and started again: nothing lost, nothing twice."""

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

from apr_plugin.loop import Trajectory
from apr_plugin.training.synthesis.questions import TrainingQuestion
from apr_plugin.training.synthesis.verdict import read_verdicts

MOMENTS = ("write", "half", "fsync", "synced", "generate", "look", "seconds")
KILLS = 12
Run = Callable[..., int]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    child = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("synthesis_child.py"))],
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


def _saved(out: Path) -> list[Trajectory]:
    return [t for path in sorted(out.glob("trajectories/*/*.jsonl")) for t in Trajectory.read(path)]


def _said(out: Path) -> dict[Any, Any]:
    return {t.question.key: (t.answer, t.budget, [turn.text for turn in t.turns]) for t in _saved(out)}


def _kills(moments: tuple[str, ...], seed: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(seed)
    chosen = [*moments, *(rng.choice(moments) for _ in range(KILLS - len(moments)))]
    rng.shuffle(chosen)
    for at in chosen:
        many = at in ("generate", "look")
        yield {"at": at, "n": rng.uniform(0.05, 0.25) if at == "seconds" else rng.randint(1, 6 if many else 2)}


def test_kills(run: Run, needle_asked: list[TrainingQuestion], tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(f"{one.to_json()}\n" for one in needle_asked))
    order = {"questions": questions, "work": "synthesize"}
    assert run(folder=tmp_path / "whole", **order) == 0
    expected = _said(tmp_path / "whole")
    assert len(expected) > len(needle_asked), "some questions take several attempts"

    killed, finished = tmp_path / "killed", [0]
    for kill in _kills(MOMENTS, 4):
        status = run(folder=killed, kill=kill, **order)
        assert status in (0, -signal.SIGKILL), kill
        finished.append(len(_saved(killed)))
        if status == 0:
            break
    assert finished == sorted(finished), "what was finished is never lost"
    assert len(finished) > 6, "it was killed several times before it was done"
    assert run(folder=killed, **order) == 0
    assert set(Counter(t.question.key for t in _saved(killed)).values()) == {1}, "no attempt is made twice"
    assert _said(killed) == expected, "the trajectories of an undisturbed run"

    audited = {"questions": questions, "work": "audit"}
    assert run(folder=tmp_path / "whole", **audited) == 0
    (whole,) = (tmp_path / "whole").glob("audit/*/verdicts.jsonl")
    for kill in _kills(("write", "half", "fsync", "synced", "seconds"), 5):
        run(folder=killed, kill=kill, **audited)
    assert run(folder=killed, **audited) == 0
    (file,) = killed.glob("audit/*/verdicts.jsonl")
    problems: list[str] = []
    mine = [(v.key, v.turn, v.rating, v.reason) for v in read_verdicts(file, problems)]
    assert not problems and len(mine) == len(set(mine)), "every turn is rated once"
    assert sorted(mine) == sorted((v.key, v.turn, v.rating, v.reason) for v in read_verdicts(whole))
