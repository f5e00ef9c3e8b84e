"""The functions of the YAML's `!function`; lmms-eval loads this file again for every reference, so it has no state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from typing import Any

from apr_plugin.scoring.truth import Truth
from apr_plugin.tasks.common import NOT_READ, Bins, File, Row, Source, Unreadable, each, lmms, reply, unreadable

BINS = Bins.of_minutes(0, 5, 15, 30, inf)


def rows_of(contents: Sequence[Any]) -> Iterator[Row | Unreadable]:
    """The official rows, with `video_id` and `question type` changed.

    `video_id` loses the rest of a YouTube address, and `question type` gets the name that lmms-eval's copy uses.
    """
    yield from each(_row, contents[0])


def _row(row: Row) -> list[Row]:
    skills = row["question_type"] if "question_type" in row else row["question type"]
    kept = {name: value for name, value in row.items() if name != "question type"}
    return [{**kept, "video_id": str(row["video_id"]).split("v=")[-1].split("&")[0], "question_type": skills}]


SOURCE = Source(
    task="apr_minerva",
    folder="minerva",
    title="Minerva",
    kind="mcq",
    n=1515,
    licence="CC BY 4.0 (annotations)",
    homepage="https://github.com/google-deepmind/neptune",
    files=(File("minerva.json", hub="lmms-lab-eval/minerva"),),
    rows_of=rows_of,
    needs=("question", "answer_id", *(f"answer_choice_{i}" for i in range(5))),
    videos_of=lambda row: [f"{row['video_id']}.mp4"],
    measure=True,
    labels_of=lambda row, seconds: [BINS.name(seconds)],
    buckets=BINS.names,
    truth_of=lambda doc: Truth("ABCDE"[doc["answer_id"]]),
)


def docs(_stub: Any) -> Any:
    """The official rows."""
    return lmms.docs(SOURCE, doc_to_text, process_results)


def doc_to_text(doc: Row, lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """lmms-eval's prompt."""
    if unreadable(doc):
        return str(NOT_READ)
    from lmms_eval.tasks.minerva.utils import minerva_doc_to_text

    return str(minerva_doc_to_text(doc, lmms_eval_specific_kwargs))


def doc_to_target(doc: Row) -> str:
    """The target of lmms-eval, which is only logged."""
    from lmms_eval.tasks.minerva.utils import minerva_doc_to_target

    return str(minerva_doc_to_target(doc)) if unreadable(doc) is None else ""


def process_results(doc: Row, results: list[Any]) -> dict[str, Any]:
    """Score by lmms-eval's parser, overall and by duration.

    A reply that the parser can't read is wrong here and a guess in `minerva_acc`.
    """
    if unreadable(doc):
        return dict(SOURCE.scored(doc, 0.0))
    from lmms_eval.tasks.minerva.utils import _extract_choice_letter, minerva_process_results

    official = minerva_process_results(doc, [reply(results)])
    right = _extract_choice_letter(reply(results)) == official["minerva_acc"]["answer"] != ""
    scored: dict[str, Any] = SOURCE.scored(doc, right, **official)
    return scored
