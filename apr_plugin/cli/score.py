"""`apr score`: score a file of predictions as a benchmark's own script does."""

from __future__ import annotations

import dataclasses
import difflib
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import AliasChoices, BaseModel, Field, TypeAdapter, ValidationError, model_validator
from rich import box
from rich.table import Table
from rich.text import Text

from apr_plugin.errors import AprError
from apr_plugin.files import read_regular
from apr_plugin.scoring import vue_tr
from apr_plugin.scoring.intervals import Span
from apr_plugin.terminal import console, quoted

BENCHMARKS = {"vue_tr": 1, "vue_tr_v2": 2}
"""What can be scored: VUE-TR in its two versions."""


Row = TypeVar("Row", bound=BaseModel)


class _TrueRow(BaseModel):
    query_id: int
    gt: list[Span]
    duration_category: str
    query_format: str
    query_modality: str


class _PredictedRow(BaseModel):
    query_id: int = Field(validation_alias=AliasChoices("query_id", "id"))
    answer: list[Span | tuple[()]]

    @model_validator(mode="before")
    @classmethod
    def _logged(cls, row: Any) -> Any:
        """Take the official row from a sample that lmms-eval logged for our VUE-TR tasks, where it is `prediction`."""
        return row["prediction"] if isinstance(row, dict) and "prediction" in row else row


def run_score(benchmark: str, ground_truth: Path, predictions: Path, as_json: bool) -> None:
    """Score a file of predictions and print the table.

    Args:
        benchmark: One of `BENCHMARKS`.
        ground_truth: The benchmark's own file: a JSON list of rows.
        predictions: A JSON list of `{"query_id": 0, "answer": [[start_s, end_s], ...]}`, or JSON Lines of the same, or
            the samples that lmms-eval logged of a VUE-TR task.
        as_json: Print JSON, shares in [0, 1], instead of the table, which is in percent.

    Raises:
        AprError: there is no such benchmark, a file can't be read, or the files don't belong together.
    """
    name = benchmark.strip().lower().replace("-", "_").removeprefix("apr_")
    if name not in BENCHMARKS:
        close = difflib.get_close_matches(name, BENCHMARKS, n=1)
        raise AprError(
            f"can't score {quoted(benchmark)}{f'; did you mean {close[0]}?' if close else '.'} There are: "
            f"{', '.join(BENCHMARKS)}"
        )
    queries = read_queries(ground_truth)
    answers = read_answers(predictions, queries, ground_truth)
    table = vue_tr.score(queries, answers, BENCHMARKS[name])
    if as_json:
        print(json.dumps(_as_json(name, table), indent=1))  # noqa: T201
    else:
        _print_table(name, table, predictions)


def read_queries(path: Path) -> list[vue_tr.Query]:
    """The ground truth in a file of the official repository.

    Raises:
        AprError: the file is missing, not JSON, or of another form.
    """
    rows = _read(path, _TrueRow, "the ground truth")
    queries: dict[int, vue_tr.Query] = {}
    for index, row in enumerate(rows):
        for column, values in vue_tr.ATTRIBUTES.items():
            if (value := getattr(row, column)) not in values:
                raise AprError(f"{path}: row {index}: {column} is {quoted(value)}, not one of {', '.join(values)}")
        if row.query_id in queries:
            raise AprError(f"{path}: row {index}: query_id {row.query_id} is there twice")
        queries[row.query_id] = vue_tr.Query(
            row.query_id, row.gt, row.duration_category, row.query_format, row.query_modality
        )
    if not queries:
        raise AprError(f"{path} holds no queries")
    return list(queries.values())


def read_answers(path: Path, queries: list[vue_tr.Query], ground_truth: Path) -> dict[int, list[Span]]:
    """Predicted spans by query id.

    Raises:
        AprError: the file is missing, not JSON, or of another form; an answer belongs to no query, or a query has two.
    """
    known = {query.query_id for query in queries}
    answers: dict[int, list[Span]] = {}
    rows = _read(path, _PredictedRow, "the predictions")
    if rows and not any(row.query_id in known for row in rows):
        raise AprError(
            f"{path} answers none of the {len(known)} queries in {ground_truth}: no query_id is in both; is "
            "it of another version?"
        )
    for index, row in enumerate(rows):
        if row.query_id not in known:
            raise AprError(
                f"{path}: row {index}: query_id {row.query_id} is not in {ground_truth}; is it the file of "
                "another version?"
            )
        if row.query_id in answers:
            raise AprError(f"{path}: row {index}: query_id {row.query_id} is answered twice")
        answers[row.query_id] = [span for span in row.answer if len(span) == 2]
    return answers


def _read(path: Path, row: type[Row], what: str) -> list[Row]:
    try:
        data = read_regular(path)
    except OSError as error:
        raise AprError(f"can't read {what}: {path}: {error.strerror or error}") from error
    if path.suffix == ".jsonl":
        data = b"[" + b",".join(line for line in data.splitlines() if line.strip()) + b"]"
    try:
        return TypeAdapter(list[row]).validate_json(data)  # type: ignore[valid-type]
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        index, field, *_ = (*fault["loc"], None, None)
        if index is None:
            form = "one JSON object a line" if path.suffix == ".jsonl" else "a JSON list of rows"
            raise AprError(f"{path} is not {form}: {fault['msg']}") from error
        if fault["type"] != "missing" and field in ("gt", "answer"):
            raise AprError(f"{path}: row {index}: '{field}' must be a list of [start, end] pairs in seconds") from error
        raise AprError(f"{path}: row {index}: {f'{field}: ' if field else ''}{fault['msg']}") from error


def _as_json(name: str, table: dict[str, vue_tr.Cell]) -> dict[str, Any]:
    return {"benchmark": name, "cells": {cell: dataclasses.asdict(numbers) for cell, numbers in table.items()}}


def _print_table(name: str, table: dict[str, vue_tr.Cell], predictions: Path) -> None:
    overall = table[vue_tr.OVERALL]
    missing = overall.queries - overall.answered
    title = Text(f"{name}, {predictions.name}: {overall.answered} of {overall.queries} queries answered")
    out = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    out.add_column("", no_wrap=True)
    for heading in ("answered", "precision", "recall", "IoU", "mIoU", "recall\nall", "IoU\nall", "mIoU\nall"):
        out.add_column(heading, justify="right", no_wrap=True)
    groups = [(vue_tr.OVERALL,), *vue_tr.ATTRIBUTES.values()]
    for group in groups:
        for label in group:
            cell = table[label]
            shares = (cell.precision, cell.recall, cell.iou, cell.miou, cell.recall_all, cell.iou_all, cell.miou_all)
            answered = f"{cell.answered}/{cell.queries}"
            out.add_row(
                label,
                answered,
                *("-" if share is None else f"{100 * share:.2f}" for share in shares),
                end_section=label == group[-1],
            )
    printer = console()
    printer.print(out)
    none = (
        f"the {missing} queries without a prediction count"
        if missing > 1
        else "the 1 query without a prediction counts"
    )
    for line in (
        "In percent. precision, recall, IoU: the official table's, areas under curves over the answered queries.",
        "mIoU: plain mean of the IoU of the spans as predicted, which OmniAgent's Table 3 gives for its own rows.",
        f"all: {none} as 0." if missing else "all: no query is missing, so nothing changes.",
    ):
        printer.print(Text(line))
