"""Trajectory files: what is written can be read, a kill or a full disk loses nothing, and runs are never mixed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from apr_testing import Playback, answer, look
from hypothesis import given
from hypothesis import strategies as st

from apr_plugin.loop import (
    ActionError,
    Answer,
    Budget,
    EpisodeConfig,
    ErrorCode,
    GenerationTimings,
    GetFrames,
    MediaRef,
    PolicyUnavailable,
    Question,
    StopReason,
    Trajectory,
    TrajectoryError,
    Turn,
    Usage,
)
from apr_plugin.loop.files import append_line, cut_torn_tail, lines
from apr_plugin.loop.trajectory import Shown
from apr_plugin.runs import TrajectoryStore, run_episodes

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def question(doc_id: str = "0", text: str = "what?", **more: Any) -> Question:
    return Question(text=text, kind="free_form", doc_id=doc_id, task="t", **more)  # type: ignore[arg-type]


def done(
    doc_id: str = "0", reason: StopReason = StopReason.ANSWERED, config_hash: str = "c", **more: Any
) -> Trajectory:
    asked = more.pop("question", None) or question(doc_id)
    return Trajectory(
        question=asked, stop_reason=reason, config_hash=config_hash, question_hash=asked.content_hash(), **more
    )


SHOWN = st.builds(
    Shown,
    kind=st.sampled_from(["frames", "audio", "clip", "images"]),
    times_s=st.lists(st.floats(0, 1e6)).map(tuple),
    remark=TEXT,
)
ACTIONS = (
    st.none()
    | st.builds(Answer, content=TEXT)
    | st.builds(GetFrames, start=st.floats(0, 1e9), end=st.floats(0, 1e9), num=st.integers(-5, 10**300))
)
TURNS = st.builds(
    Turn, text=TEXT, observation=TEXT, think=TEXT, confidence=st.none() | st.floats(0, 1), action=ACTIONS,
        shown=st.none() | SHOWN,
    error=st.none() | st.builds(ActionError, st.sampled_from(ErrorCode), TEXT),
        repairs=st.lists(TEXT, max_size=2).map(tuple), forced=st.booleans(),
    usage=st.builds(Usage, st.none() | st.integers(0), st.none() | st.integers(0), st.none() | st.integers(0)),
    logprobs=st.none() | st.lists(st.none() | st.floats(-50, 0), max_size=3).map(tuple),
        logprobs_of=st.sampled_from([None, "raw", "scaled"]),
    entropies=st.none() | st.lists(st.floats(0, 20), max_size=3).map(tuple),
        entropy_top_k=st.none() | st.integers(1, 100),
    timings=st.builds(GenerationTimings, *[st.none() | st.floats(0, 1e5)] * 3),
)  # fmt: skip
QUESTIONS = st.builds(
    Question,
    text=TEXT,
    kind=st.sampled_from(["mcq", "free_form"]),
    doc_id=TEXT,
    videos=st.lists(st.builds(MediaRef, path=TEXT)).map(tuple),
)
TRAJECTORIES = st.builds(
    Trajectory, question=QUESTIONS, turns=st.lists(TURNS, max_size=3).map(tuple), answer=st.none() | TEXT,
        stop_reason=st.sampled_from(StopReason),
    stop_detail=TEXT, seed=st.integers(0, 2**32), versions=st.dictionaries(TEXT, TEXT, max_size=2),
)  # fmt: skip


@given(TRAJECTORIES)
def test_what_is_written_is_read_back(trajectory: Trajectory) -> None:
    line = trajectory.to_json()
    assert "\n" not in line
    assert Trajectory.from_json(line) == trajectory
    value = json.loads(line)
    assert (value["schema"], value["version"]) == ("apr.trajectory", 2)


def test_a_line_of_before_reads_as_it_was() -> None:
    """A file of the first release: no timings, no `entropy_top_k`, fewer token counts."""
    turn = {
        "text": "t",
        "usage": {"prompt_tokens": 5, "cached_tokens": None, "completion_tokens": 2},
        "logprobs": [-1.5],
        "model_s": 0.5,
    }
    asked = {"text": "what?", "kind": "free_form"}
    line = json.dumps(
        {"schema": "apr.trajectory", "version": 1, "question": asked, "stop_reason": "answered", "turns": [turn]}
    )
    (read,) = Trajectory.from_json(line).turns
    assert (read.usage, read.logprobs, read.logprobs_of, read.timings) == (
        Usage(5, None, 2),
        (-1.5,),
        None,
        GenerationTimings(),
    )


def test_no_line_holds_a_number_that_json_does_not_know() -> None:
    nan, inf = float("nan"), float("inf")
    turn = Turn(text="t", logprobs=(-1.5, nan, -inf), entropies=(inf, 0.5, nan))
    assert turn.logprobs == (-1.5, None, None) and turn.entropies == (None, 0.5, None)
    videos = (MediaRef(path="v.mp4", start_s=nan, end_s=inf),)
    line = done(question=question(videos=videos), turns=(turn,)).to_json()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads(line, parse_constant=refuse)
    read = Trajectory.from_json(line)
    assert read.turns == (turn,) and read.question.videos == (MediaRef(path="v.mp4"),)
    old = line.replace("[-1.5,null,null]", "[-1.5,NaN,-Infinity]")
    assert old != line and Trajectory.from_json(old) == read


@given(
    st.text(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)).map(
        json.dumps
    )
)
def test_any_other_line_is_a_trajectory_error(line: str) -> None:
    for text in (line, '{"schema":"apr.trajectory","version":1,"question":' + line + "}", "[" * 100_000):
        with pytest.raises(TrajectoryError, match="here, line 3"):
            Trajectory.from_json(text, "here, line 3")


def test_lone_surrogates_do_not_make_a_file_that_cannot_be_read() -> None:
    trajectory = done(
        stop_detail="bad \udc80 name", answer="\ud800", question=question(videos=(MediaRef(path="/x/\udc80.mp4"),))
    )
    assert Trajectory.from_json(trajectory.to_json()).answer == "?"


def test_read_and_write(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    written = [done(str(i), answer="äöü\u2028\x00\n😀" * i) for i in range(4)]
    for trajectory in written:
        trajectory.write(path)
    assert Trajectory.read(path) == written


def test_a_newer_version_and_damage_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    lines = [done(str(i)).to_json() for i in range(3)]
    path.write_text("\n".join([lines[0], lines[1].replace('"version":2', '"version":3'), lines[2]]) + "\n")
    with pytest.raises(TrajectoryError, match=r"t\.jsonl, line 2: .*version 3 is newer than 2.*upgrade"):
        Trajectory.read(path)
    path.write_text("\n".join([lines[0], lines[1][:50], lines[2]]) + "\n")
    with pytest.raises(TrajectoryError, match=r"t\.jsonl, line 2: .*damaged"):
        Trajectory.read(path)
    path.write_text('{"a": 1}\n')
    with pytest.raises(TrajectoryError, match=r"line 1: this is not an apr\.trajectory line"):
        Trajectory.read(path)
    with pytest.raises(TrajectoryError, match=r"none\.jsonl: cannot read"):
        Trajectory.read(tmp_path / "none.jsonl")


def test_a_torn_last_line_is_left_out_and_never_written_behind(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    done("0").write(path)
    for torn in (b'{"schema":"apr.traj', done("9").to_json().encode(), b"\xff" * 70_000):
        with path.open("ab") as file:
            file.write(torn)
        assert [t.question.doc_id for t in Trajectory.read(path)] == ["0"]
    done("1").write(path)
    assert [t.question.doc_id for t in Trajectory.read(path)] == ["0", "1"]


def test_a_line_is_synced_after_it_is_written_and_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c" / "t.jsonl"
    synced: list[bytes] = []
    real = os.fsync

    def record(fd: int) -> None:
        synced.append(path.read_bytes())
        real(fd)

    monkeypatch.setattr(os, "fsync", record)
    saved = done("0", answer="yes")
    with TrajectoryStore(tmp_path, "c", {}) as store:
        store.save(saved)
        assert synced and synced[0] == saved.to_json().encode() + b"\n"

        def refuse(fd: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(TrajectoryError, match=r"t\.jsonl.*Input/output error"):
            store.save(done("1"))
        assert store.finished(question("1")) is None
        assert path.read_bytes() == synced[0]


class TestResume:
    """The questions have no video and take one generation each."""

    config = EpisodeConfig()
    policy = Playback(["yes"])

    def run(
        self,
        folder: Path,
        questions: list[Question],
        policy: Playback | None = None,
        config: EpisodeConfig | None = None,
        **more: Any,
    ) -> list[Trajectory]:
        policy, config = policy or Playback(["yes"]), config or self.config
        self.policy = policy
        with TrajectoryStore(folder, config.hash(policy), config.describe(policy), **more) as store:
            return asyncio.run(run_episodes(questions, policy, config, store=store, concurrency=2))

    def test_finished_questions_are_not_asked_again(self, tmp_path: Path) -> None:
        questions = [question(str(i)) for i in range(5)]
        first = self.run(tmp_path, questions[:3])
        again = self.run(tmp_path, questions)
        assert len(self.policy.prompts) == 2 and again[:3] == first
        assert [t.question for t in again] == questions
        assert (tmp_path / self.config.hash(self.policy) / "card.json").is_file()

    def test_a_changed_question_or_configuration_asks_again(
        self, tmp_path: Path, make_video: Callable[..., Path]
    ) -> None:
        self.run(tmp_path, [question()])
        self.run(tmp_path, [question(text="and now?")])
        assert len(self.policy.prompts) == 1
        self.run(tmp_path, [question()], config=EpisodeConfig(seed=7))
        assert len(self.policy.prompts) == 1
        path = make_video("a.mp4", frames=10)
        asked = question("v", videos=(MediaRef(path=str(path)),))
        self.run(tmp_path, [asked], Playback([look(0, 0.5), answer("x")]))
        make_video("a.mp4", frames=20)
        self.run(tmp_path, [asked], Playback([look(0, 0.5), answer("x")]))
        assert len(self.policy.prompts) == 2

    def test_failed_questions_are_asked_again(self, tmp_path: Path) -> None:
        class Flaky(Playback):
            down = True

            def describe(self) -> dict[str, Any]:
                return {}

            async def generate(self, prompt: Any, sampling: Any) -> Any:
                if self.down:
                    raise PolicyUnavailable("down")
                return await super().generate(prompt, sampling)

        policy = Flaky(["yes"])
        missing = question("1", videos=(MediaRef(path=str(tmp_path / "none.mp4")),))
        assert [t.stop_reason for t in self.run(tmp_path, [question(), missing], policy)] == [
            "policy_unavailable",
            "media_unreadable",
        ]
        policy.down = False
        assert [t.stop_reason for t in self.run(tmp_path, [question(), missing], policy)] == [
            "answered",
            "media_unreadable",
        ]
        with TrajectoryStore(tmp_path, self.config.hash(policy), {}) as store:
            assert len(Trajectory.read(store.path("t"))) == 4
            store.merge(["t"])
            assert {t.question.doc_id: t.stop_reason for t in Trajectory.read(store.path("t"))} == {
                "0": "answered",
                "1": "media_unreadable",
            }
            assert len(Trajectory.read(store.path("t"))) == 2

    def test_resume_never_starts_over_and_keeps_every_old_file(self, tmp_path: Path) -> None:
        for _ in range(3):  # within one second
            self.run(tmp_path, [question()], resume="never")
            assert len(self.policy.prompts) == 1
        folder = tmp_path / self.config.hash(self.policy)
        assert len(list(folder.glob("*.old"))) == 2 and len(Trajectory.read(folder / "t.jsonl")) == 1

    def test_cancelling_saves_what_was_under_way(self, tmp_path: Path) -> None:
        class Stuck(Playback):
            async def generate(self, prompt: Any, sampling: Any) -> Any:
                if len(self.prompts) >= 2:
                    await asyncio.sleep(60)
                return await super().generate(prompt, sampling)

        policy, questions = Stuck(["yes"]), [question(str(i)) for i in range(9)]

        async def run() -> None:
            with TrajectoryStore(tmp_path, self.config.hash(policy), {}) as store:
                task = asyncio.create_task(run_episodes(questions, policy, self.config, store=store, concurrency=3))
                await asyncio.sleep(0.4)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

        asyncio.run(run())
        saved = Trajectory.read(tmp_path / self.config.hash(policy) / "t.jsonl")
        assert sorted(t.stop_reason for t in saved) == ["answered"] * 2 + ["cancelled"] * 3
        assert [t.stop_reason for t in self.run(tmp_path, questions, Playback(["yes"]))] == ["answered"] * 9
        assert len(self.policy.prompts) == 7


def test_concurrency_keeps_order_and_answers() -> None:
    class Jittery(Playback):
        async def generate(self, prompt: Any, sampling: Any) -> Any:
            await asyncio.sleep(random.Random(sampling.seed).random() / 50)
            return await super().generate(prompt, sampling)

    questions = [question(str(i)) for i in range(12)]
    ended: list[str] = []
    for concurrency in (1, 5, 50):
        ended.clear()
        found = asyncio.run(
            run_episodes(
                questions,
                Jittery(["yes"]),
                EpisodeConfig(),
                concurrency=concurrency,
                on_done=lambda t, _: ended.append(t.question.doc_id),
            )
        )
        assert [t.question for t in found] == questions and sorted(ended) == sorted(q.doc_id for q in questions)
    assert asyncio.run(run_episodes([], Jittery(["yes"]), EpisodeConfig())) == []


def test_two_runs_on_one_folder(tmp_path: Path) -> None:
    with TrajectoryStore(tmp_path, "c", {}):
        with pytest.raises(TrajectoryError, match=f"process {os.getpid()} is writing"):
            TrajectoryStore(tmp_path, "c", {}).__enter__()
        with TrajectoryStore(tmp_path, "other", {}), TrajectoryStore(tmp_path, "c", {}, rank=1, world_size=2):
            pass
    with TrajectoryStore(tmp_path, "c", {}):
        pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TrajectoryError, match=r"file/runs/c: cannot write there: .*Choose a folder"):
        TrajectoryStore(tmp_path / "file" / "runs", "c", {}).__enter__()
    with pytest.raises(TrajectoryError, match="cannot write trajectories"):
        append_line(tmp_path, "a folder is no file")


def test_a_damaged_line_is_named_and_set_aside_and_its_question_asked_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Such a file used to end each resumed run, and only `resume=never` helped, which asks everything again."""
    with TrajectoryStore(tmp_path, "c", {}) as store:
        for doc in "0123":
            store.save(done(doc))
    path = tmp_path / "c" / "t.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    digits = lines[3].replace('"repeat":0', '"repeat":' + "9" * 5000)
    assert digits != lines[3]
    damaged = ["{broken\n", lines[1].replace("answered", "anwsered"), digits]
    path.write_text(damaged[0] + lines[0] + damaged[1] + lines[2] + damaged[2])
    with TrajectoryStore(tmp_path, "c", {}) as store:
        assert [doc for doc in "0123" if store.finished(question(doc))] == ["0", "2"]
        store.save(done("1"))
    for number in (1, 3, 5):
        assert f"{path}, line {number}: " in caplog.text
    assert path.with_name("t.jsonl.damaged").read_text() == "".join(damaged)
    assert [t.question.doc_id for t in Trajectory.read(path)] == ["0", "2", "1"], "who reads the file is not stopped"
    caplog.clear()
    with TrajectoryStore(tmp_path, "c", {}) as store:
        assert [doc for doc in "0123" if store.finished(question(doc))] == ["0", "1", "2"]
    assert not caplog.records

    path.write_text(lines[0].replace('"version":2', '"version":3'))
    with pytest.raises(TrajectoryError, match=r"t\.jsonl, line 1: .*version 3 is newer than 2.*upgrade"):
        TrajectoryStore(tmp_path, "c", {}).__enter__()


