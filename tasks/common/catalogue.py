"""`Source`: one benchmark as its owners distribute it, made into questions; and `sources`, the catalogue of all.

This module does not depend on a harness.

Annotations are read from `<data folder>/<benchmark>/` under their official file names, or downloaded from their owners.
Videos are searched in `<data folder>/<benchmark>/videos`, in any sub-folder, and where lmms-eval's own task unpacks
them. A source may define what a row asks (`question_of`) and what is right (`truth_of`); the second never reaches a
policy. These columns are added to a row: `apr_videos` (paths), `apr_seconds` (of the first video, or `None`),
`apr_buckets` (names), and `apr_present`, whether every video is there. A row that can't be read is one question that
counts as wrong (`rows.py`).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from apr_plugin.config import cache_dir, data_dir, hub_dir
from apr_plugin.errors import AprError, require
from apr_plugin.loop.question import Question
from apr_plugin.scoring.truth import Rules, Truth
from apr_plugin.tasks.common.buckets import OTHER
from apr_plugin.tasks.common.media import Library, Manifest
from apr_plugin.tasks.common.rows import (
    FAULTS,
    OURS,
    UNREADABLE,
    Row,
    Unreadable,
    content,
    each,
    number,
    reason,
    unreadable,
)

_DOWNLOAD_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class File:
    """A file of annotations."""

    name: str
    """Its path in the data set's repository, and below the benchmark's folder.

    The suffix says whether it is JSON, JSON Lines, Parquet or CSV.
    """

    hub: str = ""
    """The id of its data set on the hub."""

    url: str = ""
    """The address to download it from if it is on no hub; it names a commit."""

    revision: str = "main"
    """Branch or commit on the hub."""

    def how_to_get(self, folder: Path) -> str:
        """The command that puts the file where it is looked for."""
        if self.hub:
            pinned = "" if self.revision == "main" else f" --revision {self.revision}"
            return f"hf download {self.hub} {self.name} --repo-type dataset{pinned} --local-dir {folder}"
        return (
            f"curl -L --create-dirs -o {folder / self.name} {self.url}"
            if self.url
            else f"see its README, and put it at {folder / self.name}"
        )


def _concatenated(contents: Sequence[Any]) -> Iterator[Row | Unreadable]:
    yield from each(lambda row: [row], (row for content in contents for row in content))


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
    """How its questions are answered: `mcq`, `grounding`, `number`, or several of them separated by a comma."""

    n: int
    """The number of questions in the official split; 0 if there is none, because the set is made on this machine."""

    licence: str
    """The licence of the data, as its owners state it."""

    homepage: str
    """A page about the benchmark."""

    files: tuple[File, ...]
    """The files of its annotations."""

    videos_of: Callable[[Row], Sequence[str]]
    """Row -> the official relative names of its video files, with or without a suffix."""

    labels_of: Callable[[Row, float | None], Iterable[str]]
    """(row, seconds of its first video or `None`) -> the buckets in which it counts."""

    buckets: tuple[str, ...]
    """Every bucket, in order."""

    rows_of: Callable[[Sequence[Any]], Iterable[Row | Unreadable]] = _concatenated
    """Contents of the files, in their order, -> rows; `each` lets it continue after a row that can't be read."""

    needs: tuple[str, ...] = ()
    """Columns that a row must have, except those that a function of this source reads; a list has no empty element."""

    keep: Callable[[Row], bool] = _every_row
    """Which rows belong to this task."""

    seconds_of: Callable[[Row], float | None] = _no_seconds
    """Row -> duration of its (first) video by the annotation, in seconds."""

    measure: bool = False
    """Whether durations that the annotation lacks are read from the files."""

    harness_folders: tuple[str, ...] = ()
    """Folders below the hub folder (`HF_HOME`) in which lmms-eval's own task stores the videos."""

    prefix: str = "acc"
    """The prefix of a bucket's metric: `acc_<bucket>`, `iou_hull_<bucket>`."""

    prefixes: Mapping[str, str] = field(default_factory=dict)
    """Buckets whose metric has another prefix, and that prefix."""

    metric: str = "score"
    """The metric to report."""

    question_of: Callable[[Row], Question] | None = None
    """Document -> what is asked: text, kind, options and how to write the answer, without its videos and task.

    It reads no column that contains the right answer. If it is absent, the task is one of a harness, which has a reader
    for it.
    """

    write: Callable[[str], str] = str
    """Canonical answer -> the text that this task's scorer reads correctly (`apr_plugin.scoring.writing`)."""

    truth_of: Callable[[Row], Truth] | None = None
    """Document -> what is right, from the columns that are used for scoring."""

    rules: Rules = field(default_factory=Rules)
    """How `apr_plugin.scoring.truth.score` scores its answers."""

    @property
    def home(self) -> Path:
        """The benchmark's folder on this machine."""
        return data_dir() / self.folder

    @property
    def video_folders(self) -> tuple[Path, ...]:
        """The folders in which its videos are searched; missing ones are expected in the first."""
        return (self.home / "videos", self.home, *(hub_dir() / folder for folder in self.harness_folders))

    @property
    def bucket_metrics(self) -> tuple[str, ...]:
        """The metrics that `scored` can return in addition to those that it is given, in order."""
        names = (*self.buckets, OTHER) if self.measure else self.buckets
        return (
            "score",
            "n",
            "score_present",
            "n_present",
            *(f"{head}_{name}" for name in names for head in (self._prefix(name), "n")),
        )

    def manifest(self) -> Manifest:
        """What is known about its video files."""
        return Manifest(cache_dir() / "videos" / f"{self.folder}.json")

    def local_file(self, file: File) -> Path | None:
        """The path of a file of annotations on this machine, in its folder or in the hub's cache, or `None`."""
        for path in (self.home / file.name, self.home / Path(file.name).name):
            if path.is_file():
                return path
        if file.hub and importlib.util.find_spec("huggingface_hub"):
            from huggingface_hub import try_to_load_from_cache

            cached = try_to_load_from_cache(file.hub, file.name, repo_type="dataset", revision=file.revision)
            return Path(cached) if isinstance(cached, str) else None
        return None

    def rows(self) -> list[Row]:
        """The task's rows that can be read, in official order, with the columns of the benchmark.

        Raises:
            AprError: the annotations can't be found, or have another form than they should.
        """
        return [row for row in self._rows() if not isinstance(row, Unreadable)]

    def _rows(self) -> list[Row | Unreadable]:
        """The task's rows, including those that can't be read."""
        paths = [self.local_file(file) or self.fetch(file) for file in self.files]
        contents = [self._content(path) for path in paths]
        rows: list[Row | Unreadable] = []
        try:
            rows += each(self._kept, self.rows_of(contents))
        except FAULTS as error:
            rows.append(Unreadable.by(error))
        if not rows:
            raise AprError(f"{self.title}: {_named(paths)} has no question for {self.task}")
        self._refuse(rows)
        return rows

    def _kept(self, row: Row) -> list[Row]:
        """The row in a list, if it belongs to this task.

        Raises:
            ValueError, TypeError, KeyError: it is not a row, or lacks what it needs.
        """
        if not isinstance(row, Mapping):
            raise TypeError(f"{type(row).__name__} instead of a row")
        for name in self.needs:
            if (value := row[name]) is None or (isinstance(value, list) and None in value):
                raise ValueError(f"no {name}")
        return (
            [{name: value for name, value in row.items() if not str(name).startswith(OURS)}] if self.keep(row) else []
        )

    def _refuse(self, rows: Sequence[object]) -> None:
        """Raise an AprError if no row at all can be read, because then it is not the right file."""
        if isinstance(rows[0], Unreadable) and all(isinstance(row, Unreadable) for row in rows):
            raise AprError(
                f"{self.title}: {self.named_files} is not as its README says: question 0 (counted from 0): "
                f"{rows[0].reason}; download it again"
            )

    def documents(self, library: Library | None = None, measure: bool | None = None) -> list[dict[str, Any]]:
        """The rows with their videos' paths, durations and buckets.

        A row that can't be read, or that is in a bucket which this source does not name, has the column
        `apr_unreadable`.

        Args:
                library: Where videos are searched; default: in `video_folders`.
                measure: Whether durations that the annotation lacks are read from the files; default: what this source
                    says.

        Raises:
            AprError: as `rows`.
        """
        library = library or Library(self.video_folders)
        where: dict[str, Path] = {}
        there: dict[str, bool] = {}
        read: list[_Facts | Unreadable] = [
            row if isinstance(row, Unreadable) else self._facts(row) for row in self._rows()
        ]
        for at, one in enumerate(read):
            for name in one.videos if isinstance(one, _Facts) else ():
                try:
                    where[name] = where.get(name) or library.find(name)
                    there[str(where[name])] = where[name].is_file()
                except OSError as error:  # a name that is not a valid file name
                    read[at] = Unreadable.by(error)
        self._refuse(read)
        measured: dict[Path, float | None] = {}
        if self.measure if measure is None else measure:
            firsts = (
                one.videos[0] for one in read if not isinstance(one, Unreadable) and one.seconds is None and one.videos
            )
            unknown = [where[name] for name in firsts]
            facts = self.manifest().read(unknown, f"{self.title}: durations") if unknown else {}
            measured = {path: facts[str(path)].seconds for path in unknown if str(path) in facts}
        found = [
            one if isinstance(one, Unreadable) else self._document(one, [where[name] for name in one.videos], measured)
            for one in read
        ]
        self._refuse(found)
        documents: list[dict[str, Any]] = []
        for document in found:
            if isinstance(document, Unreadable):
                nothing: dict[str, Any] = {
                    "apr_videos": [],
                    "apr_seconds": None,
                    "apr_buckets": [],
                    "apr_present": True,
                }
                documents.append({**nothing, UNREADABLE: document.reason})
            else:
                documents.append({**document, "apr_present": all(there[path] for path in document["apr_videos"])})
        return documents

    def _facts(self, row: Row) -> _Facts | Unreadable:
        """The row with what this source's functions read from it."""
        try:
            names, seconds = list(self.videos_of(row)), self.seconds_of(row)
            if strange := [name for name in names if not isinstance(name, str)]:
                raise TypeError(f"{strange[0]!r} instead of a video's name")
            return _Facts(row, names, None if seconds is None else number(seconds))
        except FAULTS as error:
            return Unreadable.by(error)

    def _document(
        self, facts: _Facts, paths: Sequence[Path], measured: Mapping[Path, float | None]
    ) -> dict[str, Any] | Unreadable:
        """The row with the columns that are added to it."""
        seconds = measured.get(paths[0]) if facts.seconds is None and paths else facts.seconds
        try:
            labels = list(dict.fromkeys(self.labels_of(facts.row, seconds)))
            if strange := set(labels) - {*self.buckets, OTHER}:
                return Unreadable(
                    f"it is in bucket {str(strange.pop())!r}, which {self.task} does not know: another "
                    "version of the annotations?"
                )
            document = {
                **facts.row,
                "apr_videos": [str(path) for path in paths],
                "apr_seconds": seconds,
                "apr_buckets": labels,
            }
            if self.question_of is not None:
                self.question_of(document)
            self.truth(document)
        except FAULTS as error:
            return Unreadable.by(error)
        return document

    def truth(self, document: Row) -> Truth | None:
        """What is right; `None` if this source does not define it, or the row can't be read."""
        return None if self.truth_of is None or unreadable(document) is not None else self.truth_of(document)

    def scored(self, doc: Row, score: float, **more: Any) -> dict[str, Any]:
        """The result of `process_results` for one answer: its score overall and in each of its buckets, with counts.

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
    def named_files(self) -> str:
        """Its annotations, in the form that messages use."""
        return _named([self.local_file(file) or self.home / file.name for file in self.files])

    def _content(self, path: Path) -> Any:
        """The content of a file of annotations."""
        try:
            return content(path)
        except (*FAULTS, OSError) as error:
            raise AprError(f"{self.title}: can't read {path}: {reason(error)}; download it again") from error

    def fetch(self, file: File) -> Path:
        """Download a file of annotations from its owners.

        Raises:
            AprError: the download failed; the message says how to get it by hand.
        """
        why = "it is not distributed on a hub"
        try:
            if file.hub:
                require("huggingface_hub", "lmms")
                from huggingface_hub import hf_hub_download

                return Path(hf_hub_download(file.hub, file.name, repo_type="dataset", revision=file.revision))
            if file.url:
                return _download(file.url, self.home / file.name)
        except Exception as error:  # noqa: BLE001 - the hub's client raises many kinds of errors
            why = reason(error)
        others = f", and so its other {len(self.files) - 1}" if len(self.files) > 1 else ""
        raise AprError(
            f"{self.title}: no annotations at {self.home / file.name} ({why}). Get them with: "
            f"{file.how_to_get(self.home)}{others}"
        )


@dataclass(frozen=True)
class _Facts:
    """What a source reads from one row."""

    row: Row
    videos: list[str]
    seconds: float | None


def _named(paths: Sequence[Path]) -> str:
    """The files; those in the folder of the first one only by name."""
    return ", ".join(
        [str(paths[0]), *(path.name if path.parent == paths[0].parent else str(path) for path in paths[1:])]
    )


def _download(url: str, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")  # several ranks may download it at once
    with urllib.request.urlopen(url, timeout=_DOWNLOAD_TIMEOUT_S) as answer, part.open("wb") as out:
        while block := answer.read(1 << 20):
            out.write(block)
    part.replace(path)
    return path


@cache
def sources() -> Mapping[str, Source]:
    """Every task of this package that has a `Source`, by its name, sorted; the sources are in each `utils.py`."""
    import apr_plugin.tasks

    found: dict[str, Source] = {}
    for module in pkgutil.iter_modules(apr_plugin.tasks.__path__):
        if module.ispkg and module.name != "common":
            utils = importlib.import_module(f"apr_plugin.tasks.{module.name}.utils")
            found |= {value.task: value for value in vars(utils).values() if isinstance(value, Source)}
    return dict(sorted(found.items()))
