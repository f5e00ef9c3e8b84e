"""Which of a benchmark's videos are on this machine: a check of every video of a task."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from apr_plugin.media import MediaError
from apr_plugin.media.confine import confine
from apr_plugin.tasks.common.catalogue import Source
from apr_plugin.tasks.common.media import FileFacts, Library
from apr_plugin.tasks.common.rows import unreadable

State = Literal["present", "missing", "unreadable"]


@dataclass(frozen=True)
class VideoState:
    """One video of a benchmark as it is on this machine."""

    name: str
    """Its official relative name."""
    path: str
    """Its path, or the path where it is expected."""
    state: State
    """Whether it is there and can be opened."""
    questions: int
    """The number of questions about it."""
    size: int | None
    """Its size in bytes."""
    seconds: float | None
    """The duration of the file, in seconds."""
    annotated_s: float | None
    """Its duration by the annotations in seconds, if they have it."""
    sha256: str
    """The SHA-256 of its bytes, if it was requested."""
    error: str
    """The reason why it can't be opened."""

    @property
    def off_s(self) -> float | None:
        """How much longer the file is than annotated, in seconds, if that is more than a second and 2%."""
        if self.seconds is None or self.annotated_s is None:
            return None
        off = self.seconds - self.annotated_s
        return off if abs(off) > max(1.0, 0.02 * self.annotated_s) else None


@dataclass(frozen=True)
class Report:
    """What `check` found."""

    source: Source
    questions: int
    """Questions of the task in the annotations."""
    answerable: int
    """Questions for which all videos can be opened."""
    videos: tuple[VideoState, ...]
    """The videos, in official order."""
    annotations: tuple[Path, ...]
    """The files that were read."""

    def of(self, state: State) -> list[VideoState]:
        """The videos in that state."""
        return [video for video in self.videos if video.state == state]

    @property
    def complete(self) -> bool:
        """Whether every question can be asked, and their number is that of the benchmark."""
        return (self.answerable, self.questions) == (self.source.n, self.source.n)

    def to_json(self) -> dict[str, Any]:
        """The manifest: what was there, so that two people can compare whether they used the same files."""
        return {
            "schema": 1,
            "task": self.source.task,
            "title": self.source.title,
            "questions_official": self.source.n,
            "questions": self.questions,
            "questions_with_every_video": self.answerable,
            "annotations": [
                {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
                for path in self.annotations
            ],
            "videos": [asdict(video) for video in self.videos],
        }

    def write(self, path: Path) -> None:
        """Write the manifest."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n", "utf-8")


def count_videos(source: Source) -> tuple[int, int] | None:
    """How many of a task's videos are there, and how many it has; `None` without annotations on this machine.

    Nothing is downloaded or opened.

    Raises:
        AprError: the annotations have another form than they should.
    """
    if any(source.local_file(file) is None for file in source.files):
        return None
    library = Library(source.video_folders)
    paths = {path for document in source.documents(library, measure=False) for path in document["apr_videos"]}
    return sum(Path(path).is_file() for path in paths), len(paths)


def check(source: Source, folders: Sequence[Path] = (), hashes: bool = True, media_root: Path | None = None) -> Report:
    """Open every video of a task.

    Args:
        source: The task.
        folders: Where its videos are; default: where the task looks for them.
        hashes: Whether to read every byte for its SHA-256.
        media_root: A folder that must contain every video, after links are resolved; others are not opened, and count
            as unreadable.

    Raises:
        AprError: there are no annotations.
    """
    library = Library(folders or source.video_folders)
    documents = source.documents(library, measure=False)
    readable = [document for document in documents if unreadable(document) is None]
    paths: dict[str, str] = {}
    annotated: dict[str, float] = {}
    asked: Counter[str] = Counter()
    for document in readable:
        names = list(source.videos_of(document))
        paths |= zip(names, document["apr_videos"], strict=True)
        asked.update(dict.fromkeys(names, 1))
        if names and document["apr_seconds"] is not None:
            annotated.setdefault(names[0], document["apr_seconds"])
    outside = {path: reason for path in paths.values() if (reason := _outside(path, media_root))}
    facts = {
        **source.manifest().read(
            (Path(path) for path in paths.values() if path not in outside), f"{source.title}: videos", hashes
        )
    }
    facts |= {path: FileFacts(0, 0, error=reason) for path, reason in outside.items()}
    states = {
        name: _state(name, path, facts.get(path), asked[name], annotated.get(name)) for name, path in paths.items()
    }
    answerable = sum(
        all(states[name].state == "present" for name in source.videos_of(document)) for document in readable
    )
    read = tuple(path for file in source.files if (path := source.local_file(file)) is not None)
    return Report(source, len(documents), answerable, tuple(states.values()), read)


def _outside(path: str, media_root: Path | None) -> str:
    """The reason why an existing file may not be read, or an empty string."""
    try:
        if Path(path).is_file():
            confine(path, media_root)
    except MediaError as error:
        return error.reason
    return ""


def _state(name: str, path: str, facts: FileFacts | None, questions: int, annotated_s: float | None) -> VideoState:
    if facts is None:
        return VideoState(name, path, "missing", questions, None, None, annotated_s, "", "")
    state: State = "unreadable" if facts.seconds is None else "present"
    return VideoState(name, path, state, questions, facts.size, facts.seconds, annotated_s, facts.sha256, facts.error)
