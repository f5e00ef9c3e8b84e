"""Rows for LLaMA-Factory: JSON Lines in the sharegpt format with OpenAI's roles, and `dataset_info.json`.

Read in LLaMA-Factory 0.9.5 (github.com/hiyouga/LLaMA-Factory), `data/README.md` and the files named below, and compared
with its own code (`tests/training/test_export_foreign.py`):

- `data/mm_plugin.py`: `<image>`, `<video>` and `<audio>` in words become media, in their order; there is no way to
  escape them, and one too many stops the training. Pictures are scaled to `image_max_pixels` and `video_max_pixels`,
  and then by the processor to its own limits. A clip is a list of pictures at the rate `video_fps`, the same for all
  clips. With `use_audio_in_video` its sound is a file of its own, marked by `<audio>` after `<video>`.
  For Qwen3-VL, the times of a clip are looked up by the number of its message, which fails unless it is the first
  (mended after 0.9.5).
- `data/processor/supervised.py`: with `mask_history` only the last turn is learned; a row longer than `cutoff_len` is
  cut off.
- `data/template.py`: each message is made into tokens alone. Messages of the user and of the model must alternate.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from apr_plugin.errors import AprError
from apr_plugin.loop.policy import VideoPart
from apr_plugin.models.families import Piece
from apr_plugin.models.prompt import MediaPart
from apr_plugin.training.export.format import TIMED, About, Format, Said, Skip, Skipped, Survey, limits_of
from apr_plugin.training.export.media_files import MediaFolder
from apr_plugin.training.student import Student

TEMPLATES = {
    "Qwen2.5-VL": "qwen2_vl",
    "Qwen2.5-Omni": "qwen2_omni",
    "Qwen3-VL": "qwen3_vl_nothink",
    "Qwen3-VL-MoE": "qwen3_vl_nothink",
    "Qwen3-Omni-MoE": "qwen3_omni_nothink",
}
"""`template` by family. Qwen3.5 is left out: its chat template opens a thought in the prompt, this one does not."""

DEFAULT_SYSTEM = {"qwen2_vl": "You are a helpful assistant.", "qwen2_omni": "You are a helpful assistant."}
"""What a template writes in place of an empty system message."""

DATASET = "apr"
"""Name of the data set in `dataset_info.json`."""

PIXELS = {
    "image_min_pixels": 1,
    "image_max_pixels": 1 << 28,
    "video_min_pixels": 1,
    "video_max_pixels": 1 << 28,
}
"""Limits that leave every picture as it is: it has been scaled."""


class LlamaFactory(Format):
    """The data of LLaMA-Factory."""

    name: ClassVar[str] = "llamafactory"
    title: ClassVar[str] = "LLaMA-Factory"
    taken: ClassVar[re.Pattern[str]] = re.compile("<image>|<video>|<audio>")

    def __init__(self, student: Student, survey: Survey) -> None:
        super().__init__(student, survey)
        if self.family.title not in TEMPLATES:
            raise AprError(
                f"rows of {self.family.title} can't be exported to {self.title}: it writes their prompts differently; "
                f"the families are {', '.join(TEMPLATES)}"
            )
        self.template = TEMPLATES[self.family.title]

    def image(self, height: int, width: int) -> list[Piece]:
        """As the checkpoint's processor scales it, by its own limits."""
        return self.family.image(height, width, limits_of(self.student.encoder.processor.image_processor))

    def video(self, clip: VideoPart) -> list[Piece]:
        """As the family's processor lays it out, by its own limits, at the rate of all clips."""
        if self.family.clip == "timed":
            raise Skipped(Skip.MEDIUM, TIMED)
        if clip.audio is not None and self.family.clip != "chunked":
            raise Skipped(Skip.MEDIUM, f"it lays out a clip with sound for Qwen2.5-Omni, not for {self.family.title}")
        height, width = clip.frames.shape[1:3]
        fps = self.survey.clip_fps
        self.one_rate(clip, fps)
        samples = None if clip.audio is None else self.heard(len(clip.audio.waveform))
        limits = limits_of(self.student.encoder.processor.video_processor)
        # `process_messages` has these numbers, whatever the checkpoint says.
        family = self.family if samples is None else replace(self.family, positions_per_s=25.0, chunk_s=2.0)
        return family.video(height, width, clip.times_s, fps, samples, limits)

    def heard(self, samples: int) -> int:
        """Whole columns: it pads to the feature extractor's whole length, which counts columns that have begun."""
        return min(math.ceil(samples / self.family.hop) * self.family.hop, self.longest_sound)

    def texts(self, messages: Sequence[Said]) -> list[str]:
        """A text for each message."""
        texts: list[str] = []
        system, number = DEFAULT_SYSTEM.get(self.template, ""), 0
        for message in messages:
            words = self.expanded(message)
            if message.role == "system":
                system = words or system
            elif message.role == "user":
                # `StringFormatter` fills in the number of the round, also in words.
                words = words.replace("{{idx}}", str(number), 1)
                head = f"<|im_start|>system\n{system}<|im_end|>\n" if system and not texts else ""
                texts += [head, f"<|im_start|>user\n{words}<|im_end|>\n<|im_start|>assistant\n"]
            else:
                texts.append(f"{words}<|im_end|>\n")
                number += 1
        return texts

    def tags(self, part: MediaPart) -> str:
        """A clip with sound has two tags."""
        return super().tags(part) + ("<audio>" if isinstance(part, VideoPart) and part.audio is not None else "")

    def clip_files(self, clip: VideoPart, folder: MediaFolder) -> dict[str, Any]:
        """A list of pictures, and a file of sound."""
        sound = {} if clip.audio is None else {"audios": folder.sound(clip.audio.waveform)}
        return {"videos": [folder.picture(frame) for frame in clip.frames], **sound}

    def settings(self, about: About) -> dict[str, str]:
        """`dataset_info.json` and `train.yaml`."""
        info = {
            DATASET: {
                "file_name": about.file,
                "formatting": "sharegpt",
                "columns": {name: name for name in ("messages", "images", "videos", "audios")},
                "tags": {
                    "role_tag": "role",
                    "content_tag": "content",
                    "user_tag": "user",
                    "assistant_tag": "assistant",
                    "system_tag": "system",
                },
            }
        }
        wanted: dict[str, Any] = {
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": about.checkpoint,
            "template": self.template,
            "dataset_dir": ".",
            "media_dir": ".",
            "dataset": DATASET,
            "mask_history": True,
            "cutoff_len": about.room,
            **PIXELS,
            "video_fps": self.survey.clip_fps,
        }
        if self.family.hears:
            wanted |= {"use_audio_in_video": True, "audio_sampling_rate": 16_000}
        wanted |= {"finetuning_type": "full", "bf16": True, "output_dir": "saves"}
        head = "# LLaMA-Factory 0.9.5. In this folder: llamafactory-cli train train.yaml KEY=VALUE …\n"
        yaml = head + "".join(f"{key}: {json.dumps(value)}\n" for key, value in wanted.items())
        return {"dataset_info.json": json.dumps(info, indent=2) + "\n", "train.yaml": yaml}
