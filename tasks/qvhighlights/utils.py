"""The functions of the YAMLs' `!function`; lmms-eval loads this file again for every reference, so it has no state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from apr_plugin.scoring.retrieval import LENGTHS
from apr_plugin.scoring.truth import Rules
from apr_plugin.scoring.writing import write_longest_first
from apr_plugin.tasks.common import File, Row, Source, Unreadable, each, grounding, lmms

REPOSITORY = "https://raw.githubusercontent.com/jayleicn/moment_detr/b7e553ac3b0c898ee6b85e03ee507c064eab89ca/data"


def rows_of(contents: Sequence[Any]) -> Iterator[Row | Unreadable]:
    """One row for each query, without the columns of highlight detection, which is not asked."""
    (queries,) = contents
    yield from each(_of_query, queries)


def _of_query(query: Row) -> list[Row]:
    columns = {name: query[name] for name in ("qid", "vid", "duration")}
    return [
        grounding.row(
            'In which parts of the video does this happen: "{}"?', query["query"], query["relevant_windows"], **columns
        )
    ]


def lengths(row: Row) -> list[str]:
    """The official ranges of length in which the query has a true window: over 0, 10, 30 seconds, up to 10, 30, 150."""
    return [
        name
        for name, (over, up_to) in LENGTHS.items()
        if any(over < end - start <= up_to for start, end in row["spans"])
    ]


SOURCE = Source(
    task="apr_qvhighlights",
    folder="qvhighlights",
    title="QVHighlights (moment retrieval)",
    kind="grounding",
    n=1542,
    licence="CC BY-NC-SA 4.0",
    homepage="https://github.com/jayleicn/moment_detr",
    files=(File("highlight_test_with_gt.jsonl", url=f"{REPOSITORY}/highlight_test_with_gt.jsonl"),),
    rows_of=rows_of,
    videos_of=lambda row: [f"{row['vid']}.mp4"],
    seconds_of=lambda row: float(row["duration"]),
    labels_of=lambda row, seconds: lengths(row),
    buckets=tuple(LENGTHS),
    prefix="iou_best",
    question_of=grounding.question_of_all,
    write=write_longest_first,
    truth_of=grounding.truth_of,
    rules=Rules(spans="best"),
    metric="map",
)
VAL = replace(
    SOURCE,
    task="apr_qvhighlights_val",
    n=1550,
    files=(File("highlight_val_release.jsonl", url=f"{REPOSITORY}/highlight_val_release.jsonl"),),
)


def docs(_stub: Any) -> Any:
    """The test split, whose labels are public since its evaluation server closed."""
    return lmms.docs(SOURCE)


def val_docs(_stub: Any) -> Any:
    """The validation split."""
    return lmms.docs(VAL)


def process_results(doc: Row, results: list[Any]) -> dict[str, Any]:
    """R@1 of the first window, and average precision of the ranking, overall and by length of the true windows."""
    numbers: dict[str, Any] = grounding.score_ranked(SOURCE, doc, results)
    return numbers
