"""Functions that a recipe names: weighers of tokens, makers of rows, measures.

Those of this package are in the tables below; an installed package brings its own as entry points of the groups
`apr_plugin.weighers`, `apr_plugin.row_makers` and `apr_plugin.measures`. A recipe never names a module.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib import metadata
from typing import Any, Literal

from apr_plugin.installed import importing
from apr_plugin.policies import did_you_mean
from apr_plugin.terminal import quoted
from apr_plugin.training.recipe_file import RecipeError

Kind = Literal["weighers", "row_makers", "measures"]

OURS: dict[Kind, dict[str, str]] = {
    "weighers": {"needle_turn": "apr_plugin.training.tiny.weighing:turn"},
    "row_makers": {
        "needle_agents": "apr_plugin.training.tiny.agents:maker",
        "needle_captions": "apr_plugin.training.tiny.captions:maker",
        "needle_sounds": "apr_plugin.training.tiny.sounds:maker",
        "needle_listening": "apr_plugin.training.tiny.sounds:listening",
        "needle_describing": "apr_plugin.training.tiny.describing:maker",
        "needle_passive": "apr_plugin.training.tiny.passive:maker",
        "needle_windows": "apr_plugin.training.tiny.describing:windows",
    },
    "measures": {
        "needle_agent": "apr_plugin.training.tiny.playing:measure",
        "needle_captions": "apr_plugin.training.tiny.captions:measure",
        "needle_heard": "apr_plugin.training.tiny.sounds:measure",
        "needle_looks": "apr_plugin.training.tiny.looking:measure",
        "needle_passive": "apr_plugin.training.tiny.passive:measure",
    },
}
"""Where those of this package are found."""

WHAT: dict[Kind, str] = {"weighers": "weigher of tokens", "row_makers": "maker of rows", "measures": "measure"}


def known(kind: Kind) -> dict[str, str]:
    """Where each of a kind is found: ours, whose names can't be taken, and those of installed packages."""
    return {found.name: found.value for found in _registered(kind)} | OURS[kind]


@cache
def _registered(kind: Kind) -> tuple[metadata.EntryPoint, ...]:
    return tuple(metadata.entry_points(group=f"apr_plugin.{kind}"))


def named(kind: Kind, name: str) -> Any:
    """The function of this name.

    Raises:
        RecipeError: there is none.
        AprError: its module can't be imported.
    """
    names = known(kind)
    if name not in names:
        there = f"there are {', '.join(sorted(names))}" if names else "none is installed"
        raise RecipeError(f"there is no {WHAT[kind]} {quoted(name, 60)}{did_you_mean(name, names)}; {there}")
    module, _, attribute = names[name].partition(":")
    with importing(f"{WHAT[kind]} {name}", "train"):
        return getattr(importlib.import_module(module), attribute)
