"""The functions of the YAML's `!function`; lmms-eval loads this file again for every reference, so it has no state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from apr_plugin.scoring.times import parse_time
from apr_plugin.scoring.truth import Evidence, Truth
from apr_plugin.tasks.common import NOT_READ, Bins, File, Row, Source, Unreadable, each, lmms, reply, unreadable

ABILITIES = {
    "entity recognition": "ER",
    "event understanding": "EU",
    "key information retrieval": "KIR",
    "temporal grounding": "TG",
    "reasoning": "Rea",
    "summarization": "Sum",
}
"""The benchmark's question types and the short names of its leaderboard."""

BINS = Bins.of_minutes(20, 40, 60, 80, 100, 120, 140)


def rows_of(contents: Sequence[Any]) -> Iterator[Row | Unreadable]:
    """Turn one line for each video with its questions into one row for each question."""
    yield from each(lambda video: each(partial(_row, video["key"]), video["qa"]), contents[0])


def _row(key: str, question: Row) -> list[Row]:
    columns = {name: question[name] for name in ("uid", "question", "answer", "question_type", "time_reference")}
    return [{**columns, "uid": str(columns["uid"]), "key": key}]


def truth_of(doc: Row) -> Truth:
    """The letter, and `time_reference` as evidence.

    It is `00:15-00:19`, or one time, which means its whole second; another form is not evidence.
    """
    found: list[Evidence] = []
    for part in str(doc["time_reference"]).split(","):
        with suppress(ValueError):
            start, *end = map(parse_time, part.split("-"))
            found += [Evidence(start, end[0] if end else start + 1)] if len(end) < 2 else []
    return Truth(doc["answer"], tuple(found))


SOURCE = Source(
    task="apr_lvbench",
    folder="lvbench",
    title="LVBench",
    kind="mcq",
    n=1549,
    licence="CC BY-NC-SA 4.0",
    homepage="https://github.com/zai-org/LVBench",
    files=(File("video_info.meta.jsonl", hub="zai-org/LVBench"),),
    rows_of=rows_of,
    needs=("question", "answer"),
    videos_of=lambda row: [f"{row['key']}.mp4"],
    measure=True,
    # It counts in each of its types.
    labels_of=lambda row, seconds: [
        BINS.name(seconds),
        *(ABILITIES[name] for name in row["question_type"]),
    ],
    buckets=(*BINS.names, *ABILITIES.values()),
    harness_folders=("lvbench",),
    truth_of=truth_of,
)


def docs(_stub: Any) -> Any:
    """The official rows."""
    return lmms.docs(SOURCE, doc_to_text, process_results)


def doc_to_text(doc: Row, lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """lmms-eval's prompt; the options are in the question."""
    if unreadable(doc):
        return str(NOT_READ)
    from lmms_eval.tasks.lvbench.utils import lvbench_doc_to_text

    return str(lvbench_doc_to_text(doc, dict(lmms_eval_specific_kwargs or {})))


def process_results(doc: Row, results: list[Any]) -> dict[str, Any]:
    """lmms-eval's score, overall, by duration and by ability."""
    if unreadable(doc):
        return dict(SOURCE.scored(doc, 0.0))
    from lmms_eval.tasks.lvbench.utils import lvbench_process_results

    official = lvbench_process_results(doc, [reply(results)])
    scored: dict[str, Any] = SOURCE.scored(doc, official["lvbench_score"], **official)
    return scored
