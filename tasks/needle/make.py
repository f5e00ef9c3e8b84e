"""Makes a needle set: the folder of videos and questions that a `NeedleSpec` describes.

    from apr_plugin.tasks.needle.make import NeedleSpec, make_needle
    make_needle(Path("needle"), NeedleSpec(seed=0))

writes `needle/videos/*.mp4`, `needle/needle.jsonl` (one `Doc` per line) and, last, `needle/spec.json`. A second call
finds the work done and writes nothing; a call after an interruption makes only what is missing. A video's name is a
hash of its world and of how it is drawn. So a file under its name is exactly that video, and is complete, and its name
tells nothing.
"""

import fcntl
import hashlib
import json
import logging
import multiprocessing
import os
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .questions import Doc, LetterDeck, ask, max_questions_per_kind
from .render import PART_SUFFIX, is_complete, write_video
from .world import Difficulty, World, tree_shape

GENERATOR_VERSION = 2
"""The version, which is raised whenever the same spec would give other bytes or other questions."""

BUCKETS: dict[str, float] = {"1m": 60.0, "10m": 600.0, "30m": 1800.0, "60m": 3600.0, "120m": 7200.0}
"""Duration buckets and the length of their videos in seconds."""

DOCS_NAME, SPEC_NAME, VIDEOS_NAME = "needle.jsonl", "spec.json", "videos"
_LOCK_NAME = ".lock"

_log = logging.getLogger(__name__)


class OtherSpecError(ValueError):
    """The folder contains a needle set of another spec."""


class NeedleSpec(BaseModel):
    """The parameters of a needle set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    """The seed of every world and question."""

    buckets: tuple[str, ...] = tuple(BUCKETS)
    """Duration buckets, from BUCKETS."""

    videos_per_bucket: Annotated[int, Field(ge=1, le=10_000)] = 2
    """Videos in each bucket."""

    questions_per_kind: Annotated[int, Field(ge=1)] = 2
    """Questions of each kind about each video; a 1-minute video has no more than 2."""

    width: Annotated[int, Field(ge=112, le=3840, multiple_of=2)] = 224
    """Width of the frames in pixels."""

    height: Annotated[int, Field(ge=112, le=3840, multiple_of=2)] = 224
    """Height of the frames in pixels."""

    fps: Annotated[float, Field(ge=1, le=60)] = 10.0
    """Frames per second; below 10, an event's edges are seen less precisely than the 0.1 s of its spans."""

    gop_s: Annotated[float, Field(ge=2, le=10)] = 5.0
    """Seconds between keyframes."""

    decoys: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Chance that a scene gets a distractor event."""

    lookalike: bool = False
    """Whether chapter colours are shades of a few hues."""

    event_length: Annotated[float, Field(ge=1, le=3)] = 1.0
    """Factor on the length of glyph events; longer is easier."""

    @field_validator("buckets")
    @classmethod
    def _known_buckets(cls, buckets: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in buckets if name not in BUCKETS]
        if unknown or not buckets or len(set(buckets)) < len(buckets):
            raise ValueError(
                f"buckets must be different names out of {', '.join(BUCKETS)}, not {', '.join(buckets) or 'none'}"
            )
        return tuple(sorted(buckets, key=BUCKETS.__getitem__))

    @model_validator(mode="after")
    def _enough_questions(self) -> "NeedleSpec":
        chapters, scenes = tree_shape(BUCKETS[self.buckets[0]])
        limit = max_questions_per_kind(chapters * scenes)
        if self.questions_per_kind > limit:
            raise ValueError(
                f"questions_per_kind is {self.questions_per_kind}, but a video of bucket {self.buckets[0]} "
                f"has no more than {limit}"
            )
        return self

    @property
    def difficulty(self) -> Difficulty:
        """The parameters of the worlds."""
        return Difficulty(self.decoys, self.lookalike, self.event_length)

    def fingerprint(self) -> str:
        """SHA-256 of this spec and GENERATOR_VERSION as hex, cut to 16 digits."""
        return _digest({"generator_version": GENERATOR_VERSION, **self.model_dump(mode="json")})


@dataclass(frozen=True)
class _Job:
    world: World
    bucket: str
    name: str


def make_needle(out_dir: Path | str, spec: NeedleSpec, workers: int | None = None, progress: bool = True) -> Path:
    """Make a needle set, or its missing parts.

    Args:
        out_dir: the set's folder; created if it is missing. A second maker of the same folder waits for the first.
        spec: what to make.
        workers: processes that encode videos; None means one per available core.
        progress: whether to show a progress bar on stderr.

    Returns:
        The folder, absolute.

    Raises:
        OtherSpecError: the folder contains a set of another spec.
        OSError: the folder can't be written to; the message names the path.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    out = Path(out_dir).expanduser().resolve()
    if is_made(out, spec):  # before anything is changed: a finished set may be on a read-only disk
        return out
    videos = out / VIDEOS_NAME
    videos.mkdir(parents=True, exist_ok=True)
    with _locked(out / _LOCK_NAME):
        jobs = _plan(spec)
        _refuse_other_spec(out, spec, jobs)
        # Left by a killed process: no other process has the lock.
        for part in (
            *out.glob(f".*{PART_SUFFIX}"),
            *videos.glob(f".*{PART_SUFFIX}"),
        ):
            part.unlink()
        _render([job for job in jobs if not is_complete(videos / job.name)], videos, spec, workers, progress)
        _write_text(out / DOCS_NAME, _docs_text(spec, jobs))
        _write_text(out / SPEC_NAME, json.dumps(_spec_record(spec), indent=2) + "\n")
    return out