def test_damaged_lines_of_ranks_are_kept_when_they_are_merged(tmp_path: Path) -> None:
    for rank in range(2):
        with TrajectoryStore(tmp_path, "c", {}, rank=rank, world_size=2) as store:
            store.save(done(str(rank)))
    with (tmp_path / "c" / "t.rank1.jsonl").open("a") as file:
        file.write("{broken\n")
    with TrajectoryStore(tmp_path, "c", {}, rank=0, world_size=2) as store:
        store.merge(["t"])
    assert [t.question.doc_id for t in Trajectory.read(tmp_path / "c" / "t.jsonl")] == ["0", "1"]
    assert (tmp_path / "c" / "t.jsonl.damaged").read_text() == "{broken\n"
    assert not (tmp_path / "c" / "t.rank1.jsonl").exists()


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    """A number that JSON readers refuse must not make a file that ends every resumed run."""
    with TrajectoryStore(tmp_path, "c", {}) as store:
        for doc, number in enumerate((2**70, 10**400, 10**5000)):
            kept = store.save(done(str(doc), turns=(Turn(text="t", action=GetFrames(start=0, end=1, num=number)),)))
            assert kept.stop_reason is (StopReason.ERROR if number > 10**4300 else StopReason.ANSWERED)
    assert kept.stop_detail.startswith("its trajectory can't be kept: ")
    assert Trajectory.read(tmp_path / "c" / "t.jsonl")[-1] == kept
    with TrajectoryStore(tmp_path, "c", {}) as store:
        assert [doc for doc in "012" if store.finished(question(doc))] == ["0", "1"]


