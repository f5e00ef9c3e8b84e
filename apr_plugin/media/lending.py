"""Open readers of one file, lent to one thread at a time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from apr_plugin.media.errors import MediaDecodeError

_WAIT_S = 0.05  # between two checks of the clock while waiting for a reader


class _Closable(Protocol):
    def close(self) -> None: ...


_R = TypeVar("_R", bound=_Closable)


class Lending(Generic[_R]):
    """At most `most` readers of one file, lent to one thread at a time.

    A reader is made when it is needed. It is lent again only with `reuse`.
    """

    def __init__(self, make: Callable[[], _R], most: int, reuse: bool = True) -> None:
        self._make = make
        self._most = most
        self._places = threading.Semaphore(most)
        self._reuse = reuse
        self._lock = threading.Lock()
        self._free: list[_R] = []
        self._closed = False
        self._process = os.getpid()

    @contextmanager
    def lend(self, deadline: float, cancelled: threading.Event | None) -> Iterator[_R]:
        """Lend a reader until the end of the context.

        A reader that was interrupted by an error is not used again.

        Raises:
            TimeoutError: none was free before the deadline, or the read was cancelled.
        """
        # After a fork, the readers share their position in the file with those of the parent.
        if self._process != os.getpid():
            self._lock = threading.Lock()
            self._free = []
            self._process = os.getpid()
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
            except MediaDecodeError:
                # The reader still works, and opening a file with a false header again can take seconds.
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
        """Close the readers that are not lent, and the others when they are returned."""
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
        for reader in free:
            reader.close()


def stop_if_due(deadline: float, cancelled: threading.Event | None) -> None:
    """Check the deadline and the cancel event.

    Raises:
        TimeoutError: the deadline passed, or the read was cancelled.
    """
    if time.monotonic() > deadline or (cancelled is not None and cancelled.is_set()):
        raise TimeoutError
