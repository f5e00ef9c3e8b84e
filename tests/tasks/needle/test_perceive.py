"""Recognition of pixels and samples, after scaling, noise and real codecs."""

from __future__ import annotations

import io
from fractions import Fraction
from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from apr_plugin.tasks.needle.palette import ALL_GLYPHS, BACKGROUNDS, LOOKALIKES, PATTERNS, chime, draw_frame, tone
from apr_plugin.tasks.needle.perceive import GOOD_FIT, hear, read_frame

RATE = 16_000


def jpeg(frame: np.ndarray, size: tuple[int, int], quality: int) -> np.ndarray:
    image = Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def h264(frames: list[np.ndarray], path: Path) -> list[np.ndarray]:
    with av.open(str(path), "w") as out:
        height, width = frames[0].shape[:2]
        stream = out.add_stream("libx264", rate=10, options={"crf": "30", "preset": "veryfast"})
        stream.width = width
        stream.height = height
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    with av.open(str(path)) as read:
        return [frame.to_ndarray(format="rgb24") for frame in read.decode(video=0)]


def aac(waveform: np.ndarray, path: Path) -> np.ndarray:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=RATE, layout="mono", options={"b": "48000"})
        frame = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        frame.pts = 0
        frame.time_base = Fraction(1, RATE)
        for packet in [*stream.encode(frame), *stream.encode()]:
            out.mux(packet)
    with av.open(str(path)) as read:
        return np.concatenate([frame.to_ndarray()[0] for frame in read.decode(audio=0)])


@pytest.mark.parametrize("size", [(224, 224), (320, 180), (448, 252)])
def test_every_clean_frame_reads_back(size: tuple[int, int]) -> None:
    for background, pattern in product([*BACKGROUNDS, *LOOKALIKES], PATTERNS):
        reading = read_frame(draw_frame(background, pattern, None, size))
        assert (reading.background, reading.pattern, reading.glyph) == (background, pattern, None)
        assert reading.fit > 0.99
    for glyph, (background, pattern) in zip(ALL_GLYPHS * 2, product(BACKGROUNDS, PATTERNS), strict=False):
        assert read_frame(draw_frame(background, pattern, glyph, size)).glyph == glyph


@pytest.mark.parametrize("seen", [(96, 96), (171, 96), (224, 126)])
def test_scaled_down_and_jpeg(seen: tuple[int, int]) -> None:
    size = (seen[0] * 3 - 1, seen[1] * 3)
    rng = np.random.default_rng(0)
    for i, (background, pattern) in enumerate(product([*BACKGROUNDS, *LOOKALIKES], PATTERNS)):
        glyph = ALL_GLYPHS[i % 36] if i % 4 else None
        frame = draw_frame(background, pattern, glyph, size)
        noisy = np.clip(frame + rng.normal(0, 12, frame.shape), 0, 255).astype(np.uint8)
        reading = read_frame(jpeg(noisy, seen, 50))
        assert (reading.background, reading.pattern, reading.glyph) == (background, pattern, glyph)
        assert reading.fit > GOOD_FIT


def test_h264_round_trip(tmp_path: Path) -> None:
    words = [
        (b, p, ALL_GLYPHS[(7 * i) % 36] if i % 3 else None)
        for i, (b, p) in enumerate(product([*BACKGROUNDS, *LOOKALIKES], PATTERNS))
    ]
    decoded = h264([draw_frame(*word, (224, 128)) for word in words], tmp_path / "v.mp4")
    assert [(r.background, r.pattern, r.glyph) for r in map(read_frame, decoded)] == words


def test_other_pictures_fit_badly() -> None:
    rng = np.random.default_rng(1)
    smooth = np.asarray(
        Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((320, 240), Image.Resampling.BICUBIC)
    )
    for image in (rng.integers(0, 255, (240, 320, 3), dtype=np.uint8), smooth):
        assert read_frame(image).fit < GOOD_FIT
    assert read_frame(np.zeros((240, 320, 3), dtype=np.uint8)).glyph is None


def test_sounds_through_aac(tmp_path: Path) -> None:
    truth = [("low", 1.0, 3.0), ("middle", 4.02, 4.6), ("high", 7.0, 8.5)]
    truth += [("chime", at, at + 0.5) for at in (10.0, 10.7, 11.4, 20.0)]
    waveform = np.random.default_rng(2).normal(0, 0.003, 25 * RATE).astype(np.float32)
    for sound, start, end in truth:
        samples = chime(RATE) if sound == "chime" else tone(sound, end - start, RATE)
        waveform[round(start * RATE) : round(start * RATE) + len(samples)] += samples
    for heard in (hear(waveform, RATE), hear(aac(waveform, tmp_path / "a.m4a"), RATE)):
        assert [h.sound for h in heard] == [t[0] for t in truth]
        # AAC delays the sound by up to one 64 ms frame if the container does not say so.
        assert all(
            abs(h.start_s - start) < 0.1 and abs(h.end_s - end) < 0.1
            for h, (_, start, end) in zip(heard, truth, strict=True)
        )


def test_silence_noise_and_nothing() -> None:
    assert hear(np.zeros(0, dtype=np.float32), RATE) == []
    assert hear(np.zeros(RATE, dtype=np.float32), RATE) == []
    assert hear(np.random.default_rng(3).normal(0, 0.2, 10 * RATE).astype(np.float32), RATE) == []
