"""`Question`: what is asked, about which media, and how the answer is written."""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from apr_plugin.loop.text import printable


class QuestionKind(StrEnum):
    """The four ways a question can be answered."""

    MCQ = "mcq"
    """One of the options; the answer is its label."""

    GROUNDING = "grounding"
    """One or more time spans in seconds; the answer is `[[start, end], ...]`."""

    NUMBER = "number"
    """A number (a count, a size in the unit the question names)."""

    FREE_FORM = "free_form"
    """Text of any form."""


class Option(BaseModel):
    """One option of a multiple-choice question."""

    model_config = ConfigDict(frozen=True)

    label: str
    """The text that an answer uses for this option, usually a capital letter."""

    text: str
    """The option's own words."""


class SubtitlesRef(BaseModel):
    """The subtitles of a video: a look shows those on screen at its own times alone, next to its media."""

    model_config = ConfigDict(frozen=True)

    path: str
    """Local path of the text file (`apr_plugin.media.subtitles`)."""

    from_s: float = 0.0
    """The second of the subtitles at which the video begins, if they are those of a longer one."""


class MediaRef(BaseModel):
    """A media file, or a window of one, that a question is about."""

    model_config = ConfigDict(frozen=True)

    path: str
    """Local path. The harness or the user chooses it, never a model."""

    start_s: float | None = None
    """Where the question's part of the file begins, in seconds of the file; `None` is the beginning of the file."""

    end_s: float | None = None
    """Where it ends, in seconds of the file; `None` is the end of the file."""

    subtitles: SubtitlesRef | None = None
    """Its subtitles, if looks show them."""


class Question(BaseModel):
    """One question about zero or more videos.

    `task`, `split`, `doc_id` and `repeat` together name a question within a run.
    """

    model_config = ConfigDict(frozen=True)

    text: str
    """The question itself, without its options."""

    kind: QuestionKind
    """How it is answered."""

    options: tuple[Option, ...] = ()
    """The options of an `mcq` question, in the order in which they are shown."""

    videos: tuple[MediaRef, ...] = ()
    """The videos that it is about, in the order in which the `video` index of an action counts them."""

    answer_hint: str = ""
    """How to write the answer, if the kind does not say everything ("in centimetres")."""

    task: str = "ask"
    """The harness task it comes from."""

    split: str = ""
    """The split of that task."""

    doc_id: str = "0"
    """The document within the split."""

    repeat: int = Field(default=0, ge=0)
    """Which repeat of the same document this is (lmms-eval's `--repeats`)."""

    reader: str = ""
    """The reader that made it from a harness request; it is only recorded."""

    @property
    def key(self) -> tuple[str, str, str, int]:
        """The values that identify this question within a run."""
        # Equal to the key of the question after it was written to a file and read.
        return (
            printable(self.task),
            printable(self.split),
            printable(self.doc_id),
            self.repeat,
        )

    def content_hash(self) -> str:
        """16 hex digits over everything that a policy can see of the question, and each video's name and size.

        The folder of a video does not count. If the hash differs, a resumed run asks again. So it notices a changed
        data set or a replaced video file, but not a moved file.
        """
        seen = self.model_dump(mode="json", include={"text", "kind", "options", "answer_hint"})
        seen["videos"] = [(Path(v.path).name, _size(v.path), v.start_s, v.end_s) for v in self.videos]
        if any(v.subtitles for v in self.videos):
            seen["subtitles"] = [v.subtitles and (_size(v.subtitles.path), v.subtitles.from_s) for v in self.videos]
        return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:16]


def _size(path: str) -> int | None:
    try:
        return Path(path).stat().st_size
    except (OSError, ValueError):  # this includes a name that no file can have: a NUL byte, a lone surrogate
        return None
