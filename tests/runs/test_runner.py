"""Many episodes at once: what overlaps, what is bounded, and that they do not change each other."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import threading
import time
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from apr_testing import Playback, answer, look

from apr_plugin import interrupt
from apr_plugin.loop import (
    Budget,
    Decoding,
    Episode,
    EpisodeConfig,
    Generation,
    MediaRef,
    Phase,
    Prompt,
    Question,
    Sampling,
    StopReason,
    Trajectory,
)
from apr_plugin.loop.policy import ImagePart
from apr_plugin.loop.trajectory import Turn
from apr_plugin.runs import TrajectoryStore, run_episodes

Videos = dict[str, Path]
CONFIG = EpisodeConfig(budget=Budget(turns=6))
TEXTS = [look(0, 3, 8), look(2, 5.9, 30), look(1, 4, 4), answer("a pot")]
ONE_LOOK = 30 * 320 * 64 * 3


def ask(n: int, path: Path | None, first: int = 0) -> list[Question]:
    videos = () if path is None else (MediaRef(path=str(path)),)
    return [
        Question(text=f"number {i}?", kind="free_form", doc_id=str(i), videos=videos) for i in range(first, first + n)
    ]  # type: ignore[arg-type]


def doc_of(prompt: Prompt) -> str:
    return prompt.messages[1].text.partition("number ")[2].partition("?")[0]


class Busy(Playback):
    """A policy that takes a moment, and counts the prompts that it works on at the same time."""

    def __init__(self, texts: list[Any] = TEXTS, seconds: float = 0.01) -> None:
        super().__init__(texts)
        self.seconds = seconds
        self.now = 0
        self.most = 0

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(self.seconds)
        self.now -= 1
        written = await super().generate(prompt, sampling)
        self.prompts.clear()
        return written


def test_as_many_episodes_as_asked_for_and_no_more(shared_videos: Videos) -> None:
    open_now, most_open = set(), 0

    def on_phase(span: Phase) -> None:
        nonlocal most_open
        if span.what == "open":
            open_now.add(span.question)
        most_open = max(most_open, len(open_now))

    policy = Busy()
    done = asyncio.run(
        run_episodes(
            ask(24, shared_videos["silent"]),
            policy,
            CONFIG,
            6,
            on_phase=on_phase,
            on_done=lambda t, _: open_now.discard(t.question.key),
        )
    )
    assert policy.most == 6 and most_open == 6 and {t.answer for t in done} == {"a pot"}


def test_one_episode_decodes_while_another_generates(shared_videos: Videos) -> None:
    """Question 1's first generation ends only when question 0 has been shown its look.

    Without overlap, neither would continue.
    """
    shown = asyncio.Event()

    class Waiting(Busy):
        async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
            if doc_of(prompt) == "0" and len(prompt.messages) > 2:
                shown.set()
            if doc_of(prompt) == "1":
                await asyncio.wait_for(shown.wait(), 60)
            return await super().generate(prompt, sampling)

    spans: list[Phase] = []
    done = asyncio.run(run_episodes(ask(2, shared_videos["silent"]), Waiting(), CONFIG, 2, on_phase=spans.append))
    assert [t.stop_reason for t in done] == [StopReason.ANSWERED] * 2
    (first_look, *_), (generation, *_) = (
        [s for s in spans if s.question[2] == "0" and s.what == "look"],
        [s for s in spans if s.question[2] == "1" and s.what == "generate"],
    )  # fmt: skip
    assert generation.began_s < first_look.began_s < first_look.ended_s < generation.ended_s


def test_spans_follow_each_other_and_add_up(shared_videos: Videos, tmp_path: Path) -> None:
    spans: list[Phase] = []
    policy = Busy()
    with TrajectoryStore(tmp_path, CONFIG.hash(policy), {}) as store:
        done = asyncio.run(
            run_episodes(ask(3, shared_videos["silent"]), policy, CONFIG, 3, store=store, on_phase=spans.append)
        )
    for trajectory in done:
        own = [span for span in spans if span.question == trajectory.question.key]
        assert [(s.turn, s.what) for s in own if s.what != "wait"] == [
            (0, "open"), (1, "generate"), (1, "look"), (2, "generate"), (2, "look"), (3, "generate"), (3, "look"),
            (4, "generate"), (0, "save"),
        ]  # fmt: skip
        assert all(a.began_s <= a.ended_s <= b.began_s + 1e-6 for a, b in pairwise(own))
        generated = sum(s.ended_s - s.began_s for s in own if s.what == "generate")
        assert generated == pytest.approx(trajectory.timings.model_s, rel=0.2, abs=0.02)


@pytest.mark.parametrize("held", [1, ONE_LOOK, 2 * ONE_LOOK + 10, 100 * ONE_LOOK])
def test_memory_is_bounded_and_nobody_waits_for_ever(shared_videos: Videos, held: int) -> None:
    decoding = Decoding(threads=3, held_bytes=held)
    seen: list[int] = []

    class Watching(Busy):
        async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
            seen.append(decoding.bytes)
            return await super().generate(prompt, sampling)

    questions = ask(12, shared_videos["silent"])
    done = asyncio.run(
        asyncio.wait_for(run_episodes(questions, Watching(seconds=0.001), CONFIG, 8, decoding=decoding), 120)
    )
    decoding.close()
    assert {t.answer for t in done} == {"a pot"} and decoding.bytes == 0
    assert max(seen) <= max(held, ONE_LOOK)
    if held > 50 * ONE_LOOK:
        assert max(seen) > 2 * ONE_LOOK


def test_what_waits_for_memory_or_a_thread_can_be_stopped(shared_videos: Videos) -> None:
    decoding = Decoding(threads=1, held_bytes=1)

    class Stuck(Busy):
        async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
            if len(prompt.messages) > 2:
                await asyncio.sleep(60)
            return await super().generate(prompt, sampling)

    async def run() -> None:
        task = asyncio.create_task(run_episodes(ask(4, shared_videos["silent"]), Stuck(), CONFIG, 4, decoding=decoding))
        while not decoding.bytes:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert decoding.bytes == 0
        late = await run_episodes(ask(1, shared_videos["silent"]), Busy(), CONFIG, decoding=decoding)
        assert late[0].answer == "a pot"
        hurried = EpisodeConfig(budget=Budget(turns=6, wall_clock_s=0.5))
        await decoding.hold(5)
        (out_of_time,) = await run_episodes(ask(1, shared_videos["silent"]), Busy(), hurried, decoding=decoding)
        assert out_of_time.stop_reason is StopReason.WALL_CLOCK
        decoding.let_go(5)

    asyncio.run(run())
    decoding.close()


def test_media_is_gone_once_a_generation_has_seen_it(shared_videos: Videos) -> None:
    held: list[weakref.ref[Any]] = []
    alive: list[int] = []

    class Weak(Busy):
        async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
            pictures = [
                part.image for message in prompt.messages for part in message.parts if isinstance(part, ImagePart)
            ]
            gc.collect()
            alive.append(sum(ref() is not None for ref in held))
            held.extend(weakref.ref(image.base if image.base is not None else image) for image in pictures)
            return await super().generate(prompt, sampling)

    asyncio.run(run_episodes(ask(2, shared_videos["silent"]), Weak(), CONFIG))
    assert len(held) > 40 and alive == [0] * len(alive)


def test_the_policy_goes_on_while_a_line_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync that ends only when the next question has been asked; on the event loop it would never end."""
    asked = threading.Event()
    real, waited = os.fsync, []

    def slow(fd: int) -> None:
        waited.append(asked.wait(60))
        real(fd)

    class Telling(Busy):
        async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
            if doc_of(prompt) == "1":
                await asyncio.sleep(0.2)
                asked.set()
            return await super().generate(prompt, sampling)

    monkeypatch.setattr(os, "fsync", slow)
    policy = Telling(["yes"])
    with TrajectoryStore(tmp_path, CONFIG.hash(policy), {}) as store:
        done = asyncio.run(run_episodes(ask(2, None), policy, CONFIG, 2, store=store))
    assert [t.answer for t in done] == ["yes", "yes"] and waited and all(waited)


