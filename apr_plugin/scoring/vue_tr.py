"""VUE-TR and VUE-TR-V2, scored as in their own repository. Pure functions.

Sources: bytedance/vidi, `VUE_TR/qa_eval.py` and `VUE_TR_V2/qa_eval.py`.

For one query, the predicted spans are widened to whole seconds (start down, end up). Then

- IoU: reversed spans are dropped, the rest merged; seconds in both over seconds in either (set IoU).
- precision and recall: the ends of reversed spans are swapped and nothing is merged; shared seconds over predicted or
  true seconds. A query with no predicted (or true) seconds has no precision (or recall) and is left out of that mean.

For a set of queries, each figure is the area under a curve over the thresholds 0, 0.01, ... 1 by the trapezoid rule.
The curve is the share of queries with IoU > t, with precision >= t, with recall >= t.

The official script loops over the predictions, so that a query without a prediction is not counted. Figures named
`_all` here count it as an empty answer: IoU and recall 0, no precision. `miou` is the plain mean of the set IoU of the
spans as predicted, not widened. OmniAgent (arXiv 2606.19341) gives this measure in its own rows of Table 3; its
baseline rows there are the areas of the official table.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from apr_plugin.scoring.intervals import Span, iou_of_unions, length, overlap, set_iou, union

ATTRIBUTES = {
    "duration_category": ("ultra-short", "short", "medium", "long", "ultra-long"),
    "query_format": ("keyword", "phrase", "sentence"),
    "query_modality": ("vision", "audio", "vision+audio"),
}
"""The columns by which the table is broken down, and their values in the table's order."""

OVERALL = "overall"

_THRESHOLDS = [step * 0.01 for step in range(100)] + [1.0]


@dataclass(frozen=True)
class Query:
    """One query of the ground truth."""

    query_id: int
    """Unique in its version of the benchmark."""

    spans: Sequence[Span]
    """The true spans in seconds: sorted, disjoint."""

    duration_category: str
    """The data set's own label of the video's length: ultra-short (under 1 minute), short (to 10), medium (to 30), long
    (to 60), ultra-long."""

    query_format: str
    """`keyword`, `phrase` or `sentence`."""

    query_modality: str
    """What is needed to find the answer: `vision`, `audio` or `vision+audio`."""

    @property
    def cells(self) -> tuple[str, ...]:
        """The rows of the table in which this query counts."""
        return OVERALL, self.duration_category, self.query_format, self.query_modality


class QueryScore(NamedTuple):
    """The metrics of one query."""

    iou: float
    """Set IoU of the widened spans, in [0, 1]."""

    precision: float | None
    """`None` if no seconds were predicted. It is above 1 if predicted spans overlap enough: the official script does
    not merge here."""

    recall: float | None
    """`None` if no seconds are true. It may be above 1, like precision."""

    plain_iou: float
    """Set IoU of the spans as predicted."""


def widen(spans: Iterable[Span]) -> list[Span]:
    """Round the start down and the end up to whole seconds; spans that are not finite are left out."""
    return [
        (float(math.floor(start)), float(math.ceil(end)))
        for start, end in spans
        if math.isfinite(start) and math.isfinite(end)
    ]


def score_query(predicted: Sequence[Span], true: Sequence[Span], version: int = 1) -> QueryScore:
    """Score one answer.

    Args:
        predicted: Spans in seconds as the model gave them; empty for no answer.
        true: True spans, sorted and disjoint.
        version: 1, or 2 for VUE-TR-V2, which gives an empty answer to a query without true seconds a precision of 1.
    """
    wide = widen(predicted)
    iou = iou_of_unions(union(span for span in wide if span[0] <= span[1]), true) if wide or true else 1.0
    turned = [(min(span), max(span)) for span in wide]
    both, predicted_s, true_s = overlap(true, turned), length(turned), length(true)
    precision = both / predicted_s if predicted_s else (1.0 if version == 2 and not true_s else None)
    return QueryScore(iou, precision, both / true_s if true_s else None, set_iou(predicted, true))


def iou_area(ious: Sequence[float]) -> float | None:
    """The figure that the official table calls IoU: area under the share of queries with IoU > t.

    It is `None` if there are no queries.
    """
    ordered = sorted(ious)
    return _area([len(ordered) - bisect_right(ordered, t) for t in _THRESHOLDS], len(ordered))


def share_area(values: Sequence[float]) -> float | None:
    """The figure that the official table calls precision or recall: area under the share of queries with a value >= t.

    It is `None` if there are no queries.
    """
    ordered = sorted(values)
    return _area([len(ordered) - bisect_left(ordered, t) for t in _THRESHOLDS], len(ordered))


def _area(counts: Sequence[int], n: int) -> float | None:
    return (sum(counts) - (counts[0] + counts[-1]) / 2) / (100 * n) if n else None


@dataclass(frozen=True)
class Cell:
    """One row of the table. Shares are in [0, 1], and `None` if no query has such a value."""

    queries: int
    """Queries in the ground truth."""

    answered: int
    """Queries that have a prediction, even an empty one."""

    precision: float | None
    """Official: area, over the answered queries with predicted seconds."""

    recall: float | None
    """Official: area, over the answered queries."""

    iou: float | None
    """Official: area, over the answered queries."""

    recall_all: float | None
    """Area over all queries; a missing one counts as 0."""

    iou_all: float | None
    """Area over all queries; a missing one counts as 0."""

    miou: float | None
    """Plain mean IoU of the spans as predicted, over the answered queries."""

    miou_all: float | None
    """Plain mean IoU over all queries; a missing one counts as 0."""


def score(queries: Sequence[Query], answers: Mapping[int, Sequence[Span]], version: int = 1) -> dict[str, Cell]:
    """The table: one `Cell` for "overall" and for each value of each attribute.

    Args:
        queries: The ground truth.
        answers: Predicted spans by query id; queries that are not in it are missing.
        version: 1 for VUE-TR, 2 for VUE-TR-V2.
    """
    rows: dict[str, list[tuple[bool, QueryScore]]] = {
        name: [] for name in (OVERALL, *(value for values in ATTRIBUTES.values() for value in values))
    }
    for query in queries:
        scored = query.query_id in answers, score_query(answers.get(query.query_id, ()), query.spans, version)
        for name in query.cells:
            rows[name].append(scored)
    return {name: _cell(scored) for name, scored in rows.items()}


def _cell(scored: Sequence[tuple[bool, QueryScore]]) -> Cell:
    every = [score for _, score in scored]
    answered = [score for is_answered, score in scored if is_answered]
    return Cell(
        queries=len(every),
        answered=len(answered),
        precision=share_area([score.precision for score in answered if score.precision is not None]),
        recall=share_area([score.recall for score in answered if score.recall is not None]),
        iou=iou_area([score.iou for score in answered]),
        recall_all=share_area([score.recall for score in every if score.recall is not None]),
        iou_all=iou_area([score.iou for score in every]),
        miou=fmean(score.plain_iou for score in answered) if answered else None,
        miou_all=fmean(score.plain_iou for score in every) if every else None,
    )
