"""Rows for ms-swift: JSON Lines with `messages`, `images`, `videos`, `audios` and the limits of each row's media.

Read in ms-swift 4.6.0 (github.com/modelscope/ms-swift), `docs/source_en/Customization/Custom-dataset.md` and the files
named below, and compared with its own code (`tests/training/test_export_foreign.py`):

- `template/base.py`: `<image>`, `<video>` and `<audio>` in words become media, in their order; there is no way to
  escape them. `<img>…</img>` becomes `<image>` too. Earlier turns with `"loss": false` are one text with the prompt.
- `template/templates/qwen.py`: media is read with qwen_vl_utils or qwen_omni_utils and the keys of the row's
  `chat_template_kwargs`, then given to the processor with `do_resize=False`. A list of frames in place of a video file
  is scaled to multiples of two tokens there, so clips are files. Their rate is that of the file.
- `qwen_vl_utils` 0.0.14: with the size of a picture as `min_pixels`, a picture of up to 16,384 tokens stays as it is,
  and so does a clip; `nframes` takes every frame.
- `USE_AUDIO_IN_VIDEO` is one switch for all clips; with it a clip without sound can't be read.
- For Qwen3-VL, the times of a clip are counted from its beginning, and with transformers 5 two more tokens stand around
  it: such clips are not exported.
- For Qwen3-Omni, sound is cut to whole columns of 10 ms, so that its last column may differ a little.
- `SWIFT_AUDIO_LOAD_BACKEND=soundfile_pyav` reads the sound of clips as it is; the default reads it as 16-bit numbers.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from apr_plugin.errors import AprError
from apr_plugin.loop.policy import ImagePart, VideoPart
from apr_plugin.models.families import Piece, Pixels
from apr_plugin.training.export.format import TIMED, About, Format, Said, Skip, Skipped, Survey
from apr_plugin.training.export.media_files import MediaFolder, rate_of
from apr_plugin.training.student import Student

TYPES = {
    "Qwen2.5-VL": ("qwen2_5_vl", "qwen2_5_vl"),
    "Qwen2.5-Omni": ("qwen2_5_omni", "qwen2_5_omni"),
    "Qwen3-VL": ("qwen3_vl", "qwen3_vl"),
    "Qwen3-VL-MoE": ("qwen3_vl_moe", "qwen3_vl"),
    "Qwen3-Omni-MoE": ("qwen3_omni_moe", "qwen3_omni"),
}
"""`--model_type` and `--template` by family; a checkpoint's folder does not always tell them.

