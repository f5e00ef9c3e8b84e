"""A prompt as a checkpoint's own processor reads it, called as its documentation says; compared with `policy=hf`."""

from __future__ import annotations

from typing import Any

from apr_plugin.loop.policy import AudioPart, ImagePart, Prompt, TextPart, VideoPart
from apr_plugin.models.prompt import PromptEncoder


def real(encoder: PromptEncoder, prompt: Prompt, **more: Any) -> Any:
    """Encode the same prompt with the checkpoint's processor, called as its documentation says."""
    messages, images, clips, sounds = [], [], [], []
    for message in prompt.messages:
        content = []
        for part in message.parts:
            match part:
                case TextPart():
                    content.append({"type": "text", "text": part.text})
                case ImagePart():
                    content.append({"type": "image"})
                    images.append(part.image)
                case VideoPart():
                    content.append({"type": "video"})
                    clips.append(part)
                    sounds += [part.audio.waveform] if part.audio is not None and encoder.family.hears else []
                case AudioPart():
                    content.append({"type": "audio"})
                    sounds.append(part.waveform)
        messages.append({"role": message.role, "content": content})
    text = encoder.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    # The first release replaced the brackets too (as vLLM does); transformers 5 leaves them around the clip.
    if encoder.family.clip == "timed":
        marks = encoder.family.marks
        text = text.replace(marks.vision_start + marks.video + marks.vision_end, marks.video)
    side = encoder.family.factor
    frames = len(clips[0].frames) if clips and encoder.family.clip == "timed" else 1
    free = {"shortest_edge": side * side, "longest_edge": 1 << 40}
    more["images_kwargs"] = {"size": free}
    more["videos_kwargs"] = {"size": {key: value * frames for key, value in free.items()}, "do_sample_frames": False}
    if clips:
        fps = clips[0].fps
        start = round(clips[0].times_s[0] * fps)
        metadata = {
            "total_num_frames": len(clips[0].frames),
            "fps": fps,
            "frames_indices": [start + n for n in range(len(clips[0].frames))],
        }
        if encoder.family.hears:
            more["videos_kwargs"] |= {"fps": fps}
            if sounds:
                more |= {"load_audio_from_video": True, "audio_from_video_indices": [0]}
        else:
            more["videos_kwargs"] |= {"video_metadata": [[metadata]]}
    given = {"images": images or None, "videos": [clip.frames for clip in clips] or None}
    given |= {"audio": sounds or None} if encoder.family.hears else {}
    return encoder.processor(
        text=[text], return_tensors="pt", **{k: v for k, v in given.items() if v is not None}, **more
    )
