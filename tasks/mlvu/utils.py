"""The functions of the YAML's `!function`; lmms-eval loads this file again for every reference, so it has no state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from typing import Any

from apr_plugin.scoring.truth import Truth
from apr_plugin.tasks.common import NOT_READ, Bins, File, Row, Source, Unreadable, each, lmms, number, reply, unreadable

REPOSITORY = "https://raw.githubusercontent.com/JUNJIE99/MLVU/fd060c10a43ea48a35100a22688a927b8e531199/data"

TASKS = {
    "plotQA": "1_plotQA",
    "needle": "2_needle",
    "ego": "3_ego",
    "count": "4_count",
    "order": "5_order",
    "anomaly_reco": "6_anomaly_reco",
    "topic_reasoning": "7_topic_reasoning",
}
"""lmms-eval's name of a task, and the stem of its file and of its folder of videos."""

BINS = Bins.of_minutes(0, 5, 10, 20, 60, 120, inf)


def rows_of(contents: Sequence[Any]) -> Iterator[Row | Unreadable]:
    """The official columns, and those that lmms-eval's scorer reads.

    These are `task_type`, `video_name`, the options in `question`, and a letter as `answer`.

    As in the official evaluation, the last of two equal options is the answer, and a question whose answer is not among
    its options can't be right.
    """
    named = (
        (task, stem, row) for (task, stem), content in zip(TASKS.items(), contents, strict=True) for row in content
    )
    yield from each(_row, named)


def _row(named: tuple[str, str, Row]) -> list[Row]:
    task, stem, row = named
    options = row["candidates"]
    right = max((i for i, option in enumerate(options) if option == row["answer"]), default=-1)
    return [
        {
            "question": "\n".join(
                [row["question"], *(f"({'ABCDEF'[i]}) {option}" for i, option in enumerate(options))]
            ),
            "candidates": options,
            "answer": "ABCDEF"[right] if right >= 0 else "(no option)",
            "answer_text": row["answer"],
            "task_type": task,
            "video_name": f"{stem}/{row['video']}",
            "duration": number(row["duration"]),
        }
    ]


SOURCE = Source(
    task="apr_mlvu",
    folder="mlvu",
    title="MLVU (dev, multiple choice)",
    kind="mcq",
    n=2175,
    licence="CC BY-NC-SA 4.0",
    homepage="https://github.com/JUNJIE99/MLVU",
    files=tuple(File(f"json/{stem}.json", url=f"{REPOSITORY}/{stem}.json") for stem in TASKS.values()),
    rows_of=rows_of,
    videos_of=lambda row: [row["video_name"]],
    seconds_of=lambda row: float(row["duration"]),
    labels_of=lambda row, seconds: [BINS.name(seconds), row["task_type"]],
    buckets=(*BINS.names, *TASKS),
    harness_folders=("mlvu",),
    metric="m_avg",
    truth_of=lambda doc: Truth(doc["answer"]),
)


def docs(_stub: Any) -> Any:
    """The official rows."""
    return lmms.docs(SOURCE, doc_to_text, process_results)


def doc_to_text(doc: Row, lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """lmms-eval's prompt."""
    if unreadable(doc):
        return str(NOT_READ)
    from lmms_eval.tasks.mlvu.utils import mlvu_doc_to_text

    return str(mlvu_doc_to_text(doc, lmms_eval_specific_kwargs))


def process_results(doc: Row, results: list[Any]) -> dict[str, Any]:
    """lmms-eval's score, overall, by task and by duration; `m_avg` gives equal weight to the tasks that were asked."""
    if unreadable(doc):
        return dict(SOURCE.scored(doc, 0.0))
    from lmms_eval.tasks.mlvu.utils import mlvu_process_results

    official = mlvu_process_results(doc, [reply(results)])
    record = official["mlvu_percetion_score"]
    right = float(record["pred_answer"] == record["answer"])
    grouped = ([doc["task_type"]], right)
    scored: dict[str, Any] = SOURCE.scored(doc, right, m_avg=grouped, m_avg_se=grouped, **official)
    return scored
