"""The functions of the YAML's `!function`; lmms-eval loads this file again for every reference, so it has no state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from apr_plugin.scoring.truth import Truth
from apr_plugin.tasks.common import File, Row, Source, Unreadable, each, lmms, reply, unreadable
from apr_plugin.tasks.common.choices import bucket_name, question_of, without_labels

DURATIONS = ("30s", "60s")
TYPES = ("Event Sequence", "AV Event Alignment", "Context understanding", "Reasoning", "Inference", "Comparative")
COLUMNS = ("Question", "Choice", "Answer", "video_id", "Type", "video_category", "video_duration")
"""The columns that every row has.

The others (`content_parent_category`, `content_fine_category`, `Explaination`) are missing in some rows.
"""


def _rows(contents: Sequence[Any]) -> Iterator[Row | Unreadable]:
    yield from each(_row, contents[0])


def _row(row: Row) -> list[Row]:
    return [
        {**{name: row[name] for name in COLUMNS}, "question": row["Question"], "options": without_labels(row["Choice"])}
    ]


SOURCE = Source(
    task="apr_dailyomni",
    folder="dailyomni",
    title="Daily-Omni",
    kind="mcq",
    n=1197,
    licence="not stated for the data; the code is GPL-3.0",
    homepage="https://github.com/Lliar-liar/Daily-Omni",
    files=(File("qa.json", hub="liarliar/Daily-Omni"),),
    videos_of=lambda row: [f"Videos/{row['video_id']}/{row['video_id']}_video.mp4"],
    labels_of=lambda row, seconds: [row["video_duration"], bucket_name(row["Type"])],
    buckets=(*DURATIONS, *map(bucket_name, TYPES)),
    rows_of=_rows,
    needs=("question", "Answer"),
    seconds_of=lambda row: float(row["video_duration"].removesuffix("s")),
    question_of=question_of,
    truth_of=lambda doc: Truth(doc["Answer"]),
)


def docs(_stub: Any) -> Any:
    """The official rows."""
    return lmms.docs(SOURCE)


def process_results(doc: Row, results: list[Any]) -> dict[str, Any]:
    """1 if the reply begins with the right letter, in either case; overall, by length and by type.

    The official scorer does the same.

    The official scorer excludes questions that failed from the denominator; here they count as wrong.
    """
    if unreadable(doc):
        return dict(SOURCE.scored(doc, 0.0))
    letter = reply(results).strip()[:1].upper()
    scored: dict[str, Any] = SOURCE.scored(doc, float(letter == doc["Answer"]))
    return scored