def test_stopped_while_a_line_is_written_it_is_written_once_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncing = threading.Event()
    real = os.fsync

    def slow(fd: int) -> None:
        syncing.set()
        time.sleep(0.3)
        real(fd)

    monkeypatch.setattr(os, "fsync", slow)
    policy = Busy(["yes"])

    async def run() -> None:
        with TrajectoryStore(tmp_path, CONFIG.hash(policy), {}) as store:
            task = asyncio.create_task(run_episodes(ask(1, None), policy, CONFIG, store=store))
            while not syncing.is_set():
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    (path,) = tmp_path.glob("*/*.jsonl")
    assert [t.stop_reason for t in Trajectory.read(path)] == [StopReason.ANSWERED]


def test_values_for_each_token_are_on_disk_and_not_in_memory(tmp_path: Path) -> None:
    class Numbers(Busy):
        async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
            return Generation(
                "yes",
                token_ids=(7,) * 100,
                logprobs=(-0.5,) * 100,
                logprobs_of="scaled",
                prompt_token_ids=(5,) * 9,
                entropies=(1.0,) * 100,
                entropy_top_k=20,
            )

    policy = Numbers()
    (whole,) = asyncio.run(run_episodes(ask(1, None), policy, CONFIG))
    assert (
        whole.turns[0].logprobs == (-0.5,) * 100
        and whole.turns[0].token_ids == (7,) * 100
        and whole.turns[0].entropy_top_k == 20
    )
    for _ in range(2):  # the second run reads the files
        with TrajectoryStore(tmp_path, CONFIG.hash(policy), {}) as store:
            (light,) = asyncio.run(run_episodes(ask(1, None), policy, CONFIG, store=store))
        (turn,) = light.turns
        assert (turn.token_ids, turn.logprobs, turn.entropies) == (None, None, None) and light.answer == "yes"
    (saved,) = Trajectory.read(store.path("ask"))
    assert "prompt_token_ids" not in saved.to_json() and saved.turns[0].logprobs_of == "scaled"
    for name in ("token_ids", "logprobs", "logprobs_of", "entropies", "entropy_top_k"):
        assert getattr(saved.turns[0], name) == getattr(whole.turns[0], name)


