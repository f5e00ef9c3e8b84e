"""How a run under lmms-eval ends: one message for an error, and a status that tells if every question was answered.

lmms-eval's command line prints a traceback for every exception, and always returns 0.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import sys
import threading
import traceback
from types import TracebackType
from typing import NoReturn

from apr_plugin import interrupt
from apr_plugin.errors import UNANSWERED, AprError
from apr_plugin.terminal import complain

FAILURES: list[str] = []
"""The questions that were not answered, one line each.

After `sum_up`, rank 0 has those of all ranks and the other ranks have none.
"""

exit_status_is_set = False
"""Whether the caller of lmms-eval turns `FAILURES` into an exit status, as `apr eval` does; otherwise `sum_up` does."""


def end_with(error: AprError, status: int = 1) -> NoReturn:
    """End with one clear message.

    Under lmms-eval's command line this is an exit that it does not catch; elsewhere the error is raised.
    """
    if under_its_command_line():
        complain(str(error))
        raise SystemExit(status) from None
    raise error


def watch() -> None:
    """Make the process end with a failure status if anything goes wrong from now on, under lmms-eval's command line.

    This is called when the model is created.

    lmms-eval catches every exception, logs it and still returns 0; and a Ctrl-C can get lost in code that is not ours
    (see `interrupt`).
    """
    if exit_status_is_set or not under_its_command_line():
        return
    interrupt.install(_stopped)
    import loguru

    while _watching:
        with contextlib.suppress(ValueError):  # it is gone if lmms-eval has set up its logger again
            loguru.logger.remove(_watching.pop())
    _watching.append(loguru.logger.add(_logged, level="ERROR", format="{message}"))


_watching: list[int] = []
"""The id of our listener at the logger, once there is one."""


def _logged(message: str) -> None:
    if message.startswith("Error during evaluation"):
        leave_with(1)


def _stopped() -> None:
    leave_with(interrupt.STATUS)
    excepthook = sys.excepthook

    def in_one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("stopped; the same command continues where it was", file=sys.stderr)  # noqa: T201
        else:
            excepthook(kind, error, trace)

    sys.excepthook = in_one_line


def sum_up() -> None:
    """Make the command end with `UNANSWERED` if any question of any rank failed.

    Every rank calls this after its last request.

    Only rank 0 ends with that status, because torchrun kills every rank when one fails, and rank 0 still has to write
    the results.
    """
    from torch import distributed

    several = distributed.is_available() and distributed.is_initialized()
    if several:
        ranks: list[list[str]] = [[]] * distributed.get_world_size()
        distributed.all_gather_object(ranks, FAILURES)
        FAILURES[:] = [line for rank in ranks for line in rank] if distributed.get_rank() == 0 else []
    if exit_status_is_set or not under_its_command_line():
        return
    if FAILURES:
        leave_with(UNANSWERED)
    elif several:  # destructors of the libraries can abort a rank that is done, and torchrun then kills rank 0
        leave_with(0)


def end_rank(status: int) -> None:
    """End this process now if it is one of several ranks whose work is done; else do nothing.

    When Python closes, destructors of the libraries can abort the process ("terminate called without an active
    exception"), and torchrun kills every rank when one ends badly. Exit handlers are run, and output is written.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def leave_with(status: int) -> None:
    """Make this process end with `status` after all else is done: results written, exit handlers run, Python closed.

    The last call counts.

    No exit handler of Python's can change the status without skipping the handlers after it. The C library's handlers
    run last, the newest first: what the process still has to print is printed, then it ends. If the C library has no
    such handlers (Windows), the status does not change.
    """
    try:
        library = ctypes.CDLL(None)
        at_exit, end, flush = library.__cxa_atexit, library._exit, library.fflush
    except (OSError, TypeError, AttributeError):
        return
    at_exit(ctypes.cast(end, ctypes.c_void_p), ctypes.c_void_p(status), None)
    at_exit(ctypes.cast(flush, ctypes.c_void_p), None, None)


def under_its_command_line() -> bool:
    """Whether lmms-eval's command line runs in the main thread, rather than a program that uses its evaluator."""
    frames = traceback.walk_stack(sys._current_frames().get(threading.main_thread().ident or 0))
    return any(
        frame.f_code.co_name == "cli_evaluate" and frame.f_globals.get("__package__") == "lmms_eval"
        for frame, _ in frames
    )
