"""Scores of single questions, from the files that lmms-eval's `--log_samples` writes.

They are read here when no run is opened with them; `runs.opened` joins them to trajectories.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from apr_plugin.errors import AprError
from apr_plugin.runs import scores
from apr_plugin.runs.scores import SAMPLES, Score


def read_samples(path: Path) -> dict[str, dict[str, Score]]:
    """Task -> doc id -> score, from a file or from all files in a folder.

    If a task has several files, the newest by its name counts.

    Raises:
        AprError: a file can't be read, or is not one of lmms-eval's.
    """
    newest: dict[str, Path] = {}
    for file in sorted(path.rglob(f"*{SAMPLES}*.jsonl"), key=lambda file: file.name) if path.is_dir() else [path]:
        newest[file.stem.partition(SAMPLES)[2]] = file
    return {task: dict(scores.read_samples(file, _refuse)) for task, file in newest.items()}


def _refuse(problem: str) -> NoReturn:
    raise AprError(problem)
