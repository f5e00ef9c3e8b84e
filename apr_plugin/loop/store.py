"""Trajectory files of a run: appended durably, read back to resume, never mixed between configurations.

Layout: `<folder>/<config hash>/config.json` and, beside it, one `<task>.jsonl` per task (`<task>.rank<r>.jsonl` while several ranks run; the last
one to end merges them). Locks (`flock`, so that a killed process leaves none behind): `.lock.rank<r>` is held while that rank writes, `.lock.merge`
while a rank begins (shared) or merges (exclusive).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from apr_plugin.loop.question import Question
from apr_plugin.loop.trajectory import Trajectory, TrajectoryError

Resume = Literal["auto", "never"]


def append_line(path: Path, line: str) -> None:
    """Append one line and wait until it is on disk. On failure the file is cut back to what it held before.

    Raises:
        TrajectoryError: the disk is full, or the file can't be written.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise TrajectoryError(f"{path}: cannot write trajectories: {error.strerror or error}. Choose a folder you can write to.") from error
    before = os.fstat(fd).st_size
    try:
        if before and os.pread(fd, 1, before - 1) != b"\n":
            _cut_torn_tail(path)
            before = os.fstat(fd).st_size
        data = line.encode() + b"\n"
        while data:
            data = data[os.write(fd, data) :]
        os.fsync(fd)
        if not before:
            _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.ftruncate(fd, before)
        raise TrajectoryError(
            f"{path}: cannot write trajectories: {error.strerror or error}. What was finished is safe; make room and run the same command again."
        ) from error
    finally:
        os.close(fd)


