"""Episodes on real files: every stop reason, forced answers, passive turns, seeds; and no policy that ends a run."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apr_testing import Playback, answer, look, turn

from apr_plugin.loop import (
    Budget,
    Episode,
    EpisodeConfig,
    ErrorCode,
    Generation,
    MediaRef,
    Option,
    PolicyUnavailable,
    Prompt,
    Question,
    QuestionKind,
    Sampling,
    StopReason,
    Trajectory,
    Usage,
)
from apr_plugin.loop.policy import ImagePart
from apr_plugin.runs import run_episodes

Videos = dict[str, Path]
OPTIONS = (Option(label="A", text="one"), Option(label="B", text="two"))


def ask(*paths: Path, doc_id: str = "0", kind: str = "mcq", text: str = "which?") -> Question:
    options = OPTIONS if kind == "mcq" else ()
    return Question(
        text=text, kind=kind, options=options, videos=tuple(MediaRef(path=str(p)) for p in paths), doc_id=doc_id
    )  # type: ignore[arg-type]


def play(question: Question, policy: Any, budget: Budget | None = None, **config: Any) -> Trajectory:
    trajectory = asyncio.run(Episode(question, policy, EpisodeConfig(budget=budget or Budget(turns=4), **config)).run())
    assert Trajectory.from_json(trajectory.to_json()) == trajectory
    return trajectory


def test_answered(shared_videos: Videos) -> None:
    policy = Playback([look(0, 5), turn({"type": "get_audio", "start": 0, "end": 2}), answer("b")])
    done = play(ask(shared_videos["sound"]), policy)
    assert (done.stop_reason, done.answer, done.answer_valid, len(done.turns), done.turns_allowed) == (
        StopReason.ANSWERED,
        "B",
        True,
        3,
        4,
    )
    assert (
        done.frames == 2
        and [s.kind for s in done.looks] == ["frames", "audio"]
        and done.video_durations_s == pytest.approx((6.0,))
    )
    assert done.timings.total_s >= done.timings.model_s + done.timings.media_s - 1e-5 and done.timings.media_s > 0
    assert done.turns[0].observation == "seen" and done.turns[0].shown is not None and done.turns[2].shown is None


def test_an_early_answer_is_refused_unless_the_budget_lets_it(shared_videos: Videos) -> None:
    policy = Playback([answer("A"), answer("B")])
    done = play(ask(shared_videos["sound"]), policy)
    assert done.turns[0].error is not None and done.turns[0].error.code == ErrorCode.EARLY_ANSWER
    assert done.answer == "B" and len(done.turns) == 2
    assert "EARLY_ANSWER" in policy.prompts[1].text
    assert play(ask(shared_videos["sound"]), policy, Budget(turns=4, refuse_blind_answer=False)).answer == "A"
    assert play(ask(shared_videos["sound"]), policy, Budget(turns=1)).answer == "A"


def test_forced_and_turns(shared_videos: Videos) -> None:
    question = ask(shared_videos["sound"])
    texts = [look(0, 1), "garbage", look(0, 1), look(2, 3), answer("A")]
    policy = Playback(texts)
    done = play(question, policy)
    assert (done.stop_reason, done.answer, done.answer_valid) == (StopReason.FORCED, "A", True)
    assert [t.error.code if t.error else None for t in done.turns] == [
        None, ErrorCode.MALFORMED_JSON, ErrorCode.REPEATED_LOOK, ErrorCode.ANSWER_EXPECTED, None,
    ]  # fmt: skip
    assert [t.forced for t in done.turns] == [False] * 4 + [True]
    assert policy.prompts[3].final and policy.prompts[4].final and not policy.prompts[2].final
    assert not any(isinstance(p, ImagePart) for m in policy.prompts[4].messages for p in m.parts)
    failed = play(question, Playback(texts), Budget(turns=4, on_last_turn="fail"))
    assert (failed.stop_reason, failed.answer, len(failed.turns)) == (
        StopReason.TURNS,
        None,
        4,
    ) and "4 turns" in failed.stop_detail
    nothing = play(question, Playback([look(0, 1)]), Budget(turns=2))
    assert (nothing.stop_reason, nothing.answer, len(nothing.turns)) == (StopReason.TURNS, None, 3)


def test_a_forced_answer_in_the_wrong_form_keeps_its_words(shared_videos: Videos) -> None:
    done = play(ask(shared_videos["sound"]), Playback([look(0, 1), look(0, 2), answer("the red one")]), Budget(turns=2))
    assert (done.stop_reason, done.answer, done.answer_valid) == (StopReason.FORCED, "the red one", False)
    assert "A, B" in done.stop_detail


def test_answers_beyond_any_number_cost_a_turn(shared_videos: Videos) -> None:
    done = play(
        ask(shared_videos["sound"], kind="number"), Playback([look(0, 1), answer("1" + ",000" * 300), answer("3")])
    )
    assert done.answer == "3" and done.turns[1].error is not None and done.turns[1].error.code == ErrorCode.ANSWER_FORM


def test_tokens(shared_videos: Videos) -> None:
    question, usage = ask(shared_videos["sound"]), Usage(prompt_tokens=100, completion_tokens=10)
    done = play(question, Playback([look(0, 1)], usage=usage), Budget(turns=9, tokens_per_episode=200))
    assert (done.stop_reason, len(done.turns)) == (StopReason.TOKENS, 3) and "200 tokens" in done.stop_detail
    done = play(
        question, Playback([look(0, 1), look(0, 2), answer("A")], usage=usage), Budget(turns=9, tokens_per_episode=200)
    )
    assert (done.stop_reason, done.answer) == (StopReason.FORCED, "A")
    spent = play(question, Playback([look(0, 1)]), Budget(turns=9, visual_tokens_per_episode=44, on_last_turn="fail"))
    assert (spent.stop_reason, len(spent.turns)) == (StopReason.TOKENS, 1) and "44 visual tokens" in spent.stop_detail


class Slow(Playback):
    def __init__(self, *texts: str, seconds: float, blocking: bool) -> None:
        super().__init__(texts)
        self.seconds, self.blocking = seconds, blocking

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        if self.blocking:
            time.sleep(self.seconds)
        else:
            try:
                await asyncio.sleep(self.seconds)
            except asyncio.CancelledError as error:  # like a client that wraps every exception
                raise PolicyUnavailable("cancelled under way") from error
        return await super().generate(prompt, sampling)


@pytest.mark.parametrize("blocking", [False, True])
def test_wall_clock(shared_videos: Videos, blocking: bool) -> None:
    began = time.perf_counter()
    policy = Slow(look(0, 1), seconds=0.4 if blocking else 30, blocking=blocking)
    done = play(ask(shared_videos["sound"]), policy, Budget(turns=20, wall_clock_s=0.6))
    assert done.stop_reason == StopReason.WALL_CLOCK and "0.6s" in done.stop_detail
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("bad", ["missing", "empty", "text", "folder", "truncated"])
def test_media_unreadable_at_the_start(tmp_path: Path, shared_videos: Videos, bad: str) -> None:
    path = tmp_path / "v.mp4"
    data = shared_videos["silent"].read_bytes()
    match bad:
        case "folder":
            path.mkdir()
        case "missing":
            pass
        case _:
            path.write_bytes({"empty": b"", "text": b"hello " * 99, "truncated": data[: len(data) // 2]}[bad])
    for arm in ("agent", "passive"):
        done = play(ask(shared_videos["sound"], path), Playback([answer("A")]), arm=arm)
        assert done.stop_reason == StopReason.MEDIA_UNREADABLE and str(path) in done.stop_detail
        assert done.answer is None and done.turns == () and done.stop_reason.failed


def test_media_unreadable_in_mid_episode(make_video: Callable[..., Path]) -> None:
    path = make_video("cut.mkv", frames=300)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    done = play(ask(path), Playback([look(0, 1), look(28, 29), answer("A")]))
    assert done.stop_reason == StopReason.MEDIA_UNREADABLE and str(path) in done.stop_detail
    assert len(done.turns) == 2 and done.turns[1].action is not None and done.answer is None


def test_a_file_that_vanishes_in_mid_episode_ends_in_one_reason(make_video: Callable[..., Path]) -> None:
    path = make_video("gone.mp4")

    class Remover(Playback):
        async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
            path.unlink(missing_ok=True)
            return await super().generate(prompt, sampling)

    done = play(ask(path), Remover([look(0, 1), answer("A")]))
    # An open file stays readable on Linux.
    assert done.stop_reason in (
        StopReason.ANSWERED,
        StopReason.MEDIA_UNREADABLE,
    )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PolicyUnavailable("the engine is gone"), "the engine is gone"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"),
        (TimeoutError("its own"), "TimeoutError: its own"),
        (asyncio.CancelledError("its own"), "CancelledError"),
        (RuntimeError("a\ud800b"), "a?b"),
        (SystemExit(0), "SystemExit: 0"),
    ],
)
def test_policy_unavailable(shared_videos: Videos, error: BaseException, words: str) -> None:
    for budget in (Budget(turns=4), Budget(turns=4, wall_clock_s=60)):
        done = play(ask(shared_videos["sound"]), Playback([look(0, 1), error]), budget)
        assert done.stop_reason == StopReason.POLICY_UNAVAILABLE and words in done.stop_detail
        assert len(done.turns) == 1 and done.stop_reason.failed


class Returns(Playback):
    def __init__(self, value: Any) -> None:
        super().__init__([])
        self.value = value

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        value: Generation = self.value
        return value


@pytest.mark.parametrize("value", [None, "text", Generation(None)])  # type: ignore[arg-type]
def test_a_policy_that_returns_no_generation_ends_one_question(shared_videos: Videos, value: Any) -> None:
    done = play(ask(shared_videos["sound"]), Returns(value))
    assert done.stop_reason == StopReason.POLICY_UNAVAILABLE and "playback" in done.stop_detail


def test_numbers_of_numpy_are_saved(shared_videos: Videos) -> None:
    usage = Usage(prompt_tokens=np.int64(5))  # type: ignore[arg-type]
    value = Generation(answer("A"), usage, logprobs=(np.float32(-1.5),), entropies=tuple(np.ones(1)))  # type: ignore[arg-type]
    done = play(ask(shared_videos["sound"]), Returns(value), Budget(turns=2))
    assert done.turns[0].usage.prompt_tokens == 5 and done.turns[0].logprobs == (-1.5,)


def test_whatever_a_policy_writes_reaches_the_next_prompt_as_text(shared_videos: Videos) -> None:
    policy = Playback(["\ud800" + look(0, 1), "\udfff{", answer("\ud83d A")])
    done = play(ask(shared_videos["sound"], kind="free_form"), policy)
    assert done.answer == "? A"
    for prompt in policy.prompts:
        prompt.text.encode()
    passive = play(ask(kind="free_form"), Playback(["\ud800"]))
    assert passive.answer == "?"


class Sleeper(Playback):
    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        await asyncio.sleep(30)
        raise AssertionError


@pytest.mark.parametrize("policy", [Sleeper([]), Slow(answer("A"), seconds=30, blocking=False)], ids=["plain", "wraps"])
@pytest.mark.parametrize("wall_clock_s", [None, 20])
def test_cancelled(shared_videos: Videos, policy: Playback, wall_clock_s: float | None) -> None:
    async def run() -> Trajectory:
        episode = Episode(ask(shared_videos["sound"]), policy, EpisodeConfig(budget=Budget(wall_clock_s=wall_clock_s)))
        task = asyncio.create_task(episode.run())
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return episode.cancelled()

    done = asyncio.run(run())
    assert done.stop_reason == StopReason.CANCELLED and done.stop_reason.failed and done.answer is None


def test_a_question_without_a_video_is_one_passive_turn_and_says_so() -> None:
    picture = ImagePart(np.zeros((8, 9, 3), np.uint8))
    policy = Playback(["B"])
    done = asyncio.run(Episode(ask(), policy, EpisodeConfig(), pictures=lambda pixels: [picture]).run())
    assert (done.arm, done.stop_reason, done.answer, len(done.turns)) == ("passive", StopReason.ANSWERED, "B", 1)
    assert "no video" in done.stop_detail and [shown.kind for shown in done.first_shown] == ["images"]
    assert policy.prompts[0].final and "<image 9x8>" in policy.prompts[0].text


def test_the_passive_arm_sees_uniform_frames_once(shared_videos: Videos) -> None:
    for written, expected, valid in (("B", "B", True), (answer("A"), "A", True), ("dunno", "dunno", False)):
        policy = Playback([written])
        done = play(ask(shared_videos["sound"]), policy, arm="passive", passive_frames=6)
        assert (done.answer, done.answer_valid, done.stop_reason, done.frames) == (
            expected,
            valid,
            StopReason.ANSWERED,
            6,
        )
        assert done.first_shown[0].times_s == pytest.approx((0.5, 1.5, 2.5, 3.5, 4.5, 5.5))
    blind = play(ask(shared_videos["sound"]), Playback(["B"]), arm="passive", passive_frames=0)
    assert blind.first_shown == () and blind.frames == 0


def _without_times(trajectory: Trajectory) -> Any:
    value = json.loads(trajectory.to_json())
    value.pop("timings")
    for written in value["turns"]:
        written.pop("model_s"), written.pop("media_s")
        if written["shown"]:
            written["shown"].pop("decode_s")
    return value


def test_same_seed_same_trajectory_and_seeds_do_not_depend_on_order(shared_videos: Videos) -> None:
    questions = [ask(shared_videos["sound"], doc_id=str(i)) for i in range(6)]

    def run(order: list[Question], concurrency: int, seed: int = 1) -> tuple[dict[str, Any], set[int]]:
        policy = Playback([look(0, 3), answer("A")])
        done = asyncio.run(
            run_episodes(order, policy, EpisodeConfig(budget=Budget(turns=3), seed=seed), concurrency=concurrency)
        )
        assert [t.question for t in done] == order
        return {t.question.doc_id: _without_times(t) for t in done}, {s.seed for s in policy.samplings}

    first, seeds = run(questions, 1)
    assert run(questions, 1) == (first, seeds)
    assert run(questions[::-1], 3) == (first, seeds)
    assert len(seeds) == 12  # one for each generation
    assert run(questions, 1, seed=2)[1].isdisjoint(seeds)


def test_a_passive_turn_without_a_reply_is_no_answer(shared_videos: Videos) -> None:
    for silence in ("", "  \n", answer("")):
        done = play(ask(shared_videos["sound"]), Playback([silence]), arm="passive")
        assert (done.stop_reason, done.answer, done.answer_valid) == (
            StopReason.TURNS,
            None,
            False,
        ) and "no answer" in done.stop_detail


def test_the_passive_arm_sees_every_video_by_its_length(shared_videos: Videos) -> None:
    question = Question(
        text="which?",
        kind=QuestionKind.FREE_FORM,
        videos=tuple(MediaRef(path=str(shared_videos[n])) for n in ("sound", "silent", "ears")),
    )
    policy = Playback(["both"])
    done = play(question, policy, arm="passive", passive_frames=8)
    assert [(shown.video, len(shown.times_s)) for shown in done.first_shown] == [(0, 4), (1, 4)]
    assert "video 2 has no picture" in done.stop_detail and "Video 1: Frames" in policy.prompts[0].text


def test_a_bare_answer_is_taken_where_it_is_forced(shared_videos: Videos) -> None:
    done = play(ask(shared_videos["sound"]), Playback([look(0, 1), "still looking", "B"]), budget=Budget(turns=2))
    assert (done.stop_reason, done.answer, done.answer_valid, done.turns[-1].forced) == (
        StopReason.FORCED,
        "B",
        True,
        True,
    )