def test_a_count_of_tokens_that_no_generation_has_is_none() -> None:
    """Numbers from a server or an old file; the sums, averages and prices that harnesses compute would fail."""
    turn = Turn(text="t", usage=Usage(123456, None, 1))
    assert Usage(10**400, -1, 2**53) == Usage(None, None, 2**53)
    line = done(turns=(turn,)).to_json()
    assert Trajectory.from_json(line.replace("123456", "9" * 400)).turns[0].usage == Usage(None, None, 1)


def test_lines_come_from_a_pipe_too() -> None:
    """`apr show <(zcat old.jsonl.gz)`: a pipe has no size."""
    reading, writing = os.pipe()
    os.write(writing, f"{done('0').to_json()}\n{done('1').to_json()}\n{{torn".encode())
    os.close(writing)
    assert [t.question.doc_id for t in Trajectory.read(f"/dev/fd/{reading}")] == ["0", "1"]
    os.close(reading)


STRANGE = ("a\0b", "\ud800", "x" * 5000, "😀" * 300, "a/b", "../../etc/passwd", "\x1b[31m", "t.rank1", ".", "", "con")


def test_any_name_of_task_and_doc_is_saved_and_resumed(tmp_path: Path) -> None:
    asked = [Question(text="what?", kind="free_form", task=name, split=name, doc_id=name) for name in STRANGE]  # type: ignore[arg-type]
    for again in range(2):
        with TrajectoryStore(tmp_path, "c", {}) as store:
            for each in asked:
                assert (store.finished(each) is None) == (again == 0), ascii(each.task[:20])
                store.save(done(question=each))
        store.merge(STRANGE)
    files = sorted((tmp_path / "c").glob("*.jsonl"))
    assert len({path.name for path in files}) == len(STRANGE) - 1, "a/b and others have files of their own"
    assert sum(len(Trajectory.read(path)) for path in files) == len(STRANGE)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def _forked(*works: Callable[[], None]) -> None:
    """Run each in its own process, all at once."""
    pids = []
    for work in works:
        pid = os.fork()
        if pid == 0:
            try:
                work()
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * len(works)


