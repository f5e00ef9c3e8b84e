"""Plots of a comparison as PNG and SVG files, and its tables as CSV files."""

from __future__ import annotations

import csv
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from apr_plugin.compare.joined import Comparison
from apr_plugin.errors import AprError, require
from apr_plugin.loop.trajectory import StopReason
from apr_plugin.runs.rows import KEY, QUESTION, TURN, turn_rows
from apr_plugin.terminal import plain

FORMATS = ("png", "svg")

COLOURS = ("#0b69b0", "#b07400", "#a5478a", "#1f97b8", "#6650b8", "#6b6f77", "#cf5400", "#00815c")
"""The arms' colours, as in the page's light scheme (`page/page.css`)."""

MARKERS = "os^DPvhX"
"""The arms' marks, in the order in which the page uses its own."""

PAIR = (
    "a", "b", "bucket", "n", "only_a", "only_b", "diff", "diff_low", "diff_high", "p", "p_holm", "test", "needed",
    "visible",
)  # fmt: skip
"""Columns of `pairs.csv`; a row without a bucket is of all questions."""

_FORMULA = re.compile(r"^[=+\-@\t\r]")
_NUMBER = re.compile(r"^[+-]?\d+(\.\d+)?([eE][+-]?\d+)?$")

Summary = Mapping[str, Any]


def write(summary: Summary, folder: Path) -> list[Path]:
    """Draw what the summary has figures for, each as PNG and SVG.

    `score_duration`, `cost_duration`, `score_frames`, `scaling` and `stops`; a plot without a point is left out.

    Args:
        summary: As `compare.summary` makes it.
        folder: Made where it is missing.

    Returns:
        The files, in that order.

    Raises:
        MissingExtra: matplotlib is not installed.
        AprError: a file can't be written.
    """
    require("matplotlib", "report")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
        "axes.axisbelow": True, "svg.hashsalt": "apr", "svg.fonttype": "path", "text.parse_math": False,
    }  # fmt: skip
    written = []
    for name, draw in _PLOTS.items():
        with matplotlib.rc_context(style), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # a name in letters that the font lacks is drawn as boxes
            figure = Figure(figsize=(7.2, 4.2), layout="constrained")
            FigureCanvasAgg(figure)
            if not draw(summary, figure.add_subplot()):
                continue
            for form in FORMATS:
                path = folder / f"{name}.{form}"
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    figure.savefig(path, dpi=160, metadata={"Date": None} if form == "svg" else {"Software": None})
                except OSError as error:
                    raise AprError(f"{path}: cannot write this plot: {error.strerror or error}") from error
                written.append(path)
    return written


def tables_csv(comparison: Comparison, summary: Summary, folder: Path) -> list[Path]:
    """Write `questions.csv` (a row for each question and arm), `turns.csv` and `pairs.csv`.

    A text that a spreadsheet would run as a formula begins with `'`.

    Raises:
        AprError: a file can't be written.
    """
    files = {
        "questions.csv": (("comparison_arm", "status", "right", *QUESTION), _questions(comparison)),
        "turns.csv": (("comparison_arm", *TURN), _turns(comparison)),
        "pairs.csv": (PAIR, _pairs(summary)),
    }
    written = []
    for name, (columns, rows) in files.items():
        path = folder / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(columns)
                writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
        except OSError as error:
            raise AprError(f"{path}: cannot write this table: {error.strerror or error}") from error
        written.append(path)
    return written


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.match(text) else text


def _questions(comparison: Comparison) -> Iterable[Mapping[str, Any]]:
    for key in comparison.keys:
        for arm in comparison.arms:
            outcome = arm.outcome(key)
            yield {
                **dict(zip(KEY, key, strict=True)),
                **outcome.row,
                "comparison_arm": arm.name,
                "status": outcome.status,
                "right": int(outcome.right),
                "bucket": comparison.bucket(key),
                "kind": comparison.kind(key),
                "answer": outcome.answer,
                "score": outcome.score if outcome.status == "scored" else None,
            }


def _turns(comparison: Comparison) -> Iterable[Mapping[str, Any]]:
    for arm in comparison.arms:
        for key in comparison.keys:
            if (trajectory := arm.trajectory(key)) is not None:
                for row in turn_rows(trajectory):
                    yield {**row, "comparison_arm": arm.name}


def _pairs(summary: Summary) -> Iterable[Mapping[str, Any]]:
    for pair in summary.get("pairs", ()):
        named = {"a": pair["a"], "b": pair["b"]}
        yield {**pair, **named, **_ends(pair.get("diff"))}
        for bucket in pair.get("buckets", ()):
            yield {**bucket, **named, "bucket": bucket["name"], **_ends(bucket.get("diff"))}


def _ends(interval: Mapping[str, Any] | None) -> dict[str, Any]:
    found = interval or {}
    return {"diff": found.get("value"), "diff_low": found.get("low"), "diff_high": found.get("high")}


def _mark(axes: Any, place: int, points: Sequence[tuple[float, Mapping[str, Any]]], label: str, scale: float) -> bool:
    """Draw intervals at x; whether there was one."""
    known = [(x, found) for x, found in points if found and found.get("value") is not None]
    if not known:
        return False
    ys = [scale * found["value"] for _, found in known]
    errors = [[_reach(found, end, scale) for _, found in known] for end in ("low", "high")]
    axes.errorbar(
        [x for x, _ in known], ys, yerr=errors, label=_label(label), color=COLOURS[place % len(COLOURS)], capsize=3,
        marker=MARKERS[place % len(MARKERS)], linewidth=1.4,
    )  # fmt: skip
    return True


