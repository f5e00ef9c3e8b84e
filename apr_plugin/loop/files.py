"""Files of lines to which several processes append.

Every line is complete, and on disk when the call returns; a half line means that its writer died.

A writer holds a lock on the file itself (`flock`), so a killed process leaves no lock. On Linux and macOS, local or
over NFS, the lock works between all processes; on a file system without locks, only one process at a time may write.
Windows has no `flock` and is not supported (WSL is). A process that is forked while a lock is held has a copy of it,
with which it could hold it for ever: a lock is released before its file is closed, and a child closes its copies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from apr_plugin.loop.trajectory import TrajectoryError

PATIENCE_S = 5.0
"""How long a reader waits for a writer, which holds the lock for one line; after that it reads the file as it is."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def append_line(path: Path, line: str) -> None:
    """Append one line and wait until it is on disk. After a failure the file is truncated to its previous length.

    Raises:
        TrajectoryError: the disk is full, or the file can't be written.
    """
    try:
        fd = _open_locked(path)
    except OSError as error:
        raise TrajectoryError(
            f"{path}: cannot write trajectories: {error.strerror or error}. Choose a folder you can write to."
        ) from error
    before = os.fstat(fd).st_size
    try:
        before = _cut_torn_tail(fd, before)
        data = line.encode() + b"\n"
        while data:
            data = data[os.write(fd, data) :]
        os.fsync(fd)
        if not before:
            sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.ftruncate(fd, before)
        raise TrajectoryError(
            f"{path}: cannot write trajectories: {error.strerror or error}. What was finished is safe; make "
            "room and run the same command again."
        ) from error
    finally:
        release(fd)


def cut_torn_tail(path: Path) -> None:
    """Remove an unfinished last line, which a kill during a write leaves; its question was never reported as done.

    A line that a running process is still writing is not removed: its writer holds the lock, and this waits for it.
    """
    fd = _open_locked(path, create=False)
    try:
        _cut_torn_tail(fd, os.fstat(fd).st_size)
    finally:
        release(fd)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep every process from writing to a file, even while another file replaces it; the file can still be read."""
    fd = _open_locked(path, fcntl.LOCK_SH, create=False)
    try:
        yield
    finally:
        release(fd)


_LOCKED: set[int] = set()
"""Descriptors of the files that this process has locked."""


def lock(fd: int, kind: int) -> None:
    """Lock a file (`flock`), until `release`.

    Raises:
        BlockingIOError: another process has it, and `kind` says not to wait.
        OSError: it can't be locked.
    """
    fcntl.flock(fd, kind)
    _LOCKED.add(fd)


def release(fd: int) -> None:
    """Release the lock of a file, and close it; closing alone does not, while a forked child has a copy."""
    _LOCKED.discard(fd)
    try:
        with _where_locks_exist():
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def _close_copies() -> None:
    """In a forked child: close what the parent has locked; the parent keeps its locks."""
    for fd in _LOCKED:
        with contextlib.suppress(OSError):
            os.close(fd)
    _LOCKED.clear()


os.register_at_fork(after_in_child=_close_copies)


def lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Each complete line of a file: its number from 1, its offset in bytes, and the line with its newline.

    Empty lines are left out.

    Raises:
        TrajectoryError: the file can't be read.
    """
    try:
        with path.open("rb") as file:
            end, start = _whole(file), 0
            for number, line in enumerate(file, 1):
                if start + len(line) > end or not line.endswith(b"\n"):
                    return
                if line.strip():
                    yield number, start, line
                start += len(line)
    except OSError as error:
        raise TrajectoryError(f"{path}: cannot read trajectories: {error.strerror or error}") from error


def sync_folder(folder: Path) -> None:
    """Put a new file's name on disk, as `fsync` does for its content."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _open_locked(path: Path, kind: int = fcntl.LOCK_EX, *, create: bool = True) -> int:
    """Open the file with this name once no other process has locked it.

    A merged file may replace it during the wait; then the new file is opened.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | (os.O_CREAT if create else 0), 0o644)
        try:
            with _where_locks_exist():
                lock(fd, kind)
            ours = os.fstat(fd)
            with contextlib.suppress(FileNotFoundError):
                named = os.stat(path)  # noqa: PTH116
                if (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino):
                    return fd
        except BaseException:
            release(fd)
            raise
        release(fd)


def _whole(file: BinaryIO) -> int:
    """Number of bytes up to the end of the last complete line.

    These bytes never change; what comes after may be half a line of another process.
    """
    fd, until = file.fileno(), time.monotonic() + PATIENCE_S
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return sys.maxsize  # a pipe, which has no size
    with _where_locks_exist():
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    break
                time.sleep(0.005)
    try:
        return _last_newline(fd, os.fstat(fd).st_size) + 1
    finally:
        with _where_locks_exist():
            fcntl.flock(fd, fcntl.LOCK_UN)


@contextlib.contextmanager
def _where_locks_exist() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _cut_torn_tail(fd: int, size: int) -> int:
    """Remove an unfinished last line; return the size that is left."""
    keep = _last_newline(fd, size) + 1
    if keep < size:
        os.ftruncate(fd, keep)
    return keep


def _last_newline(fd: int, size: int) -> int:
    """Where the last newline is; -1 if there is none."""
    position = size
    while position > 0:
        step = min(65_536, position)
        position -= step
        found = os.pread(fd, step, position).rfind(b"\n")
        if found >= 0:
            return position + found
    return -1
