"""Wires: sizes and frames against the rules that they follow, and a look through each wire on real files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from apr_testing import make_video_file, number_of
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_plugin.loop import WIRES, Environment, GetClip, GetFrames, MediaRef, Percept, Question
from apr_plugin.loop.budget import PATCH_PIXELS, visual_tokens
from apr_plugin.loop.policy import TextPart, VideoPart
from apr_plugin.loop.profiles import PROFILES
from apr_plugin.loop.wires.omniagent import whole_squares

OURS, THEIRS = WIRES["apr"], WIRES["omniagent"]
SIDES = st.one_of(st.integers(1, 4000), st.sampled_from([28, 42, 56, 320, 640, 1080, 1920, 3840]))
LIMITS = st.one_of(
    st.integers(4 * PATCH_PIXELS, 2000 * PATCH_PIXELS),
    st.sampled_from([n * PATCH_PIXELS for n in (4, 128, 144, 256, 768, 1024)]),
)


@given(SIDES, SIDES, LIMITS)
def test_no_frame_takes_more_tokens_than_its_limit_allows(width: int, height: int, limit: int) -> None:
    for wire in (OURS, THEIRS):
        shown = wire.frame_size(width, height, limit)
        assert min(shown) >= 1 and visual_tokens(*shown) * PATCH_PIXELS <= limit
        clip = wire.clip_size(width, height, limit, 8)
        assert min(clip) >= 1 and visual_tokens(*clip) * PATCH_PIXELS <= limit
    wide, high = OURS.frame_size(width, height, limit)
    assert wide <= width and high <= height
    if min(wide, high) > 100:
        assert wide / high == pytest.approx(width / height, rel=0.02)


@settings(deadline=None)
@given(SIDES, SIDES, st.sampled_from([(4, 1024), (128, 768), (4, 16_384)]))
def test_whole_squares_are_those_of_the_real_processor(width: int, height: int, limits: tuple[int, int]) -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    least, most = (n * PATCH_PIXELS for n in limits)
    # These are refused there, and would be rounded down to no square.
    if max(width, height) > 200 * min(width, height) or min(width, height) < 14:
        return
    rows, columns = smart_resize(height, width, 28, least, most)
    if rows * columns <= most:
        assert whole_squares(width, height, least, most) == (columns, rows)


@pytest.mark.parametrize(
    ("size", "frame", "clip"),
    [
        ((1920, 1080), (1176, 672), (1008, 560)),
        ((1280, 720), (1176, 672), (1008, 560)),
        ((320, 240), (308, 252), (392, 280)),
        ((427, 241), (420, 252), (420, 252)),
        ((608, 1080), (616, 1092), (560, 1008)),
    ],
)
def test_sizes_of_the_published_evaluation(
    size: tuple[int, int], frame: tuple[int, int], clip: tuple[int, int]
) -> None:
    budget = PROFILES["omniagent"].budget
    assert THEIRS.frame_size(*size, budget.frame_pixels) == frame
    assert THEIRS.clip_size(*size, budget.clip_pixels, 20) == clip


@settings(deadline=None)
@given(start=st.floats(0, 100), length=st.floats(0.2, 60), rate=st.sampled_from([10.0, 24000 / 1001, 25.0, 30.0, 60.0]))
def test_clip_frames_lie_in_the_window_and_reach_both_ends(start: float, length: float, rate: float) -> None:
    count = THEIRS.clip_count(length, 2.0, rate)
    times = THEIRS.clip_times(start, start + length, count, 2.0, rate)
    assert count == 1 or count % 2 == 0
    assert len(times) == count and list(times) == sorted(times)
    assert (start <= times[0] < start + 1.6 / rate and start + length - 1.6 / rate <= times[-1]) or count == 1


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video_file(
        tmp_path_factory.mktemp("wires") / "film.mp4", frames=25 * 24, fps=25, size=(320, 240), gop=50, bframes=2
    )


def shown(film: Path, wire: str, *looks: GetFrames | GetClip) -> list[Percept]:
    """Each look in turn, with the limits of the published evaluation."""

    environment = Environment(PROFILES["omniagent"].budget, wire=WIRES[wire])
    with environment:
        environment.reset(Question(text="what?", kind="free_form", videos=(MediaRef(path=str(film)),)))  # type: ignore[arg-type]
        outcomes = [environment.step(look) for look in looks]
    assert all(isinstance(outcome, Percept) for outcome in outcomes), outcomes
    return outcomes  # type: ignore[return-value]


def test_labels_are_the_times_asked_for_and_the_record_keeps_the_true_ones(film: Path) -> None:
    look = GetFrames(start=0, end=10, num=4)
    (ours,), (theirs,) = shown(film, "apr", look), shown(film, "omniagent", look)
    assert (
        ours.times_s
        == theirs.times_s
        == ours.shown().times_s
        == theirs.shown().times_s
        == pytest.approx((0.0, 3.32, 6.64, 10.0))
    )
    assert [part.text for part in THEIRS.parts(theirs) if isinstance(part, TextPart)] == [
        "Frames 0.00s-10.00s (num=4).",
        *(f"Frame {t}s:" for t in ("0.00", "3.33", "6.67", "10.00")),
    ]
    assert "Timestamps: [0.00s, 3.33s, 6.67s, 10.00s] [MEDIA OMITTED" in THEIRS.placeholder(theirs)
    assert "Timestamps: [0.00s, 3.32s, 6.64s, 10.00s] [MEDIA OMITTED" in OURS.placeholder(ours)


def test_a_dense_an_empty_and_a_repeated_look_show_what_was_asked_for(film: Path) -> None:
    dense, empty = GetFrames(start=5.0, end=5.2, num=20), GetFrames(start=5.0, end=5.0, num=4)
    first, second, third = shown(film, "omniagent", dense, empty, dense)
    assert (
        first.images is not None
        and len(first.images) == 20
        and THEIRS.heading(first) == "Frames 5.00s-5.20s (num=20)"
        and not first.remark
    )
    assert (
        second.images is not None and len(second.images) == 4 and THEIRS.heading(second) == "Frames 5.00s-5.00s (num=4)"
    )
    assert third.times_s == first.times_s


def test_a_clip_is_spread_over_both_ends_and_small_ones_are_enlarged(film: Path) -> None:
    (clip,) = shown(film, "omniagent", GetClip(start=12.3, end=22.3))
    assert clip.images is not None and clip.images.shape == (20, 280, 392, 3)
    numbers = [number_of(image) for image in clip.images]
    assert (numbers[0], numbers[-1]) == (308, 557) and max(numbers[i + 1] - numbers[i] for i in range(19)) <= 14
    part = THEIRS.parts(clip)[1]
    assert isinstance(part, VideoPart) and part.fps == 2.0


def test_every_wire_is_told_by_its_name() -> None:
    assert json.dumps(sorted(WIRES)) == json.dumps(sorted(wire.name for wire in WIRES.values()))
