"""No prompt is ever longer than the policy's context, whatever is looked at and written; nothing is cut silently, and
every question ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from apr_testing import Playback, answer, look, turn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apr_plugin.loop import (
    Budget,
    Episode,
    EpisodeConfig,
    ErrorCode,
    Generation,
    MediaRef,
    Prompt,
    PromptSize,
    Question,
    Sampling,
    StopReason,
    Usage,
)
from apr_plugin.loop.notebook import Notebook
from apr_plugin.loop.policy import AudioPart, ImagePart, TextPart, VideoPart
from apr_plugin.loop.strict import StrictEnding, strict_outcome
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.loop.wires import VideoMeta

Videos = dict[str, Path]


class Counting(Playback):
    """Counts in its own way, unlike any family: words by their letters, pictures by 16-pixel squares, 50 tokens for a
    second of sound."""

    def __init__(self, texts: Sequence[str], context_tokens: int | None) -> None:
        super().__init__(texts)
        self.context_tokens = context_tokens
        self.sizes: list[int] = []
        self.counted = 0

    async def count(self, prompt: Prompt) -> PromptSize:
        self.counted += 1
        text = visual = audio = 0
        for part in (part for message in prompt.messages for part in message.parts):
            match part:
                case TextPart():
                    text += -(-len(part.text) // 3)
                case ImagePart():
                    visual += 3 + _squares(part.image)
                case AudioPart():
                    audio += _seconds(part)
                case VideoPart():
                    visual += 5 + len(part.frames) * _squares(part.frames[0])
                    audio += _seconds(part.audio) if part.audio is not None else 0
        return PromptSize(text + 4 * len(prompt.messages), visual, audio)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        size = (await self.count(prompt)).total
        self.sizes.append(size)
        assert self.context_tokens is None or size + sampling.max_new_tokens <= self.context_tokens
        assert sampling.max_new_tokens >= 1
        return await super().generate(prompt, sampling)


def _squares(image: np.ndarray) -> int:
    return -(-image.shape[0] // 16) * -(-image.shape[1] // 16)


def _seconds(part: AudioPart) -> int:
    return round(50 * len(part.waveform) / part.sample_rate)


def play(path: Path, policy: Counting, turns: int = 5, max_new_tokens: int = 300, **config: Any) -> Trajectory:
    question = ASKED.model_copy(update={"videos": (MediaRef(path=str(path)),)})
    config.setdefault("budget", Budget(turns=turns))
    done = asyncio.run(
        Episode(question, policy, EpisodeConfig(sampling=Sampling(max_new_tokens=max_new_tokens), **config)).run()
    )
    assert Trajectory.from_json(done.to_json()) == done
    return done


AUDIO, CLIP = (
    lambda end, kind=kind: turn({"type": kind, "start": 0, "end": end}) for kind in ("get_audio", "get_clip")
)
ASKED = Question(text="what?", kind="free_form")  # type: ignore[arg-type]
EMPTY = asyncio.run(
    Counting([], None).count(Notebook(ASKED, [VideoMeta(6.0, 10.0, True)], Budget()).prompt(1, 5))
).total
"""Number of tokens of the first prompt."""

TEXTS = st.one_of(
    st.builds(look, st.floats(0, 3), st.floats(3, 6), st.integers(1, 60)),
    st.builds(AUDIO, st.floats(0.2, 6)),
    st.builds(CLIP, st.floats(0.5, 6)),
    st.builds(
        lambda n: turn({"type": "get_frames", "start": 0, "end": 6, "num": 9}, observation="x" * n),
        st.integers(0, 9000),
    ),
    st.text(max_size=2000),
    st.just(answer("a pot")),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=6),
    context=st.integers(1, 9000),
    most=st.sampled_from([1, 300, 4096]),
    arm=st.sampled_from(["agent", "agent", "passive"]),
)
def test_no_prompt_exceeds_the_context_and_every_question_ends(
    shared_videos: Videos, texts: list[str], context: int, most: int, arm: Any
) -> None:
    policy = Counting(texts, context)
    done = play(shared_videos["sound"], policy, max_new_tokens=most, arm=arm)
    assert done.stop_reason in (StopReason.ANSWERED, StopReason.FORCED, StopReason.TURNS, StopReason.TOKENS)
    assert (done.stop_reason is not StopReason.TOKENS) or "context" in done.stop_detail
    assert len(policy.sizes) == len(done.turns)
    unbounded = play(shared_videos["sound"], Counting(texts, None), max_new_tokens=most, arm=arm)
    if (
        max((*policy.sizes, 0)) < context - most
        and len(done.turns) == len(unbounded.turns)
        and done.looks == unbounded.looks
    ):
        assert [t.text for t in done.turns] == [t.text for t in unbounded.turns]


def test_without_a_count_or_a_limit_nothing_changes(shared_videos: Videos) -> None:
    texts = [look(0, 6, 60), CLIP(6), AUDIO(6), answer("a pot")]
    plain, roomy, unlimited = Playback(texts), Counting(texts, 10**6), Counting(texts, None)
    plain.context_tokens = 10  # but this policy can't count
    for policy in (plain, roomy, unlimited):
        play(shared_videos["sound"], policy)  # type: ignore[arg-type]
    assert [p.text for p in plain.prompts] == [p.text for p in roomy.prompts] == [p.text for p in unlimited.prompts]
    assert {s.max_new_tokens for s in (*plain.samplings, *roomy.samplings)} == {300}


def test_a_look_is_shown_smaller_then_with_fewer_frames_and_the_model_is_told(shared_videos: Videos) -> None:
    seen = {}
    for room in (10_000, 2_000, 1_000, 600):
        policy = Counting([look(0, 5.9, 20), answer("a pot")], EMPTY + room)
        done = play(shared_videos["sound"], policy)
        assert done.stop_reason is StopReason.ANSWERED
        shown = done.turns[0].shown
        assert shown is not None
        seen[room] = (len(shown.times_s), shown.width, shown.remark)
        assert shown.remark in policy.prompts[1].text
    assert seen[10_000] == (20, 320, "")
    assert seen[2_000][0] == 20 and seen[2_000][1] < 320 and "Scaled down to" in seen[2_000][2]
    assert seen[1_000][0] == 20 and seen[1_000][1] < seen[2_000][1]
    assert 1 <= seen[600][0] < 20 and f"Only {seen[600][0]} of the frames" in seen[600][2]


def test_what_is_shown_fills_most_of_the_room(shared_videos: Videos) -> None:
    """Shrinking stops soon after it fits: at least 60% of the free tokens are used."""
    for room in (1_000, 2_000, 3_000):
        policy = Counting([look(0, 5.9, 60), answer("a pot")], EMPTY + room)
        play(shared_videos["sound"], policy, max_new_tokens=256)
        first, second = policy.sizes
        free = EMPTY + room - 256 - first
        assert 0.6 * free <= second - first <= free


def test_of_far_too_many_small_frames_as_many_are_shown_as_fit(shared_videos: Videos) -> None:
    """If the words beside each frame take as many tokens as the frame, an estimate by pictures alone leaves one."""
    policy = Counting(["a pot"], 1_200)
    done = play(shared_videos["sound"], policy, arm="passive", passive_frames=500)
    (shown,) = done.first_shown
    assert len(shown.times_s) >= 25 and 700 <= policy.sizes[0] <= 1_200 - 256
    assert policy.counted <= 20


def test_a_clip_gets_smaller_but_its_sound_does_not(shared_videos: Videos) -> None:
    policy = Counting([CLIP(6), answer("a pot")], EMPTY + 1_200)
    done = play(shared_videos["sound"], policy, budget=Budget(turns=4, clip_fps=8))
    shown = done.turns[0].shown
    assert (
        shown is not None and shown.audio_s == 6.0 and (shown.width < 320 or len(shown.times_s) < 48) and shown.remark
    )
    policy = Counting([CLIP(6), CLIP(2), answer("a pot")], EMPTY + 600)
    done = play(shared_videos["sound"], policy)
    error = done.turns[0].error
    assert (
        error is not None
        and error.code == ErrorCode.NO_TOKENS_LEFT
        and "6.0s of sound take 300 tokens" in error.message
    )


def test_sound_that_does_not_fit_is_refused_with_the_limit_and_fits_below_it(shared_videos: Videos) -> None:
    policy = Counting([AUDIO(60), AUDIO(1), answer("a pot")], EMPTY + 1_500)
    done = play(shared_videos["long"], policy, max_new_tokens=200)
    error = done.turns[0].error
    assert error is not None and error.code == ErrorCode.NO_TOKENS_LEFT
    assert "60.0s of sound take 3000 tokens" in error.message and str(policy.context_tokens) in error.message
    most = float(error.message.partition("at most ")[2].partition("s, or")[0])
    assert 10 < most < 30 and done.turns[1].shown is not None
    for seconds, fits in ((most, True), (most + 0.5, False)):
        first = play(
            shared_videos["long"], Counting([AUDIO(seconds), answer("a pot")], EMPTY + 1_500), max_new_tokens=200
        ).turns[0]
        assert (first.shown is not None) == fits, first.error


def test_an_episode_that_cannot_go_on_gets_its_forced_answer_with_the_newest_notes(shared_videos: Videos) -> None:
    class Obliging(Counting):
        async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
            written = await super().generate(prompt, sampling)
            return Generation(answer("a pot")) if prompt.final else written

    notes = [
        turn({"type": "get_frames", "start": n, "end": n, "num": 1}, observation=f"note {n} " + "x" * 900)
        for n in range(4)
    ]
    policy = Obliging(notes, EMPTY + 1_400)
    done = play(shared_videos["sound"], policy, turns=9)
    assert done.stop_reason is StopReason.FORCED and done.answer_valid
    assert f"context of {policy.context_tokens} tokens is full" in done.stop_detail
    assert "did not fit and were left out" in done.stop_detail
    last = policy.prompts[-1]
    assert last.final and "are left out" in last.text and "note 0 " not in last.text
    kept = [n for n in range(4) if f"note {n} " in last.text]
    assert kept and kept == list(range(kept[0], len(done.turns) - 1)), "the newest notes are kept, without a gap"
    failing = play(shared_videos["sound"], Counting(notes, EMPTY + 1_400), budget=Budget(turns=9, on_last_turn="fail"))
    assert (failing.stop_reason, failing.answer) == (StopReason.TOKENS, None) and "is full" in failing.stop_detail


def test_a_question_that_does_not_fit_at_all_ends_without_a_call(shared_videos: Videos) -> None:
    for arm in ("agent", "passive"):
        policy = Counting([answer("a pot")], 100)
        done = play(shared_videos["sound"], policy, arm=arm)
        assert (done.stop_reason, done.answer, policy.prompts) == (StopReason.TOKENS, None, [])
        assert "context of 100 tokens" in done.stop_detail and not done.stop_reason.failed


def test_a_limit_on_the_prompt_alone_holds_whatever_the_context_and_takes_nothing_from_the_turn(
    shared_videos: Videos,
) -> None:
    for context in (None, EMPTY + 50_000, EMPTY + 800):
        policy = Counting([look(0, 5.9, 20), answer("a pot")], context)
        done = play(shared_videos["sound"], policy, budget=Budget(turns=5, prompt_tokens=EMPTY + 1_000))
        assert done.stop_reason is StopReason.ANSWERED and max(policy.sizes) <= EMPTY + 1_000
        shown = done.turns[0].shown
        assert shown is not None and "fit the token limit" in shown.remark
        if context != EMPTY + 800:
            assert {s.max_new_tokens for s in policy.samplings} == {300}
    policy = Counting([look(0, 5.9, 20)], None)
    done = play(shared_videos["sound"], policy, budget=Budget(turns=5, prompt_tokens=20))
    assert (done.stop_reason, policy.prompts) == (StopReason.TOKENS, []) and "limit of 20 tokens" in done.stop_detail


def test_in_strict_parsing_a_prompt_that_is_too_long_ends_the_episode(shared_videos: Videos) -> None:
    """Like OmniAgent's environment: nothing is made smaller, and no answer is asked for."""
    texts = [look(0, 5.9, 2), look(0, 5.9, 20), answer("a pot")]
    policy = Counting(texts, None)
    done = play(shared_videos["sound"], policy, budget=Budget(turns=5, prompt_tokens=EMPTY + 1_000), parsing="strict")
    assert (done.stop_reason, done.answer, len(policy.prompts)) == (
        StopReason.TOKENS,
        None,
        2,
    ) and not done.stop_reason.failed
    error = done.turns[1].error
    assert (
        error is not None
        and error.code is ErrorCode.NO_TOKENS_LEFT
        and done.turns[1].shown is None
        and "tokens is full" in done.stop_detail
    )
    policy = Counting(
        [turn({"type": "get_frames", "start": 0, "end": 6, "num": 1}, observation="x" * 9000), answer("a pot")], None
    )
    done = play(shared_videos["sound"], policy, budget=Budget(turns=5, prompt_tokens=EMPTY + 1_000), parsing="strict")
    assert (done.stop_reason, len(policy.prompts)) == (StopReason.TOKENS, 1)


