"""The functions of the YAML's `!function`; lmms-eval loads this file again for every reference, so it has no state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from typing import Any

from apr_plugin.scoring.truth import Rules, Truth
from apr_plugin.tasks.common import NOT_READ, Bins, File, Row, Source, Unreadable, each, lmms, number, reply, unreadable

NUMBERS = ("object_counting", "object_abs_distance", "object_size_estimation", "room_size_estimation")
CHOICES = (
    "object_rel_distance",
    "object_rel_direction_easy",
    "object_rel_direction_medium",
    "object_rel_direction_hard",
    "route_planning",
    "obj_appearance_order",
)
"""The benchmark's question types: scored by mean relative accuracy, and by the right option."""

DIRECTION = "object_rel_direction"

BINS = Bins((0, 60, 120, 180, inf), ("0-60s", "60-120s", "120-180s", "over_180s"))


def rows_of(contents: Sequence[Any]) -> Iterator[Row | Unreadable]:
    """The official rows; a number that is not written as text becomes text.

    A value that is not a number would end the scoring of all rows.
    """
    yield from each(_row, contents[0])


def _row(row: Row) -> list[Row]:
    truth = str(row["ground_truth"])
    if row["question_type"] in NUMBERS:
        number(truth)
    elif len(truth) != 1:
        raise ValueError(f"ground_truth {truth!r} is not a letter")
    return [{**row, "ground_truth": truth}]


SOURCE = Source(
    task="apr_vsibench",
    folder="vsibench",
    title="VSI-Bench",
    kind="mcq, number",
    n=5130,
    licence="Apache-2.0 (annotations); the scans have terms of their own",
    homepage="https://github.com/vision-x-nyu/thinking-in-space",
    files=(File("test.jsonl", hub="nyu-visionx/VSI-Bench"),),
    rows_of=rows_of,
    needs=("id", "question"),
    videos_of=lambda row: [f"{row['dataset']}/{row['scene_name']}.mp4"],
    measure=True,
    labels_of=lambda row, seconds: [BINS.name(seconds), row["question_type"]],
    buckets=(*BINS.names, *NUMBERS, *CHOICES),
    prefix="score",
    prefixes={name: "mra" for name in NUMBERS} | {name: "acc" for name in CHOICES},
    harness_folders=("vsibench",),
    metric="overall",
    truth_of=lambda doc: Truth(doc["ground_truth"]),
    rules=Rules(number="relative"),
)


def docs(_stub: Any) -> Any:
    """The official rows."""
    return lmms.docs(SOURCE, doc_to_text, process_results)


def doc_to_text(doc: Row, lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """lmms-eval's prompt."""
    if unreadable(doc):
        return str(NOT_READ)
    from lmms_eval.tasks.vsibench.utils import vsibench_doc_to_text

    return str(vsibench_doc_to_text(doc, lmms_eval_specific_kwargs))


def process_results(doc: Row, results: list[Any]) -> dict[str, Any]:
    """lmms-eval's score, overall, by question type and by duration.

    `overall` gives equal weight to the eight tasks; direction is the mean of three levels.
    """
    if unreadable(doc):
        return dict(SOURCE.scored(doc, 0.0))
    from lmms_eval.tasks.vsibench.utils import vsibench_process_results

    columns = {name: doc[name] for name in ("id", "question_type", "ground_truth")}
    # It writes its score into the columns.
    official = vsibench_process_results(columns, [reply(results)])["vsibench_overall"]
    kind = doc["question_type"]
    score = float(official["MRA:.5:.95:.05" if kind in NUMBERS else "accuracy"])
    grouped = ([DIRECTION, kind] if kind.startswith(DIRECTION) else [kind], score)
    scored: dict[str, Any] = SOURCE.scored(doc, score, overall=grouped, overall_se=grouped, vsibench_overall=official)
    return scored


def official_overall(results: list[Any]) -> float | None:
    """lmms-eval's aggregation; `None` if a level of the direction task was not asked, because it fails without it."""
    from lmms_eval.tasks.vsibench.utils import vsibench_aggregate_overall

    try:
        return float(vsibench_aggregate_overall(results))
    except KeyError:
        return None
