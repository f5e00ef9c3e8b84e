"""Training worlds as real files, with their questions: what trajectories and reinforcement of the small agent look at.

    FOLDER/videos/*.mp4     a world each
    FOLDER/questions.jsonl  a file of training questions (docs/training.md)

The seeds are those of training (`worlds.TRAINING`), which no set of `apr needle make` has.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from apr_plugin.errors import AprError
from apr_plugin.tasks.needle.make import BUCKETS, GENERATOR_VERSION
from apr_plugin.tasks.needle.questions import Doc
from apr_plugin.tasks.needle.render import PART_SUFFIX, is_complete, write_video
from apr_plugin.training.synthesis.questions import needle_question
from apr_plugin.training.tiny.pictures import DRAWN
from apr_plugin.training.tiny.teacher import TEACHERS
from apr_plugin.training.tiny.worlds import FPS, TRAINING, Film, film

VIDEOS = "videos"
QUESTIONS = "questions.jsonl"

FILMED = 2**39
"""Where the seeds of filmed worlds begin within `TRAINING`; rows that are made without files have lower ones."""

MOST = 2**16
"""Worlds of one seed of a set at most."""


class FilmSettings(BaseModel):
    """Which worlds are filmed, and what is asked about them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0, lt=2**20)
    """Another seed is another set of worlds."""
    videos: dict[str, int] = Field(
        default_factory=lambda: {"1m": 40, "10m": 20, "30m": 10, "60m": 6, "120m": 5}, min_length=1
    )
    """How many worlds for each length of video."""
    questions_per_kind: int = Field(default=4, ge=1)
    """Questions of each kind about a video at most; a video of one minute has no more than 2."""

    @field_validator("videos")
    @classmethod
    def _known(cls, given: dict[str, int]) -> dict[str, int]:
        if unknown := sorted(set(given) - set(BUCKETS)):
            raise ValueError(f"there is no length {', '.join(unknown)}; there are {', '.join(BUCKETS)}")
        if any(count < 0 for count in given.values()) or not 1 <= sum(given.values()) <= MOST:
            raise ValueError(f"the numbers must be 0 or more, and 1 to {MOST:,} together")
        return given

    def shrunk(self, factor: float) -> FilmSettings:
        """Fewer worlds: of the shortest videos at least two, of the others none where the factor leaves none."""
        least = min((name for name, count in self.videos.items() if count), key=BUCKETS.__getitem__)
        videos = {name: max(2 * (name == least), int(count / factor)) for name, count in self.videos.items()}
        return self.model_copy(update={"videos": videos})


def make_films(folder: Path, settings: FilmSettings, console: Console) -> Path:
    """Film the worlds, or those that are missing, and write their questions.

    Args:
        folder: Where they go.
        settings: Which ones.
        console: Shows progress.

    Returns:
        The file of questions, which is there when everything is.

    Raises:
        AprError: the folder can't be written.
    """
    file, jobs = folder / QUESTIONS, list(_jobs(settings))
    waiting = [(seen, name) for seen, _, name in jobs if not is_complete_at(folder / VIDEOS / name)]
    text = "".join(_lines(folder, settings, jobs))
    try:
        if file.is_file() and file.read_text("utf-8") == text and not waiting:
            return file
        (folder / VIDEOS).mkdir(parents=True, exist_ok=True)
        for part in (folder / VIDEOS).glob(f".*{PART_SUFFIX}"):  # left by a process that was killed
            part.unlink(missing_ok=True)
        columns = (TextColumn("filming worlds"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task("", total=round(sum(seen.duration_s for seen, _ in waiting)))
            for seen, name in waiting:
                write_video(seen.world, folder / VIDEOS / name, DRAWN, FPS)
                bar.advance(task, round(seen.duration_s))
        part = file.with_name(f".{QUESTIONS}.{os.getpid()}{PART_SUFFIX}")
        part.write_text(text, "utf-8")
        part.replace(file)
    except OSError as error:
        raise AprError(f"{folder}: cannot film worlds there: {error.strerror or error}") from error
    return file


def is_complete_at(path: Path) -> bool:
    """Whether a video is there as a whole."""
    return path.is_file() and is_complete(path)


def _jobs(settings: FilmSettings) -> Iterator[tuple[Film, tuple[Doc, ...], str]]:
    """The worlds, what can be asked about each, and the names of their files."""
    seed = TRAINING.start + FILMED + settings.seed * MOST
    for bucket in sorted(settings.videos, key=BUCKETS.__getitem__):
        for _ in range(settings.videos[bucket]):
            seen, docs = film(seed, bucket)
            drawn = json.dumps([seen.world.digest(), DRAWN, FPS, GENERATOR_VERSION])
            yield seen, docs, f"{hashlib.sha256(drawn.encode()).hexdigest()[:16]}.mp4"
            seed += 1


def _lines(folder: Path, settings: FilmSettings, jobs: list[tuple[Film, tuple[Doc, ...], str]]) -> Iterator[str]:
    kinds = [str(kind) for kind in TEACHERS]
    for _, docs, name in jobs:
        for kind in kinds:
            for doc in [doc for doc in docs if doc["kind"] == kind][: settings.questions_per_kind]:
                placed = {**doc, "video": str((folder / VIDEOS / name).absolute())}
                yield needle_question(placed).to_json() + "\n"
