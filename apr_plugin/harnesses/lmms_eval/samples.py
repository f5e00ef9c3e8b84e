"""Scores of single questions, from the files that lmms-eval's `--log_samples` writes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_plugin.errors import AprError
from apr_plugin.files import read_regular
from apr_plugin.scoring.text import NO_ANSWER

PATTERN = "*_samples_*.jsonl"
"""What lmms-eval calls these files: a time before, the task after."""


@dataclass(frozen=True)
class Sample:
    """One scored question."""

    score: float | None
    """Its score in [0, 1], or `None` where the task keeps none that is known: a number called `score`, or one called `…_score` that is a number or
    holds a `score`."""

    answered: bool
    """Whether an answer went back to the scorer."""


def read_samples(path: Path) -> dict[str, dict[str, Sample]]:
    """Task -> doc id -> sample, of a file or of all files in a folder; of several files of a task the newest by its name counts.

    Raises:
        AprError: a file can't be read, or is none of lmms-eval's.
    """
    newest: dict[str, Path] = {}
    for file in sorted(path.rglob(PATTERN), key=lambda file: file.name) if path.is_dir() else [path]:
        newest[file.stem.partition("_samples_")[2]] = file
    return {task: _read(file) for task, file in newest.items()}


def _read(file: Path) -> dict[str, Sample]:
    try:
        lines = read_regular(file).decode("utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise AprError(f"{file}: cannot read it: {getattr(error, 'strerror', None) or error}") from error
    samples: dict[str, Sample] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            samples[str(row["doc_id"])] = Sample(_score(row), row["filtered_resps"] not in (NO_ANSWER, [NO_ANSWER]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise AprError(f"{file}, line {number}: no sample of lmms-eval: {type(error).__name__}: {error}") from error
    return samples


def _score(row: dict[str, Any]) -> float | None:
    found = [row["score"]] if "score" in row else [value for key, value in row.items() if key.endswith("_score")]
    values = [value.get("score") if isinstance(value, dict) else value for value in found]
    numbers = [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]
    return numbers[0] if len(numbers) == 1 and 0 <= numbers[0] <= 1 else None
