"""`register`: our model and our data sets in VLMEvalKit's registries, in the process that evaluates.

    from apr_plugin.harnesses.vlmeval.registry import register
    register({"policy": "needle"})            # then run VLMEvalKit as usual, with model `apr`

`apr vlmeval` does this, and more: it continues runs, and its exit status tells whether every question was answered.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import partial
from typing import Any

from apr_plugin.harnesses.vlmeval.host import Host, load_host
from apr_plugin.harnesses.vlmeval.task_files import known

MODEL = "apr"
"""The name of the model."""

CLASS = "ActivePerception"
"""The name of its class, for VLMEvalKit's `--config`."""

VARIANTS: dict[str, dict[str, Any]] = {
    "": {"nframe": 1},
    "_8frame": {"nframe": 8},
    "_32frame": {"nframe": 32},
    "_64frame": {"nframe": 64},
    "_128frame": {"nframe": 128},
    "_1fps": {"nframe": 0, "fps": 1.0},
}
"""Endings of our tasks' names, and how many frames a model that takes no video gets. Model `apr` needs none."""


def task_of(name: str) -> str | None:
    """The task of this package that a data set's name stands for; `None` if it is none of ours."""
    for ending in VARIANTS:
        task = name[: len(name) - len(ending)]
        if name.endswith(ending) and known().get(task) == (task,):
            return task
    return None


def expanded(name: str) -> tuple[str, ...]:
    """The data sets that a name stands for: those of a group of ours (`apr_needle_64frame`), or itself."""
    for ending in VARIANTS:
        group = name[: len(name) - len(ending)]
        if name.endswith(ending) and group in known():
            return tuple(f"{task}{ending}" for task in known()[group])
    return (name,)


def register(arguments: Mapping[str, Any] | None = None, *, limit: int | None = None) -> Host:
    """Register model `apr`, our tasks, and the aliases of VLMEvalKit's video data sets.

    Args:
        arguments: model_args of the model `apr`; without them it is not registered under its name.
        limit: Only the first questions of each of our tasks and aliases.

    Raises:
        AprError: VLMEvalKit can't be imported, or an argument is bad.
    """
    host = load_host()
    from apr_plugin.harnesses.vlmeval.aliases import add_aliases
    from apr_plugin.harnesses.vlmeval.model import ActivePerception
    from apr_plugin.harnesses.vlmeval.task_dataset import TaskDataset

    if arguments is not None:
        host.models[MODEL] = partial(ActivePerception, **arguments)
    setattr(importlib.import_module("vlmeval.api"), CLASS, ActivePerception)
    for name, tasks in known().items():
        if tasks == (name,):
            for ending, frames in VARIANTS.items():
                host.video_datasets[name + ending] = partial(TaskDataset, dataset=name, limit=limit, **frames)
    add_aliases(host, limit)
    return host
