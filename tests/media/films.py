"""Writes files of many kinds for the tests of `media`, and decodes each from beginning to end to know its content."""

from __future__ import annotations

import random
import shutil
import subprocess
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from apr_testing import chirp, picture

from benchmarks.films import own_schedule

SIZE = (160, 48)
_LEAD_S = 0.1  # the rule of `MediaInfo.start_s`: sound with a smaller lead does not move second 0

X265 = "log-level=none:pools=none:frame-threads=1"
X264 = "preset=ultrafast:crf=18:threads=1"
CODECS: dict[str, tuple[str, dict[str, str]]] = {
    "gop12": ("libx264", {"x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=0"}),
    "gop250": ("libx264", {"x264-params": "keyint=250:min-keyint=250:scenecut=0:bframes=2:b-adapt=0"}),
    "infinite": ("libx264", {"x264-params": "keyint=infinite:scenecut=0:bframes=3:b-adapt=0:b-pyramid=normal"}),
    "closed-pyramid": (
        "libx264",
        {"x264-params": "keyint=24:min-keyint=24:scenecut=0:bframes=7:b-adapt=0:b-pyramid=normal:ref=4"},
    ),
    "open": (
        "libx264",
        {"x264-params": "keyint=24:min-keyint=24:scenecut=0:bframes=3:b-adapt=0:open-gop=1:b-pyramid=none"},
    ),
    "open-pyramid": (
        "libx264",
        {"x264-params": "keyint=20:min-keyint=20:scenecut=0:bframes=5:b-adapt=0:open-gop=1:b-pyramid=normal:ref=4"},
    ),
    "refresh": ("libx264", {"x264-params": "keyint=20:scenecut=0:bframes=0:intra-refresh=1"}),
    "interlaced": (
        "libx264",
        {"x264-params": "keyint=24:min-keyint=24:scenecut=0:bframes=3:b-adapt=0:interlaced=1:tff=1"},
    ),
    "hevc": (
        "libx265",
        {"x265-params": f"{X265}:keyint=24:min-keyint=24:bframes=4:b-adapt=0:open-gop=0:scenecut=0"},
    ),
    "hevc-open": (
        "libx265",
        {"x265-params": f"{X265}:keyint=20:min-keyint=20:bframes=4:b-adapt=0:open-gop=1:scenecut=0"},
    ),
    "hevc-layers": (
        "libx265",
        {"x265-params": f"{X265}:keyint=24:min-keyint=24:bframes=3:b-adapt=0:temporal-layers=1:scenecut=0"},
    ),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "24", "keyint_min": "24"}),
    "vp9-altref": (
        "libvpx-vp9",
        {"deadline": "good", "cpu-used": "5", "g": "32", "auto-alt-ref": "1", "lag-in-frames": "16"},
    ),
    "vp8": ("libvpx", {"deadline": "realtime", "cpu-used": "8", "g": "24"}),
    "av1": ("libaom-av1", {"cpu-used": "8", "usage": "realtime", "g": "24", "row-mt": "0"}),
    "av1-pyramid": ("libsvtav1", {"preset": "12", "g": "24", "svtav1-params": "lp=1"}),
    "mpeg4": ("mpeg4", {"g": "24"}),
    "mpeg4-b": ("mpeg4", {"g": "24", "bf": "2"}),
    "mpeg1-b": ("mpeg1video", {"g": "15", "bf": "2"}),
    "mpeg2-b": ("mpeg2video", {"g": "15", "bf": "2"}),
    "mjpeg": ("mjpeg", {}),
}
"""Picture codecs, each with the properties of its GOPs."""


