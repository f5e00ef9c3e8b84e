"""Runs on disk of any task, with the samples lines that its scorer logs, for the tests of cards and exports."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apr_plugin.loop.card import Card
from apr_plugin.loop.config import EpisodeConfig
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.policies.guess import GuessPolicy
from apr_plugin.runs.opened import Run, open_run
from apr_plugin.runs.store import TrajectoryStore

sys.path.insert(0, str(Path(__file__).parents[1] / "compare"))  # the makers of trajectories

HOSTILE = "</script><img src=x onerror=alert(1)> \x1b[31m`|\n!!python/object:os.system &a *a \ud800 ' \" {{x}}"
"""What a model may write."""

MODEL_ARGS = "policy=guess,seed=0"


def stored(
    out: Path,
    made: Sequence[Trajectory],
    lines: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    scores: Mapping[str, float] | None = None,
    model_args: str = MODEL_ARGS,
    of: int | None = None,
) -> Run:
    """A run of one task as `apr eval --output_path OUT --log_samples` leaves it.

    Args:
        out: The output folder.
        made: Its trajectories, of one task.
        lines: What the task's scorer logs, by doc id.
        scores: The metrics of the whole task.
        model_args: As lmms-eval records them.
        of: Questions of the task, where fewer were asked.
    """
    (task,) = {one.question.task for one in made}
    policy, config = GuessPolicy(), EpisodeConfig()
    config_hash = config.hash(policy)
    with TrajectoryStore(out / "trajectories", config_hash, Card.of(config, policy)) as store:
        for one in made:
            store.save(one.model_copy(update={"config_hash": config_hash}))
    options = {
        "tasks": task, "model_args": f"{model_args},trajectories={out / 'trajectories'}", "limit": None, "offset": 0,
        "repeats": 1, "seed": [0, 1234, 1234, 1234], "include_path": ["tasks"],
        "apr_run": {"config_hash": config_hash, "folder": str(store.folder)},
    }  # fmt: skip
    results = {
        "results": {task: {f"{name},none": value for name, value in (scores or {"score": 0.5}).items()}},
        "configs": {task: {"test_split": "test"}},
        "versions": {task: 1.0},
        "task_hashes": {task: "0" * 64},
        "n-samples": {task: {"original": of or len(made), "effective": len(made)}},
        "config": {"model": "apr", "random_seed": 0, "resolved_cli_args": options},
        "lmms_eval_version": "0.7.3",
        "total_evaluation_time_seconds": "12.5",
    }
    time = "20261127_080000"
    (out / f"{time}_results.json").write_text(json.dumps(results))
    with (out / f"{time}_samples_{task}.jsonl").open("w") as file:
        for one in made:
            doc_id = one.question.doc_id
            row = {"doc_id": int(doc_id), "target": "A", "filtered_resps": [one.answer or "(null)"], "score": 0.5}
            file.write(json.dumps(row | dict((lines or {}).get(doc_id, {}))) + "\n")
    return open_run(out)
