"""Refuses training data that is known to come from the videos of a benchmark.

There are two checks. The name of a question's source is compared with a list of data sets (`contamination.json`; each
entry has its source). The names of a question's videos are compared with those of every task of this package whose
annotations are on this machine; the report names the tasks that could not be checked.

A renamed or cut video passes both checks: they find known contamination, and prove nothing about the rest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath

from apr_plugin.errors import AprError
from apr_plugin.terminal import one_line
from apr_plugin.training.synthesis.questions import DocKey, TrainingQuestion

SHORTEST_NAME = 6
"""Fewest characters of a video's name that identify it; `12.mp4` is a name in many data sets."""

YOUTUBE_ID = 11
"""Length of a YouTube id, which is also found inside a longer name (`Cm73ma6Ibcs_0_120.mp4`)."""

_SUFFIX = re.compile(r"\.(?:mp4|mkv|webm|avi|mov|m4v|flv|ts|wmv|mpe?g|3gp|wav|mp3|m4a|flac)$", re.IGNORECASE)


@dataclass(frozen=True)
class Listed:
    """A data set that is refused."""

    names: tuple[str, ...]
    benchmark: str
    """The benchmark whose videos it has."""
    why: str
    source: str
    """Where that can be read."""


@dataclass(frozen=True)
class Refusal:
    """Why a question is refused."""

    by: str
    """`data_set` or `video`."""
    benchmark: str
    detail: str


@dataclass
class Checked:
    """The result of the check."""

    refused: dict[DocKey, Refusal] = field(default_factory=dict)
    """The questions that must not be trained on."""
    compared: tuple[str, ...] = ()
    """Tasks whose videos the questions' videos were compared with."""
    not_compared: tuple[str, ...] = ()
    """Tasks whose annotations are not on this machine or can't be read: only the list of names protects them."""
    too_short: tuple[str, ...] = ()
    """Names of training videos that are too short to identify a video; they were not compared."""


@cache
def listed() -> tuple[Listed, ...]:
    """The list of data sets."""
    text = resources.files("apr_plugin.training.synthesis").joinpath("contamination.json").read_text("utf-8")
    return tuple(
        Listed(tuple(entry["names"]), entry["benchmark"], entry["why"], entry["source"])
        for entry in json.loads(text)["entries"]
    )


@dataclass(frozen=True)
class Known:
    """The names of the videos of some benchmarks."""

    names: Mapping[str, str]
    """Name of a video without its suffix -> the benchmark's title."""
    compared: tuple[str, ...] = ()
    not_compared: tuple[str, ...] = ()


def known_videos() -> Known:
    """The videos of this package's tasks, as far as their annotations are on this machine; nothing is downloaded."""
    from apr_plugin.tasks.common.catalogue import sources

    names: dict[str, str] = {}
    compared, missing = [], []
    for task, source in sources().items():
        if any(source.local_file(file) is None for file in source.files):
            missing.append(task)
            continue
        try:
            for row in source.rows():
                for video in source.videos_of(row):
                    names.setdefault(_stem(str(video)), source.title)
        except (AprError, ValueError, KeyError, TypeError):  # annotations that are damaged
            missing.append(task)
        else:
            compared.append(task)
    return Known(names, tuple(compared), tuple(missing))


def check(questions: Sequence[TrainingQuestion], known: Known | None = None) -> Checked:
    """Find the questions that must not be trained on.

    Args:
        questions: The training questions.
        known: The videos of benchmarks; default: `known_videos()`.
    """
    known = known_videos() if known is None else known
    found = Checked(compared=known.compared, not_compared=known.not_compared)
    ids = {name: title for name, title in known.names.items() if len(name) == YOUTUBE_ID}
    short: dict[str, None] = {}
    for one in questions:
        refusal = _by_source(one.source)
        for ref in () if refusal else one.question.videos:
            name = _stem(ref.path)
            if _too_short(name):
                short[Path(ref.path).name] = None
                continue
            if (hit := _by_name(name, known.names, ids)) is not None:
                refusal = Refusal(
                    "video", hit[1], f"{one_line(Path(ref.path).name, 100)} is a video of {hit[1]} ({hit[0]})"
                )
                break
        if refusal is not None:
            found.refused[one.key] = refusal
    found.too_short = tuple(short)
    return found


def _by_source(source: str) -> Refusal | None:
    plain = _plain(source)
    for entry in listed():
        for name in entry.names:
            if plain and plain in (_plain(name), _plain(name.rpartition("/")[2])):
                return Refusal("data_set", entry.benchmark, f"{name}: {entry.why} ({entry.source})")
    return None


def _plain(source: str) -> str:
    """A data set's name without its address, case and punctuation."""
    path = re.sub(r"^(?:https?://)?(?:huggingface\.co/datasets/|github\.com/|hf://datasets/)", "", source.strip())
    return re.sub(r"[\s_.-]+", "", path.casefold()).strip("/")


def _by_name(name: str, names: Mapping[str, str], ids: Mapping[str, str]) -> tuple[str, str] | None:
    if name in names:
        return name, names[name]
    return next(((part, ids[part]) for part in _windows(name) if part in ids), None)


def _windows(name: str) -> Iterator[str]:
    """Every stretch of a name that may be a YouTube id: it is not preceded or followed by another letter or digit."""
    for start in range(len(name) - YOUTUBE_ID + 1):
        end = start + YOUTUBE_ID
        if not (name[start - 1 : start].isalnum() or name[end : end + 1].isalnum()):
            yield name[start:end]


def _stem(path: str) -> str:
    """The name of a video's file without folders and suffix; an id may contain a dot, so only known suffixes go."""
    name = PurePosixPath(path.replace("\\", "/")).name
    return _SUFFIX.sub("", name)


def _too_short(name: str) -> bool:
    return len(name) < SHORTEST_NAME or name.isdecimal()
