"""Helpers that tests import: real video files with numbered frames and a chirp, and a policy that plays texts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from apr_plugin.loop.policy import Generation, PolicyDefaults, Prompt, Sampling, Usage

BITS = 16
SHARED_MEDIA = Path(__file__).resolve().parents[2] / "shared" / "media"


def picture(number: int, width: int = 320, height: int = 64) -> np.ndarray:
    """A frame that encodes `number` as 16 black or white columns, the highest bit first; the rest is grey."""
    image = np.full((height, width, 3), 128, np.uint8)
    column = width // BITS
    for bit in range(BITS):
        image[:, bit * column : (bit + 1) * column] = 235 if number >> (BITS - 1 - bit) & 1 else 20
    return image


def number_of(image: np.ndarray) -> int:
    """The number that a frame encodes, at any scale."""
    height, width = image.shape[:2]
    number = 0
    for bit in range(BITS):
        value = float(image[height // 2, int((bit + 0.5) * width / BITS)].mean())
        assert value < 90 or value > 165, f"bit {bit} is unreadable: {value}"
        number = number * 2 + (value > 127)
    return number


def chirp(times_s: np.ndarray) -> np.ndarray:
    """Sound whose pitch rises by 200 Hz a second, so that every moment of it is unique."""
    return np.asarray(0.4 * np.sin(2 * np.pi * (300 * times_s + 100 * times_s**2)))


def lag_s(samples: np.ndarray, start_s: float, rate: int = 16_000, reach_s: float = 0.05) -> float:
    """The delay in seconds of the chirp in `samples`, relative to the chirp that begins at `start_s`."""
    reach = int(reach_s * rate)
    expected = chirp(start_s + np.arange(-reach, len(samples) + reach) / rate)
    length = len(expected) + len(samples)
    products = np.fft.irfft(np.fft.rfft(expected, length) * np.conj(np.fft.rfft(samples, length)), length)[
        : 2 * reach + 1
    ]
    return (reach - int(np.argmax(products))) / rate


def make_video_file(
    path: Path,
    *,
    frames: int = 60,
    fps: int = 10,
    size: tuple[int, int] = (320, 64),
    gop: int = 12,
    bframes: int = 0,
    codec: str | None = "libx264",
    pts: Sequence[int] | None = None,
    last_duration: int | None = None,
    sound_s: float | None = None,
    audio_codec: str = "aac",
    audio_rate: int = 48_000,
    channels: int = 1,
    start_s: float = 0.0,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a real file.

    Args:
        path: The file; the suffix decides the container.
        frames: Number of pictures; frame `i` encodes the number `i`.
        fps: Pictures per second.
        size: (width, height).
        gop: Most pictures from keyframe to keyframe.
        bframes: B-frames in a row.
        codec: Picture codec, or `None` for a file with sound only.
        pts: Presentation time of each picture in units of 1/fps, for a varying rate.
        last_duration: Duration of the last picture, in units of 1/fps.
        sound_s: Seconds of chirp, or `None` for a file without sound.
        audio_codec: Sound codec.
        audio_rate: Samples per second in the file.
        channels: 1 or 2.
        start_s: The first time stamp.
        options: Options of the container.
    """
    with av.open(str(path), "w", options=options or {}) as out:
        picture_stream: Any = None
        if codec is not None:
            picture_stream = out.add_stream(codec, rate=fps)
            picture_stream.width, picture_stream.height = size
            picture_stream.pix_fmt = "yuv420p"
            picture_stream.gop_size = gop
            if codec == "libx264":
                picture_stream.options = {
                    "preset": "ultrafast", "crf": "18", "threads": "1",
                    "x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0"
                    f":bframes={bframes}:b-adapt=0:b-pyramid=none",
                }  # fmt: skip
        sound_stream: Any = None
        if sound_s is not None:
            sound_stream = out.add_stream(audio_codec, rate=audio_rate, layout="stereo" if channels == 2 else "mono")
        packets = []
        if picture_stream is not None:
            base = Fraction(1, fps)
            picture_stream.codec_context.time_base = base
            for number in range(frames):
                frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24").reformat(format="yuv420p")
                frame.pts = (pts[number] if pts is not None else number) + round(start_s * fps)
                frame.time_base = base
                packets += picture_stream.encode(frame)
            packets += picture_stream.encode(None)
            if last_duration is not None:
                packets[-1].duration = last_duration
        if sound_stream is not None:
            assert sound_s is not None
            total = round(sound_s * audio_rate)
            samples = chirp(np.arange(total) / audio_rate).astype(np.float32)
            layout = "stereo" if channels == 2 else "mono"
            resampler = av.AudioResampler(format=sound_stream.codec_context.format, layout=layout, rate=audio_rate)
            for at in range(0, total, 1024):
                block = av.AudioFrame.from_ndarray(
                    np.tile(samples[at : at + 1024], (channels, 1)), format="fltp", layout=layout
                )
                block.sample_rate = audio_rate
                block.pts = at + round(start_s * audio_rate)
                block.time_base = Fraction(1, audio_rate)
                for piece in resampler.resample(block):
                    packets += sound_stream.encode(piece)
            packets += sound_stream.encode(None)
        packets.sort(key=lambda packet: float((packet.dts or 0) * packet.time_base))
        out.mux(packets)
    return path


def turn(
    action: dict[str, Any] | None, observation: str = "seen", think: str = "so", confidence: float = 0.5, **more: Any
) -> str:
    """A turn in the wire format."""
    return json.dumps({"observation": observation, "think": think, "confidence": confidence, "action": action} | more)


def look(start: float, end: float, num: int = 2, **more: Any) -> str:
    """A turn that looks at frames."""
    return turn({"type": "get_frames", "start": start, "end": end, "num": num} | more)


def answer(content: str) -> str:
    """A turn that answers."""
    return turn({"type": "answer", "content": content})


class Playback(PolicyDefaults):
    """A policy that plays the given texts in order, then repeats the last one, and keeps every prompt.

    A text that is an exception is raised.
    """

    def __init__(
        self, texts: Iterable[str | BaseException], *, usage: Usage | None = None, name: str = "playback"
    ) -> None:
        self.texts = list(texts)
        self.usage = usage or Usage()
        self.name = name
        self.prompts: list[Prompt] = []
        self.samplings: list[Sampling] = []

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        number = sum(message.role == "assistant" for message in prompt.messages)
        self.prompts.append(prompt)
        self.samplings.append(sampling)
        text = self.texts[min(number, len(self.texts) - 1)]
        if isinstance(text, BaseException):
            raise text
        return Generation(text, self.usage)

    def describe(self) -> dict[str, Any]:
        return {"texts": [str(text) for text in self.texts]}