def test_neither_concurrency_nor_order_changes_an_answer(shared_videos: Videos) -> None:
    """A policy that draws from the seed it is given, which also decides how long it takes."""

    class Drawing(Playback):
        async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
            rng = random.Random(f"{sampling.seed} {prompt.text}")
            await asyncio.sleep(rng.random() / 100)
            start = round(rng.uniform(0, 4), 2)
            return Generation(
                answer(f"{rng.random()}")
                if rng.random() < 0.3 or prompt.final
                else look(start, start + 1, rng.randint(1, 9))
            )

    questions = ask(16, shared_videos["silent"])
    first: dict[str, list[str]] | None = None
    for concurrency in (1, 4, 16):
        for order in (questions, questions[::-1]):
            done = asyncio.run(run_episodes(order, Drawing([]), CONFIG, concurrency))
            found = {t.question.doc_id: [turn.text for turn in t.turns] for t in done}
            first = first or found
            assert found == first
    assert first is not None and len({texts[-1] for texts in first.values()}) == 16


class Panic(BaseException):
    """An exception like those of libraries written in Rust, which is not an `Exception`."""


class Speechless(Exception):
    """An exception whose message can't be made."""

    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    "name",
    ["a\0b.mp4", "\ud800.mp4", "x" * 5000, "/root/" + "y/" * 3000, "/etc/passwd/x", "", "\x1b[31m.mp4"],
    ids=ascii,
)
def test_no_name_of_a_video_ends_the_run(name: str, shared_videos: Videos, tmp_path: Path) -> None:
    asked = [*ask(2, shared_videos["silent"]), *ask(1, Path("x"), first=2), *ask(2, shared_videos["silent"], first=3)]
    asked[2] = asked[2].model_copy(update={"videos": (MediaRef(path=name),), "text": f"number 2? {name}"})
    for again in range(2):
        policy = Busy(seconds=0)
        resumed: list[bool] = []
        with TrajectoryStore(tmp_path, CONFIG.hash(policy), {}) as store:
            done = asyncio.run(
                run_episodes(
                    asked, policy, CONFIG, 2, store=store, on_done=lambda _, earlier, told=resumed: told.append(earlier)
                )
            )
        assert [t.stop_reason for t in done] == [
            *[StopReason.ANSWERED] * 2,
            StopReason.MEDIA_UNREADABLE,
            *[StopReason.ANSWERED] * 2,
        ]
        assert done[2].stop_detail and sum(resumed) == 4 * again