def test_lines_appended_by_several_processes_are_all_kept(tmp_path: Path) -> None:
    """One process used to take another's half-written line for an incomplete one, and cut it off."""
    path = tmp_path / "lines"
    path.write_bytes(b"torn")

    def write(name: int) -> None:
        for number in range(60):
            append_line(path, json.dumps([name, number, "x" * 20_000]))

    def read() -> None:
        seen = 0
        while seen < 240:
            now = [json.loads(line) for _, _, line in lines(path)]
            assert len(now) >= seen, "a line that was there is gone"
            seen = len(now)

    _forked(*(partial(write, name) for name in range(4)), read)
    kept = [tuple(json.loads(line)[:2]) for line in path.read_text().splitlines()]
    assert sorted(kept) == [(name, number) for name in range(4) for number in range(60)]


def test_a_half_line_of_a_living_process_is_not_torn(tmp_path: Path) -> None:
    """Only a line that no living process is writing is cut off.

    Its writer holds the lock, and a reader reads what was there before.
    """
    path = tmp_path / "lines"
    append_line(path, "1")
    release, asleep = os.pipe()
    pid = os.fork()
    if pid == 0:
        write = os.write

        def slowly(fd: int, data: bytes) -> int:
            if len(data) > 1:
                done = write(fd, data[:1])
                write(asleep, b".")
                time.sleep(0.3)
                return done
            return write(fd, data)

        os.write = slowly  # type: ignore[assignment]
        append_line(path, "234")
        os._exit(0)
    os.read(release, 1)
    assert path.read_bytes() == b"1\n2"
    assert [line for _, _, line in lines(path)] == [b"1\n"] or path.read_bytes() == b"1\n234\n"
    cut_torn_tail(path)
    append_line(path, "5")
    os.waitpid(pid, 0)
    assert path.read_text() == "1\n234\n5\n"


