"""Commands that other packages add to `apr`: entry points of the group `apr_plugin.commands`, each a `typer.Typer`.

So a part of the program that may import the command line, or another package, brings its own commands, and nothing is
imported until one is called or the help lists them.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import Any

from apr_plugin.installed import importing

GROUP = "apr_plugin.commands"


@cache
def _registered() -> dict[str, metadata.EntryPoint]:
    return {found.name: found for found in metadata.entry_points(group=GROUP)}


def names() -> list[str]:
    """The names of the commands, sorted."""
    return sorted(_registered())


def command(name: str) -> Any:
    """The command of this name; `None` if nobody adds one.

    Raises:
        AprError: its package can't be imported; the message names what is missing.
    """
    if name not in _registered():
        return None
    from typer.main import get_command

    with importing(f"command {name}", "train"):
        app = _registered()[name].load()
    found = get_command(app)
    found.name = name
    return found
