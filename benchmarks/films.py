"""The files that the benchmarks read: small ones of every kind for the fuzz test, long ones for speed and memory.

PyAV makes them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

X264 = {"preset": "ultrafast", "crf": "23", "x264-params": "keyint=16:min-keyint=16:scenecut=0:bframes=2:b-adapt=0"}
SMALL: dict[str, tuple[str, dict[str, str], str]] = {
    "h264.mp4": ("libx264", X264, "aac"),
    "h264.mkv": ("libx264", X264, "libopus"),
    "h264.ts": ("libx264", X264, "aac"),
    "h264.mov": ("libx264", X264, "pcm_s16le"),
    "fragmented.mp4": ("libx264", X264, "aac"),
    "hevc.mp4": (
        "libx265",
        {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1:keyint=16:bframes=2"},
        "aac",
    ),
    "hevc.mkv": (
        "libx265",
        {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1:keyint=16:bframes=2"},
        "libopus",
    ),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "16"}, "libopus"),
    "vp8.webm": ("libvpx", {"deadline": "realtime", "cpu-used": "8", "g": "16"}, "libvorbis"),
    "av1.mp4": ("libsvtav1", {"preset": "12", "g": "16", "svtav1-params": "lp=1"}, "aac"),
    "av1.webm": ("libsvtav1", {"preset": "12", "g": "16", "svtav1-params": "lp=1"}, "libopus"),
    "mpeg4.avi": ("mpeg4", {"g": "16"}, "libmp3lame"),
    "mpeg4b.avi": ("mpeg4", {"g": "16", "bf": "2"}, "pcm_s16le"),
    "mpeg2.ts": ("mpeg2video", {"g": "15", "bf": "2"}, "mp2"),
    "mjpeg.avi": ("mjpeg", {}, "pcm_s16le"),
    "flv.flv": ("libx264", X264, "aac"),
    "sound.m4a": ("", {}, "aac"),
    "sound.ogg": ("", {}, "libopus"),
    "sound.mp3": ("", {}, "libmp3lame"),
    "sound.wav": ("", {}, "pcm_s16le"),
    "sound.flac": ("", {}, "flac"),
}
"""Name of a small file -> its picture codec, the codec's options, its sound codec."""

GOP = 250
"""The number of pictures from keyframe to keyframe in the long files."""
FPS = 25
TEN_MINUTES_S, TWO_HOURS_S = 600, 7200


@contextmanager
def own_schedule() -> Iterator[None]:
    """Restore the scheduling policy of the calling thread after the block.

    As root, libsvtav1 gives the thread that opens an encoder the real-time policy SCHED_FIFO at priority 99 and does
    not restore it. Everything that this thread starts inherits it, and two such processes can keep a machine of two
    cores from running anything else.
    """
    if not hasattr(os, "sched_getscheduler"):  # not Linux: libsvtav1 does it only there
        yield
        return
    policy, param = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, param)


def small(folder: Path, name: str, seconds: float = 3.0) -> Path:
    """Write one of the files in `SMALL`."""
    path = folder / name
    codec, options, sound = SMALL[name]
    container = {"movflags": "frag_keyframe+empty_moov"} if name.startswith("fragmented") else {}
    with own_schedule(), av.open(str(path), "w", options=container) as out:
        film: Any = out.add_stream(codec, rate=16) if codec else None
        track: Any = out.add_stream(sound, rate=48_000 if sound != "libmp3lame" else 44_100, layout="mono")
        packets: list[Any] = []
        if film is not None:
            film.width = 320
            film.height = 180
            film.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            film.codec_context.time_base = Fraction(1, 16)
            film.codec_context.thread_count = 1
            film.codec_context.gop_size = int(options.get("g", "16"))
            if "bf" in options:
                film.codec_context.max_b_frames = int(options["bf"])
            film.options = options
            for number, image in enumerate(pictures(round(seconds * 16), 320, 180)):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=film.pix_fmt)
                frame.pts = number
                frame.time_base = Fraction(1, 16)
                packets += film.encode(frame)
            packets += film.encode(None)
        packets += encode_sound(track, seconds)
        packets.sort(key=lambda packet: float((packet.dts or 0) * packet.time_base))
        out.mux(packets)
    return path


