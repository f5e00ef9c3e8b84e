"""What `apr_tacos.yaml` calls by `!function`. lmms-eval runs this file anew for every reference, so it keeps no state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from typing import Any

from apr_plugin.scoring.intervals import recall_at
from apr_plugin.tasks.common import Bins, File, Row, Source, grounding

REPOSITORY = "https://raw.githubusercontent.com/microsoft/VideoX/1744b2159c3d11694f94dab4fcde8660c685e79a/2D-TAN/data/TACoS"

BINS = Bins.of_minutes(0, 2, 4, 6, 10, inf)


def rows_of(contents: Sequence[Any]) -> Iterator[Row]:
    """One row for each sentence of `{video: {timestamps, sentences, fps, num_frames}}`; time stamps are frame numbers."""
    (videos,) = contents
    for video, about in videos.items():
        fps = float(about["fps"])
        for (start, end), query in zip(about["timestamps"], about["sentences"], strict=True):
            if start < end:
                asked = 'When in the video does this happen: "{}"?'
                yield grounding.row(asked, query, [(start / fps, end / fps)], video=video, duration=about["num_frames"] / fps)


SOURCE = Source(
    task="apr_tacos",
    folder="tacos",
    title="TACoS (2D-TAN split)",
    kind="grounding",
    n=4001,
    licence="not verified",
    homepage="https://www.mpi-inf.mpg.de/departments/computer-vision-and-machine-learning/research/vision-and-language/tacos-multi-level-corpus",
    files=(File("test.json", url=f"{REPOSITORY}/test.json"),),
    rows_of=rows_of,
    videos_of=lambda row: [row["video"]],
    seconds_of=lambda row: float(row["duration"]),
    labels_of=lambda row, seconds: [BINS.name(seconds)],
    buckets=BINS.names,
    prefix="iou_hull",
)


def docs(_stub: Any) -> Any:
    """The test split."""
    return SOURCE.docs()


def process_results(doc: Row, results: list[Any]) -> dict[str, Any]:
    """IoU of the first span, R@1 (at IoU 0.1 too, which older papers report), and the IoU in the video's duration bucket."""
    numbers = grounding.score_hull(SOURCE, doc, results)
    return {**numbers, "r1_hull_0.1": recall_at(numbers["iou_hull"], 0.1)}
