"""A needle set of lengths and numbers of chapters that training has not met.

Training has videos of 1, 10, 30, 60 and 120 minutes with 3x2, 4x4, 6x5, 8x6 and 8x6 chapters and scenes per chapter. A
case is `SECONDS` (a length, with the chapters that such a video has) or `SECONDS:CHAPTERSxSCENES`. The set is a folder
as `apr needle make` makes it, so every harness reads it (`APR_NEEDLE_DIR`). A row's bucket is the nearest of the
benchmark's, and the video's name begins with its case.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from apr_plugin.errors import AprError
from apr_plugin.tasks.needle.make import BUCKETS, DOCS_NAME, SPEC_NAME, VIDEOS_NAME, video_seed
from apr_plugin.tasks.needle.palette import BACKGROUNDS, PATTERNS
from apr_plugin.tasks.needle.questions import Doc, LetterDeck, ask, max_questions_per_kind
from apr_plugin.tasks.needle.render import is_complete, write_video
from apr_plugin.tasks.needle.world import World, tree_shape

CASES = ("180", "1200", "5400", "10800", "600:5x3", "1800:7x4")
"""Lengths between and beyond those of training, and other trees at lengths of training."""

_CASE = re.compile(r"(\d+)(?::(\d+)x(\d+))?")


@dataclass(frozen=True)
class Case:
    """Videos of one kind."""

    name: str
    duration_s: int
    shape: tuple[int, int]
    """Chapters, and scenes per chapter."""

    @classmethod
    def read(cls, text: str) -> Case:
        """From its short form.

        Raises:
            AprError: it has another form, or the video would be too short for its scenes.
        """
        found = _CASE.fullmatch(text)
        if found is None or int(found[1]) < 60:
            raise AprError(f"transfer case {text!r}: write SECONDS or SECONDS:CHAPTERSxSCENES, with 60 seconds or more")
        seconds = int(found[1])
        shape = (int(found[2]), int(found[3])) if found[2] else tree_shape(seconds)
        if (
            not 1 <= shape[0] <= len(BACKGROUNDS)
            or not 1 <= shape[1] <= len(PATTERNS)
            or seconds / (shape[0] * shape[1]) < 10
        ):
            raise AprError(
                f"transfer case {text!r}: at most {len(BACKGROUNDS)} chapters of {len(PATTERNS)} scenes, and 10 "
                "seconds for a scene"
            )
        return cls(f"{seconds}s-{shape[0]}x{shape[1]}", seconds, shape)

    @property
    def told(self) -> str:
        """In words."""
        return f"{self.duration_s / 60:g} min, {self.shape[0]} chapters of {self.shape[1]} scenes"

    @property
    def bucket(self) -> str:
        """The nearest of the benchmark's, by the ratio of lengths."""
        return min(BUCKETS, key=lambda name: max(BUCKETS[name] / self.duration_s, self.duration_s / BUCKETS[name]))


def make_set(out: Path, cases: Sequence[Case], *, seed: int, videos: int, questions: int, edge: int) -> Path:
    """Make the set, or what is missing of it.

    Args:
        out: Its folder.
        cases: What videos there are.
        seed: Of worlds and questions.
        videos: Of each case.
        questions: Of each kind about each video, if it has so many.
        edge: Height and width of the frames in pixels.

    Raises:
        AprError: the folder has another set.
    """
    told = {
        "transfer": [vars(case) for case in cases],
        "seed": seed,
        "videos": videos,
        "questions": questions,
        "edge": edge,
    }
    told = json.loads(json.dumps(told))
    spec = out / SPEC_NAME
    if spec.is_file():
        if json.loads(spec.read_text()) != told:
            raise AprError(f"{out}: it has another transfer set; name another folder, or remove it")
        return out
    (out / VIDEOS_NAME).mkdir(parents=True, exist_ok=True)
    letters, docs = LetterDeck(seed), list[Doc]()
    for case, number, world in _worlds(cases, seed, videos):
        name = f"{VIDEOS_NAME}/{case.name}-{number}.mp4"
        if not is_complete(out / name):
            write_video(world, out / name, (edge, edge))
        most = min(questions, max_questions_per_kind(case.shape[0] * case.shape[1]))
        docs += ask(world, name, case.bucket, most, letters)
    (out / DOCS_NAME).write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    part = spec.with_suffix(".part")
    part.write_text(json.dumps(told, indent=1) + "\n")
    part.replace(spec)
    return out


def _worlds(cases: Sequence[Case], seed: int, videos: int) -> Iterator[tuple[Case, int, World]]:
    for case in cases:
        for number in range(videos):
            world_seed = video_seed(seed, f"transfer {case.name}", number)
            yield case, number, World.from_seed(world_seed, case.duration_s, shape=case.shape)


def case_of(video: str) -> str:
    """The name of the case that a video belongs to, from its path."""
    return Path(video).stem.rpartition("-")[0]
