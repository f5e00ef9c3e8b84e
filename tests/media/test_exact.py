"""The frame at `t` is the last one at or before `t`, pixel for pixel the same as when the file is decoded from
beginning to end, in every codec and container."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from films import Truth, ffmpeg, probing_times, truth, write_film

from apr_plugin.media import Video

_rng = random.Random(5)
VARYING = [0]
for _ in range(95):
    VARYING.append(VARYING[-1] + _rng.choice([1, 2, 3, 4, 4, 5, 9, 40]))

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    f"{kind}.{suffix}": (kind, {})
    for kind, suffixes in {
        "gop12": "mp4 mkv ts avi flv", "gop250": "mp4 mkv ts", "infinite": "mp4 mkv ts avi",
        "closed-pyramid": "mp4 mkv ts mov avi",
        "open": "mp4 mkv avi", "open-pyramid": "mp4 mkv ts mov avi", "refresh": "mp4 ts avi", "interlaced": "mp4 ts",
        "hevc": "mp4 mkv ts",
        "hevc-open": "mp4 mkv ts mov", "hevc-layers": "mp4", "vp9": "webm mp4", "vp9-altref": "webm", "vp8": "webm",
        "av1": "mp4 webm",
        "av1-pyramid": "mp4 mkv", "mpeg4": "avi mkv", "mpeg4-b": "avi mkv mp4 ts", "mpeg2-b": "ts mkv avi",
        "mjpeg": "avi mov",
    }.items()
    for suffix in suffixes.split()
}  # fmt: skip
for suffix in ("mp4", "mkv", "ts", "mov"):
    for kind in ("open-pyramid", "hevc-open"):
        CASES[f"varying-{kind}.{suffix}"] = (kind, {"pts": VARYING})
    CASES[f"starts-at-10-s.{suffix}"] = ("open-pyramid", {"first": 240})
CASES["varying.webm"] = ("vp9", {"pts": VARYING})
for name, fps in {
    "0.5": Fraction(1, 2),
    "1": 1,
    "23.976": Fraction(24000, 1001),
    "59.94": Fraction(60000, 1001),
    "120": 120,
}.items():
    for kind, suffix in (("open-pyramid", "mp4"), ("closed-pyramid", "mkv"), ("gop12", "ts"), ("mpeg4-b", "avi")):
        CASES[f"{name}-fps-{kind}.{suffix}"] = (kind, {"fps": fps, "frames": 60})


def check(path: Path, count: int = 100) -> None:
    """Check looks of many sizes at one file, in sequence, with one worker and with four."""
    known = truth(path)
    rng = random.Random(path.name)
    with Video.open(path, workers=1, isolation="never") as one, Video.open(path, workers=4, isolation="never") as four:
        times = probing_times(known.times_s, min(one.duration_s, known.times_s[-1] + 0.05), count, path.name)
        while times:
            size = rng.choice([1, 1, 2, 5, 20, 60])
            look, times = times[:size], times[size:]
            shown = one.frames(look)
            again = four.frames(look)
            assert not shown.missing_s and len(shown.images) == len(look)
            assert shown.times_s == again.times_s and np.array_equal(shown.images, again.images)
            for t, image, at in zip(look, shown.images, shown.times_s, strict=True):
                number = known.at(t)
                assert at == pytest.approx(max(0.0, known.times_s[number]), abs=1e-6), t
                assert np.array_equal(image, known.images[number]), (t, number)


@pytest.mark.parametrize("name", CASES)
def test_every_look_shows_what_decoding_it_all_shows(tmp_path: Path, name: str) -> None:
    kind, wanted = CASES[name]
    check(write_film(tmp_path / name, kind, **wanted))


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {
        kind: write_film(folder / f"{kind}.mp4", kind)
        for kind in ("closed-pyramid", "open-pyramid", "infinite", "hevc-open")
    }


@pytest.mark.parametrize(
    ("name", "kind", "before", "after"),
    [
        ("cut.mp4", "closed-pyramid", "-ss 1.3", ""),
        ("cut-open.mp4", "open-pyramid", "-ss 1.7", ""),
        ("cut-infinite.mp4", "infinite", "-ss 2.2", ""),
        ("cut-hevc.mp4", "hevc-open", "-ss 1.7", ""),
        ("cut-zero.mp4", "closed-pyramid", "-ss 1.3", "-avoid_negative_ts make_zero"),
        ("cut.mkv", "open-pyramid", "-ss 1.7", ""),
        ("late.mp4", "closed-pyramid", "-itsoffset 3.5", ""),
        ("late.mkv", "closed-pyramid", "-itsoffset 3.5", ""),
        ("late.ts", "closed-pyramid", "-itsoffset 3.5", "-copyts"),
        ("no-edits.mp4", "closed-pyramid", "", "-use_editlist 0"),
        ("negative-offsets.mp4", "closed-pyramid", "", "-movflags negative_cts_offsets"),
        ("fragments.mp4", "closed-pyramid", "", "-movflags frag_keyframe+empty_moov"),
        ("fragment-each.mp4", "open-pyramid", "", "-movflags frag_every_frame+empty_moov+default_base_moof"),
        ("live.mkv", "open-pyramid", "", "-live 1"),
        ("plain.m2ts", "open-pyramid", "", ""),
    ],
)
def test_edits_offsets_and_fragments(
    tmp_path: Path, sources: dict[str, Path], name: str, kind: str, before: str, after: str
) -> None:
    path = tmp_path / name
    ffmpeg(*before.split(), "-i", sources[kind], "-c", "copy", *after.split(), path)
    check(path)


@pytest.mark.parametrize(
    "name", ["open-pyramid.mp4", "closed-pyramid.mkv", "hevc-open.mp4", "av1-pyramid.mp4", "mpeg2-b.ts"]
)
def test_skipping_what_nothing_needs_saves_decoding_and_changes_no_picture(tmp_path: Path, name: str) -> None:
    path = write_film(tmp_path / name, name.partition(".")[0])
    known = truth(path)
    with Video.open(path, workers=1, isolation="never") as video:
        for number in range(0, len(known.times_s), 3):  # each alone, so that most pictures around it are skipped
            shown = video.frames([known.times_s[number] + 0.001])
            assert np.array_equal(shown.images[0], known.images[number])


@pytest.fixture(scope="session")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Truth, list[float]]]:
    import av

    folder = tmp_path_factory.mktemp("keyed")

    def make(name: str) -> tuple[Path, Truth, list[float]]:
        path = folder / name
        if not path.exists():
            write_film(path, name.partition(".")[0], frames=240)
        known = truth(path)
        with av.open(str(path)) as container:
            frames = [frame for frame in container.decode(video=0) if frame.pts is not None]
            first = min(float(frame.pts * frame.time_base) for frame in frames)
            keys = sorted({float(frame.pts * frame.time_base) - first for frame in frames if frame.key_frame})
        return path, known, keys

    return make


@pytest.mark.parametrize(
    "name", ["closed-pyramid.mp4", "open-pyramid.mkv", "gop12.ts", "hevc-open.mp4", "mpeg4.avi", "vp9.webm"]
)
def test_keyframe_mode_shows_keyframes_inside_half_the_spacing_and_exact_pictures_elsewhere(
    keyed: Callable[[str], tuple[Path, Truth, list[float]]], name: str
) -> None:
    path, known, keys = keyed(name)
    gop = max(b - a for a, b in pairwise(keys))
    rng = random.Random(name)
    with Video.open(path, isolation="never") as video:
        assert video.frames([3.3], mode="keyframe").mode == "exact"
        for spacing in (gop * 1.2, gop * 2.1, gop * 3):
            start = rng.uniform(0, 0.5)
            look = [start + i * spacing for i in range(int((9.9 - start) / spacing))]
            shown = video.frames(look, mode="keyframe")
            assert shown.mode in ("keyframe", "mixed")
            for t, at, image in zip(look, shown.times_s, shown.images, strict=True):
                nearest = min(abs(key - t) for key in keys)
                assert abs(at - t) <= spacing / 2
                if nearest < spacing / 2 - 0.1:
                    # Two ticks of 1/24 s.
                    assert any(at == pytest.approx(key, abs=2e-3) for key in keys) and abs(at - t) <= nearest + 0.09, t
                assert np.array_equal(image, known.images[known.at(at + 1e-4)])
            assert video.frames(look).mode == "exact"
        look = [1.0 + i * gop / 4 for i in range(8)]  # closer together than the keyframes, so exact
        shown = video.frames(look, mode="keyframe")
        assert shown.mode == "exact"
        assert shown.times_s == video.frames(look).times_s
        mixed = video.frames([1.0, 1.0 + gop / 4, 1.0 + gop / 2, 8.0], mode="keyframe")
        assert (
            mixed.mode in ("mixed", "exact")
            and mixed.times_s[:3] == video.frames([1.0, 1.0 + gop / 4, 1.0 + gop / 2]).times_s
        )
