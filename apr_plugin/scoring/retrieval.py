"""Ranked moment retrieval, scored like QVHighlights: average precision over a ranked list of spans, and R@1.

Pure functions; times are in seconds.

The definition is that of jayleicn/moment_detr, `standalone_eval/eval.py`. The results agree with it
(`docs/scoring.md`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from apr_plugin.scoring.intervals import Span, best_iou, hull_iou, recall_at

MAP_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""IoU 0.50, 0.55, ... 0.95."""

MAX_PREDICTIONS = 10
"""Only this many spans of a question count towards its average precision."""

LENGTHS = {"short": (0.0, 10.0), "middle": (10.0, 30.0), "long": (30.0, 150.0)}
"""Length of a true span in seconds: above the first number, up to the second."""


def average_precisions(
    predicted: Sequence[Sequence[float]], true: Sequence[Span], thresholds: Sequence[float] = MAP_THRESHOLDS
) -> list[float]:
    """Interpolated average precision of one question's ranked spans at each IoU threshold.

    In order of rank, a span is right if its IoU with a true span that is not yet taken is at least the threshold. It
    takes the true span with the largest IoU.

    Args:
        predicted: `(start, end, score)` each, or `(start, end)` in falling order of confidence; only the first
            `MAX_PREDICTIONS` count.
        true: True spans.
        thresholds: Smallest IoU at which a span is right.
    """
    ranked = sorted(predicted[:MAX_PREDICTIONS], key=_score, reverse=True)
    ious = [
        sorted(((hull_iou((span[0], span[1]), other), index) for index, other in enumerate(true)), reverse=True)
        for span in ranked
    ]
    return [_average_precision(ious, len(true), threshold) for threshold in thresholds]


def _average_precision(ious: Sequence[Sequence[tuple[float, int]]], n_true: int, threshold: float) -> float:
    taken: set[int] = set()
    precisions: list[float] = []  # precision after each right span; recall grows by 1 / n_true at each
    for rank, fits in enumerate(ious, 1):
        free = next((index for iou, index in fits if iou >= threshold and index not in taken), None)
        if free is not None:
            taken.add(free)
            precisions.append(len(taken) / rank)
    best, area = 0.0, 0.0
    for precision in reversed(precisions):
        best = max(best, precision)
        area += best
    return area / n_true if n_true else 0.0


def _score(span: Sequence[float]) -> float:
    score = span[2] if len(span) > 2 else 0.0
    return -math.inf if math.isnan(score) else score


def moment_metrics(
    predictions: Sequence[Sequence[Sequence[float]]], truths: Sequence[Sequence[Span]]
) -> dict[str, float]:
    """The moment-retrieval metrics of QVHighlights over a set of questions, each in [0, 1].

    Args:
        predictions: The spans of each question, in the form that `average_precisions` takes; empty if nothing was
            predicted, which scores 0.
        truths: The true spans of each question, in the same order.

    Returns:
        `map` (mean over IoU 0.5:0.05:0.95), `map_0.5`, `map_0.75`, `map_short`, `map_middle`, `map_long` (only true
        spans of that length, and only questions that have one; absent if there is none), `r1_best_0.5` and
        `r1_best_0.7` (for the first span listed).

    Raises:
        ValueError: the two lists differ in length, or are empty.
    """
    if len(predictions) != len(truths) or not truths:
        raise ValueError(f"{len(predictions)} predictions for {len(truths)} questions")
    both = list(zip(predictions, truths, strict=True))
    table = [average_precisions(predicted, true) for predicted, true in both]
    found = {"map": fmean(map(fmean, table))}
    for threshold in (0.5, 0.75):
        column = MAP_THRESHOLDS.index(threshold)
        found[f"map_{threshold:g}"] = fmean(row[column] for row in table)
    for name, (over, up_to) in LENGTHS.items():
        of_length = [
            (predicted, [span for span in true if over < span[1] - span[0] <= up_to]) for predicted, true in both
        ]
        rows = [fmean(average_precisions(predicted, true)) for predicted, true in of_length if true]
        if rows:
            found[f"map_{name}"] = fmean(rows)
    first = [best_iou([(span[0], span[1]) for span in predicted[:1]], true) for predicted, true in both]
    for threshold in (0.5, 0.7):
        found[f"r1_best_{threshold:g}"] = fmean(recall_at(iou, threshold) for iou in first)
    return found
