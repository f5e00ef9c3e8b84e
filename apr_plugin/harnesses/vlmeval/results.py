"""What VLMEvalKit wrote, in the form in which runs of this package are opened.

VLMEvalKit keeps scores in a table for each data set. They are written again beside the run, as lmms-eval writes its
own (`<time>_results.json`, `<time>_samples_<task>.jsonl`), so that `open_run`, and with it `apr compare`, `apr report`
and `apr export`, read a run of either harness. A line of the samples is also a line of `rows:FILE`.
"""

from __future__ import annotations

import glob
import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apr_plugin.loop.text import printable
from apr_plugin.runs.meter import tokens_spent
from apr_plugin.runs.scores_written import write_scores
from apr_plugin.scoring.text import NO_ANSWER

STATUS = "status.json"
"""VLMEvalKit's own account of a run."""

TABLES = (".xlsx", ".tsv", ".csv", ".json")
"""Endings of its tables."""

SCORES = ("score", "hit", "MRA:.5:.95:.05", "acc", "rating", "correct", "accuracy")
"""Columns with the score of a question, in VLMEvalKit's tables; of several, the first that has a number."""


@dataclass
class Finished:
    """One data set of a run, as VLMEvalKit left it."""

    name: str
    """The name under which it ran."""
    predictions: Path | None
    """The table of its answers."""
    metrics: Mapping[str, float]
    """What VLMEvalKit reports for it."""
    judge: str
    """The judge that scored it."""
    problem: str
    """Why it has no scores; empty if it has."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Its questions with their scores."""


def read_status(folder: Path, *, since: float = 0.0) -> tuple[dict[str, Finished], str]:
    """What became of each data set in a folder of VLMEvalKit, and the name of the model; the newest account counts.

    Args:
        folder: Its `--work-dir`.
        since: Accounts that were last written before this time, in seconds since 1970, are left out.
    """
    found: dict[str, Finished] = {}
    model = ""
    files = {path.resolve() for path in folder.rglob(STATUS) if path.is_file()}  # some are links to others
    for path in sorted(
        (path for path in files if path.stat().st_mtime >= since), key=lambda path: path.stat().st_mtime
    ):
        try:
            content = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        model = str(content.get("model_name") or model)
        for name, told in _mapping(content.get("datasets")).items():
            told = _mapping(told)
            place = told.get("prediction_file")
            reason = told.get("error_message") or told.get("skip_reason") or ""
            if told.get("status") != "done" and not reason:
                reason = f"it ended while its status was {told.get('status')}"
            found[name] = Finished(
                name,
                path.parent / str(place) if place else None,
                {key: float(value) for key, value in _mapping(told.get("metrics")).items() if _is_number(value)},
                str(told.get("judge_model") or ""),
                str(reason),
            )
    return found, model