def write_film(
    path: Path,
    kind: str = "gop12",
    *,
    frames: int = 96,
    fps: Fraction | int = 24,
    pts: Sequence[int] | None = None,
    first: int = 0,
    size: tuple[int, int] = SIZE,
    pixel_format: str = "",
    container: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Write pictures that carry their number.

    Args:
        path: Path of the file; its suffix decides the container unless `container` is given.
        kind: A key of `CODECS`.
        frames: Number of pictures.
        fps: Pictures per second.
        pts: Presentation time of each in units of 1/(fps * 4), for a varying rate.
        first: Presentation time of the first, in units of 1/fps.
        size: (width, height).
        pixel_format: Pixel format, by libav's name.
        container: Container, by libav's name.
        options: Options of the container.
    """
    codec, wanted = CODECS[kind]
    base = Fraction(1) / (Fraction(fps) * (4 if pts is not None else 1))
    with own_schedule(), av.open(str(path), "w", format=container, options=options or {}) as out:
        stream: Any = out.add_stream(codec, rate=Fraction(fps))
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
        stream.codec_context.time_base = base
        stream.codec_context.thread_count = 1
        if codec in ("mpeg4", "mpeg1video", "mpeg2video", "mjpeg"):
            stream.bit_rate = 4_000_000
        stream.codec_context.gop_size = int(wanted.get("g", "12"))
        if "bf" in wanted:
            stream.codec_context.max_b_frames = int(wanted["bf"])
        extra = {"preset": "ultrafast", "crf": "18"} if codec in ("libx264", "libx265") else {}
        stream.options = extra | wanted
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = first + (pts[number] if pts is not None else number), base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@dataclass(frozen=True)
class Truth:
    """Every picture of a file, decoded from beginning to end."""

    times_s: list[float]
    images: list[np.ndarray[Any, Any]]

    def at(self, t: float) -> int:
        """The number of the picture on screen at `t`."""
        return max(0, bisect_right(self.times_s, t + 1e-6) - 1)


def truth(path: Path) -> Truth:
    """Decode a file from beginning to end, with one thread and nothing skipped."""
    with av.open(str(path)) as container:
        sounds = container.streams.audio
        lead = None
        if sounds and sounds[0].start_time is not None:
            lead = Fraction(sounds[0].start_time) * (sounds[0].time_base or 1)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        if container.format.name == "avi":  # AVI has no times: its pictures are shown one after the other
            found = [
                (number / Fraction(stream.average_rate or 1), frame)
                for number, frame in enumerate(container.decode(stream))
            ]
        else:
            found = [
                (frame.pts * Fraction(frame.time_base), frame)
                for frame in container.decode(stream)
                if frame.pts is not None
            ]
        found.sort(key=lambda pair: pair[0])
        zero = found[0][0]
        if lead is not None and zero - lead > _LEAD_S:
            zero = lead
        images = [np.asarray(frame.reformat(format="rgb24").to_ndarray()) for _, frame in found]
        return Truth([float(at - zero) for at, _ in found], images)


def probing_times(times_s: Sequence[float], until_s: float, count: int, seed: object) -> list[float]:
    """Random times, times of frames, and times just before and after them; in random order, with repeats."""
    rng = random.Random(str(seed))
    chosen = [rng.uniform(0, until_s) for _ in range(count // 3)]
    for at in rng.choices(times_s, k=count // 3):
        chosen += [at, at - 2e-4, at + 2e-4]
    chosen += rng.choices(chosen, k=count // 10)
    rng.shuffle(chosen)
    return [min(max(t, 0.0), until_s) for t in chosen]


def ffmpeg(*arguments: str | Path) -> None:
    """Run the ffmpeg program; the test is skipped if it is not installed."""
    program = shutil.which("ffmpeg")
    if program is None:
        pytest.skip("there is no ffmpeg program here")
    subprocess.run([program, "-v", "error", "-y", *map(str, arguments)], check=True, stdin=subprocess.DEVNULL)


def write_sound(
    path: Path,
    codec: str,
    *,
    seconds: float = 8.0,
    rate: int = 48_000,
    layout: str = "mono",
    container: str | None = None,
    bit_rate: int | None = None,
    start_s: float = 0.0,
    picture_from_s: float | None = None,
    picture_s: float = 8.0,
) -> Path:
    """Write a chirp whose pitch gives the time since the clock of the file began; with `picture_from_s`, pictures too
    (10 per second)."""
    with av.open(str(path), "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=rate, layout=layout)
        if bit_rate:
            stream.bit_rate = bit_rate
        film: Any = None
        if picture_from_s is not None:
            film = out.add_stream("libx264", rate=10)
            film.width, film.height, film.pix_fmt = *SIZE, "yuv420p"
            film.options = {"preset": "ultrafast", "x264-params": "keyint=20:bframes=0"}
        packets = []
        channels = stream.codec_context.layout.nb_channels
        samples = chirp(start_s + np.arange(round(seconds * rate)) / rate).astype(np.float32)
        resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
        for at in range(0, len(samples), 1024):
            block = av.AudioFrame.from_ndarray(
                np.tile(samples[at : at + 1024], (channels, 1)), format="fltp", layout=layout
            )
            block.sample_rate, block.pts, block.time_base = rate, at + round(start_s * rate), Fraction(1, rate)
            for piece in resampler.resample(block):
                packets += stream.encode(piece)
        packets += stream.encode(None)
        if film is not None:
            for number in range(round(picture_s * 10)):
                frame = av.VideoFrame.from_ndarray(picture(number, *SIZE), format="rgb24").reformat(format="yuv420p")
                frame.pts, frame.time_base = number + round((picture_from_s or 0) * 10), Fraction(1, 10)
                packets += film.encode(frame)
            packets += film.encode(None)
        packets.sort(key=lambda packet: float((packet.dts or 0) * packet.time_base))
        out.mux(packets)
    return path


def lag_ms(samples: np.ndarray[Any, Any], start_s: float, rate: int = 16_000, reach_s: float = 0.04) -> float:
    """How much later than it should `samples` has the chirp from `start_s` on, in milliseconds, by the best normalised
    match."""
    reach = int(reach_s * rate)
    expected = chirp(start_s + np.arange(-reach, len(samples) + reach) / rate)
    length = 1 << (len(expected) + len(samples)).bit_length()
    products = np.fft.irfft(np.fft.rfft(expected, length) * np.conj(np.fft.rfft(samples, length)), length)[
        : 2 * reach + 1
    ]
    energy = np.concatenate([[0.0], np.cumsum(expected**2)])
    norms = np.sqrt(energy[len(samples) :][: 2 * reach + 1] - energy[: 2 * reach + 1])
    return float(reach - np.argmax(products / norms)) / rate * 1000
