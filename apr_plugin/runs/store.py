"""Trajectory files of a run: appended durably, read again to resume, never mixed between configurations.

Layout: `<folder>/<config hash>/card.json` and, in the same folder, one `<task>.jsonl` per task (`<task>.rank<r>.jsonl`
while several ranks run; the last one to end merges them). Lines that can't be read are moved to `<file>.damaged`. Locks
(`flock`, so that a killed process leaves no lock): `.lock.rank<r>` is held while that rank writes, `.lock.merge` while
a rank begins (shared) or merges (exclusive); lines are appended as in `files`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

from apr_plugin.loop.card import CARD_FILE, Card
from apr_plugin.loop.files import append_line, cut_torn_tail, held, lock, release, sync_folder
from apr_plugin.loop.question import Question
from apr_plugin.loop.trajectory import DamagedLine, Trajectory, TrajectoryError

Resume = Literal["auto", "never"]

_Key = tuple[str, str, str, int]
_Place = tuple[Path, int, int]
"""A line: its file, and its start and end there, in bytes."""
_LONGEST_NAME = 200
"""Most bytes of a task's name in a file name; file systems allow 255, with what we add."""

_log = logging.getLogger(__name__)


class TrajectoryStore:
    """The trajectory files of one run.

    Use it as a context manager; entering takes a lock, so that two runs can't write to one folder.

    Args:
        folder: Where runs are kept; this run's files are in `<folder>/<config hash>`.
        config_hash: The configuration's hash; only trajectories made with it are resumed.
        card: The run's card, written to the same folder.
        rank: The number of this process among those of the run.
        world_size: The number of processes that share the run.
        resume: `auto` continues a run of the same configuration; `never` starts over and keeps the old files under
            another name.
        remember: Whether finished questions are kept in memory, so that `finished` finds them. A server, whose
            questions all differ, does not need them; it appends to what is there, and reads nothing of it.

    Raises:
        TrajectoryError: the folder can't be written, another run holds it, or a newer release wrote a file in it.
    """

    def __init__(
        self,
        folder: str | Path,
        config_hash: str,
        card: Card | Mapping[str, Any],
        *,
        rank: int = 0,
        world_size: int = 1,
        resume: Resume = "auto",
        remember: bool = True,
    ) -> None:
        self.folder = Path(folder).expanduser() / config_hash
        self.config_hash = config_hash
        self.card = card
        self.rank = rank
        self.world_size = world_size
        self.resume = resume
        self.remember = remember
        self._lock_fd: int | None = None
        self._writing = threading.Lock()
        self._finished: dict[_Key, Trajectory] = {}

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._folder_lock(fcntl.LOCK_SH):
                self._begin()
        except OSError as error:
            raise TrajectoryError(
                f"{self.folder}: cannot write there: {error.strerror or error}. Choose a folder you can write "
                "to (model_args trajectories=DIR)."
            ) from error
        return self

    def _begin(self) -> None:
        self._take_lock()
        try:
            if self.rank == 0:
                self._write_card()
            if self.resume == "never":
                self._set_aside()
            elif self.remember:
                self._load()
            else:
                for path in self.folder.glob("*.jsonl"):
                    cut_torn_tail(path)
        except BaseException:
            self._release_lock()
            raise

    def _write_card(self) -> None:
        file = self.folder / CARD_FILE
        if not file.exists():
            self._say_what_is_not_continued()
        file.write_text(
            self.card.to_json()
            if isinstance(self.card, Card)
            else json.dumps(dict(self.card), indent=2, sort_keys=True) + "\n"
        )

    def _say_what_is_not_continued(self) -> None:
        """Say why the answers of a run of an earlier release are not reused.

        Such a run always has another hash, even with the same arguments.
        """
        old = [
            other.parent.name
            for other in sorted(self.folder.parent.glob("*/config.json"))
            if not (other.parent / CARD_FILE).exists()
        ]
        if old:
            _log.warning(
                "%s: an earlier release of apr-plugin wrote %s; its trajectories (version 1) can be read, but "
                "its prompts and pictures differ "
                "from this release's, so none of its answers is reused and all questions are asked",
                self.folder.parent,
                ", ".join(old[:5]),
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release_lock()

    def finished(self, question: Question) -> Trajectory | None:
        """The saved trajectory of exactly this question under this configuration, unless it failed."""
        saved = self._finished.get(question.key)
        return saved if saved is not None and saved.question_hash == question.content_hash() else None

    def save(self, trajectory: Trajectory) -> Trajectory:
        """Write one finished question to disk, and return when it is there; several threads may call this.

        Returns:
            What is on disk: the trajectory, or one that ends with the reason why this one can't be saved.
        """
        kept, line = trajectory.loadable()
        with self._writing:
            append_line(self._path(kept.question.task), line)
        if self.remember and not kept.stop_reason.failed:
            self._finished[kept.question.key] = kept.without_token_values()
        return kept

    def merge(self, tasks: Iterable[str]) -> None:
        """Merge the files of all ranks and the attempts of all runs, each question once.

        Every rank calls this when it has ended. Files of ranks that are still writing do not change; the rank that ends
        last merges all. So the harness does not have to wait for every rank. A file that is left because its rank was
        killed is still read by a resumed run.

        Raises:
            TrajectoryError: a file can't be read or written; its previous content is not changed.
        """
        try:
            with self._folder_lock(fcntl.LOCK_EX), contextlib.ExitStack() as claims:
                ended = {0: self._claim(0, claims)}
                if not ended[0]:
                    return  # rank 0 is still running, and calls this when it ends
                for task in sorted(set(tasks)):
                    parts = []
                    for part in self._parts(task):
                        rank = _rank_of(part) or 0
                        if rank not in ended:
                            ended[rank] = self._claim(rank, claims)
                        parts += [part] if ended[rank] else []
                    with contextlib.ExitStack() as kept_still:
                        for part in parts:
                            kept_still.enter_context(held(part))
                        self._merge_parts(parts, self.path(task))
        except OSError as error:
            raise TrajectoryError(
                f"{self.folder}: cannot merge the ranks' files: {error.strerror or error}; they are left as they are"
            ) from error

    def _merge_parts(self, parts: Sequence[Path], merged: Path) -> None:
        best: dict[_Key, _Place] = {}
        failed: set[_Key] = set()
        damaged: list[_Place] = []
        read = 0
        for part in parts:
            for start, end, trajectory in _readable(part, damaged):
                read += 1
                key = trajectory.question.key
                if key not in best or key in failed or not trajectory.stop_reason.failed:
                    best[key] = (part, start, end)
                    failed = failed | {key} if trajectory.stop_reason.failed else failed - {key}
        if not best or (parts == [merged] and read == len(best) and not damaged):
            return
        _set_aside(damaged, merged)
        _replace(merged, best.values())
        for part in parts:
            if part != merged:
                part.unlink()

    def path(self, task: str) -> Path:
        """The final file of a task's trajectories."""
        return self.folder / f"{_file_name(task)}.jsonl"

    def _path(self, task: str) -> Path:
        suffix = f".rank{self.rank}" if self.world_size > 1 else ""
        return self.folder / f"{_file_name(task)}{suffix}.jsonl"

    def _parts(self, task: str) -> list[Path]:
        name = re.escape(_file_name(task))
        return sorted(p for p in self.folder.glob("*.jsonl") if re.fullmatch(rf"{name}(\.rank\d+)?\.jsonl", p.name))

    @contextlib.contextmanager
    def _folder_lock(self, kind: int) -> Iterator[None]:
        """Hold the folder's lock, shared or exclusive.

        It is shared while a rank begins and reads the files, and exclusive while one merges, so that no file disappears
        during a read.
        """
        fd = os.open(self.folder / ".lock.merge", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            lock(fd, kind)
            yield
        finally:
            release(fd)

    def _claim(self, rank: int, claims: contextlib.ExitStack) -> bool:
        """Take the lock of a rank that has ended; false if it is still writing."""
        if rank == self.rank and self._lock_fd is not None:
            return True
        fd = os.open(self.folder / f".lock.rank{rank}", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        claims.callback(release, fd)
        return True

    def _take_lock(self) -> None:
        fd = os.open(self.folder / f".lock.rank{self.rank}", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(fd, 100).decode("utf-8", "replace").strip() or "another process"
            os.close(fd)
            raise TrajectoryError(
                f"{self.folder}: {holder} is writing trajectories there with the same configuration. Wait for "
                "it, or choose another folder."
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()}".encode(), 0)
        self._lock_fd = fd

    def _release_lock(self) -> None:
        if self._lock_fd is not None:
            release(self._lock_fd)
            self._lock_fd = None

    def _set_aside(self) -> None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for path in self.folder.glob("*.jsonl"):
            rank = _rank_of(path)
            # Rank 0 also takes the files of an earlier, larger run.
            owner = rank if rank is not None and rank < self.world_size else 0
            if owner != self.rank:
                continue
            old, again = path.with_name(f"{path.name}.{stamp}.old"), 1
            while old.exists():
                again += 1
                old = path.with_name(f"{path.name}.{stamp}-{again}.old")
            path.replace(old)

    def _load(self) -> None:
        for path in sorted(self.folder.glob("*.jsonl")):
            if self.world_size == 1 or path.name.endswith(f".rank{self.rank}.jsonl"):
                cut_torn_tail(path)
                with held(path):
                    self._load_file(path, ours=True)
            else:
                self._load_file(path, ours=False)

    def _load_file(self, path: Path, *, ours: bool) -> None:
        whole: list[_Place] = []
        damaged: list[_Place] = []
        for start, end, trajectory in _readable(path, damaged):
            whole.append((path, start, end))
            if trajectory.config_hash == self.config_hash and not trajectory.stop_reason.failed:
                self._finished[trajectory.question.key] = trajectory.without_token_values()
        if damaged and ours:
            _set_aside(damaged, path)
            _replace(path, whole)


def _rank_of(path: Path) -> int | None:
    found = re.search(r"\.rank(\d+)\.jsonl$", path.name)
    return int(found[1]) if found else None


def _file_name(task: str) -> str:
    """A file name that any file system accepts, and that does not look like a rank's file."""
    name = re.sub(r"\.(?=rank\d+$)", "_", re.sub(r"[^\w.-]", "_", task)) or "task"
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(task.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{name.encode()[: _LONGEST_NAME - 17].decode('utf-8', 'ignore')}-{digest}"


def _readable(path: Path, damaged: list[_Place] | None = None) -> Iterator[tuple[int, int, Trajectory]]:
    """The trajectories of a file with their positions.

    Damaged lines are reported and left out, so that their questions are asked again.
    """

    def name(start: int, end: int, error: DamagedLine) -> None:
        _log.warning("%s. Its question counts as not answered", error)
        if damaged is not None:
            damaged.append((path, start, end))

    return Trajectory.iterate_with_places(path, name)


def _set_aside(damaged: Sequence[_Place], path: Path) -> None:
    """Move lines that can't be read to `<file>.damaged`, so that they do not stop a run."""
    if damaged:
        aside = path.with_name(f"{path.name}.damaged")
        with aside.open("ab") as kept:
            _copy(damaged, kept)
        _log.warning("%s: lines that can't be read: %d, moved to %s", path, len(damaged), aside.name)


def _replace(target: Path, places: Iterable[_Place]) -> None:
    """Replace a file's content with these lines, its own or others'; the whole file is replaced, or nothing changes."""
    fresh = target.with_suffix(".merging")
    with fresh.open("wb") as out:
        _copy(places, out)
    fresh.replace(target)
    sync_folder(target.parent)


def _copy(places: Iterable[_Place], out: BinaryIO) -> None:
    with contextlib.ExitStack() as files:
        opened: dict[Path, BinaryIO] = {}
        for path, start, end in places:
            if path not in opened:
                opened[path] = files.enter_context(path.open("rb"))
            opened[path].seek(start)
            out.write(opened[path].read(end - start))
        out.flush()
        os.fsync(out.fileno())
