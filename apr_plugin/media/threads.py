"""Threads that nobody has to wait for, not even the interpreter at exit.

Such a thread may be stuck in libav, or on a disk that does not answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

_T = TypeVar("_T")
_A = TypeVar("_A")


def start(work: Callable[[], _T]) -> Future[_T]:
    """Run `work` in another thread."""
    future: Future[_T] = Future()

    def body() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again where the result is read
            future.set_exception(error)

    threading.Thread(target=body, name="apr-media", daemon=True).start()
    return future


def spread(work: Callable[[_A], _T], items: Sequence[_A], most: int) -> list[_T]:
    """`[work(item) for item in items]` on up to `most` threads, including this one.

    After an error no further item is started.
    """
    results: dict[int, _T] = {}
    left = iter(enumerate(items))
    lock = threading.Lock()
    failed = threading.Event()

    def body() -> None:
        while not failed.is_set():
            with lock:
                number, item = next(left, (-1, None))
            if number < 0:
                return
            try:
                results[number] = work(item)  # type: ignore[arg-type]
            except BaseException:
                failed.set()
                raise

    others = [start(body) for _ in range(min(most, len(items)) - 1)]
    try:
        body()
    finally:
        failures = [other.exception() for other in others]
    for failure in failures:
        if failure is not None:
            raise failure
    return [results[number] for number in range(len(items))]
