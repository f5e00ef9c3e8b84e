"""The videos that the page offers: a needle set with its questions, or the videos of a folder."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from apr_plugin.config import cache_dir
from apr_plugin.errors import AprError
from apr_plugin.harnesses.app.form import BY_OPTIONS
from apr_plugin.harnesses.app.uploads import Film
from apr_plugin.media import MediaOpenError
from apr_plugin.media.confine import confine
from apr_plugin.tasks.needle.make import DOCS_NAME, NeedleSpec, load_docs, make_needle

SUFFIXES = frozenset((".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv"))
"""Files of an examples folder that are offered."""

MOST = 200
"""Examples that are offered."""

_KINDS = {"when": "time spans", "count": "a number"}
"""What the form calls the kinds of needle questions that have no options."""


@dataclass(frozen=True)
class Example:
    """A video, and what may be asked about it."""

    label: str
    """What the control shows; unique."""
    film: Film
    """The video."""
    text: str = ""
    """A question, if there is one."""
    options: tuple[str, ...] = ()
    """Its options."""
    kind: str = BY_OPTIONS
    """A name in `form.KINDS`."""


def made() -> Path:
    """The folder of the page's own needle videos, which are made when they are first needed.

    Two videos of a minute; on two processors this takes about two seconds.

    Raises:
        AprError: the folder can't be written.
    """
    folder = cache_dir() / "app-examples"
    try:
        return Path(make_needle(folder, NeedleSpec(buckets=("1m",), videos_per_bucket=2, questions_per_kind=1)))
    except (OSError, ValueError) as error:
        raise AprError(f"{folder}: the example videos can't be made there: {error}; give --examples DIR") from error


def found(folder: Path, root: Path | None = None, kinds: Collection[str] | None = None) -> list[Example]:
    """The examples in a folder: those of a needle set, else every video, by name.

    Args:
        folder: Where they are.
        root: The folder that must contain them, with links followed; default: `folder`.
        kinds: Kinds of needle questions that are offered; default: all.

    Raises:
        AprError: there is no such folder, or it has no video that may be offered.
    """
    root = (root or folder).expanduser()
    for one, option in ((folder, "--examples"), (root, "--root")):
        if not one.expanduser().is_dir():
            raise AprError(f"{option} {one}: no such folder")
    folder = folder.expanduser()
    offered = _needle(folder, root, kinds) if (folder / DOCS_NAME).is_file() else _plain(folder, root)
    if not offered:
        raise AprError(f"--examples {folder}: no video is in it that lies inside {root}")
    return offered[:MOST]


def _needle(folder: Path, root: Path, kinds: Collection[str] | None) -> list[Example]:
    try:
        docs = [doc for doc in load_docs(folder) if kinds is None or doc["kind"] in kinds]
        videos = sorted({doc["video"] for doc in docs})
        rows = [(videos.index(doc["video"]) + 1, doc) for doc in docs]
        return [
            Example(
                label=f"needle video {number} · {doc['question']}",
                film=_film(Path(doc["video"]), root, f"needle video {number}.mp4", f"{doc['duration_s']:.0f} s"),
                text=doc["question"],
                options=tuple(doc["options"]),
                kind=_KINDS.get(doc["kind"], BY_OPTIONS),
            )
            for number, doc in sorted(rows, key=lambda row: (row[0], row[1]["id"]))
            if _inside(Path(doc["video"]), root)
        ]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise AprError(f"--examples {folder}: it is not a needle set that can be read: {error}") from error


def _plain(folder: Path, root: Path) -> list[Example]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    return [
        Example(str(file.relative_to(folder)), _film(file, root, file.name, f"{file.stat().st_size / 2**20:.1f} MiB"))
        for file in files
        if _inside(file, root)
    ]


def _film(path: Path, root: Path, name: str, facts: str) -> Film:
    return Film(path.resolve(), root.resolve(), name, facts, False)


def _inside(path: Path, root: Path) -> bool:
    try:
        confine(path, root)
    except MediaOpenError:
        return False
    return path.is_file()


def labelled(examples: Sequence[Example], label: object) -> Example | None:
    """The example of that label; `None` for anything else that a request may hold."""
    return next((example for example in examples if example.label == label), None)
