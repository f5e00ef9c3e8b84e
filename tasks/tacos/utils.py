"""The functions of the YAML's `!function`; lmms-eval loads this file again for every reference, so it has no state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from typing import Any

from apr_plugin.scoring.intervals import recall_at
from apr_plugin.scoring.truth import Rules
from apr_plugin.scoring.writing import write_longest_span
from apr_plugin.tasks.common import Bins, File, Row, Source, Unreadable, each, grounding, lmms, number

REPOSITORY = (
    "https://raw.githubusercontent.com/microsoft/VideoX/1744b2159c3d11694f94dab4fcde8660c685e79a/2D-TAN/data/TACoS"
)

BINS = Bins.of_minutes(0, 2, 4, 6, 10, inf)


def rows_of(contents: Sequence[Any]) -> Iterator[Row | Unreadable]:
    """One row for each sentence of `{video: {timestamps, sentences, fps, num_frames}}`.

    Its time stamps are frame numbers.
    """
    (videos,) = contents
    yield from each(_of_video, videos.items())


def _of_video(item: tuple[str, Any]) -> Iterator[Row | Unreadable]:
    video, about = item
    fps = number(about["fps"])

    def of_sentence(pair: tuple[Any, str]) -> Iterator[Row]:
        (start, end), query = pair
        if not start >= end:
            asked = 'When in the video does this happen: "{}"?'
            span = (number(start) / fps, number(end) / fps)
            yield grounding.row(asked, query, [span], video=video, duration=number(about["num_frames"]) / fps)

    yield from each(of_sentence, zip(about["timestamps"], about["sentences"], strict=True))


SOURCE = Source(
    task="apr_tacos",
    folder="tacos",
    title="TACoS (2D-TAN split)",
    kind="grounding",
    n=4001,
    licence="not verified",
    homepage="https://www.mpi-inf.mpg.de/departments/computer-vision-and-machine-learning/research/"
    "vision-and-language/tacos-multi-level-corpus",
    files=(File("test.json", url=f"{REPOSITORY}/test.json"),),
    rows_of=rows_of,
    videos_of=lambda row: [row["video"]],
    seconds_of=lambda row: float(row["duration"]),
    labels_of=lambda row, seconds: [BINS.name(seconds)],
    buckets=BINS.names,
    prefix="iou_hull",
    question_of=grounding.question_of_one,
    write=write_longest_span,
    truth_of=grounding.truth_of,
    rules=Rules(spans="hull"),
)


def docs(_stub: Any) -> Any:
    """The test split."""
    return lmms.docs(SOURCE)


def process_results(doc: Row, results: list[Any]) -> dict[str, Any]:
    """IoU of the first span, R@1, and the IoU in the video's duration bucket.

    R@1 is also computed at IoU 0.1, which older papers report.
    """
    numbers = grounding.score_hull(SOURCE, doc, results)
    return {**numbers, "r1_hull_0.1": recall_at(numbers["iou_hull"], 0.1)}
