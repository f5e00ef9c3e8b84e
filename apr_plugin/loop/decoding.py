"""`Decoding`: how many looks are read at once, and how much memory they use; shared by all episodes of a run."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")

HELD_BYTES = 4 * 2**30
"""Memory for decoded pictures and sound, over all episodes."""


def cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Decoding:
    """Threads that read media, and a limit on the bytes that looks hold until the model has seen them.

    An episode that would exceed the limit waits until other looks have been seen. A look that is larger than the limit
    waits until it is the only one. So memory is bounded at any concurrency. Episodes never block each other, because
    each holds at most one look and releases it before the next. Reading uses separate threads, so that a policy that
    works in asyncio's default threads never waits for a decoder.

    Args:
        threads: How many looks are read at once; by default one per processor. (A look itself uses several cores if it
            can.)
        held_bytes: Most bytes that are held.
    """

    def __init__(self, threads: int | None = None, held_bytes: int = HELD_BYTES) -> None:
        self.threads = threads or max(2, cpus())
        self.held_bytes = held_bytes
        self.bytes = 0
        """Bytes held now."""
        self._executor = ThreadPoolExecutor(self.threads, thread_name_prefix="apr-decode")
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    async def read(self, work: Callable[[_In], _Out], argument: _In) -> tuple[_Out, float]:
        """Run `work(argument)` in one of the threads; return its result and when it began (`time.perf_counter`)."""

        def timed() -> tuple[_Out, float]:
            began = time.perf_counter()
            return work(argument), began

        return await asyncio.get_running_loop().run_in_executor(self._executor, timed)

    async def hold(self, size: int) -> None:
        """Wait until there is room for `size` bytes, first come, first served, and hold them until `let_go`."""
        async with self._turn:
            while self.bytes and self.bytes + size > self.held_bytes:
                self._freed.clear()
                await self._freed.wait()
            self.bytes += size

    def let_go(self, size: int) -> None:
        """Release the bytes that `hold` took."""
        self.bytes -= size
        self._freed.set()

    def close(self) -> None:
        """Let the threads end, without waiting for a running read."""
        self._executor.shutdown(wait=False, cancel_futures=True)
