"""The session behind the model: threads ask, one loop answers, a store makes a run continue; without VLMEvalKit."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from apr_testing import look, turn

from apr_plugin import interrupt
from apr_plugin.errors import AprError
from apr_plugin.harnesses.vlmeval.session import Asking, Session, Truths
from apr_plugin.loop.policy import Generation, PolicyDefaults, PolicyUnavailable, Prompt, Sampling
from apr_plugin.loop.question import MediaRef, Option, Question, QuestionKind
from apr_plugin.loop.trajectory import StopReason
from apr_plugin.policies import POLICIES
from apr_plugin.runs.opened import open_run
from apr_plugin.scoring.truth import Truth


class Counting(PolicyDefaults):
    """Looks once, then answers; counts how many questions it was asked at once, and can wait or fail."""

    name = "counting"
    asked: list[str] = []  # noqa: RUF012 - shared on purpose
    now = 0
    most = 0
    failing: set[str] = set()  # noqa: RUF012
    wait_s = 0.01

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        text = prompt.messages[1].text
        first = not any(message.role == "assistant" for message in prompt.messages)
        if first:
            Counting.asked.append(text[text.index("Question: ") + 10 :].partition("\n")[0])
        Counting.now += 1
        Counting.most = max(Counting.most, Counting.now)
        await asyncio.sleep(Counting.wait_s)
        Counting.now -= 1
        if any(name in text for name in Counting.failing):
            raise PolicyUnavailable("it does not want to")
        return Generation(look(0, 1) if first else turn({"type": "answer", "content": "B"}))

    def describe(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_videos: dict[str, Path]
) -> Iterator[Callable[..., Session]]:
    monkeypatch.setitem(POLICIES, "counting", f"{__name__}:Counting")
    Counting.asked, Counting.most, Counting.failing, Counting.wait_s = [], 0, set(), 0.01
    made: list[Session] = []

    def make(**more: Any) -> Session:
        made.append(Session({"policy": "counting", "trajectories": str(tmp_path / "runs"), **more}))
        return made[-1]

    yield make
    for one in made:
        one.close()


def _asking(number: int, path: Path | str, **more: Any) -> Asking:
    options = tuple(Option(label=label, text=label) for label in "AB")
    question = Question(
        text=f"question {number}",
        kind=QuestionKind.MCQ,
        options=options,
        videos=(MediaRef(path=str(path)),),
        task="T",
        doc_id=str(number),
    )
    return Asking(question, **more)


def _all(session: Session, askings: list[Asking], threads: int = 8) -> list[Any]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(session.answer, askings))


def test_threads_share_one_run(session: Callable[..., Session], shared_videos: dict[str, Path]) -> None:
    """Every thread gets the answer to its own question, and at most `concurrency` are asked at once."""
    one = session(concurrency=3)
    answers = _all(one, [_asking(n, shared_videos["sound"]) for n in range(12)])
    assert [t.question.doc_id for t in answers] == [str(n) for n in range(12)]
    assert all(t.answer == "B" and t.stop_reason is StopReason.ANSWERED for t in answers)
    assert 1 < Counting.most <= 3
    assert not one.unanswered and "answered 12" in one.summary()


def test_a_second_run_asks_only_what_failed(
    session: Callable[..., Session], shared_videos: dict[str, Path], tmp_path: Path
) -> None:
    """Whatever VLMEvalKit keeps or loses of the first."""
    Counting.failing = {"question 1"}
    askings = [_asking(n, shared_videos["sound"]) for n in range(3)] + [_asking(3, tmp_path / "later.mp4")]
    first = session()
    assert [t.stop_reason.failed for t in _all(first, askings)] == [False, True, False, True]
    assert len(first.unanswered) == 2
    first.close()
    Counting.failing, Counting.asked = set(), []
    (tmp_path / "later.mp4").write_bytes(shared_videos["sound"].read_bytes())
    second = session()
    assert not any(t.stop_reason.failed for t in _all(second, askings))
    assert sorted(Counting.asked) == ["question 1", "question 3"]
    second.close()
    run = open_run(tmp_path / "runs")
    assert len(run) == 4 and not run.failed


def test_truths_are_kept_once_beside_the_trajectories(
    session: Callable[..., Session], shared_videos: dict[str, Path], tmp_path: Path
) -> None:
    calls: list[int] = []

    def read() -> dict[Any, Truth]:
        calls.append(1)
        return {("T", "", str(n)): Truth("B") for n in range(4)}

    one = session()
    _all(one, [_asking(n, shared_videos["sound"], truths=Truths("T", read)) for n in range(4)])
    one.close()
    assert len(calls) == 1
    assert len(open_run(tmp_path / "runs").truths) == 4


def test_a_store_that_cannot_be_written_ends_the_run_with_a_reason(
    session: Callable[..., Session], shared_videos: dict[str, Path], tmp_path: Path
) -> None:
    """Nothing is raised in VLMEvalKit's threads, and no further question is asked."""
    (tmp_path / "runs").write_text("a file where the folder should be")
    one = session()
    assert _all(one, [_asking(n, shared_videos["sound"]) for n in range(3)]) == [None] * 3
    assert isinstance(one.fault, AprError) and "cannot write" in str(one.fault)
    assert len(one.unanswered) == 3 and Counting.asked == []


def test_two_runs_cannot_share_a_folder(session: Callable[..., Session], shared_videos: dict[str, Path]) -> None:
    with session():
        second = session()
        assert second.answer(_asking(0, shared_videos["sound"])) is None
        assert "is writing" in str(second.fault)


def test_ctrl_c_stops_every_thread_and_keeps_what_is_done(
    session: Callable[..., Session], shared_videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Counting.wait_s = 0.3
    pressed = threading.Event()
    monkeypatch.setattr(interrupt, "asked", pressed.is_set)
    one = session(concurrency=2)
    threading.Timer(1.2, pressed.set).start()
    began = time.monotonic()
    answers = _all(one, [_asking(n, shared_videos["sound"]) for n in range(40)], threads=4)
    assert time.monotonic() - began < 10
    done = [t for t in answers if t is not None]
    assert 0 < len(done) < 40 and None in answers
    assert any("the run was stopped" in line for line in one.unanswered)
    one.close()
    lines = [json.loads(line) for file in (tmp_path / "runs").rglob("T.jsonl") for line in file.open()]
    assert {line["question"]["doc_id"] for line in lines if line["stop_reason"] == "answered"} == {
        t.question.doc_id for t in done
    }


def test_any_exception_is_a_lost_question(
    session: Callable[..., Session], shared_videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = session()
    monkeypatch.setattr(one, "_begin", lambda: 1 / 0)
    assert one.answer(_asking(0, shared_videos["sound"])) is None
    assert "ZeroDivisionError" in one.unanswered[0]