def test_the_passive_arm_is_shown_less_and_says_so(shared_videos: Videos) -> None:
    policy = Counting(["a pot"], 1_500)
    done = play(shared_videos["sound"], policy, arm="passive", passive_frames=32, max_new_tokens=100)
    (shown,) = done.first_shown
    assert done.answer == "a pot" and (shown.width < 320 or len(shown.times_s) < 32)
    assert (
        "fewer pixels or frames to fit the model's context of 1500 tokens" in done.stop_detail
        and shown.remark in policy.prompts[0].text
    )
    whole = play(shared_videos["sound"], Counting(["a pot"], 10**6), arm="passive", passive_frames=32)
    assert whole.stop_detail == "" and whole.first_shown[0].width == 320


def test_pictures_of_a_question_are_read_again_smaller() -> None:
    asked: list[int | None] = []

    def read(pixels: int | None) -> list[ImagePart]:
        asked.append(pixels)
        side = 640 if pixels is None else int(pixels**0.5)
        return [ImagePart(np.zeros((side, side, 3), np.uint8))] * 2

    def run(context: int) -> tuple[Trajectory, Counting]:
        asked.clear()
        policy = Counting(["a pot"], context)
        config = EpisodeConfig(sampling=Sampling(max_new_tokens=100))
        return asyncio.run(Episode(ASKED, policy, config, pictures=read).run()), policy

    done, _ = run(10_000)
    assert done.answer == "a pot" and asked == [None]
    done, policy = run(1_000)
    assert done.answer == "a pot" and len(asked) == 2 and asked[1] is not None and asked[1] < 640 * 640
    assert "pictures scaled down" in done.stop_detail and done.first_shown[0].width < 640 and policy.sizes[0] > 500
    done, policy = run(150)
    assert done.stop_reason is StopReason.TOKENS and policy.prompts == []