def test_a_line_appended_while_files_are_merged_is_kept(tmp_path: Path) -> None:
    """The merged file replaces the one that a writer has already opened."""
    store = TrajectoryStore(tmp_path, "c", {})
    with store:
        store.save(done("0", StopReason.CANCELLED))

    def write() -> None:
        for doc in range(100, 140):
            done(str(doc)).write(store.path("t"))

    def merge() -> None:
        for _ in range(15):
            done("0", StopReason.CANCELLED).write(store.path("t"))
            store.merge(["t"])

    _forked(write, merge)
    store.merge(["t"])
    assert sorted(t.question.doc_id for t in Trajectory.read(store.path("t"))) == ["0", *map(str, range(100, 140))]


def test_ranks_are_merged_each_question_once_and_resumed(tmp_path: Path) -> None:
    for rank in range(3):
        with TrajectoryStore(tmp_path, "c", {}, rank=rank, world_size=3) as store:
            for doc in range(6):
                if doc % 3 == rank or doc == 0:  # question 0 is on every rank, and failed on the last
                    store.save(done(str(doc), StopReason.CANCELLED if doc == 0 and rank == 2 else StopReason.ANSWERED))
    with (tmp_path / "c" / "t.rank1.jsonl").open("a") as file:
        file.write('{"torn')
    with TrajectoryStore(tmp_path, "c", {}, rank=0, world_size=3) as store:
        store.merge(["t", "never ran"])
        store.merge(["t"])
        merged = Trajectory.read(store.path("t"))
    assert sorted(t.question.doc_id for t in merged) == list("012345")
    assert not any(t.stop_reason.failed for t in merged)
    assert [p.name for p in (tmp_path / "c").glob("*.jsonl")] == ["t.jsonl"]
    for rank, size in ((0, 1), (1, 2)):
        with TrajectoryStore(tmp_path, "c", {}, rank=rank, world_size=size) as store:
            assert all(store.finished(question(str(doc))) for doc in range(6))