def _reach(found: Mapping[str, Any], end: str, scale: float) -> float:
    value = found.get(end)
    return 0.0 if value is None else scale * max(0.0, (value - found["value"]) * (1 if end == "high" else -1))


def _label(text: object) -> str:
    """A text for a legend: matplotlib leaves out labels that begin with an underscore."""
    label = plain(str(text))
    label = label if len(label) <= 40 else f"{label[:39]}…"
    return f" {label}" if label.startswith("_") else label


def _score_duration(summary: Summary, axes: Any) -> bool:
    buckets = summary.get("buckets", ())
    names = [arm["name"] for arm in summary.get("arms", ())]
    drawn = []
    for place, name in enumerate(names):
        found = [(x + _beside(place, len(names)), bucket["arms"].get(name) or {}) for x, bucket in enumerate(buckets)]
        drawn.append(_mark(axes, place, found, name, 100))
    _bucket_axis(axes, buckets)
    axes.set_ylabel("score, %")
    return any(drawn)


def _cost_duration(summary: Summary, axes: Any) -> bool:
    buckets, drawn = summary.get("buckets", ()), []
    quantity = next((name for name in ("visual_tokens", "frames", "seconds") if _has(buckets, name)), "")
    for place, arm in enumerate(summary.get("arms", ())):
        costs = [(bucket.get("cost") or {}).get(arm["name"]) or {} for bucket in buckets]
        points = [(float(x), cost.get(quantity) or {"value": None}) for x, cost in enumerate(costs)]
        drawn.append(_mark(axes, place, points, arm["name"], 1))
    _bucket_axis(axes, buckets)
    axes.set_ylabel(f"{quantity.replace('_', ' ')} a question")
    axes.set_ylim(bottom=0)
    return any(drawn)


def _score_frames(summary: Summary, axes: Any) -> bool:
    drawn = []
    for place, arm in enumerate(summary.get("arms", ())):
        frames = ((arm.get("cost") or {}).get("frames") or {}).get("value")
        drawn.append(frames is not None and _mark(axes, place, [(frames, arm.get("score") or {})], arm["name"], 100))
    first = True
    for one in _placed(summary.get("published", ())):
        label = f"published ({one['metric']}), not measured here" if first else None
        axes.plot([one["frames"]], [one["value"]], "o", markerfacecolor="none", color="0.4", label=label)
        axes.annotate(
            _label(one["system"]), (one["frames"], one["value"]), xytext=(6, 0), textcoords="offset points",
            fontsize=8, color="0.4", va="center",
        )  # fmt: skip
        first = False
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set_xlabel("frames a question, on average")
    axes.set_ylabel("score, %")
    axes.margins(x=0.15)
    return any(drawn) and bool(axes.legend(fontsize=8, frameon=False))


def _placed(published: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Published figures with a number of frames, all of one metric: the one, in %, that most of them have."""
    able = [one for one in published if one.get("frames") is not None and "%" in one["metric"]]
    most = Counter(one["metric"] for one in able).most_common(1)
    return [one for one in able if one["metric"] == most[0][0]]


def _scaling(summary: Summary, axes: Any) -> bool:
    sweep = summary.get("sweep") or {}
    points = sweep.get("points", ())
    numeric = all(isinstance(point["value"], int | float) for point in points)
    marks = [(float(point["value"]) if numeric else float(x), point["score"]) for x, point in enumerate(points)]
    if not _mark(axes, 0, sorted(marks, key=lambda mark: mark[0]), "score", 100):
        return False
    if not numeric:
        axes.set_xticks(range(len(points)), [_label(point["value"]) for point in points])
    axes.set_xlabel(_label(sweep.get("setting", "")))
    axes.set_ylabel("score, %")
    return True


def _stops(summary: Summary, axes: Any) -> bool:
    arms = [arm for arm in summary.get("arms", ()) if arm.get("stops")]
    left = [0.0] * len(arms)
    for place, reason in enumerate(map(str, StopReason)):
        counts = [float(arm["stops"].get(reason, 0)) for arm in arms]
        if any(counts):
            colour = COLOURS[place % len(COLOURS)]
            axes.barh(range(len(arms)), counts, left=left, label=reason.replace("_", " "), color=colour, height=0.6)
            left = [done + more for done, more in zip(left, counts, strict=True)]
    axes.set_yticks(range(len(arms)), [_label(arm["name"]) for arm in arms])
    axes.invert_yaxis()
    axes.set_xlabel("questions")
    axes.grid(axis="y", visible=False)
    return bool(arms) and bool(
        axes.legend(fontsize=8, frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    )


def _bucket_axis(axes: Any, buckets: Sequence[Mapping[str, Any]]) -> None:
    axes.set_xticks(range(len(buckets)), [_label(bucket["name"]) for bucket in buckets])
    axes.set_xlabel("duration of the video")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)


def _beside(place: int, n: int) -> float:
    return (place - (n - 1) / 2) * 0.08


def _has(buckets: Sequence[Mapping[str, Any]], quantity: str) -> bool:
    return any(
        (cost or {}).get(quantity) is not None for bucket in buckets for cost in (bucket.get("cost") or {}).values()
    )


_PLOTS: dict[str, Callable[[Summary, Any], bool]] = {
    "score_duration": _score_duration,
    "cost_duration": _cost_duration,
    "score_frames": _score_frames,
    "scaling": _scaling,
    "stops": _stops,
}
