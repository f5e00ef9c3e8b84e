"""`PerceptCache`: pictures and sound of looks on disk, so that each epoch after the first need not decode them again.

    cache = PerceptCache("/scratch/percepts", most_bytes=400 * 2**30)
    loader = RowLoader(student, percepts=cache)
    ...
    print(cache.counts)

What is kept is what was shown: pictures as bytes and waveforms. The `pixel_values` that a model gets from them are
8 times larger. A picture of w x h pixels takes 3wh bytes, a second of sound 64,000.

The package diskcache does not fit: it reads back with pickle whatever its database says is a pickle, so that whoever
can write to the folder can run code (CVE-2025-69872, open in 5.6.3), and its database (SQLite) relies on locks that
network file systems often lack. Here an entry is a file of its own (`training.percept_file`), and there is no lock.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import secrets
import shutil
import stat
import time
from pathlib import Path
from typing import Any

from apr_plugin.errors import AprError
from apr_plugin.loop.percepts import Decoded, LookKey
from apr_plugin.training.percept_counts import PerceptCounts, Tally
from apr_plugin.training.percept_file import DamagedEntry, pieces, read_entry

_log = logging.getLogger(__name__)

_FOLDER = re.compile(r"[0-9a-f]{2}")
_ENTRY = re.compile(r"[0-9a-f]{40}\.look")
_UNFINISHED = re.compile(r"[0-9a-f]{40}\.[0-9a-f]{16}\.part")
_ABANDONED_S = 300.0
"""An unfinished file that was not written to for this long was left by a process that was killed. If it was not, its
look is not kept."""
_SHARE = 20
"""The folder is listed again at the earliest after so many times as long as listing it took."""
_SPARE = 16
"""When there is no room, a part of the cache is emptied: one of so many."""


class PerceptCacheError(AprError):
    """A cache can't be made as it was asked for."""


