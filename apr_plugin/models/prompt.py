"""Encodes a `Prompt` for a transformers model: token ids, the media's tensors, and keys for comparing beginnings.

The keys tell where two prompts begin to differ.

The chat template is the checkpoint's own. Placeholders are expanded by `families.py` and not by the processor's own
call. So tokens can be counted without touching a pixel, frames of a clip keep their true times, and the same code works
with every release of transformers. `tests/models/test_prompt.py` compares the result with the real processor's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from apr_plugin.loop.policy import AudioPart, ImagePart, Part, Prompt, PromptSize, TextPart, VideoPart
from apr_plugin.media import SAMPLE_RATE
from apr_plugin.models.compat import chat_template, whole_frames
from apr_plugin.models.families import Family, Piece, Pixels, Placeholders
from apr_plugin.models.special_tokens import broken_up, pattern

MediaPart = ImagePart | AudioPart | VideoPart


@dataclass
class Medium:
    """One picture, clip or sound of a prompt."""

    part: MediaPart
    runs: tuple[Placeholders, ...]
    """Its placeholders, in order."""
    start: int = 0
    """Index of its first placeholder token in the prompt."""
    pixels: Any = None
    """Patches of a picture or a clip, shape (patches, values)."""
    grid: Any = None
    """Shape (3,): patches in time, height and width."""
    mel: Any = None
    """Spectrogram of a sound or of a clip with sound, shape (bins, columns)."""
    key: int = 0
    """A negative number that equal media have in common; 0: not known."""


@dataclass
class Encoded:
    """A prompt as the model reads it."""

    ids: NDArray[np.int64]
    """Token ids, shape (n,)."""
    media: list[Medium]
    """The media, in the order of the prompt."""
    keys: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Shape (n,): the ids, but for each placeholder a negative number that identifies its medium.

    Prompts are equal as far as their keys are equal.
    """
    turns: int = 0
    """Turns that are already in the prompt."""
    history: int = 0
    """Number of tokens before the last message: those with which the next prompt of the episode begins too."""
    opened: str = ""
    """What the chat template has already written of the model's turn: `<think>` and a line break for some models."""

    @property
    def size(self) -> PromptSize:
        """The number of tokens by their kind."""
        runs = [run for medium in self.media for run in medium.runs]
        audio = sum(run.tokens for run in runs if run.kind == "audio")
        visual = sum(run.tokens for run in runs) - audio
        return PromptSize(text=len(self.ids) - visual - audio, visual=visual, audio=audio)


