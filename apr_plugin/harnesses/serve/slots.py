"""`Slots`: how many episodes run at once, and how many requests wait for one of those places."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator

from apr_plugin.harnesses.serve.refused import Refused

_LONGEST_WAIT_S = 60
"""OpenAI's client does not wait longer."""


class Slots:
    """Places for episodes, first come, first served. All methods are called in one event loop.

    Args:
        running: Episodes at once.
        waiting: Requests that wait.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self.most = running
        self.queue = waiting
        self.admitted = 0
        """Requests that are being read, wait or are answered."""
        self.running = 0
        """Episodes that run."""
        self.closed = False
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._episode_s = 1.0

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return len(self._waiting)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place for a request, from before its body is read until its response has ended.

        Raises:
            Refused: 429, there is none; 503, the server stops.
        """
        if self.closed:
            raise stopping()
        if self.admitted >= self.most + self.queue:
            wait = math.ceil(self._episode_s * self.admitted / self.most)
            raise Refused(
                429,
                f"{self.running} questions are being answered and {self.admitted - self.running} wait; try again later",
                "queue_full",
                retry_after_s=max(1, min(wait, _LONGEST_WAIT_S)),
            )
        self.admitted += 1
        try:
            yield
        finally:
            self.admitted -= 1

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for the right to run an episode, and hold it.

        Raises:
            Refused: 503, the server stops.
        """
        if self.closed:
            raise stopping()
        if self.running < self.most and not self._waiting:
            self.running += 1
        else:
            await self._wait()
        began = time.monotonic()
        try:
            yield
        finally:
            self._episode_s += 0.2 * (time.monotonic() - began - self._episode_s)
            self._give_back()

    async def _wait(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn  # who gives a place back passes it on
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._give_back()
            with contextlib.suppress(ValueError):
                self._waiting.remove(turn)
            raise

    def _give_back(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

    def close(self) -> None:
        """Refuse those who wait and those who come; running episodes go on."""
        self.closed = True
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(stopping())


def stopping() -> Refused:
    """The error of a server that stops."""
    return Refused(503, "the server is stopping", "stopping", retry_after_s=5)
