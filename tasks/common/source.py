"""`Source`: one benchmark as its owners distribute it, made into rows that lmms-eval can ask.

Annotations are read from `<data folder>/<benchmark>/` under their official file names, else fetched from where their owners keep them. Videos are
looked for in `<data folder>/<benchmark>/videos`, in whatever sub-folders they were unpacked, and where lmms-eval's own task unpacks them.
Three columns are added to a row: `apr_videos` (paths), `apr_seconds` (of the first video, or `None`), `apr_buckets` (names); and `apr_present`,
whether every video is there.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from apr_plugin.config import cache_dir, data_dir, hub_dir
from apr_plugin.errors import AprError, require
from apr_plugin.loop.text import printable_within
from apr_plugin.tasks.common.buckets import OTHER
from apr_plugin.tasks.common.media import Library, Manifest

Row = Mapping[str, Any]
"""One question with the columns of its benchmark."""

_T = TypeVar("_T")

_DOWNLOAD_TIMEOUT_S = 60.0

_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, IndexError)
"""What reading annotations of another form raises."""


@dataclass(frozen=True)
class File:
    """One file of annotations."""

    name: str
    """Its path in the data set's repository, and below the benchmark's folder: JSON, JSON Lines, Parquet or CSV, by its suffix."""

    hub: str = ""
    """The id of the hub's data set that holds it."""

    url: str = ""
    """Where it is downloaded from when it is on no hub; names a commit."""

    revision: str = "main"
    """Branch or commit on the hub."""

    def how_to_get(self, folder: Path) -> str:
        """The command that puts it where it is looked for."""
        if self.hub:
            pinned = "" if self.revision == "main" else f" --revision {self.revision}"
            return f"hf download {self.hub} {self.name} --repo-type dataset{pinned} --local-dir {folder}"
        return f"curl -L --create-dirs -o {folder / self.name} {self.url}" if self.url else f"see its README, and put it at {folder / self.name}"


def _concatenated(contents: Sequence[Any]) -> list[Row]:
    return [row for content in contents for row in content]


def _no_seconds(row: Row) -> float | None:
    return None


def _every_row(row: Row) -> bool:
    return True