@pytest.mark.parametrize(
    "fault", [LookupError("cursed"), MemoryError(), RecursionError("deep"), Panic("rust"), Speechless()], ids=repr
)
def test_whatever_fails_inside_an_episode_is_its_questions_reason(
    fault: BaseException, shared_videos: Videos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of the loop itself, not of the policy or the video."""
    from apr_plugin.loop import episode

    real = episode.turn_of

    def turn_of(parsed: Any, generation: Generation, *more: Any, **named: Any) -> Any:
        if "poison" in generation.text:
            raise fault
        return real(parsed, generation, *more, **named)

    monkeypatch.setattr(episode, "turn_of", turn_of)

    class Poisoned(Busy):
        async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
            return Generation("poison") if doc_of(prompt) == "1" else await super().generate(prompt, sampling)

    policy = Poisoned(seconds=0)
    with TrajectoryStore(tmp_path, CONFIG.hash(policy), {}) as store:
        done = asyncio.run(run_episodes(ask(3, shared_videos["silent"]), policy, CONFIG, 2, store=store))
    assert [t.stop_reason for t in done] == [StopReason.ANSWERED, StopReason.ERROR, StopReason.ANSWERED]
    assert done[1].stop_detail.startswith(type(fault).__name__)
    with TrajectoryStore(tmp_path, CONFIG.hash(policy), {}) as store:
        assert [store.finished(q) is not None for q in ask(3, shared_videos["silent"])] == [True, False, True]


@pytest.mark.parametrize("end", [SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_what_asks_the_process_to_end_is_no_questions_reason(
    end: BaseException, shared_videos: Videos, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apr_plugin.loop import episode

    def turn_of(*more: Any, **named: Any) -> Any:
        raise end

    monkeypatch.setattr(episode, "turn_of", turn_of)
    with pytest.raises(type(end)):
        asyncio.run(run_episodes(ask(1, shared_videos["silent"]), Busy(seconds=0), CONFIG))


def test_what_the_callers_own_function_raises_is_the_callers(shared_videos: Videos) -> None:
    def on_turn(number: int, turn: Turn) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        asyncio.run(Episode(ask(1, shared_videos["silent"])[0], Busy(seconds=0), CONFIG, on_turn=on_turn).run())


def test_a_ctrl_c_stops_the_run_though_the_engine_swallows_it(shared_videos: Videos, tmp_path: Path) -> None:
    class Deaf(Busy):
        async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
            if doc_of(prompt) == "2" and not interrupt.asked():
                signal.raise_signal(signal.SIGINT)
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)
                task = asyncio.current_task()
                assert task is not None
                task.uncancel()
            return await super().generate(prompt, sampling)

    policy, asked = Deaf(seconds=0), ask(6, shared_videos["silent"])
    try:
        with (
            interrupt.heard(),
            TrajectoryStore(tmp_path, CONFIG.hash(policy), {}) as store,
            pytest.raises(KeyboardInterrupt),
        ):
            interrupt.run(run_episodes(asked, policy, CONFIG, 1, store=store))
    except KeyboardInterrupt:
        pass
    finally:
        interrupt.uninstall()
    assert [t.question.doc_id for t in Trajectory.read(store.path("ask"))] == ["0", "1", "2"]
