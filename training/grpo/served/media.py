"""Prompts for a vLLM server, with media without loss, so that it sees the pixels that the trainer sees.

Frames are PNG. A clip is a sequence of PNG in vLLM's `video/jpeg` form, which hands each picture to Pillow and so reads
PNG too; its times go in `media_io_kwargs`. Sound is WAV with 32-bit samples. Pictures are scaled by the student's
limits, not by those of the server's checkpoint (`mm_processor_kwargs`). vLLM 0.32 takes both fields only with
`--trust-request-mm-kwargs`. (Its code: `multimodal/media/video.py`, `renderers/chat_utils.py`.)

Clips have no sound there. vLLM places the tokens of a clip of Qwen2.5-Omni with its sound at other positions than the
model's release (docs/models.md), so turns would be sampled from another distribution than the one that is trained.
"""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from fractions import Fraction
from typing import Any

import av
import numpy as np

from apr_plugin.loop.policy import AudioPart, ImagePart, Message, Part, Prompt, TextPart, VideoPart
from apr_plugin.models.families import MIN_SOUND
from apr_plugin.models.prompt import PromptEncoder, in_groups
from apr_plugin.policies.openai.media import image_uri
from apr_plugin.policies.vllm.prompt import clip_timing


def without_clip_sound(prompt: Prompt) -> Prompt:
    """The prompt with silent clips."""

    def silent(part: Part) -> Part:
        return replace(part, audio=None) if isinstance(part, VideoPart) and part.audio is not None else part

    messages = tuple(Message(one.role, tuple(silent(part) for part in one.parts)) for one in prompt.messages)
    return prompt if messages == prompt.messages else replace(prompt, messages=messages)


def request_of(prompt: Prompt, encoder: PromptEncoder) -> dict[str, Any]:
    """The fields of a chat completion that are the prompt: `messages`, and how its media is read.

    Args:
        prompt: The prompt, with silent clips.
        encoder: The student's.

    Raises:
        ValueError: it has clips of different timing, and a request has room for one.
    """
    family = encoder.family
    body: dict[str, Any] = {"messages": []}
    parts = [part for message in prompt.messages for part in message.parts]
    clips = [part for part in parts if isinstance(part, VideoPart)]
    if len(clips) > 1:
        raise ValueError("a prompt for a vLLM server has at most one clip, because its timing is that of the request")
    if any(isinstance(part, ImagePart | VideoPart) for part in parts):
        frames = len(in_groups(clips[0], family.frames)[0]) if clips and family.clip == "timed" else 1
        body["mm_processor_kwargs"] = {"size": encoder.size_limits(frames)}
    for clip in clips:
        body["media_io_kwargs"] = {"video": {"num_frames": -1} | clip_timing(clip, family.frames)}
        # vLLM assumes 2 frames a second in clips of families that hear.
        heard = {"fps": clip.fps, "second_per_grid_ts": [family.frames / clip.fps]} if family.hears else {}
        body["mm_processor_kwargs"] |= {"do_sample_frames": False, **heard}
    for message in prompt.messages:
        content = [_content(part, encoder) for part in message.parts]
        body["messages"].append({"role": message.role, "content": content})
    return body


def _content(part: Part, encoder: PromptEncoder) -> dict[str, Any]:
    match part:
        case TextPart():
            return {"type": "text", "text": encoder.harmless(part.text)}
        case ImagePart():
            return {"type": "image_url", "image_url": {"url": image_uri(part.image, "png")}}
        case AudioPart():
            data = base64.b64encode(wav_bytes(part, encoder.family.least_sound)).decode()
            return {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data}"}}
        case VideoPart():
            frames, _ = in_groups(part, encoder.family.frames)
            pictures = ",".join(image_uri(frame, "png").partition(",")[2] for frame in frames)
            return {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{pictures}"}}


def wav_bytes(sound: AudioPart, least: int = MIN_SOUND) -> bytes:
    """Sound as a WAV file of 32-bit floating-point samples, padded with silence to so many samples."""
    short = max(0, least - len(sound.waveform))
    block = av.AudioFrame.from_ndarray(
        np.pad(sound.waveform, (0, short)).astype(np.float32)[None], format="flt", layout="mono"
    )
    block.sample_rate, block.pts, block.time_base = sound.sample_rate, 0, Fraction(1, sound.sample_rate)
    out = io.BytesIO()
    with av.open(out, "w", format="wav") as file:
        stream: Any = file.add_stream("pcm_f32le", rate=sound.sample_rate, layout="mono")
        file.mux(stream.encode(block))
        file.mux(stream.encode(None))
    return out.getvalue()