def _sync_folder(folder: Path) -> None:
    """Put a new file's name on disk, as `fsync` does with its content."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class TrajectoryStore:
    """The trajectory files of one run.

    Use as a context manager; entering takes a lock, so that two runs can't write to one folder.

    Args:
        folder: Where runs are kept; this run's files stand in `<folder>/<config hash>`.
        config_hash: Names the configuration; only trajectories made with it are resumed.
        config: The configuration itself, written beside the files for people to read.
        rank: Which of several processes this is.
        world_size: How many processes share the run.
        resume: `auto` continues a run of the same configuration; `never` starts over and keeps the old files under another name.

    Raises:
        TrajectoryError: the folder can't be written, another run holds it, or a file in it is damaged.
    """

    def __init__(
        self, folder: str | Path, config_hash: str, config: Mapping[str, Any], *, rank: int = 0, world_size: int = 1, resume: Resume = "auto"
    ) -> None:
        self.folder = Path(folder).expanduser() / config_hash
        self.config_hash, self.config = config_hash, dict(config)
        self.rank, self.world_size, self.resume = rank, world_size, resume
        self._lock_fd: int | None = None
        self._writing = threading.Lock()
        self._finished: dict[tuple[str, str, str, int], Trajectory] = {}

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._folder_lock(fcntl.LOCK_SH):
                self._begin()
        except OSError as error:
            raise TrajectoryError(
                f"{self.folder}: cannot write there: {error.strerror or error}. Choose a folder you can write to (model_args trajectories=DIR)."
            ) from error
        return self

    def _begin(self) -> None:
        self._take_lock()
        try:
            if self.rank == 0:
                (self.folder / "config.json").write_text(json.dumps(self.config, indent=2, sort_keys=True) + "\n")
            if self.resume == "never":
                self._set_aside()
            else:
                self._load()
        except BaseException:
            self._release_lock()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._release_lock()

    def finished(self, question: Question) -> Trajectory | None:
        """The saved trajectory of this very question under this configuration, unless it failed."""
        saved = self._finished.get(question.key)
        return saved if saved is not None and saved.question_hash == question.content_hash() else None

    def save(self, trajectory: Trajectory) -> None:
        """Put one finished question on disk; returns when it is there. Several threads may call it."""
        line = trajectory.to_json()
        with self._writing:
            append_line(self._path(trajectory.question.task), line)
        if not trajectory.stop_reason.failed:
            self._finished[trajectory.question.key] = trajectory.without_token_values()

    def merge(self, tasks: Iterable[str]) -> None:
        """Bring the files of all ranks and the attempts of all runs together, each question once.

        Every rank calls it when it has ended. Files of ranks that are still writing stay as they are: whichever rank ends last merges all. So
        nothing depends on the harness waiting for every rank. A file that is left (its rank was killed) is read by a resumed run all the same.

        Raises:
            TrajectoryError: a file can't be read or written; what it held before is unharmed.
        """
        try:
            with self._folder_lock(fcntl.LOCK_EX), contextlib.ExitStack() as held:
                ended = {0: self._claim(0, held)}
                if not ended[0]:
                    return  # rank 0 is still running, and comes here when it ends
                for task in sorted(set(tasks)):
                    parts = []
                    for part in self._parts(task):
                        rank = _rank_of(part) or 0
                        if rank not in ended:
                            ended[rank] = self._claim(rank, held)
                        parts += [part] if ended[rank] else []
                    self._merge_parts(parts, self.path(task))
        except OSError as error:
            raise TrajectoryError(f"{self.folder}: cannot merge the ranks' files: {error.strerror or error}; they are left as they are") from error

    def _merge_parts(self, parts: Sequence[Path], merged: Path) -> None:
        best: dict[tuple[str, str, str, int], tuple[Path, int, int]] = {}
        failed: set[tuple[str, str, str, int]] = set()
        read = 0
        for part in parts:
            for start, end, trajectory in Trajectory.iterate_with_places(part):
                read += 1
                key = trajectory.question.key
                if key not in best or key in failed or not trajectory.stop_reason.failed:
                    best[key] = (part, start, end)
                    failed = failed | {key} if trajectory.stop_reason.failed else failed - {key}
        if not best or (parts == [merged] and read == len(best)):
            return
        fresh = merged.with_suffix(".merging")
        with contextlib.ExitStack() as files, fresh.open("wb") as out:
            opened = {part: files.enter_context(part.open("rb")) for part in parts}
            for part, start, end in best.values():
                opened[part].seek(start)
                out.write(opened[part].read(end - start))
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(merged)
        _sync_folder(self.folder)
        for part in parts:
            if part != merged:
                part.unlink()

    def path(self, task: str) -> Path:
        """Where the trajectories of a task end up."""
        return self.folder / f"{_file_name(task)}.jsonl"

    def _path(self, task: str) -> Path:
        suffix = f".rank{self.rank}" if self.world_size > 1 else ""
        return self.folder / f"{_file_name(task)}{suffix}.jsonl"

    def _parts(self, task: str) -> list[Path]:
        name = re.escape(_file_name(task))
        return sorted(p for p in self.folder.glob("*.jsonl") if re.fullmatch(rf"{name}(\.rank\d+)?\.jsonl", p.name))

    @contextlib.contextmanager
    def _folder_lock(self, kind: int) -> Iterator[None]:
        """Shared while a rank begins and reads what there is, exclusive while one merges, so that no file vanishes under a reader."""
        fd = os.open(self.folder / ".lock.merge", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, kind)
            yield
        finally:
            os.close(fd)

    def _claim(self, rank: int, held: contextlib.ExitStack) -> bool:
        """Take the lock of a rank that has ended; false where it is still writing."""
        if rank == self.rank and self._lock_fd is not None:
            return True
        fd = os.open(self.folder / f".lock.rank{rank}", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        held.callback(os.close, fd)
        return True

    def _take_lock(self) -> None:
        lock = self.folder / f".lock.rank{self.rank}"
        fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(fd, 100).decode("utf-8", "replace").strip() or "another process"
            os.close(fd)
            raise TrajectoryError(
                f"{self.folder}: {holder} is writing trajectories there with the same configuration. Wait for it, or choose another folder."
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()}".encode(), 0)
        self._lock_fd = fd

    def _release_lock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)  # closing gives the lock back
            self._lock_fd = None

    def _set_aside(self) -> None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for path in self.folder.glob("*.jsonl"):
            rank = _rank_of(path)
            owner = rank if rank is not None and rank < self.world_size else 0  # rank 0 also takes what an earlier, larger run left
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
                _cut_torn_tail(path)
            for trajectory in Trajectory.iterate(path):
                if trajectory.config_hash == self.config_hash and not trajectory.stop_reason.failed:
                    self._finished[trajectory.question.key] = trajectory.without_token_values()


def _cut_torn_tail(path: Path) -> None:
    """Remove an unfinished last line, as a kill in mid-write leaves one; that question was never reported done."""
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        position = size
        while position > 0:
            step = min(65_536, position)
            file.seek(position - step)
            chunk = file.read(step)
            newline = chunk.rfind(b"\n")
            if newline >= 0:
                keep = position - step + newline + 1
                break
            position -= step
        else:
            keep = 0
        if keep < size:
            file.truncate(keep)


def _rank_of(path: Path) -> int | None:
    found = re.search(r"\.rank(\d+)\.jsonl$", path.name)
    return int(found[1]) if found else None


def _file_name(task: str) -> str:
    return re.sub(r"[^\w.-]", "_", task) or "task"
