"""Turns a `Prompt` into a request of vLLM.

A request is token ids with one placeholder for each medium, the media themselves, and how to process them.

vLLM expands placeholders and scales pictures with the checkpoint's own processor, so tokens are counted by that
processor's limits here.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from apr_plugin.loop.policy import AudioPart, ImagePart, Prompt, TextPart, VideoPart
from apr_plugin.media import SAMPLE_RATE
from apr_plugin.models.compat import clip_size, expands_bare_clip
from apr_plugin.models.families import Family, Piece, Pixels
from apr_plugin.models.prompt import MediaPart, PromptEncoder, in_groups

TICKS = 1024
"""Frames of a clip are numbered in this part of the time between two of them.

With this, `frames_indices / fps` is the true time of each frame for every family. It is a power of two, so that the
rate which processors compute, frames / total x fps, is exactly the clip's: positions of frames are rounded down.
"""


class VllmPrompts(PromptEncoder):
    """Prompts for one checkpoint in vLLM's form; it is safe to use from several threads.

    Args:
        processor: The checkpoint's processor, with the overrides that vLLM was given too.
        family: Its family.
        template: Further variables of the chat template.
    """

    def __init__(self, processor: Any, family: Family, template: Mapping[str, Any] | None = None) -> None:
        super().__init__(processor, family, _limits(processor.image_processor.size), dtype=None, template=template)
        self._clip = clip_size(processor)
        self._bare_clip = family.clip == "timed" and expands_bare_clip(processor)

    def request(self, prompt: Prompt) -> dict[str, Any]:
        """Make the argument of `AsyncLLM.generate`.

        Raises:
            ValueError: the prompt has a medium that this family can't take.
        """
        messages = []
        media: dict[str, list[Any]] = {"image": [], "video": [], "audio": []}
        options: dict[str, Any] = {}
        for message in prompt.messages:
            content = []
            for part in message.parts:
                match part:
                    case TextPart():
                        content.append({"type": "text", "text": self.harmless(part.text)})
                    case ImagePart():
                        content.append({"type": "image"})
                        media["image"].append(Image.fromarray(part.image))
                    case AudioPart():
                        if not self.family.hears:
                            raise ValueError(f"{self.family.title} hears nothing")
                        content.append({"type": "audio"})
                        media["audio"].append(self._waveform(part))
                    case VideoPart():
                        content.append({"type": "video"})
                        media["video"].append(_frames(part, self.family.frames))
                        if self.family.hears and part.audio is not None:
                            media["audio"].append(self._waveform(part.audio))
                            options["use_audio_in_video"] = True
                        # Unless told otherwise, vLLM assumes 2 frames a second for a clip of Qwen2.5-Omni, and 1 for
                        # Qwen3-Omni.
                        if self.family.hears:
                            options |= {"fps": part.fps, "second_per_grid_ts": [self.family.frames / part.fps]}
            messages.append({"role": message.role, "content": content})
        if options.get("use_audio_in_video") and len(media["audio"]) != len(media["video"]):
            raise ValueError(
                "vLLM takes clips with their sound only if every clip has sound and no other sound is in the prompt"
            )
        text = self.rendered(messages)
        if self._bare_clip:
            marks = self.family.marks
            text = text.replace(marks.vision_start + marks.video + marks.vision_end, marks.video)
        request: dict[str, Any] = {
            "prompt_token_ids": list(self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
        }
        if any(media.values()):
            request["multi_modal_data"] = {kind: items for kind, items in media.items() if items}
        if options:
            request["mm_processor_kwargs"] = options
        if options.get("use_audio_in_video"):
            # vLLM processes only the media that its cache of processed media lacks. If that has a clip's sound but not
            # its frames (another look at the same seconds), processing the one without the other fails. Names that are
            # never used again keep them together.
            name = uuid.uuid4().hex
            request["multi_modal_uuids"] = {
                kind: [f"{name}-{kind}-{n}" for n in range(len(media[kind]))] for kind in ("video", "audio")
            }
        return request

    def opened_by(self, request: Mapping[str, Any]) -> str:
        """The thought that the chat template has opened at the end of a request, see `opened`."""
        return self.opened(self.tokenizer.decode(request["prompt_token_ids"][-32:]))

    def _pieces(self, part: MediaPart) -> list[Piece]:
        if not isinstance(part, VideoPart):
            return super()._pieces(part)
        _, height, width, _ = part.frames.shape
        _, times = in_groups(part, self.family.frames)
        samples = len(part.audio.waveform) if part.audio is not None else None
        return self.family.video(height, width, times, part.fps, samples, self._clip_limits(len(times)))

    def _clip_limits(self, frames: int) -> Pixels:
        """Limits of one frame of a clip with that many frames."""
        least, most = self._clip["shortest_edge"], self._clip["longest_edge"]
        if self.family.clip == "timed":  # its limits apply to the whole clip
            return Pixels(-(-least // frames), most // frames)
        return Pixels(least, most)

    def _waveform(self, sound: AudioPart) -> tuple[Any, int]:
        if sound.sample_rate != SAMPLE_RATE:
            raise ValueError(f"sound must have {SAMPLE_RATE} samples per second, not {sound.sample_rate}")
        longest = getattr(self.processor.feature_extractor, "n_samples", None)
        if self.family.clip == "chunked" and longest is not None and len(sound.waveform) > longest:
            raise ValueError(
                f"vLLM would cut sound off after the {longest / SAMPLE_RATE:g} s of this checkpoint's "
                "processor; lower audio_s and clip_s"
            )
        short = max(0, self.family.least_sound - len(sound.waveform))
        return (np.pad(sound.waveform, (0, short)) if short else sound.waveform), SAMPLE_RATE


def _frames(part: VideoPart, together: int) -> tuple[Any, dict[str, Any]]:
    """A clip with whole groups of frames, as the encoder takes them, and its timing for the processors."""
    frames, _ = in_groups(part, together)
    return np.ascontiguousarray(frames), clip_timing(part, together) | {"video_backend": "apr-plugin"}


def clip_timing(part: VideoPart, together: int) -> dict[str, Any]:
    """What processors have to know of the frames of `in_groups`: their numbers, and how many there are in how long."""
    _, times = in_groups(part, together)
    rate = part.fps * TICKS
    return {
        "fps": rate,
        "frames_indices": [round(time_s * rate) for time_s in times],
        "total_num_frames": len(times) * TICKS,
        "duration": len(times) / part.fps,
        "do_sample_frames": False,
    }


def _limits(size: Mapping[str, int]) -> Pixels:
    return Pixels(size["shortest_edge"], size["longest_edge"])
