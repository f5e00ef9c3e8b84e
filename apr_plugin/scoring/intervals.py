"""Temporal IoU and measures based on it. Pure functions; times are in seconds; every score is in [0, 1].

Four different measures are called "IoU" in this field. So the name of each function says which one it computes, and the
key of a metric should also say it (`docs/scoring.md`):

- hull: one predicted span against one true span (Charades-STA, ActivityNet Captions, TACoS, TimeLens, LongVALE);
- best: the first predicted span against the true span that it fits best (QVHighlights R1, NExT-GQA);
- set: all predicted spans against all true ones, each side merged (VUE-TR, CG-Bench, OmniAgent);
- ranked: average precision over a ranked list of spans (QVHighlights mAP, in `apr_plugin.scoring.retrieval`).

A span that is reversed, negative or not finite has no overlap with any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from apr_plugin.scoring.times import Span, parse_spans, parse_time

__all__ = [
    "THRESHOLDS",
    "PrecisionRecall",
    "Span",
    "best_iou",
    "hull_iou",
    "iou_of_unions",
    "length",
    "merge",
    "overlap",
    "parse_spans",
    "parse_time",
    "recall_at",
    "recalls",
    "set_iou",
    "set_precision_recall",
    "union",
    "valid_span",
]

THRESHOLDS = (0.3, 0.5, 0.7)
"""The IoU thresholds at which R@1 is reported in temporal grounding."""


def valid_span(span: Span) -> bool:
    """Whether the span is finite, not negative and not reversed."""
    start, end = span
    return math.isfinite(start) and math.isfinite(end) and 0 <= start <= end


def merge(spans: Iterable[Span]) -> list[Span]:
    """The union of the valid spans as sorted, disjoint spans; invalid ones are left out."""
    return union(span for span in spans if valid_span(span))


def union(spans: Iterable[Span]) -> list[Span]:
    """The union of finite, not reversed spans as sorted, disjoint spans."""
    merged: list[Span] = []
    for start, end in sorted((span[0], span[1]) for span in spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def length(spans: Sequence[Span]) -> float:
    """Total seconds covered by disjoint spans."""
    return sum(end - start for start, end in spans)


def hull_iou(predicted: Span | None, true: Span) -> float:
    """Temporal IoU of one predicted and one true span.

    It is the seconds in both spans over the seconds from the first start to the last end. For two spans that overlap
    this is plain IoU. Spans that don't overlap score 0, and so does a prediction that is missing (`None`) or invalid.
    Pass the first span of an answer: `hull_iou(next(iter(parse_spans(text)), None), true)`.
    """
    if predicted is None or not valid_span(predicted) or not valid_span(true):
        return 0.0
    both = min(predicted[1], true[1]) - max(predicted[0], true[0])
    hull = max(predicted[1], true[1]) - min(predicted[0], true[0])
    return both / hull if both > 0 else 0.0


def best_iou(predicted: Sequence[Span], true: Sequence[Span]) -> float:
    """The largest `hull_iou` of the first predicted span with any true span; 0 if nothing was predicted.

    Only the first prediction counts, so that more spans do not give a higher score.
    """
    return max((hull_iou(predicted[0], span) for span in true), default=0.0) if predicted else 0.0


def set_iou(predicted: Iterable[Span], true: Iterable[Span]) -> float:
    """Temporal IoU of two sets of spans: seconds in both over seconds in either, always in [0, 1].

    Both sides are merged first and reversed spans dropped, so that an overlap never counts twice (the published scorer
    gives `[[0, 100], [900, 810]]` against `[[10, 20]]` a score of 1.00; see `docs/scoring.md`).
    """
    return iou_of_unions(merge(predicted), merge(true))


def iou_of_unions(a: Sequence[Span], b: Sequence[Span]) -> float:
    """Seconds in both over seconds in either, for two sorted lists of disjoint spans; 0 if neither covers any."""
    both = overlap(a, b)
    either = length(a) + length(b) - both
    return min(1.0, both / either) if either > 0 else 0.0


class PrecisionRecall(NamedTuple):
    """Two shares of seconds, each in [0, 1]."""

    precision: float
    """Share of the predicted seconds that are true; 0 if none was predicted."""

    recall: float
    """Share of the true seconds that were predicted; 0 if none is true."""


def set_precision_recall(predicted: Iterable[Span], true: Iterable[Span]) -> PrecisionRecall:
    """Precision and recall of the seconds that two sets of spans cover; each side is merged first."""
    a, b = merge(predicted), merge(true)
    both = overlap(a, b)
    return PrecisionRecall(_share(both, length(a)), _share(both, length(b)))


def overlap(a: Sequence[Span], b: Sequence[Span]) -> float:
    """Seconds that two sorted lists of disjoint spans have in common."""
    both, i, j = 0.0, 0, 0
    while i < len(a) and j < len(b):
        both += max(0.0, min(a[i][1], b[j][1]) - max(a[i][0], b[j][0]))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return both


def _share(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole > 0 else 0.0


def recall_at(iou: float, threshold: float) -> float:
    """1.0 if an IoU is at least the threshold, else 0.0; the mean over questions is R@1 at that threshold."""
    return float(iou >= threshold)


def recalls(iou: float, variant: str, thresholds: Sequence[float] = THRESHOLDS) -> Mapping[str, float]:
    """The metrics of one question, under keys that name the variant of the IoU.

    The keys are, for `hull` as an example, `iou_hull`, `r1_hull_0.3`, `r1_hull_0.5` and `r1_hull_0.7`.

    Args:
        iou: The question's IoU.
        variant: `hull`, `best` or `set`: how that IoU was computed.
        thresholds: IoU thresholds of R@1.
    """
    return {
        f"iou_{variant}": iou,
        **{f"r1_{variant}_{threshold:g}": recall_at(iou, threshold) for threshold in thresholds},
    }
