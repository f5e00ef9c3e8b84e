"""What the formats have in common: messages with places of media, the tokens that a trainer reads, reasons to skip.

Both trainers write a conversation in ChatML, whatever the checkpoint's own chat template is, and expand media by the
rules of the processor that they call. `Format.prompt_ids` does the same, so that a row can be compared before any file
is written.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, ClassVar

from apr_plugin.loop.policy import AudioPart, ImagePart, Part, Prompt, Role, TextPart, VideoPart
from apr_plugin.models.families import Family, Piece, Pixels, Placeholders
from apr_plugin.models.prompt import MediaPart, in_groups
from apr_plugin.training.export.media_files import MediaFolder, long_enough
from apr_plugin.training.export.pixels import scaled_clip, scaled_picture
from apr_plugin.training.student import Student

TURN_END = "<|im_end|>\n"
"""What both trainers write after a turn of the model, and learn with it: the student's end and a line break."""


TIMED = "it counts the times before the frames of a clip from the clip's beginning, and writes other tokens around it"
"""Why neither trainer reads the clips of a family whose clips have time stamps (`Family.clip` is `timed`)."""

_STEP = 64
"""Lengths are multiples of it."""


class Skip(StrEnum):
    """Why a row is not exported."""

    GONE = "gone"
    """Its trajectory, chat, card or video is gone, has changed, or can't be read."""
    OTHER_STUDENT = "other_student"
    """The student that was named makes another number of tokens of it than the row has: the rows were made for another
    checkpoint, or with other pixel limits."""
    TAG = "tag"
    """Its words contain what the trainer takes for a place of media, and has no way to escape."""
    MEDIUM = "medium"
    """The trainer can't read a medium as the student does."""
    MEDIA_TOKENS = "media_tokens"
    """The trainer makes another number of tokens of a medium: its processor scales it, or cuts a long sound off."""
    CLIP_RATE = "clip_rate"
    """The clip has another rate than the one that the trainer is given for all clips."""
    CLIP_SOUND = "clip_sound"
    """Most clips of these rows have sound and this one has none, or the reverse; the trainer has one switch for all."""
    ROLES = "roles"
    """Messages of the user and of the model do not alternate, as in some chats."""
    PROMPT_TOKENS = "prompt_tokens"
    """The trainer reads another prompt for another reason: its template differs from the student's chat template."""
    TARGET_TOKENS = "target_tokens"
    """The words of the target are other tokens when the trainer makes tokens of them: the model had sampled them
    differently, or another token ends the turn."""


