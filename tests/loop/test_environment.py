"""The environment: every refusal names the value and the limit, and raises nothing; budgets; windows of files; several
videos."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
from apr_testing import number_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apr_plugin.loop import (
    ActionError,
    Budget,
    Environment,
    ErrorCode,
    GetAudio,
    GetClip,
    GetFrames,
    Look,
    MediaRef,
    Option,
    Percept,
    Question,
)
from apr_plugin.loop.budget import visual_tokens
from apr_plugin.loop.plan import refuse_length
from apr_plugin.loop.profiles import PROFILES
from apr_plugin.loop.wires import WIRES
from apr_plugin.media import MediaOpenError, MediaSettings

Videos = dict[str, Path]


def ask(*paths: Path | MediaRef, kind: str = "free_form", **more: Any) -> Question:
    refs = tuple(p if isinstance(p, MediaRef) else MediaRef(path=str(p)) for p in paths)
    return Question(text="what?", kind=kind, videos=refs, **more)  # type: ignore[arg-type]


def opened(budget: Budget, *paths: Path | MediaRef, wire: str = "apr", **more: Any) -> Environment:
    environment = Environment(budget, wire=WIRES[wire])
    environment.reset(ask(*paths, **more))
    return environment


def frames(start: float, end: float, num: int = 2, video: int = 0) -> GetFrames:
    return GetFrames(start=start, end=end, num=num, video=video)


@pytest.mark.parametrize(
    ("name", "action", "code", "words"),
    [
        ("sound", frames(0, 1, video=1), ErrorCode.UNKNOWN_VIDEO, ("video 1", "only video 0")),
        ("sound", frames(0, 1, video=-1), ErrorCode.UNKNOWN_VIDEO, ("-1",)),
        ("sound", frames(3, 1), ErrorCode.REVERSED_WINDOW, ("3.00", "1.00")),
        ("sound", frames(-0.5, 1), ErrorCode.OUT_OF_RANGE, ("-0.50", "6.00")),
        ("sound", frames(1, 6.5), ErrorCode.OUT_OF_RANGE, ("6.50", "6.00")),
        ("sound", GetClip(start=4, end=1e308), ErrorCode.OUT_OF_RANGE, ("6.00",)),
        ("sound", frames(0, 1, 9), ErrorCode.TOO_MANY_FRAMES, ("9", "8")),
        ("sound", frames(0, 1, 0), ErrorCode.TOO_FEW_FRAMES, ("0", "1")),
        ("sound", GetAudio(start=0, end=5), ErrorCode.TOO_LONG, ("5.00", "4s")),
        ("sound", GetAudio(start=1, end=1.05), ErrorCode.TOO_SHORT, ("0.05", "0.10s")),
        ("sound", GetClip(start=0, end=3.5), ErrorCode.TOO_LONG, ("3.50", "3s")),
        ("sound", GetClip(start=0, end=0.3), ErrorCode.TOO_SHORT, ("0.30", "0.40", "4 frames")),
        ("silent", GetAudio(start=0, end=1), ErrorCode.NO_AUDIO, ("get_frames",)),
        ("ears", frames(0, 1), ErrorCode.NO_PICTURE, ("get_audio",)),
        ("ears", GetClip(start=0, end=1), ErrorCode.NO_PICTURE, ("get_audio",)),
    ],
)
def test_each_refusal_names_the_value_and_the_limit(
    shared_videos: Videos, name: str, action: Look, code: ErrorCode, words: tuple[str, ...]
) -> None:
    with opened(Budget(frames_per_look=8, audio_s=4, clip_s=3), shared_videos[name]) as environment:
        error = environment.step(action)
        assert isinstance(error, ActionError) and error.code == code
        assert all(word in error.message for word in words), error.message
        assert error.feedback().startswith(f"[ERROR] {code}: ")
        assert environment.visual_tokens_spent == 0


def test_limits_that_no_window_meets_are_said_to_be_so(make_video: Callable[..., Path]) -> None:
    # One frame in 30 s.
    slides = make_video("slides.mp4", frames=8, fps=1, pts=[30 * number for number in range(8)], last_duration=30)
    blink = make_video("blink.mp4", frames=3, sound_s=0.3)
    with opened(Budget(), slides, blink) as environment:
        for end in (30.0, 60.0, 119.0, 120.0, 230.0):
            error = environment.plan(GetClip(start=0.0, end=end))
            assert isinstance(error, ActionError) and "not possible" in error.message and "get_frames" in error.message
        error = environment.plan(GetClip(start=0.0, end=0.29, video=1))
        assert isinstance(error, ActionError) and "not possible" in error.message
    with opened(Budget(min_audio_s=2.0), blink) as environment:
        error = environment.plan(GetAudio(start=0.0, end=0.29))
        assert isinstance(error, ActionError) and "not possible" in error.message and "get_frames" in error.message
    with opened(Budget(clip_s=120.0), slides) as environment:
        assert not isinstance(environment.plan(GetClip(start=10.0, end=130.0)), ActionError)


@given(
    least=st.floats(0.001, 500),
    most=st.floats(0.01, 500),
    duration=st.floats(0.01, 1000),
    start=st.floats(0, 900),
    asked=st.floats(0, 1000),
)
def test_a_window_as_long_as_the_refusal_asks_for_is_taken(
    least: float, most: float, duration: float, start: float, asked: float
) -> None:
    def refused(length: float) -> ActionError | None:
        return refuse_length("clip", length, (least, " (4 frames)"), most, 0.01, duration, "use get_frames")

    error = refused(asked)
    if error is None or "not possible" in error.message:
        assert error is None or all(refused(length) is not None for length in (least, most, min(most, duration), asked))
    elif error.code == ErrorCode.TOO_LONG:
        assert asked > most
    else:
        told = float(error.message.partition("at least ")[2].partition("s")[0])
        if told <= min(most, duration):
            end = round(start, 2) + told  # a model writes it like this, with the rounding of floats
            assert refused(end - round(start, 2)) is None


def test_sound_that_can_not_be_decoded_fails_that_look_and_not_the_question(make_video: Callable[..., Path]) -> None:
    path = make_video("film.mkv", sound_s=6.0, audio_codec="flac")
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    for at, size in places:
        block = data.index(data[at : at + 4], at)
        data[block + 8 : block + size] = bytes(size - 8)
    path.write_bytes(data)
    with opened(Budget(), path) as environment:
        error = environment.step(GetAudio(start=1, end=3))
        assert isinstance(error, ActionError) and error.code == ErrorCode.UNREADABLE and "get_frames" in error.message
        clip = environment.step(GetClip(start=1, end=3))
        assert (
            isinstance(clip, Percept)
            and clip.waveform is None
            and "sound can't be decoded" in clip.remark
            and len(clip.times_s) == 4
        )
        assert isinstance(environment.step(frames(1, 3)), Percept)


def test_a_repeated_look_is_refused_and_more_frames_are_a_new_look(shared_videos: Videos) -> None:
    with opened(Budget(), shared_videos["sound"], shared_videos["sound"]) as environment:
        for action, taken in [
            (frames(0, 2, 4), True), (frames(0, 2, 4), False), (frames(0, 2, 3), False), (frames(0.001, 2, 4), False),
            (frames(0, 2, 5), True),
            (frames(0, 2.5, 4), True), (frames(0, 2, 4, video=1), True), (GetClip(start=0, end=2), True),
            (GetClip(start=0, end=2), False),
            (GetAudio(start=0, end=2), True), (GetAudio(start=0, end=2), False),
        ]:  # fmt: skip
            outcome = environment.step(action)
            assert isinstance(outcome, Percept) == taken, action
            if isinstance(outcome, ActionError):
                assert outcome.code == ErrorCode.REPEATED_LOOK and "2.00" in outcome.message


def test_a_refused_look_does_not_count_as_taken(shared_videos: Videos) -> None:
    with opened(Budget(visual_tokens_per_episode=30), shared_videos["silent"]) as environment:
        for _ in range(2):
            outcome = environment.step(frames(0, 5, 8))
            assert isinstance(outcome, ActionError) and outcome.code == ErrorCode.NO_TOKENS_LEFT
            assert "30 are left" in outcome.message and "176" in outcome.message


def test_what_was_asked_for_is_shown(shared_videos: Videos) -> None:
    with opened(Budget(), shared_videos["sound"]) as environment:
        seen = environment.step(frames(1, 3, 5))
        assert isinstance(seen, Percept) and seen.images is not None
        assert [number_of(image) for image in seen.images] == [10, 15, 20, 25, 30]
        assert seen.times_s == pytest.approx((1.0, 1.5, 2.0, 2.5, 3.0)) and seen.remark == ""
        assert seen.visual_tokens == 5 * visual_tokens(320, 64)
        assert WIRES["apr"].placeholder(seen) == (
            "Frames 1.00s-3.00s (num=5). Timestamps: [1.00s, 1.50s, 2.00s, 2.50s, 3.00s] [MEDIA OMITTED - "
            "Refer to your Observation]"
        )
        clip = environment.step(GetClip(start=1, end=3))
        assert isinstance(clip, Percept) and clip.images is not None and clip.waveform is not None
        assert [number_of(image) for image in clip.images] == [10, 15, 20, 25] and len(clip.waveform) == 32_000
        assert clip.visual_tokens == 2 * visual_tokens(320, 64)
        heard = environment.step(GetAudio(start=5.5, end=6.005))
        assert (
            isinstance(heard, Percept)
            and heard.end_s == 6.0
            and heard.visual_tokens == 0
            and heard.shown().audio_s == 0.5
        )
        one = environment.step(frames(2.04, 2.04, 1))
        assert (
            isinstance(one, Percept)
            and one.times_s == pytest.approx((2.0,))
            and WIRES["apr"].placeholder(one).startswith("Frame at 2.00s (num=1).")
        )


def test_frames_that_are_the_same_picture_are_shown_once(shared_videos: Videos) -> None:
    with opened(Budget(), shared_videos["silent"]) as environment:
        seen = environment.step(frames(1.0, 1.2, 12))
        assert isinstance(seen, Percept) and seen.images is not None
        assert [number_of(image) for image in seen.images] == [10, 11, 12]
        assert "3 different frames" in seen.remark and "(num=3)" in WIRES["apr"].placeholder(seen)


def test_a_look_over_its_token_limit_gets_fewer_pixels_then_fewer_frames_and_says_so(
    make_video: Callable[..., Path],
) -> None:
    path = make_video("large.mp4", size=(640, 352))
    full = visual_tokens(640, 352)
    with opened(Budget(visual_tokens_per_look=4 * full, frame_pixels=640 * 352), path) as environment:
        seen = environment.step(frames(0, 3, 4))
        assert isinstance(seen, Percept) and seen.remark == ""
        seen = environment.step(frames(0, 5, 16))
        assert isinstance(seen, Percept) and seen.images is not None and len(seen.images) == 16
        assert (
            seen.visual_tokens <= 4 * full
            and f"Scaled down to {seen.images.shape[2]}x{seen.images.shape[1]}" in seen.remark
        )
    with opened(Budget(visual_tokens_per_look=40), path) as environment:
        seen = environment.step(frames(0, 5, 16))
        assert isinstance(seen, Percept) and seen.images is not None and 1 < len(seen.images) < 16
        assert seen.visual_tokens <= 40 and f"Only {len(seen.images)} of the frames" in seen.remark
        assert seen.times_s[0] == 0 and seen.times_s[-1] == pytest.approx(5.0)
        clip = environment.step(GetClip(start=0, end=6))
        assert isinstance(clip, Percept) and clip.visual_tokens <= 40
    with opened(Budget(visual_tokens_per_look=12), path) as environment:
        clip = environment.step(GetClip(start=0, end=6))
        assert isinstance(clip, Percept) and clip.images is not None and len(clip.images) < 12
        assert f"{clip.fps:.2f} frames per second" in clip.remark and clip.visual_tokens <= 12


def test_the_episode_limit_on_visual_tokens(shared_videos: Videos) -> None:
    one = visual_tokens(320, 64)
    with opened(Budget(visual_tokens_per_episode=3 * one + 3), shared_videos["silent"]) as environment:
        assert isinstance(environment.step(frames(0, 1, 2)), Percept) and not environment.exhausted
        assert isinstance(environment.step(frames(0, 5, 2)), ActionError)
        assert isinstance(environment.step(frames(5, 5, 1)), Percept)
        assert environment.visual_tokens_spent == 3 * one and environment.exhausted


def test_a_window_of_a_file_is_a_video_of_its_own(shared_videos: Videos) -> None:
    ref = MediaRef(path=str(shared_videos["sound"]), start_s=2.0, end_s=4.0)
    with opened(Budget(), ref) as environment:
        assert environment.durations_s == pytest.approx((2.0,))
        seen = environment.step(frames(0, 1.9, 2))
        assert isinstance(seen, Percept) and seen.images is not None
        assert [number_of(image) for image in seen.images] == [20, 39] and seen.times_s == pytest.approx((0.0, 1.9))
        error = environment.step(frames(0, 2.5, 2))
        assert isinstance(error, ActionError) and "2.00s" in error.message
        uniform = environment.show(*environment.plan_uniform(4))
        assert uniform.images is not None and [number_of(image) for image in uniform.images] == [22, 27, 32, 37]
        clip = environment.step(GetClip(start=0.5, end=1.5))
        assert isinstance(clip, Percept) and clip.times_s == pytest.approx((0.5, 1.0))


@pytest.mark.parametrize(
    ("start", "end"), [(10.0, 12.0), (6.0, None), (3.0, 2.0), (None, 0.0), (math.nan, None), (None, -1.0)]
)
def test_a_window_that_holds_nothing_is_unreadable_not_empty(
    shared_videos: Videos, start: float | None, end: float | None
) -> None:
    with pytest.raises(MediaOpenError, match=r"sound\.mp4.*contains nothing"):
        opened(Budget(), MediaRef(path=str(shared_videos["sound"]), start_s=start, end_s=end))


def test_several_videos_are_told_apart(shared_videos: Videos) -> None:
    with opened(Budget(), shared_videos["sound"], shared_videos["ears"]) as environment:
        assert environment.durations_s == pytest.approx((6.0, 4.0), abs=0.01)
        heard = environment.step(GetAudio(start=0, end=4, video=1))
        assert isinstance(heard, Percept) and WIRES["apr"].placeholder(heard).startswith("Video 1: Audio 0.00s-4.00s")
        error = environment.step(GetAudio(start=0, end=5, video=1))
        assert isinstance(error, ActionError) and error.code == ErrorCode.OUT_OF_RANGE
        error = environment.step(frames(0, 1, video=2))
        assert isinstance(error, ActionError) and "videos 0 to 1" in error.message


def test_the_smallest_windows_at_the_very_end_are_looks_or_errors(shared_videos: Videos) -> None:
    with opened(Budget(min_audio_s=0, min_clip_frames=1), shared_videos["sound"]) as environment:
        for start, end in ((6.0, 6.005), (6.005, 6.009), (5.9995, 6.01), (5.95, 6.01)):
            for action in (GetAudio(start=start, end=end), GetClip(start=start, end=end), frames(start, end, 3)):
                assert isinstance(environment.step(action), Percept | ActionError)


SECONDS = st.one_of(
    st.floats(-2, 8),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, 6.0, 6.01, 6.005, 5.9999999]),
)
ACTIONS = st.one_of(
    st.builds(GetFrames, start=SECONDS, end=SECONDS, num=st.integers(-1, 6), video=st.integers(-1, 2)),
    st.builds(GetAudio, start=SECONDS, end=SECONDS, video=st.integers(-1, 2)),
    st.builds(GetClip, start=SECONDS, end=SECONDS, video=st.integers(-1, 2)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(ACTIONS, min_size=1, max_size=6),
    st.sampled_from([None, 30, 200]),
    st.sampled_from([None, 60]),
    st.sampled_from(sorted(WIRES)),
)
def test_no_action_raises_and_limits_hold(
    shared_videos: Videos, actions: list[Look], episode: int | None, per_look: int | None, wire: str
) -> None:
    budget = Budget(
        visual_tokens_per_episode=episode, visual_tokens_per_look=per_look, min_audio_s=0.0, min_clip_frames=1
    )
    with opened(budget, shared_videos["sound"], shared_videos["ears"], wire=wire) as environment:
        for action in actions:
            outcome = environment.step(action)
            if isinstance(outcome, Percept):
                assert per_look is None or outcome.visual_tokens <= per_look
                assert all(action.start - 0.12 <= t <= action.end + 1e-6 for t in outcome.times_s)
                assert outcome.shown().visual_tokens == outcome.visual_tokens
            else:
                assert outcome.message.endswith(".") and len(outcome.message) < 2000
            assert episode is None or environment.visual_tokens_spent <= episode


@pytest.mark.parametrize(
    ("kind", "content", "canonical"),
    [
        ("mcq", "b", "B"), ("mcq", "B. two", "B"), ("grounding", "[[3, 4], [1, 2], [1.5, 2.5]]",
        "[[1.0, 2.5], [3.0, 4.0]]"),
        ("grounding", "[[5, 6.4]]", "[[5.0, 6.0]]"), ("number", "1,000", "1000"), ("number", "-0", "0"),
        ("number", "2.50", "2.5"),
        ("number", "0.00001", "0.00001"), ("number", "1" + "0" * 22, "1" + "0" * 22), ("free_form", " hi ", "hi"),
        ("mcq", "Z", None), ("grounding", "[[5, 7]]", None), ("grounding", "[[3, 1]]", None),
        ("grounding", "[[NaN, 1]]", None),
        ("grounding", "x", None),
        ("grounding", "[[-1, 1]]", None), ("number", "none", None), ("number", "1" + ",000" * 300, None),
        ("free_form", "  ", None),
    ],
)  # fmt: skip
def test_answers_become_canonical_or_an_error(
    shared_videos: Videos, kind: str, content: str, canonical: str | None
) -> None:
    options = (Option(label="A", text="one"), Option(label="B", text="two")) if kind == "mcq" else ()
    with opened(Budget(), shared_videos["sound"], kind=kind, options=options) as environment:
        checked = environment.check_answer(content)
        if canonical is None:
            assert isinstance(checked, ActionError) and checked.code == ErrorCode.ANSWER_FORM
        else:
            assert checked == canonical
            assert environment.check_answer(checked) == canonical


@pytest.mark.parametrize(
    ("duration_s", "turns"), [(0, 5), (59.9, 5), (60, 6), (600, 15), (1619, 31), (1620, 32), (7200, 32), (1e9, 32)]
)
def test_turns_grow_with_the_length_up_to_the_most(duration_s: float, turns: int) -> None:
    assert Budget().turns_for(duration_s) == turns
    assert Budget(turns=3).turns_for(duration_s) == 3
    assert Budget(max_turns=10).turns_for(duration_s) == min(turns, 10)


def test_the_published_values() -> None:
    profile = PROFILES["paper"]
    assert profile is PROFILES["omniagent"] and (profile.wire, profile.parsing) == ("omniagent", "strict")
    paper = profile.budget
    assert (
        paper.frames_per_look,
        paper.audio_s,
        paper.min_audio_s,
        paper.clip_s,
        paper.min_clip_frames,
        paper.clip_fps,
    ) == (60, 300, 0.1, 60, 4, 2)
    assert (paper.min_turns, paper.max_turns, paper.turns, paper.on_last_turn, paper.refuse_blind_answer) == (
        5,
        32,
        None,
        "fail",
        True,
    )
    assert (paper.frame_pixels, paper.clip_pixels) == (1024 * 784, 768 * 784)
    assert (paper.visual_tokens_per_look, paper.visual_tokens_per_episode, paper.tokens_per_episode) == (
        None,
        None,
        None,
    )
    assert paper.prompt_tokens == 65_504


def test_a_look_records_how_its_frames_were_chosen_and_what_they_cost(shared_videos: Videos) -> None:
    """`long` has a keyframe every 5 s: 4 frames over 75 s may be keyframes, 4 frames over 3 s may not."""
    environment = Environment(Budget(), MediaSettings(mode="keyframe"))
    with environment:
        environment.reset(ask(shared_videos["long"]))
        wide, close = environment.step(frames(0, 75, 4)), environment.step(frames(31, 34, 4))
        assert isinstance(wide, Percept) and isinstance(close, Percept)
        assert wide.shown().mode == "keyframe" and all(t % 5 == 0 for t in wide.times_s) and wide.times_s[1] == 25.0
        assert close.shown().mode == "exact" and close.times_s == (31.0, 32.0, 33.0, 34.0)
        assert 0 < wide.shown().packets <= 8 < close.shown().packets + 8 and wide.shown().decode_s > 0
        heard = environment.step(GetAudio(start=0, end=2))
        assert isinstance(heard, Percept) and heard.shown().mode == "" and heard.shown().packets > 0


def test_a_damaged_stretch_is_told_to_the_model(make_video: Callable[..., Path]) -> None:
    path = make_video(frames=100, gop=10, size=(320, 64))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle - 2000 : middle + 2000] = bytes(4000)
    path.write_bytes(data)
    with opened(Budget(), path) as environment:
        percept = environment.step(frames(0, 9.9, 60))
        assert isinstance(percept, Percept) and "damaged at" in percept.remark and len(percept.times_s) < 60
        assert all(number_of(image) == round(t * 10) for t, image in zip(percept.times_s, percept.images, strict=True))  # type: ignore[arg-type]


def test_sound_that_outlasts_the_pictures_can_be_heard_and_pictures_there_are_refused(
    make_video: Callable[..., Path],
) -> None:
    with opened(Budget(), make_video("tail.mkv", frames=20, sound_s=6.0)) as environment:
        error = environment.step(frames(1, 5))
        assert isinstance(error, ActionError) and error.code is ErrorCode.OUT_OF_RANGE
        assert "pictures last from 0 to 2.00s" in error.message and "sound lasts to 6.0" in error.message
        assert isinstance(environment.step(GetClip(start=1.0, end=4.0)), ActionError)
        heard = environment.step(GetAudio(start=4.0, end=5.5))
        assert isinstance(heard, Percept) and heard.waveform is not None and float(abs(heard.waveform).max()) > 0.01
        assert isinstance(environment.step(GetAudio(start=4.0, end=6.5)), ActionError)