class PromptEncoder:
    """Encodes prompts for one checkpoint. Safe to use from several threads.

    Args:
        processor: The checkpoint's processor.
        family: Its family.
        limits: Limits of one picture or frame.
        dtype: Torch type of the media's tensors.
        template: Further variables of the chat template: `{"enable_thinking": False}`.

    Raises:
        ValueError: the tokenizer lacks one of the family's special tokens, or there is no chat template.
    """

    def __init__(
        self, processor: Any, family: Family, limits: Pixels, dtype: Any, template: Mapping[str, Any] | None = None
    ) -> None:
        self.processor = processor
        self.family = family
        self.limits = limits
        self.dtype = dtype
        self.tokenizer = processor.tokenizer
        marks = family.marks
        wanted = [marks.vision_start, marks.vision_end, marks.image, marks.video]
        wanted += [marks.audio_start, marks.audio_end, marks.audio] if family.hears else []
        known = self.tokenizer.get_vocab()
        if missing := [token for token in wanted if token not in known]:
            raise ValueError(f"its tokenizer lacks {', '.join(missing)}, which prompts of {family.title} are made of")
        self.chat_template = chat_template(processor)
        """The checkpoint's chat template, as text."""
        self._variables = dict(template or {})
        if not self.chat_template:
            raise ValueError("its folder holds no chat template (chat_template.jinja)")
        self._turn = known.get(marks.turn, -1)
        self.ids_of = {
            kind: known[marks.of(cast(Any, kind))] for kind in ("image", "video", *(("audio",) if family.hears else ()))
        }
        self.never_written = tuple(
            sorted(
                {known[token] for token in (*wanted, marks.audio_start, marks.audio_end, marks.audio) if token in known}
            )
        )
        """Tokens of media, or of the bounds of media.

        A turn that contained one could not be read again, because there is no medium for it.
        """
        special = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special} | set(
            wanted
        )
        self._special = pattern(special)
        clip = re.escape(marks.vision_start + marks.video + marks.vision_end)
        image = re.escape(marks.vision_start + marks.image + marks.vision_end)
        sound = re.escape(marks.audio_start + marks.audio + marks.audio_end)
        self._places = re.compile("|".join([clip, image, sound]))

    def count(self, prompt: Prompt) -> PromptSize:
        """The number of tokens of a prompt, exactly as `encode` makes them."""
        return self.lay_out(prompt).size

    def encode(self, prompt: Prompt) -> Encoded:
        """Encode everything that the model needs.

        Raises:
            ValueError: the prompt has a medium that this family can't take.
        """
        encoded = self.lay_out(prompt)
        self._see([medium for medium in encoded.media if isinstance(medium.part, ImagePart)])
        for medium in encoded.media:
            if isinstance(medium.part, VideoPart):
                self._watch(medium, medium.part)
            sound = _sound(medium.part)
            if sound is not None and any(run.kind == "audio" for run in medium.runs):
                medium.mel = self.spectrum(sound.waveform)
        encoded.keys = encoded.ids.copy()
        for medium in encoded.media:
            medium.key = key = _key(medium.part)
            left = [run.tokens for run in medium.runs]
            places = (
                medium.start
                + np.flatnonzero(np.isin(encoded.ids[medium.start :], list(self.ids_of.values())))[: sum(left)]
            )
            encoded.keys[places] = key
        return encoded

    def lay_out(self, prompt: Prompt) -> Encoded:
        """The tokens of a prompt, as `encode` makes them, without its media's tensors and without `keys`.

        Only the sizes of media are read.

        Raises:
            ValueError: the prompt has a medium that this family can't take.
        """
        messages, media = [], []
        for message in prompt.messages:
            content = []
            for part in message.parts:
                if isinstance(part, TextPart):
                    content.append({"type": "text", "text": self.harmless(part.text)})
                else:
                    media.append((part, self._pieces(part)))
                    content.append({"type": _kind(part)})
            messages.append({"role": message.role, "content": content})
        text = self.rendered(messages)
        pieces = iter([pieces for _, pieces in media])
        found = len(self._places.findall(text))
        if found != len(media):
            raise ValueError(f"the chat template made {found} places for {len(media)} pictures, clips and sounds")
        text = self._places.sub(lambda _: "".join(self._written(piece) for piece in next(pieces)), text)
        ids = np.asarray(self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
        runs = [tuple(piece for piece in pieces if isinstance(piece, Placeholders)) for _, pieces in media]
        places = np.flatnonzero(np.isin(ids, list(self.ids_of.values())))
        times = np.ones(len(ids), np.int64)
        times[places] = [run.tokens for of_one in runs for run in of_one]
        starts = (np.cumsum(times) - times)[places]
        first = np.cumsum([0, *(len(of_one) for of_one in runs)])
        laid = [
            Medium(part, of_one, int(starts[first[n]]))
            for n, ((part, _), of_one) in enumerate(zip(media, runs, strict=True))
        ]
        whole, roles = np.repeat(ids, times), [message.role for message in prompt.messages]
        # One for each message, and one for the message that is to be written.
        begins = np.flatnonzero(whole == self._turn)
        newest = next((n for n, role in enumerate(reversed(roles)) if role != "user"), len(roles))
        history = int(begins[-newest - 1]) if len(begins) > newest else 0
        return Encoded(whole, laid, turns=roles.count("assistant"), history=history, opened=self.opened(text))

    def rendered(self, messages: list[dict[str, Any]]) -> str:
        """Render messages with the chat template, up to where the model continues."""
        options = {"chat_template": self.chat_template, "add_generation_prompt": True, "tokenize": False}
        options |= self._variables
        text: str = self.processor.apply_chat_template(messages, **options)
        return text

    def opened(self, rendered: str) -> str:
        """The thought that the template has opened for the model to continue, which is in no token of the model."""
        # Text of others can't contain this token: it is broken up.
        begun = rendered.rpartition(self.family.marks.turn)[2]
        _, mark, after = begun.partition("<think>")
        return mark + after if mark and "</think>" not in after else ""

    def turn_ids(self, text: str) -> list[int]:
        """Tokens of a turn that someone else wrote, as this checkpoint would write it, without its end.

        Raises:
            ValueError: it has a special token, or what another family writes as one. In later prompts it is broken up,
                so that the turn would read differently there.
        """
        if self.harmless(text) != text:
            raise ValueError("it has a special token in its words")
        ids: list[int] = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def harmless(self, text: str) -> str:
        """Break up special tokens in text: a model's notes and a question are text of others."""
        return broken_up(text, self._special)

    def _written(self, piece: Piece) -> str:
        return piece if isinstance(piece, str) else self.family.marks.of(piece.kind)

    def _pieces(self, part: MediaPart) -> list[Piece]:
        family = self.family
        sound = _sound(part)
        if sound is not None and sound.sample_rate != SAMPLE_RATE:
            raise ValueError(f"sound must have {SAMPLE_RATE} samples per second, not {sound.sample_rate}")
        samples = None if sound is None else len(sound.waveform)
        match part:
            case ImagePart():
                return family.image(part.image.shape[0], part.image.shape[1], self.limits)
            case VideoPart():
                _, height, width, _ = part.frames.shape
                return family.video(height, width, part.times_s, part.fps, samples, self.limits)
            case AudioPart():
                if not family.hears:
                    raise ValueError(f"{family.title} hears nothing")
                return family.sound(len(part.waveform))

    def size_limits(self, frames: int = 1) -> dict[str, int]:
        """The limits of a picture, or of a clip with so many frames, as the argument `size` of a processor."""
        side = self.family.factor
        return {
            "shortest_edge": (self.limits.least or side * side) * frames,
            "longest_edge": (self.limits.most or 1 << 40) * frames,
        }

    def _see(self, pictures: Sequence[Medium]) -> None:
        if not pictures:
            return
        images = [cast(ImagePart, medium.part).image for medium in pictures]
        made = self.processor.image_processor(
            images=images, size=self.size_limits(), input_data_format="channels_last", return_tensors="pt"
        )
        grids = made["image_grid_thw"]
        pixels = made["pixel_values"].to(self.dtype).split(grids.prod(-1).tolist())
        for medium, patches, grid in zip(pictures, pixels, grids, strict=True):
            medium.pixels = patches
            medium.grid = grid

    def _watch(self, medium: Medium, clip: VideoPart) -> None:
        frames, _ = in_groups(clip, self.family.frames)
        processor = self.processor.video_processor
        size = self.size_limits(len(frames) if self.family.clip == "timed" else 1)
        options = {
            "size": size,
            "do_sample_frames": False,
            "input_data_format": "channels_last",
            **whole_frames(processor),
        }
        made = processor(videos=[frames], return_tensors="pt", **options)
        medium.pixels = made["pixel_values_videos"].to(self.dtype)
        medium.grid = made["video_grid_thw"][0]

    def spectrum(self, waveform: NDArray[np.float32]) -> Any:
        """The spectrogram of a sound as the family's processor makes it, however long the sound is.

        Args:
            waveform: Shape (samples,), at `SAMPLE_RATE`.

        Returns:
            Shape (bins, columns), of the media's type.
        """
        extractor, family = self.processor.feature_extractor, self.family
        columns = -(-max(len(waveform), family.least_sound) // family.hop)
        whole = family.least_sound
        if family.clip == "chunked":
            # Its processor pads with silence to the extractor's whole length, and cuts off what is longer. As much
            # silence as the last column reaches into gives the same numbers, in a tenth of the time.
            whole = columns * family.hop + extractor.n_fft + -extractor.n_fft % family.hop
            whole = min(whole, extractor.n_samples) if len(waveform) <= extractor.n_samples else whole
        made = extractor(
            np.pad(waveform, (0, max(0, whole - len(waveform)))),
            sampling_rate=SAMPLE_RATE,
            padding="longest",
            truncation=False,
            return_attention_mask=True,
            return_tensors="pt",
        )
        if family.clip != "chunked":
            columns = int(made["attention_mask"].sum())
        return made["input_features"][0][:, :columns].contiguous().to(self.dtype)


def in_groups(clip: VideoPart, together: int) -> tuple[NDArray[np.uint8], tuple[float, ...]]:
    """Frames and times of a clip as the encoders take them: the last one is repeated until its group is full.

    Args:
        clip: The clip.
        together: Frames of a group (`Family.frames`).
    """
    more = -len(clip.frames) % together
    if not more:
        return clip.frames, clip.times_s
    return np.concatenate([clip.frames, *[clip.frames[-1:]] * more]), (*clip.times_s, *clip.times_s[-1:] * more)


def _kind(part: MediaPart) -> str:
    return {ImagePart: "image", VideoPart: "video", AudioPart: "audio"}[type(part)]


def _sound(part: Part) -> AudioPart | None:
    return part if isinstance(part, AudioPart) else part.audio if isinstance(part, VideoPart) else None


def _key(part: MediaPart) -> int:
    """A negative number that two media have in common only if they are equal."""
    arrays: list[NDArray[Any]]
    about = ""
    match part:
        case ImagePart():
            arrays = [part.image]
        case AudioPart():
            arrays = [part.waveform]
        case VideoPart():
            arrays = [part.frames, *([part.audio.waveform] if part.audio is not None else [])]
            about = f"{part.times_s} {part.fps}"
    digest = hashlib.blake2b(f"{_kind(part)} {[array.shape for array in arrays]} {about}".encode(), digest_size=8)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return -1 - int.from_bytes(digest.digest()) // 2