def score_rows(
    finished: Finished, dataset: Any, trajectories: Mapping[Any, Any], others: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    """A line for each question of a data set, in the form of lmms-eval's samples; none if it has no table of scores.

    Args:
        finished: The data set as VLMEvalKit left it.
        dataset: Its object (`aliases.AgentDataset` or `task_dataset.TaskDataset`), which names task and doc id.
        trajectories: The run's trajectories by question, for the tokens that were spent.
        others: Names of the files of all predictions, without their endings.
    """
    if finished.predictions is None or not finished.predictions.is_file():
        return
    answers = _by_index(_table(finished.predictions))
    scores: dict[str, dict[str, Any]] = {}
    for table in _score_tables(finished, dataset, others):
        scores |= table
    for index, answer in answers.items():
        task, split, doc_id = dataset.key(index)
        scored = scores.get(index, {})
        row = dataset.row(index)
        reply = str(answer.get("prediction", NO_ANSWER))
        line: dict[str, Any] = {
            "task": task,
            "split": split,
            "doc_id": int(doc_id) if doc_id.isdecimal() and len(doc_id) < 18 else doc_id,
            "target": printable(str(row["target"])) if row.get("target") is not None else None,
            "filtered_resps": [reply],
            "answer": reply,
            **_metrics(scored),
        }
        if not scored and (own := dataset.score(index, reply)) is not None:
            line["score"] = own
        if (bucket := row.get("bucket")) is not None:
            line |= {"bucket": printable(bucket), "vlmeval": {"bucket": printable(bucket)}}
        if (video := row.get("video")) is not None:
            line["video"] = printable(str(video))
        trajectory = trajectories.get((task, split, doc_id, 0))
        spent = None if trajectory is None else tokens_spent(trajectory)
        if spent is not None:
            line["token_counts"] = [{"input_tokens": spent.prompt, "output_tokens": spent.completion}]
        yield line


def _metrics(scored: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a question: those that our own tasks store, or the score of VLMEvalKit's table.

    What its scorer could not read has -1 there, and counts as wrong here.
    """
    if isinstance(scored.get("metrics"), str):
        found = _mapping(json.loads(scored["metrics"]))
        return {name: value for name, value in found.items() if name not in ("task", "split", "doc_id")}
    values = [scored[name] for name in SCORES if name in scored]
    value = next((float(one) for one in values if isinstance(one, bool) or _is_number(one)), None)
    return {} if value is None else {"score": 0.0 if value == -1 else value}


def _score_tables(finished: Finished, dataset: Any, others: Collection[str]) -> Iterator[dict[str, dict[str, Any]]]:
    """The tables of scores of a data set, by index; of several data sets in one, each has its own."""
    assert finished.predictions is not None
    parts = getattr(dataset, "dataset_map", None)
    if not parts:
        yield _scores(finished.predictions, others)
        return
    own = {(row["SUB_DATASET"], str(row["original_index"])): str(row["index"]) for row in dataset.apr_rows.values()}
    for name in parts:
        place = Path(str(finished.predictions).replace(dataset.dataset_name, name))
        table = _scores(place, ()) if place.is_file() else {}
        yield {own[name, index]: row for index, row in table.items() if (name, index) in own}


def _scores(predictions: Path, others: Collection[str]) -> dict[str, dict[str, Any]]:
    """The rows of the table of scores that belongs to a table of predictions; empty if there is none.

    VLMEvalKit has no fixed name for it: it begins with that of the predictions, and often ends with `_score`. A longer
    name of another data set may begin in the same way.
    """
    stem = predictions.stem
    beside = [path for path in sorted(predictions.parent.glob(f"{glob.escape(stem)}_*")) if path.suffix in TABLES]
    for path in sorted(beside, key=lambda path: "score" not in path.stem):
        if any(path.stem.startswith(other) for other in others if other.startswith(stem) and other != stem):
            continue
        try:
            rows = _by_index(_table(path))
        except Exception:  # noqa: BLE001 - a file of others, in any form
            continue
        if rows and set(next(iter(rows.values()))) & {*SCORES, "metrics"}:
            return rows
    return {}


def _table(path: Path) -> Any:
    from vlmeval.smp import load

    return load(str(path))


def _by_index(table: Any) -> dict[str, dict[str, Any]]:
    return {str(row["index"]): row for row in (table if isinstance(table, list) else table.to_dict("records"))}


def write_results(
    folder: Path,
    time: str,
    finished: Mapping[str, Finished],
    *,
    model: str,
    host: str,
    arguments: Mapping[str, Any],
    run: Mapping[str, str] | None,
    versions: Mapping[str, str],
    asked: Mapping[str, Any] | None = None,
) -> None:
    """Write the results and samples of a run, as lmms-eval would.

    Args:
        folder: The run's folder.
        time: The time of the evaluation, which begins the names.
        finished: Each data set with its rows.
        model: The model's name.
        host: VLMEvalKit and its version.
        arguments: model_args, where it is model apr.
        run: Hash and folder of the run of model apr, so that `open_run` joins scores and trajectories.
        versions: Task -> its version, for tasks of this package.
        asked: The command, as a card keeps it (`arguments.Command.record`).

    Raises:
        AprError: the files can't be written.
    """
    tasks: dict[str, list[dict[str, Any]]] = {}
    results: dict[str, Mapping[str, float]] = {}
    splits: dict[str, str] = {}
    for one in finished.values():
        for line in one.rows:
            tasks.setdefault(line["task"], []).append(line)
            splits[line["task"]] = line["split"]
        if one.rows:
            results[one.rows[0]["task"]] = one.metrics
    config = {
        "model": model,
        "model_args": dict(arguments),
        "harness": host,
        "resolved_cli_args": ({} if run is None else {"apr_run": dict(run)})
        | ({} if asked is None else {"apr_vlmeval": dict(asked)}),
    }
    write_scores(folder, time, tasks, splits=splits, metrics=results, config=config, versions=versions)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
