"""The functions of the YAMLs' `!function`; lmms-eval loads this file again for every reference, so it has no state."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from apr_plugin.scoring.vue_tr import ATTRIBUTES, iou_area, score_query, share_area
from apr_plugin.tasks.common import File, Row, Source, Unreadable, each, grounding, lmms

REPOSITORY = "https://raw.githubusercontent.com/bytedance/vidi/fc30c870843a8e8e76864702b48b400b712fe0a8"


def rows_of(contents: Sequence[Any]) -> Iterator[Row | Unreadable]:
    """One row for each query."""
    (queries,) = contents
    yield from each(_of_query, queries)


def _of_query(query: Row) -> list[Row]:
    columns = {name: query[name] for name in ("query_id", "video_id", "duration", "task", *ATTRIBUTES)}
    return [
        grounding.row(
            'In which parts of the video is this seen or heard: "{}"?', query["query"], query["gt"], **columns
        )
    ]


ALL = Source(
    task="apr_vue_tr",
    folder="vue_tr",
    title="VUE-TR",
    kind="grounding",
    n=1598,
    licence="CC BY-NC 4.0",
    homepage="https://github.com/bytedance/vidi",
    files=(File("VUE-TR_ground_truth.json", url=f"{REPOSITORY}/VUE_TR/VUE-TR_ground_truth.json"),),
    rows_of=rows_of,
    videos_of=lambda row: [f"{row['video_id']}.mp4"],
    seconds_of=lambda row: float(row["duration"]),
    labels_of=lambda row, seconds: [row[attribute] for attribute in ATTRIBUTES],
    buckets=tuple(value for values in ATTRIBUTES.values() for value in values),
    prefix="iou_set",
    question_of=grounding.question_of_all,
    truth_of=grounding.truth_of,
)
VISION = replace(ALL, task="apr_vue_tr_vision", n=562, keep=lambda row: row["query_modality"] == "vision")
VISION_AUDIO = replace(
    ALL, task="apr_vue_tr_vision_audio", n=748, keep=lambda row: row["query_modality"] == "vision+audio"
)
AUDIO = replace(ALL, task="apr_vue_tr_audio", n=288, keep=lambda row: row["query_modality"] == "audio")

_V2: dict[str, Any] = {
    "title": "VUE-TR-V2",
    "files": (File("VUE-TRv2_ground_truth.json", url=f"{REPOSITORY}/VUE_TR_V2/VUE-TRv2_ground_truth.json"),),
}
ALL_V2 = replace(ALL, task="apr_vue_tr_v2", n=1600, **_V2)
VISION_V2 = replace(VISION, task="apr_vue_tr_v2_vision", n=727, **_V2)
VISION_AUDIO_V2 = replace(VISION_AUDIO, task="apr_vue_tr_v2_vision_audio", n=586, **_V2)
AUDIO_V2 = replace(AUDIO, task="apr_vue_tr_v2_audio", n=287, **_V2)


def docs(_stub: Any) -> Any:
    """VUE-TR, every query."""
    return lmms.docs(ALL)


def vision_docs(_stub: Any) -> Any:
    """VUE-TR, queries about what is seen."""
    return lmms.docs(VISION)


def vision_audio_docs(_stub: Any) -> Any:
    """VUE-TR, queries about what is seen and heard."""
    return lmms.docs(VISION_AUDIO)


def audio_docs(_stub: Any) -> Any:
    """VUE-TR, queries about what is heard."""
    return lmms.docs(AUDIO)


def v2_docs(_stub: Any) -> Any:
    """VUE-TR-V2, every query."""
    return lmms.docs(ALL_V2)


def v2_vision_docs(_stub: Any) -> Any:
    """VUE-TR-V2, queries about what is seen."""
    return lmms.docs(VISION_V2)


def v2_vision_audio_docs(_stub: Any) -> Any:
    """VUE-TR-V2, queries about what is seen and heard."""
    return lmms.docs(VISION_AUDIO_V2)


def v2_audio_docs(_stub: Any) -> Any:
    """VUE-TR-V2, queries about what is heard."""
    return lmms.docs(AUDIO_V2)


def process_results(doc: Row, results: list[Any]) -> dict[str, Any]:
    """Plain set IoU, the official figures, and `prediction`, the line of the official prediction file.

    An area under a success curve is the mean over queries of the area under each query's own curve, so that lmms-eval's
    `mean` computes the official figures. A query without predicted seconds has no precision.
    """
    spans = [span for span in grounding.read(results) if all(math.isfinite(second) for second in span)]
    official = score_query(spans, grounding.true_spans(doc))
    areas = {
        "vue_iou": iou_area([official.iou]),
        "vue_recall": _area(official.recall),
        "vue_precision": _area(official.precision),
    }
    numbers = {name: area for name, area in areas.items() if area is not None}
    numbers |= {f"vue_iou_{label}": numbers["vue_iou"] for label in doc["apr_buckets"]}
    about = {name: doc.get(name) for name in ("query_id", "video_id", "duration", "query", "task")}
    return {
        **grounding.score_set(ALL, doc, results, **numbers),
        "prediction": {**about, "answer": [list(span) for span in spans]},
    }


def _area(value: float | None) -> float | None:
    return None if value is None else share_area([value])
