"""What every evaluation of the study needs, imported before it is forked.

lmms-eval reads three thousand YAML files whenever it starts; their index is made once here, by its own code.
"""

from __future__ import annotations

import gc
import importlib
from typing import Any

from apr_plugin.policies import POLICIES

NAMES = (
    "lmms_eval.__main__",
    "torch",
    "transformers",
    "nltk",
    "pytablewriter",
    "apr_plugin.policies.hf.policy",
)


def register() -> None:
    """Make the policies of the study known in this process."""
    POLICIES["altered"] = "benchmarks.needle_study.altered:Altered.from_pretrained"


def index_once() -> None:
    """Keep lmms-eval's index of tasks for each folder of further tasks."""
    from lmms_eval.tasks import TaskManager

    from apr_plugin.cli.evaluate import tasks_dir
    from apr_plugin.harnesses.lmms_eval.task_files import parsed_by_libyaml

    original, known = TaskManager.initialize_tasks, {}

    def initialize_tasks(self: Any, include_path: Any = None, include_defaults: bool = True) -> Any:
        key = (str(include_path), include_defaults)
        if key not in known:
            known[key] = original(self, include_path=include_path, include_defaults=include_defaults)
        return known[key]

    TaskManager.initialize_tasks = initialize_tasks
    with parsed_by_libyaml():
        TaskManager("ERROR", include_path=[str(tasks_dir())])


def load() -> None:
    """Everything; in the process from which evaluations are forked."""
    register()
    for name in NAMES:
        importlib.import_module(name)
    index_once()
    gc.freeze()  # what is imported is never garbage, and looking for it takes seconds
