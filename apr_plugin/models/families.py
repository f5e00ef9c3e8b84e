"""Model families: what each perceives, and how many tokens a picture, a clip or a sound takes in its prompt.

Pure arithmetic, no torch. The rules are those of each family's own processor in transformers (named at each function)
and are compared with it in `tests/models/test_families.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from apr_plugin.loop.budget import FRAME_PAIR, VisualToken
from apr_plugin.loop.policy import EVERY_MODALITY, Modality
from apr_plugin.media import SAMPLE_RATE

HOP = 160
"""Samples per column of a sound's spectrogram (10 ms) in the released checkpoints."""

MIN_SOUND = SAMPLE_RATE // 10
"""Samples to which a short sound is padded with silence, see `Family.least_sound`."""

MAX_ASPECT = 200
"""Largest ratio of the longer side to the shorter; the processors refuse pictures beyond it."""


@dataclass(frozen=True)
class Pixels:
    """Limits of one picture, or of one frame of a clip; outside them the processor scales it."""

    least: int | None = None
    """Smaller pictures are enlarged to this; `None`: to at least one token."""

    most: int | None = None
    """Larger pictures are scaled down to this; `None`: never."""


@dataclass(frozen=True)
class Placeholders:
    """Consecutive placeholder tokens of one medium."""

    kind: Literal["image", "video", "audio"]
    tokens: int


Piece = str | Placeholders
"""A part of what a medium becomes in the prompt: text with special tokens, or a run of placeholders."""


@dataclass(frozen=True)
class Marks:
    """A family's special tokens."""

    vision_start: str = "<|vision_start|>"
    vision_end: str = "<|vision_end|>"
    image: str = "<|image_pad|>"
    video: str = "<|video_pad|>"
    audio_start: str = "<|audio_start|>"
    audio_end: str = "<|audio_end|>"
    audio: str = "<|audio_pad|>"
    turn: str = "<|im_start|>"

    def of(self, kind: Literal["image", "video", "audio"]) -> str:
        """The placeholder of a medium."""
        return {"image": self.image, "video": self.video, "audio": self.audio}[kind]


