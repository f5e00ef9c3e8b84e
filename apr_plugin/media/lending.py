"""Open readers of one file, lent to one thread at a time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from apr_plugin.media.errors import MediaDecodeError

_WAIT_S = 0.05  # between two looks at the clock while waiting for a reader


class _Closable(Protocol):
    def close(self) -> None: ...


_R = TypeVar("_R", bound=_Closable)


class Lending(Generic[_R]):
    """At most `most` readers of one file, made when needed and lent to one thread at a time; lent again only with `reuse`."""

    def __init__(self, make: Callable[[], _R], most: int, reuse: bool = True) -> None:
        self._make, self._most, self._places, self._reuse = make, most, threading.Semaphore(most), reuse
        self._lock = threading.Lock()
        self._free: list[_R] = []
        self._closed = False
        self._process = os.getpid()

    @contextmanager
    def lend(self, deadline: float, cancelled: threading.Event | None) -> Iterator[_R]:
        """A reader for as long as the context lasts.

        One that an error left in the middle of something is not used again.

        Raises:
            TimeoutError: none was free before the deadline, or the read was cancelled.
        """
        if (
            self._process != os.getpid()
        ):  # forked off: the readers at hand share their place in the file with the parent's
            self._lock, self._free, self._process = threading.Lock(), [], os.getpid()
            self._places = threading.Semaphore(self._most)
        while not self._places.acquire(timeout=_WAIT_S):
            stop_if_due(deadline, cancelled)
        try:
            stop_if_due(deadline, cancelled)
            with self._lock:
                reader = self._free.pop() if self._free else None
            if reader is None:
                reader = self._make()
            try:
                yield reader
            except (
                MediaDecodeError
            ):  # it looked, and there was nothing; to open a file whose header lies can take seconds
                self._take_back(reader)
                raise
            except BaseException:
                reader.close()
                raise
            self._take_back(reader)
        finally:
            self._places.release()

    def _take_back(self, reader: _R) -> None:
        with self._lock:
            keep = self._reuse and not self._closed
            if keep:
                self._free.append(reader)
        if not keep:
            reader.close()

    def close(self) -> None:
        """Close what is not lent, and the rest when it is returned."""
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
        for reader in free:
            reader.close()


def stop_if_due(deadline: float, cancelled: threading.Event | None) -> None:
    """Look at the clock and at the bell.

    Raises:
        TimeoutError: the deadline passed, or the read was cancelled.
    """
    if time.monotonic() > deadline or (cancelled is not None and cancelled.is_set()):
        raise TimeoutError