def test_a_count_that_fails_is_a_policy_that_fails(shared_videos: Videos) -> None:
    class Broken(Counting):
        async def count(self, prompt: Prompt) -> Any:
            if self.broken == "raises":
                raise ValueError("no tokenizer")
            return 17

        broken = "raises"

    for broken, words in (("raises", "no tokenizer"), ("returns", "instead of a PromptSize")):
        policy = Broken([answer("a pot")], 1000)
        policy.broken = broken
        done = play(shared_videos["sound"], policy)
        assert done.stop_reason is StopReason.POLICY_UNAVAILABLE and words in done.stop_detail


def test_counting_is_cheap(shared_videos: Videos, make_video: Callable[..., Path]) -> None:
    """A look that fits is counted once when it is planned and once before it is sent; one that does not fit is counted
    a few times more."""
    for context, most in ((10**6, 10), (EMPTY + 600, 50)):
        policy = Counting([look(0, 5, 60), look(1, 6, 60), answer("a pot")], context)
        play(shared_videos["sound"], policy)
        assert policy.counted - len(policy.sizes) <= most


def test_what_strict_parsing_would_have_made_of_a_full_context(shared_videos: Videos) -> None:
    """A look that repair makes smaller ends a strictly read episode; one that only the budget makes smaller does
    not."""
    texts = [look(0, 5, 20), look(0, 1, 1), answer("red")]
    for room, ending in ((EMPTY + 700, StrictEnding.WRONG), (EMPTY + 20_000, StrictEnding.SAME)):
        repaired = play(shared_videos["sound"], Counting(texts, room))
        strict = play(shared_videos["sound"], Counting(texts, room), parsing="strict")
        assert (repaired.stop_reason, strict_outcome(repaired, room=room).ending) == (StopReason.ANSWERED, ending)
        assert strict.stop_reason is (StopReason.ANSWERED if ending is StrictEnding.SAME else StopReason.TOKENS)
        assert strict_outcome(strict).ending is StrictEnding.SAME, "no answer, in a run that was strict"
    sized = [turn_.model_copy(update={"usage": Usage(prompt_tokens=900)}) for turn_ in repaired.turns]
    assert sized[0].shown is not None
    smaller = sized[0].shown.model_copy(update={"remark": "(Scaled down to 160x32 to fit the token limit.)"})
    by_budget = repaired.model_copy(update={"turns": (sized[0].model_copy(update={"shown": smaller}), *sized[1:])})
    assert strict_outcome(by_budget, room=1200).ending is StrictEnding.SAME, (
        "the line says that the context had no part in it"
    )
    by_budget = by_budget.model_copy(update={"budget": None})  # a line of version 1 does not say so
    assert (
        strict_outcome(by_budget, room=20_000).ending is StrictEnding.SAME
        and strict_outcome(by_budget, room=1200).ending is StrictEnding.UNKNOWN
    )


def test_what_strict_parsing_would_have_made_of_notes_that_fill_the_context(shared_videos: Videos) -> None:
    texts, room = [look(0, 1, 1), *["words " * 150] * 3, answer("red")], EMPTY + 1000
    repaired = play(shared_videos["sound"], Counting(texts, room), turns=9)
    strict = play(shared_videos["sound"], Counting(texts, room), turns=9, parsing="strict")
    outcome = strict_outcome(repaired)
    assert repaired.stop_reason is StopReason.FORCED and repaired.answer is not None
    assert (outcome.ending, outcome.turn) == (StrictEnding.WRONG, len(repaired.turns))
    assert (strict.stop_reason, strict.answer, len(strict.turns)) == (StopReason.TOKENS, None, len(repaired.turns) - 1)
