"""The functions of the YAML's `!function`; lmms-eval loads this file again for every reference, so it has no state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from typing import Any

from apr_plugin.scoring.truth import Rules
from apr_plugin.scoring.writing import write_longest_span
from apr_plugin.tasks.common import Bins, File, Row, Source, Unreadable, each, grounding, lmms, number

REPOSITORY = (
    "https://raw.githubusercontent.com/microsoft/VideoX/1744b2159c3d11694f94dab4fcde8660c685e79a/"
    "2D-TAN/data/Charades-STA"
)

BINS = Bins((0, 20, 30, 40, inf), ("0-20s", "20-30s", "30-40s", "over_40s"))


def rows_of(contents: Sequence[Any]) -> Iterator[Row | Unreadable]:
    """Lines `3MSZA 24.3 30.4##person turn a light on.` with the lengths of `Charades_v1_test.csv`."""
    lines, videos = contents
    seconds = {video["id"]: video["length"] for video in videos if not isinstance(video, Unreadable)}

    def of_line(line: str) -> Iterator[Row]:
        where, _, query = line.partition("##")
        video, start, end = where.split()
        if number(start) < number(end):
            asked = 'When in the video does this happen: "{}"?'
            yield grounding.row(
                asked, query, [(number(start), number(end))], video=video, duration=number(seconds[video])
            )

    yield from each(of_line, filter(None, lines))


SOURCE = Source(
    task="apr_charades_sta",
    folder="charades_sta",
    title="Charades-STA",
    kind="grounding",
    n=3720,
    licence="not stated (annotations); Charades: academic, non-commercial",
    homepage="https://github.com/jiyanggao/TALL",
    files=(
        File("charades_sta_test.txt", url=f"{REPOSITORY}/charades_sta_test.txt"),
        File("Charades_v1_test.csv", url=f"{REPOSITORY}/Charades_v1_test.csv"),
    ),
    rows_of=rows_of,
    videos_of=lambda row: [f"{row['video']}.mp4"],
    seconds_of=lambda row: float(row["duration"]),
    labels_of=lambda row, seconds: [BINS.name(seconds)],
    buckets=BINS.names,
    harness_folders=("charades_sta",),
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
    """IoU of the first span, R@1, and the IoU in the video's duration bucket."""
    numbers: dict[str, Any] = grounding.score_hull(SOURCE, doc, results)
    return numbers
