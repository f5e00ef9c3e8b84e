"""Sound is in its place to the millisecond, in every codec, and exactly as long as requested."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from films import ffmpeg, lag_ms, write_sound

from apr_plugin.media import Video

WINDOWS = 20

ALONE: dict[str, dict[str, Any]] = {
    **{f"aac-{rate}-{layout}.mp4": {"rate": rate, "layout": layout} for rate in (8000, 16000, 22050, 44100,
    48000) for layout in ("mono", "stereo")},
    "aac-48000-5.1.mp4": {"rate": 48000, "layout": "5.1"},
    "aac.m4a": {}, "aac.mkv": {}, "aac.mov": {},
    "libopus.mkv": {}, "libopus.webm": {}, "libopus.ogg": {}, "libopus.mp4": {}, "libopus-16000.ogg": {"rate": 16000},
    "libopus-8000.mkv": {"rate": 8000},
    "libmp3lame.mp3": {}, "libmp3lame-44100.mp3": {"rate": 44100, "layout": "stereo"},
    "libmp3lame-16000.mp3": {"rate": 16000},
    "libmp3lame.mkv": {}, "libmp3lame.mp4": {},
    "pcm_s16le.wav": {}, "pcm_s16le-8000.wav": {"rate": 8000}, "pcm_s24le-96000.wav": {"rate": 96000},
    "pcm_s16le-44100.mov": {"rate": 44100, "layout": "stereo"}, "pcm_s16le.avi": {},
    "flac.flac": {}, "flac-5.1.mkv": {"layout": "5.1"}, "flac.ogg": {}, "libvorbis.ogg": {}, "libvorbis.webm": {},
    "alac.m4a": {},
}  # fmt: skip

BESIDE_PICTURES = ["aac.mp4", "aac.mkv", "aac.mov", "libmp3lame.mkv", "libopus.mkv", "pcm_s16le.mov"]


def check(path: Path, zero_s: float, from_s: float, to_s: float) -> None:
    """Check windows of one file: `zero_s` is the moment of the chirp at second 0; it begins at `from_s` and ends at
    `to_s`."""
    rng = random.Random(path.name)
    with Video.open(path, isolation="never") as video:
        for _ in range(WINDOWS):
            start = rng.uniform(0, video.duration_s - 2.0)
            end = min(video.duration_s, start + rng.uniform(2.0, 2.5))
            heard = video.audio(start, end)
            assert len(heard.samples) == round((end - start) * 16_000)
            low, high = max(start + zero_s, from_s), min(end + zero_s, to_s)
            # Priming before the beginning is sound too.
            assert heard.padded_s == pytest.approx((end - start) - max(0.0, high - low), abs=0.03)
            if high - low > 1.5:
                samples = heard.samples[round((low - start - zero_s) * 16_000) :][: int((high - low) * 16_000)]
                assert abs(lag_ms(samples, low)) <= 1.0, (start, end)


@pytest.mark.parametrize("name", ALONE)
def test_sound_alone(tmp_path: Path, name: str) -> None:
    check(write_sound(tmp_path / name, name.split(".")[0].split("-")[0], **ALONE[name]), 0.0, 0.0, 8.0)


@pytest.mark.parametrize(
    "name", ["aac-48000.mp4", "aac-44100.mp4", "aac.mkv", "libopus.mkv", "pcm_s16le.mov", "flac.ogg"]
)
def test_sound_begins_at_the_beginning(tmp_path: Path, name: str) -> None:
    """Some codecs begin with a packet before second 0. Without it, the first frame after it is half silent."""
    rate = {"rate": int(name[4:9])} if name.startswith("aac-") else {}
    with Video.open(write_sound(tmp_path / name, name.split(".")[0].split("-")[0], **rate), isolation="never") as video:
        assert np.abs(video.audio(0.0, 1.0).samples[8:120]).max() > 0.1


@pytest.mark.parametrize("name", BESIDE_PICTURES)
@pytest.mark.parametrize("when", ["together", "sound late", "pictures late", "sound ends early"])
def test_sound_beside_pictures(tmp_path: Path, name: str, when: str) -> None:
    sound_from, seconds, picture_from = {
        "together": (0.0, 8.0, 0.0), "sound late": (2.0, 5.0, 0.0), "pictures late": (0.0, 8.0, 2.0),
        "sound ends early": (0.0, 4.0, 0.0),
    }[when]  # fmt: skip
    path = tmp_path / name
    write_sound(
        path,
        name.split(".")[0],
        start_s=sound_from,
        seconds=seconds,
        picture_from_s=picture_from,
        picture_s=8.0 - picture_from,
    )
    check(path, 0.0, sound_from, sound_from + seconds)


def test_a_file_cut_without_encoding_keeps_picture_and_sound_together(tmp_path: Path) -> None:
    source, path = tmp_path / "source.mp4", tmp_path / "cut.mp4"
    write_sound(source, "aac", picture_from_s=0.0)
    ffmpeg("-ss", "3", "-i", source, "-c", "copy", path)
    check(path, 3.0, 3.0, 8.0)
