"""The video files of a benchmark: where they are, their durations, and whether they can be read.

Durations are kept in a manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from apr_plugin.files import read_regular

EXTENSIONS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".MP4")
"""Suffixes that are tried in this order if the file with the official name is absent.

A video that was downloaded again often has another container.
"""

_BLOCK = 1 << 22


@dataclass
class Library:
    """Finds files by their official relative names in some folders, in whatever sub-folder they are."""

    folders: Sequence[Path]
    """The folders in the order of the search; a missing video is expected in the first."""

    _by_stem: dict[str, Path] | None = field(default=None, repr=False)

    def find(self, name: str) -> Path:
        """The path of a video, or the path where it is expected if it is missing.

        Args:
            name: Its path as the benchmark names it, with or without a suffix ("data/abc.mp4", "abc").
        """
        wanted = Path(name)
        # Whatever the annotations say, a video is below these folders.
        if wanted.is_absolute() or ".." in wanted.parts:
            name, wanted = wanted.name, Path(wanted.name)
        endings = [wanted.suffix, *EXTENSIONS] if wanted.suffix in EXTENSIONS else ["", *EXTENSIONS]
        stem = name.removesuffix(wanted.suffix) if wanted.suffix in EXTENSIONS else name
        for folder in self.folders:
            for ending in endings:
                for path in (folder / f"{stem}{ending}", folder / f"{Path(stem).name}{ending}"):
                    if path.is_file():
                        return path
        return self._index().get(Path(stem).name) or self.folders[0] / (
            f"{stem}{endings[0]}" if endings[0] else f"{stem}.mp4"
        )

    def _index(self) -> dict[str, Path]:
        """Every video below the folders by its name without suffix; a name of two different files is left out."""
        if self._by_stem is None:
            found: dict[str, Path] = {}
            twice: set[str] = set()
            for folder in reversed(self.folders):
                seen: dict[str, Path] = {}
                for parent, _, names in os.walk(folder, followlinks=True):
                    for name in names:
                        path = Path(parent, name)
                        if path.suffix in EXTENSIONS:
                            twice |= {path.stem} & seen.keys()
                            seen[path.stem] = path
                found |= seen
            self._by_stem = {stem: path for stem, path in found.items() if stem not in twice}
        return self._by_stem


@dataclass(frozen=True)
class FileFacts:
    """What is known about one video file."""

    size: int
    """Its size in bytes."""
    mtime_ns: int
    """When it was last written; if a file has changed, its facts are read again."""
    seconds: float | None = None
    """Its duration in seconds, or `None` if it can't be read."""
    error: str = ""
    """The reason why it can't be read."""
    sha256: str = ""
    """The SHA-256 of its bytes; empty until requested."""

    def of(self, stat: os.stat_result) -> bool:
        """Whether the file has not changed since these facts were read."""
        return (self.size, self.mtime_ns) == (stat.st_size, stat.st_mtime_ns)


class Manifest:
    """Facts of a benchmark's files, kept in a JSON file so that they are read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: dict[str, FileFacts] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            self.facts = {name: FileFacts(**facts) for name, facts in json.loads(read_regular(path))["files"].items()}

    def read(self, paths: Iterable[Path], what: str, hashes: bool = False) -> Mapping[str, FileFacts]:
        """The facts of the existing files, by path; new ones are read, with a progress bar, and kept.

        Args:
            paths: The files.
            what: The label of the bar.
            hashes: Whether to compute SHA-256 too, which reads every byte.
        """
        from rich.console import Console
        from rich.progress import track

        there = {str(path): path.stat() for path in dict.fromkeys(paths) if path.is_file()}
        stale = []
        for name, stat in there.items():
            known = self.facts.get(name)
            # Files that failed are tried again.
            if known is None or known.seconds is None or not known.of(stat) or (hashes and not known.sha256):
                stale.append(name)
        if stale:
            with ThreadPoolExecutor(max_workers=4) as pool:
                read = pool.map(lambda name: self._facts(name, hashes), stale)
                for number, facts in enumerate(
                    track(read, what, len(stale), console=Console(stderr=True), transient=True)
                ):
                    self.facts[stale[number]] = facts
                    if number % 50 == 49:
                        self.save()
            self.save()
        return {name: self.facts[name] for name in there}

    def _facts(self, name: str, hashes: bool) -> FileFacts:
        from apr_plugin.media import MediaError, Video

        stat = Path(name).stat()
        facts = self.facts.get(name)
        if facts is None or facts.seconds is None or not facts.of(stat):
            facts = FileFacts(stat.st_size, stat.st_mtime_ns)
            try:
                with Video.open(name, workers=1) as video:
                    facts = replace(facts, seconds=round(video.info.duration_s, 3))
            except MediaError as error:
                facts = replace(facts, error=str(error))
        return replace(facts, sha256=_sha256(name)) if hashes and not facts.sha256 else facts

    def save(self) -> None:
        """Write the file if that is possible; if not, the facts will be read again.

        If two processes write at once, the later one counts.
        """
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(
                json.dumps({"files": {name: asdict(facts) for name, facts in sorted(self.facts.items())}}, indent=1),
                "utf-8",
            )
            beside.replace(self.path)


def _sha256(name: str) -> str:
    digest = hashlib.sha256()
    with Path(name).open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
