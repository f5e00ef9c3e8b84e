"""The functions of the YAML's `!function`; lmms-eval loads this file again for every reference, so it has no state."""

from __future__ import annotations

from typing import Any

from apr_plugin.scoring.truth import Truth
from apr_plugin.tasks.common import NOT_READ, File, Row, Source, lmms, reply, unreadable

BUCKETS = ("short", "medium", "long")

SOURCE = Source(
    task="apr_videomme",
    folder="videomme",
    title="Video-MME",
    kind="mcq",
    n=2700,
    licence="research only, no redistribution",
    homepage="https://github.com/MME-Benchmarks/Video-MME",
    files=(File("videomme/test-00000-of-00001.parquet", hub="lmms-lab/Video-MME"),),
    needs=("question", "options", "answer"),
    videos_of=lambda row: [f"data/{row['videoID']}.mp4"],
    # The label counts: measured seconds are outside the documented limits.
    labels_of=lambda row, seconds: [row["duration"]],
    buckets=BUCKETS,
    harness_folders=("videomme",),
    truth_of=lambda doc: Truth(doc["answer"]),
)


def docs(_stub: Any) -> Any:
    """The official rows."""
    return lmms.docs(SOURCE, doc_to_text, _try)


def _try(doc: Row, results: list[Any]) -> dict[str, Any]:
    """Score the document, because the official aggregation fails on a category that it does not know."""
    from lmms_eval.tasks.videomme.utils import CATEGORIES, SUB_CATEGORIES, TASK_CATEGORIES

    known = {"domain": CATEGORIES, "sub_category": SUB_CATEGORIES, "task_type": TASK_CATEGORIES}
    for name, values in known.items():
        if doc[name] not in values:
            raise ValueError(f"there is no {name} {doc[name]!r}")
    return process_results(doc, results)


def doc_to_text(doc: Row, lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """lmms-eval's prompt without its text about subtitles, which this task does not show."""
    if unreadable(doc):
        return str(NOT_READ)
    from lmms_eval.tasks.videomme.utils import videomme_doc_to_text

    return str(videomme_doc_to_text(doc, lmms_eval_specific_kwargs or {})).replace(
        "the video and the subtitles", "the video"
    )


def process_results(doc: Row, results: list[Any]) -> dict[str, Any]:
    """lmms-eval's score, overall and by duration label."""
    if unreadable(doc):
        return dict(SOURCE.scored(doc, 0.0))
    from lmms_eval.tasks.videomme.utils import videomme_process_results

    official = videomme_process_results(doc, [reply(results)])
    scored: dict[str, Any] = SOURCE.scored(doc, official["videomme_perception_score"]["score"], **official)
    return scored
