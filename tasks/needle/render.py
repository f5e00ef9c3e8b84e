"""Writes a needle world as an MP4 file of H.264 and AAC.

The file is byte-identical for the same world, settings and library versions.

A world has a few hundred distinct pictures. Each is drawn and converted to YUV once, then passed to the encoder many
times with new timestamps. Keyframes are on a regular grid and nowhere else (scene-cut detection is off), so that the
index of the file tells nothing about events. Everything runs in one thread of one process: videos are made in parallel,
not parts of one.
"""

import errno
import os
import struct
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np

from apr_plugin.media import SAMPLE_RATE

from .palette import Glyph, Sound, chime, draw_frame, tone
from .world import CHIME, World

PART_SUFFIX = ".part"
"""The suffix of a file that is still being written."""

_AUDIO_CHUNK_S = 4
_SIX_ZERO_ONE = 6  # AVCOL_SPC_SMPTE170M: the matrix with which swscale converts, which must be the tag
_TIME_BASE_AUDIO = Fraction(1, SAMPLE_RATE)


def write_video(
    world: World, path: Path, size: tuple[int, int] = (224, 224), fps: float = 10.0, gop_s: float = 5.0
) -> None:
    """Write a world as an MP4 file; the file gets its name only when it is complete.

    Args:
        world: the world to show and to sound.
        path: the file to write; its folder exists.
        size: (width, height) in pixels, both even.
        fps: frames per second; frame k shows the world at k / fps seconds.
        gop_s: seconds between keyframes.

    Raises:
        OSError: the file can't be written; the message names it.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}{PART_SUFFIX}")
    try:
        _encode(world, part, size, Fraction(fps).limit_denominator(1001), gop_s)
        if not is_complete(part):
            raise OSError(f"the file is truncated (is the disk full?): {part}")
        part.replace(path)
    except (OSError, av.FFmpegError) as error:
        raise OSError(
            getattr(error, "errno", None) or errno.EIO, f"could not write the video: {error}", str(path)
        ) from error
    finally:
        part.unlink(missing_ok=True)


def is_complete(path: Path) -> bool:
    """Whether a file is an MP4 file without a missing end, found from its outermost boxes alone."""
    boxes = set()
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            at = 0
            while at < size:
                file.seek(at)
                header = file.read(16)
                length, name = struct.unpack(">I4s", header[:8])
                if length == 1:
                    (length,) = struct.unpack(">Q", header[8:16])
                if length < 8:
                    return False
                boxes.add(name)
                at += length
    except (FileNotFoundError, struct.error):
        return False
    return at == size and {b"ftyp", b"moov", b"mdat"} <= boxes


def _encode(world: World, path: Path, size: tuple[int, int], fps: Fraction, gop_s: float) -> None:
    options = {"movflags": "faststart", "fflags": "bitexact"}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        video = container.add_stream("libx264", rate=fps)
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        video.time_base = 1 / fps
        gop = round(gop_s * fps)
        video.options = {
            "preset": "ultrafast",
            "crf": "20",
            "threads": "1",
            "x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes=0:open-gop=0:colormatrix=smpte170m",
        }
        video.codec_context.colorspace = _SIX_ZERO_ONE
        audio = container.add_stream("aac", rate=SAMPLE_RATE)
        audio.layout = "mono"
        audio.bit_rate = 32_000
        audio.time_base = _TIME_BASE_AUDIO
        sounds = audio_chunks(world)
        sounded_s = 0.0
        for picture, first, end in _pictures(world, size, fps):
            for k in range(first, end):
                while sounded_s <= k / fps and sounded_s < world.duration_s:
                    chunk = next(sounds)
                    container.mux(audio.encode(_audio_frame(chunk, round(sounded_s * SAMPLE_RATE))))
                    sounded_s += len(chunk) / SAMPLE_RATE
                picture.pts = k
                picture.time_base = 1 / fps
                container.mux(video.encode(picture))
        for chunk in sounds:
            container.mux(audio.encode(_audio_frame(chunk, round(sounded_s * SAMPLE_RATE))))
            sounded_s += len(chunk) / SAMPLE_RATE
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def _pictures(world: World, size: tuple[int, int], fps: Fraction) -> Iterator[tuple[av.VideoFrame, int, int]]:
    """Every stretch of equal frames: the frame, its first index, and the index after its last."""

    @lru_cache(maxsize=512)
    def draw(colour: str, pattern: str, glyph: Glyph | None) -> av.VideoFrame:
        return av.VideoFrame.from_ndarray(draw_frame(colour, pattern, glyph, size), format="rgb24").reformat(
            format="yuv420p"
        )

    for segment in world.segments():
        first, end = (-(-Fraction(str(at)) * fps // 1) for at in (segment.start_s, segment.end_s))  # rounded up
        if end > first:
            yield draw(segment.colour, segment.pattern, segment.glyph), int(first), int(end)


def audio_chunks(world: World) -> Iterator[Sound]:
    """The world's sound, in chunks of a few seconds: float32 mono at SAMPLE_RATE, digital silence between sounds."""
    sounds = [(round(start * SAMPLE_RATE), _sound(name, end - start)) for start, end, name in world.sounds()]
    total, step = round(world.duration_s * SAMPLE_RATE), _AUDIO_CHUNK_S * SAMPLE_RATE
    pending = 0
    for at in range(0, total, step):
        chunk = np.zeros(min(step, total - at), dtype=np.float32)
        for start, samples in sounds[pending:]:
            if start >= at + len(chunk):
                break
            here = samples[max(0, at - start) : at + len(chunk) - start]
            offset = max(0, start - at)
            chunk[offset : offset + len(here)] += here
        while pending < len(sounds) and sounds[pending][0] + len(sounds[pending][1]) <= at + len(chunk):
            pending += 1
        yield chunk


def _sound(name: str, seconds: float) -> Sound:
    return chime(SAMPLE_RATE) if name == CHIME else tone(name, seconds, SAMPLE_RATE)


def _audio_frame(samples: Sound, at: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(samples[None, :], format="fltp", layout="mono")
    frame.sample_rate = SAMPLE_RATE
    frame.pts = at
    frame.time_base = _TIME_BASE_AUDIO
    return frame
