"""Active perception for long video: a model that chooses what to look at, inside the harnesses people already use.

The nouns (see `docs/design.md`): a `Question` about a `Video` is answered by an `Episode`. In it a `Policy` takes one
`Action` a turn, the `Environment` returns a `Percept`, and the `Notebook` keeps the text of it. The record of what
happened is a `Trajectory`.

`Agent`, `ask` and `open_run` are for programs (docs/python.md). They are loaded when they are first used: importing
this package loads neither torch nor a harness, nor anything else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apr_plugin.agent import Agent, ask
    from apr_plugin.runs.opened import open_run

__version__ = "0.1.0"

__all__ = ["Agent", "ask", "open_run"]

_HOMES = {"Agent": "apr_plugin.agent", "ask": "apr_plugin.agent", "open_run": "apr_plugin.runs.opened"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