@dataclass(frozen=True)
class Source:
    """Where one task's questions and videos come from, and how they are sorted into buckets."""

    task: str
    """The task's name in lmms-eval, `apr_…`."""

    folder: str
    """The benchmark's folder below the data folder; several tasks may share one."""

    title: str
    """The benchmark's own name."""

    kind: str
    """How its questions are answered: `mcq`, `grounding`, `number`, or several of them joined by a comma."""

    n: int
    """Questions in the official split."""

    licence: str
    """Of the data, as its owners state it."""

    homepage: str
    """Where to read about it."""

    files: tuple[File, ...]
    """Its annotations."""

    videos_of: Callable[[Row], Sequence[str]]
    """Row -> the official relative names of its video files, with or without a suffix."""

    labels_of: Callable[[Row, float | None], Iterable[str]]
    """(row, seconds of its first video or `None`) -> the buckets it counts in."""

    buckets: tuple[str, ...]
    """Every bucket, in order."""

    rows_of: Callable[[Sequence[Any]], Iterable[Row]] = _concatenated
    """Contents of the files, in their order, -> rows."""

    needs: tuple[str, ...] = ()
    """Columns that a row must have, of those that no function of this source reads."""

    keep: Callable[[Row], bool] = _every_row
    """Which rows belong to this task."""

    seconds_of: Callable[[Row], float | None] = _no_seconds
    """Row -> duration of its (first) video by the annotation, in seconds."""

    measure: bool = False
    """Whether durations that the annotation lacks are read from the files."""

    harness_folders: tuple[str, ...] = ()
    """Folders below the hub folder (`HF_HOME`) in which lmms-eval's own task has the videos."""

    prefix: str = "acc"
    """What the metric of a bucket begins with: `acc_<bucket>`, `iou_hull_<bucket>`."""

    prefixes: Mapping[str, str] = field(default_factory=dict)
    """Buckets whose metric begins otherwise, and with what."""

    metric: str = "score"
    """The metric to report."""

    @property
    def home(self) -> Path:
        """The benchmark's folder on this machine."""
        return data_dir() / self.folder

    @property
    def video_folders(self) -> tuple[Path, ...]:
        """Where its videos are looked for; the first is where they are expected."""
        return (self.home / "videos", self.home, *(hub_dir() / folder for folder in self.harness_folders))

    @property
    def bucket_metrics(self) -> tuple[str, ...]:
        """The metrics that `scored` can return beside those it is given, in order."""
        names = (*self.buckets, OTHER) if self.measure else self.buckets
        return ("score", "n", "score_present", "n_present", *(f"{head}_{name}" for name in names for head in (self._prefix(name), "n")))

    def manifest(self) -> Manifest:
        """What is known of its video files."""
        return Manifest(cache_dir() / "videos" / f"{self.folder}.json")

    def local_file(self, file: File) -> Path | None:
        """Where a file of annotations is on this machine, in its folder or in the hub's cache, or `None`."""
        for path in (self.home / file.name, self.home / Path(file.name).name):
            if path.is_file():
                return path
        if file.hub and importlib.util.find_spec("huggingface_hub"):
            from huggingface_hub import try_to_load_from_cache

            cached = try_to_load_from_cache(file.hub, file.name, repo_type="dataset", revision=file.revision)
            return Path(cached) if isinstance(cached, str) else None
        return None

    def rows(self) -> list[Row]:
        """The task's rows, in official order, with the columns of the benchmark.

        Raises:
            AprError: the annotations are nowhere to be had, or are not what they should be.
        """
        paths = [self.local_file(file) or self._fetch(file) for file in self.files]
        contents = [self._content(path) for path in paths]
        rows: list[Row] = []
        number = 0
        try:
            for row in self.rows_of(contents):
                if lacking := [name for name in self.needs if row[name] is None]:
                    raise ValueError(f"no {lacking[0]}")
                if self.keep(row):
                    rows.append(dict(row))
                number += 1
        except _UNREADABLE as error:
            raise AprError(
                f"{self.title}: {_named(paths)} is not as its README says: question {number} (counted from 0): {_reason(error)}; get it anew"
            ) from error
        if not rows:
            raise AprError(f"{self.title}: {_named(paths)} holds no question for {self.task}")
        return rows

    def documents(self, library: Library | None = None, measure: bool | None = None) -> list[dict[str, Any]]:
        """The rows with their videos' paths, durations and buckets.

        Args:
            library: Where videos are looked for; without one in `video_folders`.
            measure: Whether durations that the annotation lacks are read from the files; without one as this source says.

        Raises:
            AprError: as `rows`, or a row lies in a bucket that this source does not name.
        """
        rows, library = self.rows(), library or Library(self.video_folders)
        names = [self._column(number, lambda row: list(self.videos_of(row)), row) for number, row in enumerate(rows)]
        where = {name: library.find(name) for name in dict.fromkeys(name for some in names for name in some)}
        there = {path: path.is_file() for path in where.values()}
        paths = [[where[name] for name in some] for some in names]
        seconds = [self._column(number, self.seconds_of, row) for number, row in enumerate(rows)]
        if (self.measure if measure is None else measure) and None in seconds:
            unknown = [some[0] for some, known in zip(paths, seconds, strict=True) if known is None and some]
            facts = self.manifest().read(unknown, f"{self.title}: durations")
            measured = {path: facts[str(path)].seconds for path in unknown if str(path) in facts}
            seconds = [measured.get(some[0]) if known is None and some else known for some, known in zip(paths, seconds, strict=True)]
        documents = []
        for number, (row, some, duration) in enumerate(zip(rows, paths, seconds, strict=True)):
            labels = list(dict.fromkeys(self._column(number, self.labels_of, row, duration)))
            if strange := set(labels) - {*self.buckets, OTHER}:
                raise AprError(
                    f"{self.title}: question {number} (counted from 0) of {self._files} lies in bucket {strange.pop()!r}, which {self.task} "
                    f"does not know: another version of the annotations? It is {str(dict(row))[:200]}"
                )
            added = {"apr_videos": [str(path) for path in some], "apr_seconds": duration, "apr_buckets": labels}
            documents.append({**row, **added, "apr_present": all(there[path] for path in some)})
        return documents

    def docs(self) -> Any:
        """The documents as a `datasets.Dataset`, for `process_docs`. Says how many questions lack their video, which count as wrong.

        Raises:
            AprError: as `documents`; under lmms-eval's own command line the process ends with that message instead of five more attempts.
        """
        import datasets
        from loguru import logger

        from apr_plugin.harnesses.lmms_eval.ending import end_with

        try:
            documents = self.documents()
        except AprError as error:
            end_with(error)
        if len(documents) != self.n:
            logger.warning(
                f"{self.task}: the annotations hold {len(documents)} questions, the official split {self.n}: a score is not of the whole benchmark"
            )
        absent = sum(not document["apr_present"] for document in documents)
        if absent:
            logger.warning(
                f"{self.task}: {absent} of {len(documents)} questions lack their video in {self.video_folders[0]} and count as wrong; "
                f"`score_present` leaves them out. List the files with: apr tasks check {self.task}"
            )
        columns = dict.fromkeys(name for document in documents for name in document)  # `from_list` takes those of the first row alone
        return datasets.Dataset.from_list(printable_within([{name: document.get(name) for name in columns} for document in documents]))

    def scored(self, doc: Row, score: float, **more: Any) -> dict[str, Any]:
        """What `process_results` returns for one answer: its score overall and in each of its buckets, with counts.

        Args:
            doc: A document of `docs`.
            score: How right it is, in [0, 1]; a question without an answer is 0.
            more: Further metrics of this answer.
        """
        numbers: dict[str, Any] = {"score": float(score), "n": 1}
        if doc["apr_present"]:
            numbers |= {"score_present": float(score), "n_present": 1}
        for label in doc["apr_buckets"]:
            numbers |= {f"{self._prefix(label)}_{label}": float(score), f"n_{label}": 1}
        return numbers | more

    def _prefix(self, label: str) -> str:
        return self.prefixes.get(label, self.prefix)

    @property
    def _files(self) -> str:
        return _named([self.local_file(file) or self.home / file.name for file in self.files])

    def _content(self, path: Path) -> Any:
        """What a file of annotations holds."""
        try:
            return _content(path)
        except (*_UNREADABLE, OSError) as error:
            raise AprError(f"{self.title}: can't read {path}: {_reason(error)}; get it anew") from error

    def _column(self, number: int, of: Callable[..., _T], row: Row, *more: Any) -> _T:
        """What a function of this source reads from the row of that number."""
        try:
            return of(row, *more)
        except _UNREADABLE as error:
            raise AprError(
                f"{self.title}: question {number} (counted from 0) of {self._files} is not as its README says: {_reason(error)}. "
                f"It is {str(dict(row))[:200]}"
            ) from error

    def _fetch(self, file: File) -> Path:
        """Get a file of annotations from its owners."""
        reason = "it is not distributed on a hub"
        try:
            if file.hub:
                require("huggingface_hub", "lmms")
                from huggingface_hub import hf_hub_download

                return Path(hf_hub_download(file.hub, file.name, repo_type="dataset", revision=file.revision))
            if file.url:
                return _download(file.url, self.home / file.name)
        except Exception as error:  # noqa: BLE001 - the hub's client raises its own errors, and those of three layers below it
            reason = _reason(error)
        others = f", and so its other {len(self.files) - 1}" if len(self.files) > 1 else ""
        raise AprError(f"{self.title}: no annotations at {self.home / file.name} ({reason}). Get them with: {file.how_to_get(self.home)}{others}")


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, KeyError):
        return f"no column or value {error}"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _named(paths: Sequence[Path]) -> str:
    """The files, those beside the first one by their names alone."""
    return ", ".join([str(paths[0]), *(path.name if path.parent == paths[0].parent else str(path) for path in paths[1:])])


def _content(path: Path) -> Any:
    match path.suffix:
        case ".json":
            return json.loads(path.read_text("utf-8"))
        case ".jsonl":
            return [_line(number, line) for number, line in enumerate(path.read_text("utf-8").split("\n"), 1) if line.strip()]
        case ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                return list(csv.DictReader(file))
        case ".parquet":
            require("pyarrow", "lmms")
            from pyarrow import parquet

            return parquet.read_table(path).to_pylist()
    return path.read_text("utf-8").splitlines()


def _line(number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from error


def _download(url: str, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")  # several ranks may fetch it at once
    with urllib.request.urlopen(url, timeout=_DOWNLOAD_TIMEOUT_S) as answer, part.open("wb") as out:
        while block := answer.read(1 << 20):
            out.write(block)
    part.replace(path)
    return path