def is_made(out_dir: Path | str, spec: NeedleSpec) -> bool:
    """Whether a folder contains the whole set of this spec; videos are checked without opening them."""
    out = Path(out_dir).expanduser()
    record = _read_spec(out)
    if record is None or record.get("fingerprint") != spec.fingerprint():
        return False
    jobs = _plan(spec)
    return _says(out / DOCS_NAME, _docs_text(spec, jobs)) and all(
        is_complete(out / VIDEOS_NAME / job.name) for job in jobs
    )


def finished(out_dir: Path | str) -> Path:
    """The folder of a needle set.

    Raises:
        FileNotFoundError: it contains no finished set.
    """
    out = Path(out_dir).expanduser().resolve()
    if not (out / SPEC_NAME).is_file() or not (out / DOCS_NAME).is_file():
        raise FileNotFoundError(f"no finished needle set in {out}: make it with `apr needle make --out {out}`")
    return out


def load_docs(out_dir: Path | str) -> list[Doc]:
    """The documents of a needle set, with absolute video paths.

    Raises:
        FileNotFoundError: the folder contains no finished set.
    """
    out = finished(out_dir)
    docs: list[Doc] = [json.loads(line) for line in (out / DOCS_NAME).read_text(encoding="utf-8").splitlines()]
    for doc in docs:
        doc["video"] = str(out / doc["video"])
    return docs


def planned_docs(spec: NeedleSpec) -> list[Doc]:
    """The documents of a set of this spec, with video paths as in its file; nothing is made."""
    return [json.loads(line) for line in _docs_text(spec, _plan(spec)).splitlines()]


def video_seed(seed: int, bucket: str, number: int) -> int:
    """The seed of a world of a set: 64 bits, from the seed of the set, the duration bucket and the video's number."""
    return int(_digest(["needle video", seed, bucket, number]), 16)


def _plan(spec: NeedleSpec) -> list[_Job]:
    """Every video of a spec."""
    jobs = []
    for bucket in spec.buckets:
        for i in range(spec.videos_per_bucket):
            seed = video_seed(spec.seed, bucket, i)
            world = World.from_seed(seed, BUCKETS[bucket], spec.difficulty)
            drawn = {
                "version": GENERATOR_VERSION,
                "size": [spec.width, spec.height],
                "fps": spec.fps,
                "gop_s": spec.gop_s,
            }
            jobs.append(_Job(world, bucket, f"{_digest([world.digest(), drawn])}.mp4"))
    return jobs


