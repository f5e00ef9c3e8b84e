"""Handling of Ctrl-C: the first always stops the command, a second ends it at once.

Python raises `KeyboardInterrupt` wherever the main thread is. In a finaliser, in a callback from C or under a bare
`except` it is lost, and asyncio asks the running task to stop only once. So the first Ctrl-C is also recorded here, and
code that begins or ends a piece of work checks for it.

Nothing is installed if a program that uses this package has its own handler, or outside the main thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any, TypeVar

_T = TypeVar("_T")

STATUS = 130
"""Exit status of a command that was stopped by Ctrl-C, as shells count it."""

SAME_PRESS_S = 0.25
"""Seconds within which a further signal does not count as a second Ctrl-C.

A terminal signals a whole process group, and a parent may pass on the same Ctrl-C.
"""

_TICK_S = 0.2
"""How often work in an event loop checks whether it was asked to stop."""


class _State:
    installed = False
    first: float | None = None
    """When the first Ctrl-C came (`time.monotonic`)."""
    raise_again = False
    """Whether the next signal is our own, sent because a `KeyboardInterrupt` was lost."""
    stop: Callable[[], None] | None = None
    """Stops the event loop's work; if there is none, `KeyboardInterrupt` is raised."""
    on_first: Callable[[], None] | None = None
    hook: Callable[[Any], Any] = sys.__unraisablehook__


def asked() -> bool:
    """Whether Ctrl-C was pressed since `install`."""
    return _State.first is not None


def check() -> None:
    """Stop here if Ctrl-C was pressed and its exception was lost.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    if asked():
        raise KeyboardInterrupt


def install(on_first: Callable[[], None] | None = None) -> bool:
    """Handle Ctrl-C from now on; true if this process has the handler, from this call or an earlier one.

    Args:
        on_first: Called once, at the first Ctrl-C, in the signal handler.
    """
    if on_first is not None and _State.on_first is None:
        _State.on_first = on_first
    if _State.installed:
        return True
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        return False
    signal.signal(signal.SIGINT, _heard)
    _State.installed = True
    _State.hook = sys.unraisablehook
    sys.unraisablehook = _vanished
    return True


def uninstall() -> None:
    """Restore Python's own handler, and forget everything."""
    if _State.installed:
        if signal.getsignal(signal.SIGINT) is _heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if sys.unraisablehook is _vanished:
            sys.unraisablehook = _State.hook
    _State.installed = False
    _State.first = None
    _State.raise_again = False
    _State.stop = None
    _State.on_first = None


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Run a command with Ctrl-C handled.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, whatever the command did with it, unless the command ends with a status
            that reports a failure.
    """
    _State.first = None
    ours = not _State.installed and install()
    try:
        yield
        check()
    except SystemExit as end:
        if not end.code:
            check()
        raise
    finally:
        if ours and not asked():  # else a second Ctrl-C can still end it while Python waits for threads
            uninstall()


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """Like `asyncio.run`, but raise `KeyboardInterrupt` after a Ctrl-C even if the work swallowed its cancellation.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the work was cancelled, and has ended.
    """
    if not (_State.installed and threading.current_thread() is threading.main_thread()):
        return asyncio.run(work)
    try:
        check()
    except KeyboardInterrupt:
        work.close()
        raise
    try:
        result = asyncio.run(_stoppable(work))
    except asyncio.CancelledError:
        check()
        raise
    finally:
        _State.stop = None
    check()
    return result


async def _stoppable(work: Coroutine[Any, Any, _T]) -> _T:
    loop, task, told = asyncio.get_running_loop(), asyncio.ensure_future(work), False

    def stop() -> None:
        nonlocal told
        if not told:
            told = True
            loop.call_soon_threadsafe(task.cancel)

    _State.stop = stop
    while not task.done():
        if asked():
            stop()
        await asyncio.wait([task], timeout=_TICK_S)
    _State.stop = None
    return task.result()


def _vanished(unraisable: Any) -> None:
    """Raise `KeyboardInterrupt` again shortly after, because it can't leave a finaliser or a callback."""
    if asked() and unraisable.exc_type is KeyboardInterrupt:
        with contextlib.suppress(RuntimeError):  # no thread can start while Python is closing
            threading.Thread(target=_raise_again, name="apr-interrupt", daemon=True).start()
    else:
        _State.hook(unraisable)


def _raise_again() -> None:
    time.sleep(_TICK_S / 10)
    _State.raise_again = True
    # A real signal, because it must end a call that waits.
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _heard(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _State.raise_again:
        _State.raise_again = False
    elif _State.first is None:
        _State.first = now
        if _State.on_first is not None:
            _State.on_first()
    elif now - _State.first > SAME_PRESS_S:
        _say("ended at once")
        _end_children()
        os._exit(STATUS)
    else:
        return
    if _State.stop is None:
        raise KeyboardInterrupt
    _say("stopping; Ctrl-C again ends at once")
    _State.stop()


def _end_children() -> None:
    """End the processes that an engine started and that only Python's exit handlers would end.

    Processes that read media end with their connection.
    """
    processes = sys.modules.get("multiprocessing")
    for child in processes.active_children() if processes is not None else ():
        with contextlib.suppress(OSError, ValueError):
            child.terminate()


def _say(words: str) -> None:
    """Write without Python's own buffers, which the interrupted code may hold locked."""
    with contextlib.suppress(OSError):
        os.write(2, f"\n{words}\n".encode())
