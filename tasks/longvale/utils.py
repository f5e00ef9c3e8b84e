"""The functions of the YAMLs' `!function`; lmms-eval loads this file again for every reference, so it has no state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any

from apr_plugin.scoring.truth import Rules
from apr_plugin.scoring.writing import write_longest_span
from apr_plugin.tasks.common import Bins, File, Row, Source, Unreadable, each, grounding, lmms, number

BINS = Bins.of_minutes(0, 2, 4, 6, inf)


def _rows(contents: Sequence[Any], asked: str) -> Iterator[Row | Unreadable]:
    (videos,) = contents
    yield from each(partial(_of_video, asked), videos.items())


def _of_video(asked: str, item: tuple[str, Any]) -> Iterator[Row | Unreadable]:
    video, about = item

    def of_event(pair: tuple[Any, str]) -> list[Row]:
        (start, end), query = pair
        return [grounding.row(asked, query, [(start, end)], video=video, duration=number(about["duration"]))]

    yield from each(of_event, zip(about["timestamps"], about["sentences"], strict=True))


def rows_of(contents: Sequence[Any]) -> Iterator[Row | Unreadable]:
    """One row for each event of `{video: {duration, timestamps, sentences}}`, which asks for its one span."""
    return _rows(contents, 'When in the video does this happen: "{}"?')


def rows_of_all(contents: Sequence[Any]) -> Iterator[Row | Unreadable]:
    """The same rows, which ask for every span."""
    return _rows(contents, 'In which parts of the video does this happen: "{}"?')


SOURCE = Source(
    task="apr_longvale",
    folder="longvale",
    title="LongVALE",
    kind="grounding",
    n=13867,
    licence="CC BY-NC-SA 4.0",
    homepage="https://github.com/ttgeng233/LongVALE",
    files=(File("longvale-annotations-eval.json", hub="ttgeng233/LongVALE"),),
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
ALL = replace(
    SOURCE,
    task="apr_longvale_all",
    rows_of=rows_of_all,
    prefix="iou_set",
    question_of=grounding.question_of_all,
    write=str,
    rules=Rules(spans="set"),
)


def docs(_stub: Any) -> Any:
    """The evaluation split, one span asked for."""
    return lmms.docs(SOURCE)


def all_docs(_stub: Any) -> Any:
    """The evaluation split, every span asked for."""
    return lmms.docs(ALL)


def process_results(doc: Row, results: list[Any]) -> dict[str, Any]:
    """IoU of the first span, R@1, and the IoU in the video's duration bucket."""
    numbers: dict[str, Any] = grounding.score_hull(SOURCE, doc, results)
    return numbers


def process_all(doc: Row, results: list[Any]) -> dict[str, Any]:
    """IoU of the seconds covered, with precision and recall, and the IoU in the video's duration bucket."""
    numbers: dict[str, Any] = grounding.score_set(ALL, doc, results)
    return numbers
