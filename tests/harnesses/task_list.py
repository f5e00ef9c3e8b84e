"""lmms-eval's list of its own tasks, read once in a process and with the fast YAML parser.

lmms-eval reads about 3,000 YAML files with the parser in pure Python whenever it starts: 5 s of CPU time or more, more
than most of our commands take. Its list stays the same during a run of the tests, so processes that start it many
times keep it. `test_two_ranks`, `test_compare_with_rows_of_others` and `test_lmms_eval_against_the_server` start
lmms-eval without this.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lmms_eval.tasks
from lmms_eval.tasks import TaskManager

from apr_plugin.harnesses.lmms_eval.task_files import parsed_by_libyaml

PACKAGED = Path(lmms_eval.tasks.__file__).parent


def keep_task_list() -> None:
    """Read lmms-eval's own tasks now, and give every later `TaskManager` of this process and its children a copy."""
    read = TaskManager._get_task_and_group
    if getattr(read, "kept", False):
        return
    with parsed_by_libyaml():
        kept = {PACKAGED: read(TaskManager("ERROR", include_defaults=False), str(PACKAGED))}

    def known(self: Any, task_dir: str) -> Any:
        found = kept.get(Path(task_dir))
        return read(self, task_dir) if found is None else copy.deepcopy(found)

    known.kept = True  # type: ignore[attr-defined]
    TaskManager._get_task_and_group = known