class Skipped(Exception):
    """A row is not exported.

    Args:
        reason: Why.
        detail: Details in words.
    """

    def __init__(self, reason: Skip, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Survey:
    """What the clips of all rows have in common; the trainers take these settings once for all."""

    clip_fps: float = 2.0
    """The most frequent rate of a clip."""
    clip_sound: bool = False
    """Whether most clips have sound that the student hears."""


@dataclass(frozen=True)
class Said:
    """A message: words, and media where it stands."""

    role: Role
    parts: tuple[str | MediaPart, ...]


@dataclass(frozen=True)
class About:
    """What a finished export is about, for its settings and its README."""

    checkpoint: str
    """The student: a folder or a name on the hub."""
    file: str
    """Name of the data file."""
    rows: int
    """Rows in it."""
    skipped: Mapping[str, int]
    """Rows that are not in it, by reason."""
    longest: int
    """Tokens of the longest row, with the line break after its target."""

    @property
    def room(self) -> int:
        """The length to which a trainer is set: more than the longest row."""
        return (self.longest // _STEP + 1) * _STEP


def said(prompt: Prompt, student: Student) -> list[Said]:
    """The messages of a prompt as the student reads them.

    Special tokens in words are broken up, pictures and frames are scaled, frames are in pairs, sound is long enough,
    and a clip has no sound if the student hears nothing. A system message that the student's chat template adds is
    among them; one without words stands for none.

    Raises:
        Skipped: messages do not alternate.
        ValueError: a picture is too narrow.
    """
    told = [Said(message.role, tuple(_read(part, student) for part in message.parts)) for message in prompt.messages]
    if told[0].role != "system":
        told.insert(0, Said("system", (added_system(student),)))
    roles = [message.role for message in told[1:]]
    if roles != (["user", "assistant"] * len(roles))[: len(roles)] or roles[-1:] != ["user"]:
        raise Skipped(Skip.ROLES, f"its messages are {', '.join(roles)}")
    return told


def added_system(student: Student) -> str:
    """The system message that a student's chat template adds where there is none; empty if it adds none."""
    text = student.encoder.rendered([{"role": "user", "content": [{"type": "text", "text": "?"}]}])
    found = re.match(r"<\|im_start\|>system\n(.*?)<\|im_end\|>\n", text, re.DOTALL)
    return found[1] if found else ""


def _read(part: Part, student: Student) -> str | MediaPart:
    match part:
        case TextPart():
            return student.encoder.harmless(part.text)
        case ImagePart():
            return ImagePart(scaled_picture(student, part))
        case AudioPart():
            return replace(part, waveform=long_enough(part.waveform, student.family.least_sound))
        case VideoPart():
            _, times_s = in_groups(part, student.family.frames)
            heard = part.audio if student.family.hears else None
            least = student.family.least_sound
            sound = None if heard is None else replace(heard, waveform=long_enough(heard.waveform, least))
            return VideoPart(scaled_clip(student, part), times_s, part.fps, sound)


class Format(ABC):
    """The data of one trainer. Media that is given to it is as `said` makes it.

    Args:
        student: The model that is trained.
        survey: What the clips of all rows have in common.
    """

    name: ClassVar[str]
    """On the command line."""
    title: ClassVar[str]
    """In documents."""
    taken: ClassVar[re.Pattern[str]]
    """Words that the trainer would take for a place of media."""

    def __init__(self, student: Student, survey: Survey) -> None:
        self.student = student
        self.family: Family = student.family
        self.survey = survey

    @abstractmethod
    def image(self, height: int, width: int) -> list[Piece]:
        """What the trainer makes of a picture of that size.

        Raises:
            Skipped: it can't read it.
        """

    @abstractmethod
    def video(self, clip: VideoPart) -> list[Piece]:
        """What the trainer makes of a clip.

        Raises:
            Skipped: it can't read it as the student does.
        """

    @abstractmethod
    def heard(self, samples: int) -> int:
        """How many samples of a sound the trainer reads."""

    @abstractmethod
    def texts(self, messages: Sequence[Said]) -> list[str]:
        """The prompt as the texts of which the trainer makes tokens, one after the other."""

    @abstractmethod
    def clip_files(self, clip: VideoPart, folder: MediaFolder) -> dict[str, Any]:
        """Write a clip and return its entry by list: `videos`, `audios`.

        Raises:
            OSError: it can't be written.
        """

    @abstractmethod
    def settings(self, about: About) -> dict[str, str]:
        """The files beside the data, by name: the command with what it needs."""

    def record(self, messages: Sequence[Said], target: str, media: Mapping[str, list[Any]]) -> dict[str, Any]:
        """A row of the data file.

        Args:
            messages: The prompt.
            target: The words of the target, without its end.
            media: Entries by list: `images`, `videos`, `audios`.
        """
        told = [{"role": message.role, "content": self.tagged(message)} for message in messages]
        return {"messages": [*told, {"role": "assistant", "content": target}], **media}

    def files(self, part: MediaPart, folder: MediaFolder) -> dict[str, Any]:
        """Write a medium and return its entry by list.

        Raises:
            OSError: it can't be written.
        """
        match part:
            case ImagePart():
                return {"images": folder.picture(part.image)}
            case AudioPart():
                return {"audios": folder.sound(part.waveform)}
            case VideoPart():
                return self.clip_files(part, folder)

    def tags(self, part: MediaPart) -> str:
        """What marks the place of a medium in the words of a message."""
        return {ImagePart: "<image>", AudioPart: "<audio>", VideoPart: "<video>"}[type(part)]

    def pieces(self, part: MediaPart) -> list[Piece]:
        """What the trainer makes of a medium.

        Raises:
            Skipped: it can't read it as the student does.
        """
        match part:
            case ImagePart():
                return self.image(*part.image.shape[:2])
            case AudioPart():
                return self.family.sound(self.heard(len(part.waveform)))
            case VideoPart():
                return self.video(part)

    def prompt_ids(self, messages: Sequence[Said]) -> list[int]:
        """The tokens of a prompt as the trainer makes them."""
        encode = self.student.tokenizer.backend_tokenizer.encode
        ids: list[int] = []
        for text in self.texts(messages):
            ids += encode(text, add_special_tokens=False).ids
        return ids

    def target_ids(self, words: str) -> list[int]:
        """The tokens of a target as the trainer makes them, with the end of the turn and a line break."""
        ids: list[int] = self.student.tokenizer.backend_tokenizer.encode(words + TURN_END, add_special_tokens=False).ids
        return ids

    def expanded(self, message: Said) -> str:
        """The words of a message with its media as placeholders."""
        return "".join(part if isinstance(part, str) else self.written(self.pieces(part)) for part in message.parts)

    def tagged(self, message: Said) -> str:
        """The words of a message with a tag for each medium."""
        return "".join(part if isinstance(part, str) else self.tags(part) for part in message.parts)

    def written(self, pieces: Sequence[Piece]) -> str:
        """Pieces as text with placeholder tokens."""
        marks = self.family.marks
        return "".join(
            marks.of(piece.kind) * piece.tokens if isinstance(piece, Placeholders) else piece for piece in pieces
        )

    def one_rate(self, clip: VideoPart, fps: float) -> None:
        """Check that a clip has the rate at which the trainer takes it.

        Raises:
            Skipped: it has another one, and the family's positions depend on it.
        """
        if self.family.positions_per_s and abs(clip.fps - fps) > 1e-6 * fps:
            raise Skipped(Skip.CLIP_RATE, f"the clip has {clip.fps:g} frames a second, the trainer takes {fps:g}")

    @property
    def longest_sound(self) -> int:
        """Samples after which a feature extractor cuts a sound off, unless it is told not to."""
        return int(self.student.encoder.processor.feature_extractor.n_samples)


def limits_of(processor: Any) -> Pixels:
    """The limits of a picture or frame in an image or video processor's own configuration."""
    size = processor.size
    least, most = (size[name] if isinstance(size, Mapping) else getattr(size, name) for name in _EDGES)
    return Pixels(int(least), int(most))


_EDGES = ("shortest_edge", "longest_edge")