def _docs_text(spec: NeedleSpec, jobs: list[_Job]) -> str:
    """Every question of a spec as JSON Lines, in an order that tells nothing about the answers."""
    letters = LetterDeck(spec.seed)
    docs = [
        doc
        for job in jobs
        for doc in ask(job.world, f"{VIDEOS_NAME}/{job.name}", job.bucket, spec.questions_per_kind, letters)
    ]
    random.Random(f"needle order:{spec.seed}").shuffle(docs)
    return "".join(json.dumps(doc, ensure_ascii=False) + "\n" for doc in docs)


def _render(jobs: list[_Job], videos: Path, spec: NeedleSpec, workers: int | None, progress: bool) -> None:
    if not jobs:
        return
    # The longest first, so that no core waits for one at the end.
    jobs = sorted(jobs, key=lambda job: -job.world.duration_s)
    workers = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    columns = (TextColumn("needle videos"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    arguments = ((spec.width, spec.height), spec.fps, spec.gop_s)
    with Progress(*columns, disable=not progress, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(jobs))
        if workers == 1:
            for job in jobs:
                write_video(job.world, videos / job.name, *arguments)
                bar.advance(task)
            return
        # Not forked: the parent may have loaded torch, whose threads a fork would break.
        context = multiprocessing.get_context("spawn")
        stop = context.Event()
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_adopt, initargs=(stop,)) as pool:
            futures = [pool.submit(_work, job.world, videos / job.name, *arguments) for job in jobs]
            try:
                for future in as_completed(futures):
                    future.result()
                    bar.advance(task)
            except BaseException:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise


_stop: Event | None = None
"""An event in a worker that is set when the rest of the work is not needed any more.

This includes the jobs that the pool has already given to the worker.
"""


def _adopt(stop: Event) -> None:
    global _stop
    _stop = stop


def _work(world: World, path: Path, size: tuple[int, int], fps: float, gop_s: float) -> None:
    if _stop is None or _stop.is_set():
        return
    try:
        write_video(world, path, size, fps, gop_s)
    except KeyboardInterrupt:
        _stop.set()
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a folder's lock; wait if another process holds it; the system releases it when the holder dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.warning("another process is making %s; waiting for it", path.parent)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _refuse_other_spec(out: Path, spec: NeedleSpec, jobs: list[_Job]) -> None:
    record = _read_spec(out)
    if record is None:
        strangers = {path.name for path in (out / VIDEOS_NAME).glob("*.mp4")} - {job.name for job in jobs}
        if strangers:
            raise OtherSpecError(
                f"{out} contains {len(strangers)} videos that don't belong to needle set {spec.fingerprint()}, "
                f"such as {min(strangers)} "
                "(an unfinished set of another spec?). Name another folder, or delete this one first."
            )
        return
    if record.get("fingerprint") == spec.fingerprint():
        return
    here = _spec_record(spec)
    there = {**record, **record.get("spec", {})}
    wanted = {**here, **here["spec"]}
    names = sorted((set(there) | set(wanted)) - {"spec", "fingerprint"})
    changes = ", ".join(
        f"{name}: {there.get(name)!r} there, {wanted.get(name)!r} wanted"
        for name in names
        if there.get(name) != wanted.get(name)
    )
    raise OtherSpecError(
        f"{out} contains needle set {record.get('fingerprint')}, not {spec.fingerprint()} ({changes}). Name "
        "another folder, or delete this one first."
    )


def _read_spec(out: Path) -> dict[str, Any] | None:
    path = out / SPEC_NAME
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise OtherSpecError(
            f"{path} is not a needle spec ({error}). Name another folder, or delete this one first."
        ) from error
    if not isinstance(record, dict):
        raise OtherSpecError(f"{path} is not a needle spec. Name another folder, or delete this one first.")
    return record


def _spec_record(spec: NeedleSpec) -> dict[str, Any]:
    return {
        "fingerprint": spec.fingerprint(),
        "generator_version": GENERATOR_VERSION,
        "spec": spec.model_dump(mode="json"),
    }


def _write_text(path: Path, text: str) -> None:
    """Write a file in one step; a file with the same content is not changed."""
    if _says(path, text):
        return
    part = path.with_name(f".{path.name}.{os.getpid()}{PART_SUFFIX}")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _says(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