def encode_sound(track: Any, seconds: float) -> list[Any]:
    """Encode a rising tone into packets."""
    rate = track.codec_context.sample_rate
    times = np.arange(round(seconds * rate)) / rate
    samples = (0.4 * np.sin(2 * np.pi * (300 * times + 20 * times**2))).astype(np.float32)
    resampler = av.AudioResampler(format=track.codec_context.format, layout="mono", rate=rate)
    packets: list[Any] = []
    for at in range(0, len(samples), 1024):
        block = av.AudioFrame.from_ndarray(samples[None, at : at + 1024], format="fltp", layout="mono")
        block.sample_rate = rate
        block.pts = at
        block.time_base = Fraction(1, rate)
        for piece in resampler.resample(block):
            packets += track.encode(piece)
    return packets + list(track.encode(None))


def pictures(count: int, width: int, height: int, texture: float = 12.0) -> Iterator[np.ndarray[Any, Any]]:
    """Draw a textured ground that pans, with blocks that move over it.

    This gives motion to search for, without noise from picture to picture.
    """
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (height // 20 + 1, width // 10 + 1, 3))
    ground = np.kron(coarse, np.ones((20, 20, 1)))[:height, : width * 2]
    ground = np.clip(ground + rng.normal(0, texture, ground.shape), 0, 255).astype(np.uint8)
    for number in range(count):
        shift = (number * 2) % width
        image = ground[:, shift : shift + width].copy()
        for block in range(6):
            side = height // (4 + block)
            x = int((width - side) * (0.5 + 0.5 * math.sin(number / (17 + 5 * block) + block)))
            y = int((height - side) * (0.5 + 0.5 * math.cos(number / (23 + 3 * block) + block)))
            image[y : y + side, x : x + side] = ((number * 3 + block * 40) % 256, block * 50, 255 - block * 40)
        yield image


def repeat(source: Path, target: Path, times: int) -> Path:
    """Write the packets of a file several times in a row, unless that is done already; nothing is encoded again."""
    if target.exists():
        return target
    half = target.with_suffix(".half.mp4")
    with av.open(str(half), "w") as out:
        streams: dict[int, Any] = {}
        lengths: dict[int, int] = {}
        with av.open(str(source)) as first:
            whole = Fraction(first.duration or 0, 1_000_000)
            film = first.streams.video[0]
            if film.duration and film.time_base:
                whole = film.duration * film.time_base
            for stream in (first.streams.video[0], *first.streams.audio):
                streams[stream.index] = out.add_stream_from_template(stream)  # type: ignore[type-var]
                lengths[stream.index] = math.ceil(whole / (stream.time_base or 1))
        latest: dict[int, int] = {}
        for turn in range(times):
            with av.open(str(source)) as again:
                ends = {index: turn * length for index, length in lengths.items()}
                for packet in again.demux():
                    if packet.dts is None or packet.pts is None:
                        continue
                    index = packet.stream.index
                    packet.pts += ends[index]
                    packet.dts += ends[index]
                    if packet.dts <= latest.get(index, packet.dts - 1):
                        continue  # the tail of the sound overlaps the next turn
                    latest[index] = packet.dts
                    packet.stream = streams[index]
                    out.mux(packet)
    return half.rename(target)


def long(
    path: Path, seconds: int, width: int, height: int, bit_rate: int, tell: Callable[[str], None], turn_s: int = 60
) -> Path:
    """Write a long H.264 file with B-frames, GOP 250 and sound, from the repeated packets of `turn_s` seconds."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.mp4")
    tell(f"encoding {turn_s} s of {path.name}")
    with av.open(str(part), "w") as out:
        film: Any = out.add_stream("libx264", rate=FPS)
        film.width = width
        film.height = height
        film.pix_fmt = "yuv420p"
        film.bit_rate = bit_rate
        params = f"keyint={GOP}:min-keyint={GOP}:scenecut=0:bframes=3:b-adapt=0"
        params += f":vbv-maxrate={bit_rate // 1000}:vbv-bufsize={bit_rate // 250}"
        film.options = {"preset": "veryfast", "x264-params": params}
        track: Any = out.add_stream("aac", rate=48_000, layout="mono")
        sound = encode_sound(track, turn_s)
        for number, image in enumerate(pictures(turn_s * FPS, width, height)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            frame.pts = number
            frame.time_base = Fraction(1, FPS)
            out.mux(film.encode(frame))
            while sound and sound[0].pts * sound[0].time_base <= frame.pts * frame.time_base:
                out.mux(sound.pop(0))
        out.mux([*film.encode(None), *sound])
    tell(f"writing {path.name}: {seconds // turn_s} times those packets")
    repeat(part, path, seconds // turn_s)
    part.unlink()
    return path
