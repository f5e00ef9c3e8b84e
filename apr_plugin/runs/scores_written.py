"""Scores in the form that `runs.scores` reads: `<time>_results.json`, `<time>_samples_<task>.jsonl` for each task.

For runs that lmms-eval did not score: those of VLMEvalKit, and those that were made elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apr_plugin.errors import AprError
from apr_plugin.runs.scores import RESULTS, SAMPLES


def write_scores(
    folder: Path,
    time: str,
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    splits: Mapping[str, str],
    metrics: Mapping[str, Mapping[str, float]],
    config: Mapping[str, Any],
    versions: Mapping[str, Any] | None = None,
    asked: Mapping[str, int] | None = None,
) -> None:
    """Write the files.

    Args:
        folder: Where they go.
        time: The time of the evaluation, which begins their names.
        rows: Task -> a line for each question, with `doc_id`, `filtered_resps` and the scorer's numbers.
        splits: Task -> its split.
        metrics: Task -> what was reported for the whole task.
        config: Model and harness; `resolved_cli_args.apr_run` names the run, so that `open_run` joins both.
        versions: Task -> its version.
        asked: Task -> how many questions were asked; by default as many as there are lines.

    Raises:
        AprError: the files can't be written.
    """
    counts = {task: len(lines) for task, lines in rows.items()} | dict(asked or {})
    content = {
        "results": {
            task: {f"{name},none": value for name, value in values.items()} for task, values in metrics.items()
        },
        "configs": {task: {"task": task, "test_split": splits[task]} for task in rows},
        "versions": dict(versions or {}),
        "n-samples": {task: {"original": count, "effective": count} for task, count in counts.items()},
        "config": dict(config),
        "date": time,
    }
    try:
        for task, lines in rows.items():
            place = folder / f"{time}{SAMPLES}{task.replace('/', '_')}.jsonl"
            place.write_text("".join(json.dumps(line, default=str) + "\n" for line in lines), "utf-8")
        (folder / f"{time}{RESULTS}").write_text(json.dumps(content, indent=2, default=str) + "\n", "utf-8")
    except OSError as error:
        raise AprError(f"{folder}: cannot write the results: {error.strerror or error}") from error
