"""`Desk`: how many investigations run at once, and how many may wait, first come, first served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from apr_plugin.errors import AprError


class DeskFull(AprError):
    """As many investigations wait as may wait."""


class Desk:
    """Places for investigations.

    Args:
        places: How many run at once.
        waiting: How many may wait for a place.
    """

    def __init__(self, places: int, waiting: int) -> None:
        self.places = places
        self.waiting = waiting
        self.taken = 0
        """Places in use."""
        self._line: list[tuple[asyncio.Event, Callable[[int], None]]] = []

    @asynccontextmanager
    async def place(self, on_wait: Callable[[int], None]) -> AsyncIterator[None]:
        """Wait for a place, and hold it until the context ends; a wait that is cancelled leaves the line.

        Args:
            on_wait: Called with how many wait before this one, each time that changes.

        Raises:
            DeskFull: too many wait already.
        """
        if self.taken < self.places and not self._line:
            self.taken += 1
        else:
            await self._wait(on_wait)
        try:
            yield
        finally:
            self._give_on()

    async def _wait(self, on_wait: Callable[[int], None]) -> None:
        if len(self._line) >= self.waiting:
            raise DeskFull(
                f"{self.taken} investigations are running and {len(self._line)} wait, which is all that this page "
                "takes; try again in a minute"
            )
        called = asyncio.Event()
        entry = (called, on_wait)
        self._line.append(entry)
        on_wait(len(self._line) - 1)
        try:
            await called.wait()
        except asyncio.CancelledError:
            if called.is_set():  # it had been given a place in the meantime
                self._give_on()
            else:
                self._line.remove(entry)
                self._tell()
            raise

    def _give_on(self) -> None:
        """Give a place that has become free to the first that waits."""
        if self._line:
            called, _ = self._line.pop(0)
            called.set()
            self._tell()
        else:
            self.taken -= 1

    def _tell(self) -> None:
        for ahead, (_, on_wait) in enumerate(self._line):
            on_wait(ahead)