Qwen3.5 is left out: ms-swift trims its messages and writes thoughts in a form of its own.
"""

MOST_TOKENS = 16_384
"""Largest picture without `max_pixels`, in tokens (`IMAGE_MAX_TOKEN_NUM`)."""


class Swift(Format):
    """The data of ms-swift."""

    name: ClassVar[str] = "swift"
    title: ClassVar[str] = "ms-swift"
    taken: ClassVar[re.Pattern[str]] = re.compile(r"<image>|<video>|<audio>|<img>.+?</img>")

    def __init__(self, student: Student, survey: Survey) -> None:
        super().__init__(student, survey)
        if self.family.title not in TYPES:
            raise AprError(
                f"rows of {self.family.title} can't be exported to {self.title}: it writes their prompts differently; "
                f"the families are {', '.join(TYPES)}"
            )

    def image(self, height: int, width: int) -> list[Piece]:
        """As many tokens as it has: it is not scaled."""
        if height * width > MOST_TOKENS * self.family.factor**2:
            raise Skipped(Skip.MEDIA_TOKENS, f"a picture of {width}x{height} is larger than {MOST_TOKENS} tokens")
        return self.family.image(height, width, Pixels())

    def video(self, clip: VideoPart) -> list[Piece]:
        """As the family's processor lays it out, at the rate of its file."""
        if self.family.clip == "timed":
            raise Skipped(Skip.MEDIUM, TIMED)
        height, width = clip.frames.shape[1:3]
        fps = float(rate_of(clip.fps))
        samples = None if clip.audio is None else self.heard(len(clip.audio.waveform))
        if self.family.hears and (clip.audio is not None) != self.survey.clip_sound:
            raise Skipped(Skip.CLIP_SOUND, f"USE_AUDIO_IN_VIDEO is {self.survey.clip_sound} for all clips")
        # The defaults of Qwen2_5OmniProcessorKwargs and Qwen3OmniMoeProcessorKwargs, whatever the checkpoint says.
        family = self.family
        if family.hears:
            family = replace(family, positions_per_s=25.0 if family.clip == "chunked" else 13.0, chunk_s=2.0)
        return family.video(height, width, clip.times_s, fps, samples, Pixels())

    def heard(self, samples: int) -> int:
        """All, or what the feature extractor takes: only for Qwen3-Omni it is told to read everything."""
        return samples if self.family.clip == "merged" else min(samples, self.longest_sound)

    def texts(self, messages: Sequence[Said]) -> list[str]:
        """One text: everything that is not learned is put together."""
        text, turn = "", 0
        for message in messages:
            words = self.expanded(message)
            if message.role == "system":
                text += f"<|im_start|>system\n{words}<|im_end|>\n" if words else ""
            elif message.role == "user":
                # `_concat_context_list` fills in the number of the round, also in words.
                words = words.replace("{{ROUND0}}", str(turn)).replace("{{ROUND1}}", str(turn + 1))
                text += f"<|im_start|>user\n{words}<|im_end|>\n<|im_start|>assistant\n"
            else:
                text += f"{words}<|im_end|>\n"
                turn += 1
        return [text]

    def record(self, messages: Sequence[Said], target: str, media: Mapping[str, list[Any]]) -> dict[str, Any]:
        """A row with what is learned, and with the limits that leave its media as it is."""
        made = super().record(messages, target, media)
        for message in made["messages"]:
            if message["role"] == "assistant":
                message["loss"] = False
        made["messages"][-1]["loss"] = True
        seen = [part for message in messages for part in message.parts if isinstance(part, ImagePart | VideoPart)]
        frames = [part.image if isinstance(part, ImagePart) else part.frames[0] for part in seen]
        counts = [len(part.frames) for part in seen if isinstance(part, VideoPart)]
        # Every row has both keys: a table would fill a missing one with `None`, which is read as a value.
        made["chat_template_kwargs"] = {
            "min_pixels": min((frame.shape[0] * frame.shape[1] for frame in frames), default=self.family.factor**2),
            "nframes": max(counts, default=self.family.frames),
        }
        return made

    def clip_files(self, clip: VideoPart, folder: MediaFolder) -> dict[str, Any]:
        """One video file, with the sound."""
        sound = None if clip.audio is None else clip.audio.waveform
        return {"videos": folder.clip(clip.frames, clip.fps, sound)}

    def settings(self, about: About) -> dict[str, str]:
        """`train.sh`."""
        hears = f"export USE_AUDIO_IN_VIDEO={str(self.survey.clip_sound).lower()}\n" if self.family.hears else ""
        kind, template = TYPES[self.family.title]
        script = (
            "#!/bin/sh\n"
            "# ms-swift 4.6.0 or newer. Further arguments are passed on: sh train.sh --output_dir DIR --seed 1\n"
            'cd "$(dirname "$0")" || exit 1\n'
            f"export SWIFT_AUDIO_LOAD_BACKEND=soundfile_pyav\n{hears}"
            f"exec swift sft --model {shlex.quote(about.checkpoint)} --model_type {kind} --template {template} \\\n"
            f"    --dataset {about.file} --split_dataset_ratio 0 --loss_scale default \\\n"
            f"    --max_length {about.room} --truncation_strategy delete \\\n"
            '    --torch_dtype bfloat16 "$@"\n'
        )
        return {"train.sh": script}