@dataclass(frozen=True)
class Family:
    """One family of models that run the same way."""

    title: str
    """The name of the family in documents."""

    model_class: str
    """The name of its class in transformers, for the part that reads and writes text."""

    patch: int
    """Side of one patch of the vision encoder, in pixels.

    `merge` by `merge` patches, over `frames` frames of a clip, make a token (`vision_config.patch_size`).
    """

    clip: Literal["plain", "timed", "chunked", "merged"] = "plain"
    """The layout of a clip.

    One run; a time stamp before each pair of frames; with its sound in chunks of seconds; or with its sound by time.
    """

    marks: Marks = Marks()
    """Its special tokens."""

    hears: bool = False
    """Whether it has an audio encoder."""

    merge: int = 2
    """The number of patches, in each direction, that make one token (`vision_config.spatial_merge_size`)."""

    frames: int = FRAME_PAIR
    """The number of frames of a clip that are read as one picture (`vision_config.temporal_patch_size`)."""

    positions_per_s: float = 0.0
    """Positions per second of a clip (`position_id_per_seconds`, or `vision_config.tokens_per_second`)."""

    chunk_s: float = 2.0
    """Seconds of a chunk, if clips are laid out in chunks (`seconds_per_chunk`)."""

    hop: int = HOP
    """Samples per column of a sound's spectrogram (`hop_length` of the checkpoint's feature extractor)."""

    @property
    def factor(self) -> int:
        """Side in pixels of the square of one visual token."""
        return self.merge * self.patch

    @property
    def modalities(self) -> frozenset[Modality]:
        """What it perceives."""
        return EVERY_MODALITY if self.hears else EVERY_MODALITY - {"audio"}

    @property
    def least_sound(self) -> int:
        """Samples to which a short sound is padded with silence; a shorter one might give no token at all."""
        return max(MIN_SOUND, 2 * self.hop + 1)

    @property
    def visual_token(self) -> VisualToken:
        """What one visual token covers."""
        return VisualToken(self.factor, self.frames)

    def checked(self, processor: Any) -> Family:
        """This family with the columns of a checkpoint's feature extractor.

        Raises:
            ValueError: the processor cuts pictures or clips otherwise than the vision encoder reads them, so that the
                model would get another number of patches than it expects; or its feature extractor can't be followed.
        """
        wanted = {"patch_size": self.patch, "merge_size": self.merge, "temporal_patch_size": self.frames}
        for part in ("image_processor", "video_processor"):
            for name, number in wanted.items():
                told = getattr(getattr(processor, part, None), name, number)
                if told != number:
                    raise ValueError(
                        f"its {part} has {name} {told}, and its vision encoder {number}; correct "
                        "preprocessor_config.json (video_preprocessor_config.json), or save the processor again"
                    )
        return self._heard_by(getattr(processor, "feature_extractor", None)) if self.hears else self

    def _heard_by(self, extractor: Any) -> Family:
        hop, rate, longest = (getattr(extractor, name, None) for name in ("hop_length", "sampling_rate", "n_samples"))
        if not hop or not longest:
            raise ValueError("its processor has no feature extractor of spectrograms (hop_length, n_samples)")
        if rate != SAMPLE_RATE:
            raise ValueError(f"its feature extractor takes {rate} samples per second; sound has {SAMPLE_RATE}")
        if self.clip == "chunked" and longest % hop:
            raise ValueError(
                f"its feature extractor's {longest} samples are not whole columns of {hop} (hop_length); its "
                "last column would be cut off"
            )
        return replace(self, hop=hop)

    def of_config(self, config: Any) -> Family:
        """The family with the numbers of one checkpoint's configuration, if that contains them.

        For the Omni families this is the Thinker's configuration.
        """
        timed = (
            (config.vision_config, "tokens_per_second") if self.clip == "plain" else (config, "position_id_per_seconds")
        )
        return replace(
            self,
            patch=config.vision_config.patch_size,
            merge=config.vision_config.spatial_merge_size,
            frames=config.vision_config.temporal_patch_size,
            positions_per_s=getattr(*timed, self.positions_per_s),
            chunk_s=getattr(config, "seconds_per_chunk", self.chunk_s),
        )

    def size(self, height: int, width: int, limits: Pixels) -> tuple[int, int]:
        """(height, width) in pixels of a picture after the processor.

        Both sides are rounded to whole tokens, keeping the shape as nearly as the limits allow (`smart_resize` of
        Qwen2VLImageProcessor).

        Raises:
            ValueError: one side is more than `MAX_ASPECT` times the other.
        """
        if max(height, width) > MAX_ASPECT * min(height, width):
            raise ValueError(
                f"a picture of {width}x{height} is too narrow: one side may be at most {MAX_ASPECT} times the other"
            )
        side = self.factor
        least, most = limits.least or side * side, limits.most or 1 << 40
        tall, wide = round(height / side) * side, round(width / side) * side
        if tall * wide > most:
            shrink = math.sqrt(height * width / most)
            return max(side, math.floor(height / shrink / side) * side), max(
                side, math.floor(width / shrink / side) * side
            )
        if tall * wide < least:
            grow = math.sqrt(least / (height * width))
            return math.ceil(height * grow / side) * side, math.ceil(width * grow / side) * side
        return tall, wide

    def frame_size(self, height: int, width: int, limits: Pixels) -> tuple[int, int]:
        """(height, width) in pixels of a frame of a clip after the processor.

        The `timed` family first enlarges a frame that is narrower than a token (`smart_resize` of
        Qwen3VLVideoProcessor, whose limits of a whole clip are set to `limits` times its frames).
        """
        side = self.factor
        if self.clip == "timed" and min(height, width) < side:
            grow = max(side / height, side / width)
            height, width = int(height * grow), int(width * grow)
        return self.size(height, width, limits)

    def image(self, height: int, width: int, limits: Pixels) -> list[Piece]:
        """The pieces of a picture of that many pixels."""
        tall, wide = self.size(height, width, limits)
        return [self.marks.vision_start, Placeholders("image", tall * wide // self.factor**2), self.marks.vision_end]

    def sound(self, samples: int) -> list[Piece]:
        """The pieces of a sound alone, of that many samples at `SAMPLE_RATE`."""
        return [self.marks.audio_start, Placeholders("audio", self.audio_tokens(samples)), self.marks.audio_end]

    def audio_tokens(self, samples: int) -> int:
        """The number of tokens of a sound: 25 a second in the released checkpoints, or 13 in Qwen3-Omni.

        Source: `_get_feat_extract_output_lengths` of the two processors.
        """
        samples = max(samples, self.least_sound)
        if self.clip == "merged":
            columns = samples // self.hop
            rest = (columns % 100 - 1) // 2 + 1
            return ((rest - 1) // 2 + 1 - 1) // 2 + 1 + columns // 100 * 13
        columns = -(-samples // self.hop)
        return ((columns - 1) // 2 + 1 - 2) // 2 + 1

    def video(
        self, height: int, width: int, times_s: Sequence[float], fps: float, samples: int | None, limits: Pixels
    ) -> list[Piece]:
        """The pieces of a clip.

        Args:
            height: Height of its frames, in pixels.
            width: Width of its frames, in pixels.
            times_s: Time of each frame in the video.
            fps: The rate at which it was sampled, in frames per second.
            samples: Length of its sound at `SAMPLE_RATE`, or `None`; a family that does not hear leaves it out.
            limits: Limits of one frame.

        The `timed` layout is that of the family's first release and of vLLM, in which the time stamps replace the
        template's own brackets; transformers 5 leaves those around the clip.
        """
        tall, wide = self.frame_size(height, width, limits)
        tokens = tall * wide // self.factor**2  # of a pair of frames
        pairs = self.visual_token.groups(len(times_s))
        marks = self.marks
        if self.clip == "timed":
            pieces: list[Piece] = []
            for first in range(0, len(times_s), self.frames):
                middle = (times_s[first] + times_s[min(first + self.frames, len(times_s)) - 1]) / 2
                pieces += [
                    f"<{middle:.1f} seconds>",
                    marks.vision_start,
                    Placeholders("video", tokens),
                    marks.vision_end,
                ]
            return pieces
        if samples is None or not self.hears:
            return [marks.vision_start, Placeholders("video", pairs * tokens), marks.vision_end]
        places = [pair * (self.frames / fps) * self.positions_per_s for pair in range(pairs)]
        woven = self._chunks if self.clip == "chunked" else self._merge
        runs = [run for run in woven(places, tokens, self.audio_tokens(samples)) if run.tokens]
        return [marks.vision_start, marks.audio_start, *runs, marks.audio_end, marks.vision_end]

    def _chunks(self, places: Sequence[float], tokens: int, sound: int) -> Iterator[Placeholders]:
        """For each stretch of `chunk_s` seconds, its pictures and then its sound.

        Source: `replace_video_with_audio_token` of Qwen2_5OmniProcessor.
        """
        long = int(self.positions_per_s * self.chunk_s)
        seen = _split([place for place in places for _ in range(tokens)], long)
        heard = _split(range(sound), long)
        for number in range(max(len(seen), len(heard))):
            if number < len(seen):
                yield Placeholders("video", seen[number])
            if number < len(heard):
                yield Placeholders("audio", heard[number])

    def _merge(self, places: Sequence[float], tokens: int, sound: int) -> Iterator[Placeholders]:
        """Each pair of frames before the first audio token that is not earlier.

        Source: `replace_video_with_audio_token` of Qwen3OmniMoeProcessor.
        """
        told = 0
        for place in places:
            due = max(told, min(sound, math.ceil(place)))
            yield Placeholders("audio", due - told)
            yield Placeholders("video", tokens)
            told = due
        yield Placeholders("audio", sound - told)


def _split(places: Sequence[float], long: int) -> list[int]:
    """The number of tokens in each chunk of `long` positions.

    As in the processor, each token opens at most one new chunk.
    """
    counts, limit = [0], long
    for place in places:
        if place >= limit:
            counts.append(0)
            limit += long
        counts[-1] += 1
    return counts


def tokens_of(pieces: Sequence[Piece]) -> tuple[int, int]:
    """The number of (visual, audio) placeholder tokens of a medium."""
    runs = [piece for piece in pieces if isinstance(piece, Placeholders)]
    return sum(run.tokens for run in runs if run.kind != "audio"), sum(
        run.tokens for run in runs if run.kind == "audio"
    )


_OMNI_2_5 = Marks(
    "<|vision_bos|>", "<|vision_eos|>", "<|IMAGE|>", "<|VIDEO|>", "<|audio_bos|>", "<|audio_eos|>", "<|AUDIO|>"
)
_QWEN2_5_OMNI = Family(
    "Qwen2.5-Omni",
    "Qwen2_5OmniThinkerForConditionalGeneration",
    14,
    "chunked",
    _OMNI_2_5,
    hears=True,
    positions_per_s=25,
)
_QWEN3_OMNI = Family(
    "Qwen3-Omni-MoE", "Qwen3OmniMoeThinkerForConditionalGeneration", 16, "merged", hears=True, positions_per_s=13
)

FAMILIES: dict[str, Family] = {
    "qwen2_5_vl": Family("Qwen2.5-VL", "Qwen2_5_VLForConditionalGeneration", 14, positions_per_s=2),
    "qwen2_5_omni": _QWEN2_5_OMNI,
    "qwen2_5_omni_thinker": _QWEN2_5_OMNI,
    "qwen3_vl": Family("Qwen3-VL", "Qwen3VLForConditionalGeneration", 16, "timed"),
    "qwen3_vl_moe": Family("Qwen3-VL-MoE", "Qwen3VLMoeForConditionalGeneration", 16, "timed"),
    "qwen3_5": Family("Qwen3.5", "Qwen3_5ForConditionalGeneration", 16, "timed"),
    "qwen3_5_moe": Family("Qwen3.5-MoE", "Qwen3_5MoeForConditionalGeneration", 16, "timed"),
    "qwen3_omni_moe": _QWEN3_OMNI,
    "qwen3_omni_moe_thinker": _QWEN3_OMNI,
}
"""The families by the `model_type` of a checkpoint's configuration.

The Omni families run their Thinker, from a whole checkpoint or alone.
"""


def family_of(model_type: str) -> Family:
    """The family of a checkpoint.

    Raises:
        ValueError: it is not one of ours.
    """
    if model_type not in FAMILIES:
        known = ", ".join(dict.fromkeys(family.title for family in FAMILIES.values()))
        raise ValueError(f"a model of type {model_type!r} is not one of the families that can be run ({known})")
    return FAMILIES[model_type]
