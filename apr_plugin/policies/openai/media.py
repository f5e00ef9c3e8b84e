"""Prompts as messages of the chat-completions protocol.

Text has its special tokens broken up; pictures, sound and clips are data URIs.

The same part always gives the same bytes. So a prompt's prefix stays the same JSON from turn to turn, and a server's
prefix cache can be used.
"""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from apr_plugin.loop.policy import AudioPart, ImagePart, Message, Part, Prompt, TextPart, VideoPart
from apr_plugin.loop.wires.apr import frame_label
from apr_plugin.models.special_tokens import broken_up

FULL_CHROMA_QUALITY = 90
"""From this JPEG quality on, colour has full resolution, so that small coloured things stay distinct."""


@dataclass(frozen=True)
class MediaForm:
    """How media is written."""

    image_quality: int | Literal["png"] = 90
    """JPEG quality from 1 to 100, or `png` (lossless, several times larger)."""

    image_detail: str | None = None
    """`low`, `high` or `auto` for servers that know it; `None` omits it."""

    clip_as: Literal["frames", "video"] = "frames"
    """`frames`: pictures with their times as text, which every server reads; `video`: one mp4 with its sound."""

    audio: bool = False
    """Whether the model hears; if not, a clip is shown without its sound."""

    audio_as: Literal["input_audio", "audio_url"] = "input_audio"
    """The name of a part with sound: the protocol's own, or SGLang's."""


def chat_messages(prompt: Prompt, settings: MediaForm) -> list[dict[str, Any]]:
    """The prompt as a list of messages; content is a string if a message has only text."""
    return [_message(message, settings) for message in prompt.messages]


def has_media(prompt: Prompt) -> bool:
    """Whether media must be encoded, which is done in a thread."""
    return any(not isinstance(part, TextPart) for message in prompt.messages for part in message.parts)


def shown_parts(message: Message, settings: MediaForm) -> Iterator[Part]:
    """The message's parts as they are sent.

    A clip as frames becomes pictures between text; parts that the model can't hear are left out.
    """
    for part in message.parts:
        if not isinstance(part, VideoPart):
            yield part
            continue
        sound = part.audio if settings.audio else None
        if settings.clip_as == "video":
            yield VideoPart(part.frames, part.times_s, part.fps, sound)
            continue
        for time_s, image in zip(part.times_s, part.frames, strict=True):
            yield TextPart(frame_label(time_s))
            yield ImagePart(image)
        if sound is not None:
            yield TextPart("\nSound of the clip:")
            yield sound


def _message(message: Message, settings: MediaForm) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    for part in shown_parts(message, settings):
        if isinstance(part, TextPart) and content and content[-1]["type"] == "text":
            content[-1]["text"] += part.text
        elif not isinstance(part, TextPart) or part.text:
            content.append(_content(part, settings))
    for piece in content:
        if piece["type"] == "text":  # joined, so that no token hides in two halves
            piece["text"] = broken_up(piece["text"])
    if all(piece["type"] == "text" for piece in content):
        return {"role": message.role, "content": "".join(piece["text"] for piece in content)}
    return {"role": message.role, "content": content}


def _content(part: Part, settings: MediaForm) -> dict[str, Any]:
    match part:
        case TextPart():
            return {"type": "text", "text": part.text}
        case ImagePart():
            detail = {} if settings.image_detail is None else {"detail": settings.image_detail}
            return {"type": "image_url", "image_url": {"url": image_uri(part.image, settings.image_quality)} | detail}
        case AudioPart():
            data = base64.b64encode(wav_bytes(part)).decode()
            if settings.audio_as == "audio_url":
                return {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data}"}}
            return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        case VideoPart():
            return {
                "type": "video_url",
                "video_url": {"url": f"data:video/mp4;base64,{base64.b64encode(mp4_bytes(part)).decode()}"},
            }


def image_uri(image: NDArray[np.uint8], quality: int | Literal["png"]) -> str:
    """A picture of shape (height, width, 3), RGB, as a data URI."""
    out = io.BytesIO()
    if quality == "png":
        Image.fromarray(image).save(out, "PNG", compress_level=1)
        kind = "png"
    else:
        Image.fromarray(image).save(
            out, "JPEG", quality=quality, subsampling=0 if quality >= FULL_CHROMA_QUALITY else 2
        )
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def wav_bytes(part: AudioPart) -> bytes:
    """Sound as a WAV file of 16-bit samples."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(part.sample_rate)
        file.writeframes((np.clip(part.waveform, -1.0, 1.0) * 32_767).round().astype("<i2").tobytes())
    return out.getvalue()


def mp4_bytes(part: VideoPart) -> bytes:
    """A clip as an mp4 file: H.264 at the clip's own frame rate, one picture per frame, and AAC if it has sound.

    Its times begin at 0; the text before it says where it is in the video.
    """
    # H.264 with halved chroma needs even sides.
    height, width = (side + side % 2 for side in part.frames.shape[1:3])
    frames = np.pad(
        part.frames,
        ((0, 0), (0, height - part.frames.shape[1]), (0, width - part.frames.shape[2]), (0, 0)),
        mode="edge",
    )
    rate = Fraction(part.fps).limit_denominator(1000)
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        pictures = file.add_stream("libx264", rate=rate)
        pictures.width = width
        pictures.height = height
        pictures.pix_fmt = "yuv420p"
        pictures.options = {"crf": "18", "preset": "veryfast", "threads": "1"}
        sound = None
        if part.audio is not None and len(part.audio.waveform):
            sound = file.add_stream("aac", rate=part.audio.sample_rate, layout="mono")
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number
            frame.time_base = 1 / rate
            file.mux(pictures.encode(frame))
        file.mux(pictures.encode(None))
        if sound is not None and part.audio is not None:
            block = av.AudioFrame.from_ndarray(
                part.audio.waveform[None].astype(np.float32), format="fltp", layout="mono"
            )
            block.sample_rate = part.audio.sample_rate
            block.pts = 0
            block.time_base = Fraction(1, part.audio.sample_rate)
            resampler = av.AudioResampler(format=sound.codec_context.format, layout="mono", rate=part.audio.sample_rate)
            for piece in [*resampler.resample(block), *resampler.resample(None)]:
                file.mux(sound.encode(piece))
            file.mux(sound.encode(None))
    return out.getvalue()