class PerceptCache:
    """Keeps the media of looks in a folder, for `RowLoader` and `loop.replay`.

    Many processes may use a folder at once, on one machine or on several. An entry is written under a name of its own
    and renamed when it is whole, so a process that is killed leaves nothing that could be mistaken for an entry. An
    entry that is damaged, truncated or something else is removed, counted and decoded again. If an entry can't be
    written (the disk is full, the folder is read-only), this process writes none from then on, and goes on.
    The first fault of each kind is logged as a warning, once in each process.

    The entries and unfinished files of all processes have at most `most_bytes`; when an entry does not fit, those that
    were not used for longest are removed. Each process lists the folder when it believes that there is no room, and
    from time to time, so several processes that write at once can exceed the limit for some seconds.
    **If an epoch needs more than `most_bytes`, most of what it needs was removed before its turn comes**: with rows
    shuffled in each epoch, and room for the share r of their looks, at most r + (1 - r) ln(1 - r) of them are found
    (two thirds at 90%, 15% at one half).

    Args:
        folder: Where entries are kept; it is made when it is needed. Other files in it are left alone.
        most_bytes: How many bytes all entries may have. A look that is larger is not kept.
        least_free_bytes: How many bytes of the disk stay free for others, such as checkpoints.

    Raises:
        PerceptCacheError: the folder is something else, or a limit is not a number of bytes.
    """

    def __init__(self, folder: str | Path, *, most_bytes: int, least_free_bytes: int = 2**33) -> None:
        for name, limit, least in (("most_bytes", most_bytes, 1), ("least_free_bytes", least_free_bytes, 0)):
            if type(limit) is not int or limit < least:
                raise PerceptCacheError(f"{name} must be a whole number of bytes, at least {least}, not {limit!r}")
        self.folder = _folder(folder)
        self.most_bytes = most_bytes
        self.least_free_bytes = least_free_bytes
        self._tally = Tally()
        self._warned: set[str] = set()
        self._writes = True
        self._bytes = 0  # in the folder when it was last listed, and what was written here since
        self._list_at = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_list_at": 0.0}  # another process, or another machine, has another clock

    @property
    def counts(self) -> PerceptCounts:
        """What it did so far, in this process and in the `DataLoader` workers to which it was given."""
        return self._tally.total()

    def get(self, key: LookKey) -> Decoded | None:
        """The media of a look, in arrays that the caller may change; `None` if it is not kept, or damaged."""
        path = self._path(key)
        try:
            decoded, size = read_entry(path, key)
        except DamagedEntry as error:
            self._remove_damaged(path)
            self._damaged(path, str(error))
        except OSError as error:
            # Another machine may have removed it (ESTALE) between opening and reading.
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                self._damaged(path, f"it can't be read: {error.strerror or error}")
        else:
            self._tally.add(hits=1, bytes_read=size)
            return decoded
        self._tally.add(misses=1)
        return None

    def put(self, key: LookKey, decoded: Decoded) -> None:
        """Keep the media of a look."""
        parts = pieces(key, decoded) if self._writes else []
        size = sum(map(len, parts))
        if not self._writes or size > self.most_bytes or not self._write(self._path(key), parts, size):
            self._tally.add(not_kept=1)
        else:
            self._tally.add(bytes_written=size)

    def _path(self, key: LookKey) -> Path:
        name = key.name
        return self.folder / name[:2] / f"{name}.look"

    def _write(self, path: Path, parts: list[memoryview], size: int) -> bool:
        """Write an entry; `False` if it is not kept."""
        unfinished = path.with_name(f"{path.stem}.{secrets.token_hex(8)}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(path.parent).free < size + self.least_free_bytes:
                raise OSError(errno.ENOSPC, f"{self.least_free_bytes} bytes of the disk are to stay free")
            with unfinished.open("xb") as file:
                for part in parts:
                    file.write(part)
            if not self._has_room(size, unfinished.stat().st_mtime_ns):
                return False
            os.replace(unfinished, path)  # noqa: PTH105
        except OSError as error:
            # Another process took the unfinished file for an abandoned one, or a folder lies where the entry belongs.
            if isinstance(error, FileNotFoundError | IsADirectoryError) and path.parent.is_dir():
                return False
            self._writes = False
            why = error.strerror or error
            self._warn("writing", f"{self.folder}: no more percepts are kept by this process, and it goes on: {why}")
            return False
        finally:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
        return True

    def _has_room(self, written: int, now_ns: int) -> bool:
        """Whether everything fits, the unfinished entry included; entries are removed until it does.

        Args:
            written: Bytes of the unfinished entry.
            now_ns: The time of its last change: now, by the clock that gives the files their times.
        """
        self._bytes += written
        began = time.monotonic()
        if self._bytes <= self.most_bytes and began < self._list_at:
            return True
        entries, self._bytes = self._listed(now_ns)
        if self._bytes > self.most_bytes:
            goal = self.most_bytes - self.most_bytes // _SPARE
            for _, name, size in sorted(entries):
                if self._bytes <= goal:
                    break
                self._bytes -= size
                with contextlib.suppress(FileNotFoundError):  # another process removed it
                    Path(name).unlink()
                    self._tally.add(evicted=1)
        now = time.monotonic()
        self._list_at = now + _SHARE * (now - began)
        return self._bytes <= self.most_bytes

    def _listed(self, now_ns: int) -> tuple[list[tuple[int, str, int]], int]:
        """Each entry (when it was last used, its path, its bytes), and the bytes of entries and unfinished files."""
        entries: list[tuple[int, str, int]] = []
        unfinished = 0
        abandoned_ns = now_ns - round(_ABANDONED_S * 1e9)
        with os.scandir(self.folder) as folders:
            places = [folder.path for folder in folders if _FOLDER.fullmatch(folder.name)]
        for place in places:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(place) as files:
                for file in files:
                    whole = _ENTRY.fullmatch(file.name)
                    if (not whole and not _UNFINISHED.fullmatch(file.name)) or file.is_dir(follow_symlinks=False):
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        facts = file.stat(follow_symlinks=False)
                        if whole:
                            entries.append((facts.st_mtime_ns, file.path, facts.st_size))
                        elif facts.st_mtime_ns < abandoned_ns:
                            Path(file.path).unlink()
                        else:
                            unfinished += facts.st_size
        return entries, unfinished + sum(size for _, _, size in entries)

    def _remove_damaged(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()  # if it is empty; a folder with content is not ours
            else:
                path.unlink()

    def _damaged(self, path: Path, why: str) -> None:
        self._tally.add(damaged=1)
        self._warn("damaged", f"{path}: a percept is decoded again: {why}; `counts.damaged` counts further ones")

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            _log.warning(message)


def _folder(given: str | Path) -> Path:
    folder = Path(given)
    try:
        folder = folder.expanduser().absolute()
        if stat.S_ISDIR(folder.stat().st_mode):
            return folder
    except FileNotFoundError:
        return folder
    except (OSError, ValueError, RuntimeError) as error:  # no such user, a null character
        why = getattr(error, "strerror", None) or error
        raise PerceptCacheError(f"{given}: no percepts can be kept there: {why}") from error
    raise PerceptCacheError(f"{given}: percepts are kept in a folder, and this is something else")