def test_resume_never_under_several_ranks_takes_nothing_from_before(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    for name in ("t.jsonl", "t.rank0.jsonl", "t.rank1.jsonl", "t.rank5.jsonl"):
        done("0").write(tmp_path / "c" / name)
    for rank in (0, 1):
        with TrajectoryStore(tmp_path, "c", {}, rank=rank, world_size=2, resume="never") as store:
            assert store.finished(question("0")) is None
    assert not list((tmp_path / "c").glob("*.jsonl")) and len(list((tmp_path / "c").glob("*.old"))) == 4


RUN = textwrap.dedent("""
    import asyncio, resource, signal, sys, time
    from apr_plugin.loop import *
    from apr_plugin.runs import *
    from apr_plugin.loop.policy import PolicyDefaults
    folder, limit = sys.argv[1], int(sys.argv[2])
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    class Echo(PolicyDefaults):
        name = "echo"
        async def generate(self, prompt, sampling):
            await asyncio.sleep(0)
            return Generation(f"{sampling.seed} " + "x" * 300)
        def describe(self): return {}
    questions = [Question(text="what?", kind="free_form", doc_id=str(i), task="t") for i in range(40)]
    policy, config = Echo(), EpisodeConfig()
    try:
        with TrajectoryStore(folder, config.hash(policy), config.describe(policy)) as store:
            done = asyncio.run(run_episodes(questions, policy, config, store=store, concurrency=3))
    except TrajectoryError as error:
        print(f"TrajectoryError: {error}")
        sys.exit(3)
    print("answers", *[t.answer.split()[0] for t in done])
""")


def _spawn(folder: Path, limit: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", RUN, str(folder), str(limit)], stdout=subprocess.PIPE, text=True)


def _saved(folder: Path) -> list[Trajectory]:
    return [t for path in folder.glob("*/t.jsonl") for t in Trajectory.read(path)]


def test_a_full_disk_is_a_clear_error_and_a_rerun_completes(tmp_path: Path) -> None:
    process = _spawn(tmp_path, limit=12_000)
    out, _ = process.communicate(timeout=60)
    assert (
        process.returncode == 3
        and "TrajectoryError" in out
        and "t.jsonl" in out
        and "run the same command again" in out
    )
    kept = _saved(tmp_path)
    assert 0 < len(kept) < 40
    # an episode that the full disk stopped may still have had room for its short line
    assert {t.stop_reason for t in kept} - {StopReason.CANCELLED} == {StopReason.ANSWERED}
    data = next(tmp_path.glob("*/t.jsonl")).read_bytes()
    assert data.endswith(b"\n")
    process = _spawn(tmp_path)
    process.communicate(timeout=60)
    assert process.returncode == 0
    answered = [t.question.doc_id for t in _saved(tmp_path) if t.stop_reason == StopReason.ANSWERED]
    assert sorted(answered) == sorted(map(str, range(40)))
    assert next(tmp_path.glob("*/t.jsonl")).read_bytes().startswith(data)


def test_budget_is_part_of_the_hash() -> None:
    policy = Playback(["yes"])
    hashes = {
        EpisodeConfig().hash(policy), EpisodeConfig(budget=Budget(turns=3)).hash(policy),
            EpisodeConfig(arm="passive").hash(policy),
        EpisodeConfig(system_prompt="x").hash(policy), EpisodeConfig().hash(Playback(["no"])),
            EpisodeConfig(seed=1).hash(policy),
    }  # fmt: skip
    assert len(hashes) == 6 and EpisodeConfig().hash(policy) in hashes


RANK = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from apr_plugin.loop import *
    from apr_plugin.runs import *
    folder, rank, names = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(",")
    def wait(name):
        while not (folder / name).exists():
            time.sleep(0.01)
    if rank:
        wait("go1")
    with TrajectoryStore(folder, "c", {}, rank=rank, world_size=2) as store:
        for doc in names:
            if rank and doc == names[-1]:
                (folder / "late").touch()
                wait("go2")
            asked = Question(text="what?", kind="free_form", doc_id=doc, task="t")
            known = asked.content_hash()
            store.save(Trajectory(question=asked, stop_reason="answered", config_hash="c", question_hash=known))
    store.merge(["t"])
""")


@pytest.mark.parametrize("slow", ["before it begins", "in the middle"])
def test_a_rank_that_ends_long_after_the_other_loses_nothing(tmp_path: Path, slow: str) -> None:
    """lmms-eval skips its barrier when `--max_tokens` is used up.

    So rank 0 merges while rank 1 has not begun, or is still writing.
    """
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(tmp_path), str(rank), docs])
        for rank, docs in enumerate(("0,1,2", "3,4,5"))
    ]
    if slow == "in the middle":
        (tmp_path / "go1").touch()
        while not (tmp_path / "late").exists():
            time.sleep(0.01)
    assert ranks[0].wait(60) == 0
    merged = [t.question.doc_id for t in Trajectory.read(tmp_path / "c" / "t.jsonl")]
    assert merged == ["0", "1", "2"], "what has ended is merged, what is being written is left alone"
    (tmp_path / "go1").touch()
    (tmp_path / "go2").touch()
    assert ranks[1].wait(60) == 0
    assert sorted(t.question.doc_id for t in Trajectory.read(tmp_path / "c" / "t.jsonl")) == list("012345")
    assert [p.name for p in (tmp_path / "c").glob("*.jsonl")] == ["t.jsonl"]
    with TrajectoryStore(tmp_path, "c", {}) as store:
        assert all(store.finished(question(doc)) for doc in "012345")


def test_a_store_that_only_appends_keeps_nothing_in_memory(tmp_path: Path) -> None:
    for number in range(2):
        with TrajectoryStore(tmp_path, "c", {}, remember=False) as store:
            store.save(done(str(number), answer="A"))
            assert store.finished(question(str(number))) is None
        with store.path("t").open("ab") as file:
            file.write(b'{"torn')
    with TrajectoryStore(tmp_path, "c", {}) as again:
        assert [again.finished(question(str(number))) is not None for number in range(2)] == [True, True]
