"""Errors that a user can act on; the command line prints them as one message, without a traceback."""

from __future__ import annotations

import importlib.util

UNANSWERED = 3
"""Exit status of a command that finished with a question that could not be answered."""


class AprError(Exception):
    """Something that the user can correct: the message says what was wrong, where, and what to do."""


class WrongUsage(AprError):
    """A command line that can't be carried out; it ends with status 2."""


def told(error: BaseException) -> str:
    """An exception as text: its type and its message.

    An exception from code that is not ours may raise while its message is made.
    """
    try:
        words = str(error)
    except Exception:  # noqa: BLE001
        words = "it can't be put in words"
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


class MissingExtra(AprError):
    """An optional dependency is not installed.

    Args:
        module: The module that is missing.
        extra: The extra of this package that brings it.
    """

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"{module} is not installed; add it with: pip install 'apr-plugin[{extra}]'")


def require(module: str, extra: str) -> None:
    """Check for an optional dependency without importing it.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        raise MissingExtra(module, extra)
