"""The functions of the YAML's `!function`; lmms-eval loads this file again for every reference, so it has no state."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from apr_plugin.scoring.truth import Truth
from apr_plugin.tasks.common import NOT_READ, File, Row, Source, Unreadable, each, lmms, reply, unreadable

BUCKETS = {
    "<1min": "under_1min", "1-2min": "1-2min", "2-4min": "2-4min", "4-6min": "4-6min", "6-8min": "6-8min",
    ">8min": "over_8min",
}  # fmt: skip
"""The data set's label of a duration -> the bucket."""


def _rows(contents: Sequence[Any]) -> Iterator[Row | Unreadable]:
    """Turn videos -> facts and `task0`, `task1`, … into rows.

    Questions are numbered in the order of the file, as in every tool that flattens it.
    """
    index = itertools.count()

    def of_video(item: tuple[str, Row]) -> Iterator[Row | Unreadable]:
        video, facts = item
        shared = {name: facts[name] for name in ("duration", "domain", "sub_category", "audio_class")}

        def of_question(asked: Row) -> list[Row]:
            number = next(index)
            own = {column: asked[column] for column in ("task_domain", "task_type", "question", "candidates", "answer")}
            return [{"index": number, "video": video, **shared, **own}]

        yield from each(of_question, [asked for name, asked in facts.items() if name.startswith("task")])

    yield from each(of_video, contents[0].items())


SOURCE = Source(
    task="apr_worldsense",
    folder="worldsense",
    title="WorldSense",
    kind="mcq",
    n=3172,
    licence="CC BY 4.0",
    homepage="https://jaaackhongggg.github.io/WorldSense/",
    files=(File("worldsense_qa.json", hub="honglyhly/WorldSense"),),
    videos_of=lambda row: [f"{row['video']}.mp4"],
    labels_of=lambda row, seconds: [str(BUCKETS.get(row["duration"], row["duration"]))],
    buckets=tuple(BUCKETS.values()),
    rows_of=_rows,
    needs=("question", "candidates", "answer", "audio_class"),
    harness_folders=("WorldSense/videos", "WorldSense"),
    truth_of=lambda doc: Truth(doc["answer"]),
)


def docs(_stub: Any) -> Any:
    """The official rows."""
    return lmms.docs(SOURCE, doc_to_text, process_results)


def doc_to_text(doc: Row, lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """lmms-eval's prompt."""
    if unreadable(doc):
        return str(NOT_READ)
    from lmms_eval.tasks.worldsense.utils import worldsense_doc_to_text

    return str(worldsense_doc_to_text(doc, lmms_eval_specific_kwargs))


def process_results(doc: Row, results: list[Any]) -> dict[str, Any]:
    """The score of lmms-eval's own task, overall and by duration label.

    That scorer takes A for a reply that it can't read. A question without an answer is not passed to it as a reply, and
    counts as wrong.
    """
    if unreadable(doc):
        return dict(SOURCE.scored(doc, 0.0))
    from lmms_eval.tasks.worldsense.utils import worldsense_process_results

    text = reply(results)
    official = worldsense_process_results(doc, [text])["worldsense_score"]
    if not text:
        official["score"] = 0.0
    scored: dict[str, Any] = SOURCE.scored(doc, official["score"], worldsense_score=official)
    return scored
