"""The functions of the YAMLs' `!function`; lmms-eval loads this file again for every reference, so it has no state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import inf
from typing import Any

from apr_plugin.scoring.truth import Rules
from apr_plugin.scoring.writing import write_longest_span
from apr_plugin.tasks.common import Bins, File, Row, Source, Unreadable, each, grounding, lmms, number

REPOSITORY = (
    "https://raw.githubusercontent.com/microsoft/VideoX/1744b2159c3d11694f94dab4fcde8660c685e79a/"
    "2D-TAN/data/ActivityNet"
)

BINS = Bins.of_minutes(0, 1, 2, 3, inf)


def rows_of(contents: Sequence[Any]) -> Iterator[Row | Unreadable]:
    """One row for each sentence of `{video: {duration, timestamps, sentences}}`.

    Sentences whose start is not before their end are left out.
    """
    (videos,) = contents
    yield from each(_of_video, videos.items())


def _of_video(item: tuple[str, Any]) -> Iterator[Row | Unreadable]:
    video, about = item

    def of_sentence(pair: tuple[Any, str]) -> Iterator[Row]:
        (start, end), query = pair
        if not start >= end:
            asked = 'When in the video does this happen: "{}"?'
            yield grounding.row(asked, query, [(start, end)], video=video, duration=number(about["duration"]))

    yield from each(of_sentence, zip(about["timestamps"], about["sentences"], strict=True))


SOURCE = Source(
    task="apr_activitynet_captions",
    folder="activitynet_captions",
    title="ActivityNet Captions",
    kind="grounding",
    n=17031,
    licence="not stated",
    homepage="https://cs.stanford.edu/people/ranjaykrishna/densevid/",
    files=(File("val_2.json", url=f"{REPOSITORY}/test.json"),),
    rows_of=rows_of,
    videos_of=lambda row: [f"{row['video']}.mp4"],
    seconds_of=lambda row: float(row["duration"]),
    labels_of=lambda row, seconds: [BINS.name(seconds)],
    buckets=BINS.names,
    prefix="iou_hull",
    question_of=grounding.question_of_one,
    write=write_longest_span,
    truth_of=grounding.truth_of,
    rules=Rules(spans="hull"),
)
VAL = replace(
    SOURCE, task="apr_activitynet_captions_val", n=17505, files=(File("val_1.json", url=f"{REPOSITORY}/val.json"),)
)


def docs(_stub: Any) -> Any:
    """`val_2`, the split that papers call test."""
    return lmms.docs(SOURCE)


def val_docs(_stub: Any) -> Any:
    """`val_1`."""
    return lmms.docs(VAL)


def process_results(doc: Row, results: list[Any]) -> dict[str, Any]:
    """IoU of the first span, R@1, and the IoU in the video's duration bucket."""
    numbers: dict[str, Any] = grounding.score_hull(SOURCE, doc, results)
    return numbers
