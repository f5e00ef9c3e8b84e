"""`Video`: the exact frame, the exact sound, and otherwise an error that names the file."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from apr_testing import SHARED_MEDIA, lag_s, number_of

from apr_plugin.media import MediaDecodeError, MediaError, MediaOpenError, Video, WindowError, fit

Maker = Callable[..., Path]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("gop12.mp4", {"gop": 12}),
        ("gop250.mp4", {"gop": 250, "frames": 300}),
        ("bframes.mp4", {"gop": 24, "bframes": 3}),
        ("offset.mkv", {"start_s": 7.0, "sound_s": 6.0}),
        ("offset.ts", {"start_s": 100.0, "bframes": 2, "gop": 24, "frames": 120}),
        ("plain.ts", {"gop": 48, "frames": 240}),
        ("slow.mp4", {"fps": 1, "frames": 30}),
        ("old.avi", {"codec": "mpeg4"}),
        ("ntsc.mkv", {"fps": 24, "gop": 36, "bframes": 2}),
    ],
)
def test_the_frame_at_t_is_the_last_not_after_t(make_video: Maker, name: str, wanted: dict[str, object]) -> None:
    fps, count = int(wanted.get("fps", 10)), int(wanted.get("frames", 60))  # type: ignore[call-overload]
    rng = random.Random(name)
    with Video.open(make_video(name, **wanted)) as video:
        assert video.duration_s == pytest.approx(count / fps, abs=0.02)
        times = [rng.uniform(0, min(video.duration_s, count / fps)) for _ in range(60)] + [
            i / fps for i in rng.sample(range(count), 20)
        ]
        expected = [min(count - 1, int(t * fps + 1e-4)) for t in times]  # Matroska rounds stamps to a millisecond
        near = [abs(t * fps - round(t * fps)) < 0.02 for t in times]
        alone = [number_of(video.frames([t]).images[0]) for t in times]
        together = video.frames(times)
        assert [number_of(image) for image in together.images] == alone
        for t, want, edge, got, at in zip(times, expected, near, alone, together.times_s, strict=True):
            assert got == want or (edge and name.endswith(".mkv") and abs(got - want) == 1), (t, want, got)
            assert at == pytest.approx(got / fps, abs=0.0011)
            assert at <= t + 1e-6


def test_a_varying_rate_is_read_by_its_stamps(make_video: Maker) -> None:
    pts = [0, 1, 2, 30, 31, 80]
    path = make_video("vfr.mp4", frames=6, pts=pts, last_duration=120)
    with Video.open(path) as video:
        for t in (0.0, 0.15, 0.25, 2.9, 3.05, 7.9, 8.0, 8.5, video.duration_s):
            want = max(i for i, p in enumerate(pts) if p <= t * 10 + 1e-6)
            shown = video.frames([t])
            assert number_of(shown.images[0]) == want, t
            assert shown.times_s[0] == pytest.approx(pts[want] / 10)


def test_a_last_picture_that_stands_for_long_is_no_fault(make_video: Maker) -> None:
    with Video.open(make_video("slides.mp4", frames=3, pts=[0, 10, 20], last_duration=200)) as video:
        assert video.duration_s == pytest.approx(22.0)
        assert number_of(video.frames([21.5]).images[0]) == 2


def test_the_last_moment_and_one_frame(make_video: Maker) -> None:
    with Video.open(make_video("one.mp4", frames=1)) as video:
        assert video.duration_s == pytest.approx(0.1)
        assert [number_of(i) for i in video.frames([0.0, 0.05, video.duration_s]).images] == [0, 0, 0]
    with Video.open(make_video("many.mp4", frames=31)) as video:
        assert number_of(video.frames([video.duration_s]).images[0]) == 30


def test_order_and_repeats_are_kept(shared_videos: dict[str, Path]) -> None:
    with Video.open(shared_videos["silent"]) as video:
        shown = video.frames([5.0, 0.0, 5.0, 2.5])
        assert [number_of(image) for image in shown.images] == [50, 0, 50, 25]
        assert shown.times_s == pytest.approx((5.0, 0.0, 5.0, 2.5))


def test_sound_longer_than_the_picture_does_not_lengthen_the_video(make_video: Maker) -> None:
    with Video.open(make_video("tail.mkv", frames=20, sound_s=6.0)) as video:
        assert video.duration_s == pytest.approx(2.0, abs=0.05)
        assert number_of(video.frames([video.duration_s]).images[0]) == 19


def test_odd_sizes_and_scaling(make_video: Maker) -> None:
    path = make_video("odd.mp4", size=(322, 66))
    with Video.open(path) as video:
        assert video.size == (322, 66)
        assert video.frames([1.0]).images.shape == (1, 66, 322, 3)
        small = video.frames([1.0], max_pixels=4000).images
        assert small.shape[1] * small.shape[2] <= 4000
        assert number_of(small[0]) == 10


@pytest.mark.parametrize(
    ("width", "height", "limit"), [(1920, 1080, 200_704), (1, 10_000, 50), (3, 3, 1), (224, 224, 50_176), (7, 5, None)]
)
def test_fit(width: int, height: int, limit: int | None) -> None:
    w, h = fit(width, height, limit)
    assert 1 <= w <= width and 1 <= h <= height
    if limit is not None and min(width, height) > 1 and limit >= max(width, height):
        assert w * h <= limit
        assert w / h == pytest.approx(width / height, rel=0.05)


@pytest.mark.parametrize(
    ("name", "wanted", "tolerance_s"),
    [
        ("pcm48.mkv", {"audio_codec": "pcm_s16le"}, 0.001),
        ("pcm44.mkv", {"audio_codec": "pcm_s16le", "audio_rate": 44_100, "channels": 2}, 0.001),
        ("flac.mkv", {"audio_codec": "flac", "audio_rate": 16_000}, 0.001),
        ("offset.mkv", {"audio_codec": "pcm_s16le", "start_s": 5.0}, 0.001),
        ("aac.mp4", {}, 0.005),
        ("aac44.mp4", {"audio_rate": 44_100, "channels": 2}, 0.005),
        ("aac.ts", {"start_s": 30.0}, 0.03),
        ("opus.mkv", {"audio_codec": "libopus"}, 0.01),
        ("ears.mka", {"codec": None, "audio_codec": "flac"}, 0.001),
    ],
)
def test_sound_is_exactly_as_long_and_where_it_belongs(
    make_video: Maker, name: str, wanted: dict[str, object], tolerance_s: float
) -> None:
    rng = random.Random(name)
    with Video.open(make_video(name, frames=80, sound_s=8.0, **wanted)) as video:
        windows = [
            (0.0, 1.0),
            (3.0, 7.5),
            *((start := rng.uniform(0, 6.5), start + rng.uniform(0.3, 1.2)) for _ in range(8)),
        ]
        for start, end in windows:
            heard = video.audio(start, end)
            assert len(heard.samples) == round((end - start) * 16_000)
            assert heard.samples.dtype == np.float32 and np.abs(heard.samples).max() <= 1
            assert heard.start_s == start
            assert heard.padded_s <= tolerance_s
            assert np.std(heard.samples) > 0.15  # this is sound, not silence
            assert abs(lag_s(heard.samples, start)) <= tolerance_s, (start, end)


def test_missing_sound_is_padded_and_said(make_video: Maker) -> None:
    with Video.open(make_video("short.mkv", frames=60, sound_s=2.0, audio_codec="pcm_s16le")) as video:
        heard = video.audio(1.0, 4.0)
        assert heard.padded_s == pytest.approx(2.0, abs=0.002)
        assert np.abs(heard.samples[: 16_000 - 40]).max() > 0.3
        assert np.abs(heard.samples[16_000 + 40 :]).max() == 0
        silence = video.audio(4.0, 5.0)
        assert silence.padded_s == 1.0 and not silence.samples.any()


def test_a_clip_has_the_window_and_its_sound(shared_videos: dict[str, Path]) -> None:
    with Video.open(shared_videos["sound"]) as video:
        clip = video.clip(1.0, 4.0, fps=2.0)
        assert [number_of(image) for image in clip.frames.images] == [10, 15, 20, 25, 30, 35]
        assert clip.audio is not None and len(clip.audio.samples) == 48_000
    with Video.open(shared_videos["silent"]) as video:
        assert video.clip(0.0, 1.0, fps=2.0).audio is None


def test_outside_the_video_is_an_error_never_clamped(shared_videos: dict[str, Path]) -> None:
    with Video.open(shared_videos["sound"]) as video:
        for t in (-0.001, video.duration_s + 0.001, float("nan"), float("inf")):
            with pytest.raises(WindowError):
                video.frames([t])
        for start, end in ((-1.0, 1.0), (1.0, 99.0), (2.0, 2.0), (3.0, 2.0), (float("nan"), 1.0)):
            with pytest.raises(WindowError):
                video.audio(start, end)
            with pytest.raises(WindowError):
                video.clip(start, end, fps=2.0)
        with pytest.raises(WindowError):
            video.frames([])
    with Video.open(shared_videos["silent"]) as video, pytest.raises(WindowError, match="no audio track"):
        video.audio(0.0, 1.0)
    with Video.open(shared_videos["ears"]) as video:
        assert not video.has_video and video.fps is None and video.size is None
        assert video.duration_s == pytest.approx(4.0, abs=0.01)
        with pytest.raises(WindowError, match="no picture"):
            video.frames([0.0])


def _bad(tmp_path: Path, good: Path, what: str) -> Path:
    path = tmp_path / "bad.mp4"
    data = good.read_bytes()
    match what:
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("no video\n" * 1000)
        case "text.txt":
            path = tmp_path / "notes.txt"
            path.write_text("no video\n" * 1000)
        case "truncated":
            path.write_bytes(data[: len(data) // 2])
        case "header only":
            path.write_bytes(data[:40])
        case "zeros":
            path.write_bytes(bytes(5000))
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "long name":
            path = tmp_path / ("x" * 5000)
        case "unknown codec":
            assert b"avc1" in data
            path.write_bytes(data.replace(b"avc1", b"zzz9"))
        case "subtitles":
            path = tmp_path / "words.srt"
            path.write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n")
    return path


@pytest.mark.parametrize(
    "what",
    [
        "missing",
        "empty",
        "text",
        "text.txt",
        "truncated",
        "header only",
        "zeros",
        "folder",
        "pipe",
        "long name",
        "unknown codec",
        "subtitles",
    ],
)
@pytest.mark.timeout(20)
def test_a_bad_file_names_itself_and_the_stage(tmp_path: Path, shared_videos: dict[str, Path], what: str) -> None:
    path = _bad(tmp_path, shared_videos["silent"], what)
    with pytest.raises(MediaOpenError) as caught:
        Video.open(path).close()
    assert str(path) in str(caught.value) and "cannot open" in str(caught.value)
    assert caught.value.path == str(path) and caught.value.stage == "open"


@pytest.mark.parametrize("name", ["cut.mkv", "cut.mp4"])
def test_a_file_cut_short_is_an_error_where_it_is_cut_and_reads_before(make_video: Maker, name: str) -> None:
    path = make_video(
        name, frames=200, sound_s=20.0, options={"movflags": "faststart"} if name.endswith("mp4") else None
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with Video.open(path) as video:
        assert video.duration_s == pytest.approx(20.0, abs=0.1)
        assert number_of(video.frames([3.0]).images[0]) == 30
        with pytest.raises(MediaDecodeError) as caught:
            video.frames([18.0])
        assert str(path) in str(caught.value) and "18.000" in str(caught.value)


def test_damaged_pictures_are_a_media_error_or_pictures(make_video: Maker) -> None:
    path = make_video("noise.mp4", frames=100, gop=10)
    data = bytearray(path.read_bytes())
    rng = random.Random(1)
    start, end = data.index(b"mdat") + 8, data.index(b"moov") - 8
    for _ in range(400):
        data[rng.randrange(start, end)] = rng.randrange(256)
    path.write_bytes(data)
    with Video.open(path) as video:
        for t in np.linspace(0, video.duration_s, 20):
            try:
                assert video.frames([float(t)]).images.shape == (1, 64, 320, 3)
            except MediaError as error:
                assert str(path) in str(error)


@pytest.mark.parametrize(("matrix", "upright"), [((0, 1, -1, 0), True), ((0, -1, 1, 0), True), ((-1, 0, 0, -1), False)])
def test_rotation_is_applied(make_video: Maker, matrix: tuple[int, int, int, int], upright: bool) -> None:
    path = make_video("phone.mp4", frames=20, size=(320, 64))
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix begins after 40 bytes of the box
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    with Video.open(path) as video:
        image = video.frames([1.1]).images[0]
    if upright:
        assert image.shape[:2] == (320, 64)
        # (0 1 -1 0) is a phone held upright: players turn the coded picture clockwise, so its left column comes out on
        # top
        turned = np.rot90(image, 1 if matrix[1] == 1 else -1)
        assert number_of(turned) == 11
    else:
        assert number_of(image[:, ::-1]) == 11


def test_eight_threads_share_one_video(shared_videos: dict[str, Path]) -> None:
    def read(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(15):
            t = rng.randrange(0, 55) / 10 + 0.05
            assert number_of(video.frames([t]).images[0]) == int(t * 10)
            assert abs(lag_s(video.audio(t / 2, t / 2 + 0.5).samples, t / 2)) <= 0.005

    with Video.open(shared_videos["sound"]) as video, ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))


def test_closing_twice_is_harmless(shared_videos: dict[str, Path]) -> None:
    video = Video.open(shared_videos["sound"])
    video.close()
    video.close()


@pytest.mark.skipif(not SHARED_MEDIA.is_dir(), reason="the real clips are not on this machine")
@pytest.mark.parametrize(
    ("name", "duration_s", "has_audio"),
    [
        ("nasa_13013.mp4", 13.013, True),
        ("flipping_a_pancake.mkv", 10.333, True),
        ("odd_width_vp9.mp4", 1.0, False),
        ("testsrc2_h265.mp4", 2.0, False),
        ("testsrc2_mpeg4.avi", 1.0, False),
    ],
)
def test_real_clips(name: str, duration_s: float, has_audio: bool) -> None:
    with Video.open(SHARED_MEDIA / name) as video:
        assert video.duration_s == pytest.approx(duration_s, abs=0.01)
        assert video.has_audio == has_audio
        times = np.linspace(0, video.duration_s, 12).tolist()
        for t, at in zip(times, video.frames(times).times_s, strict=True):
            assert t - 2 / (video.fps or 1) <= at <= t + 1e-6
        if has_audio:
            heard = video.audio(0.0, video.duration_s)
            assert len(heard.samples) == round(video.duration_s * 16_000) and heard.padded_s < 0.1
