"""The tables of a comparison, as plain rows: printed on a terminal, and written as Markdown and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apr_plugin.terminal import plain

if TYPE_CHECKING:
    from rich.console import Console

Summary = Mapping[str, Any]
"""A summary as `compare.summary` makes it."""

COSTS = {
    "turns": "turns",
    "frames": "frames",
    "audio_s": "sound s",
    "visual_tokens": "visual tok.",
    "audio_tokens": "audio tok.",
    "prompt_tokens": "prompt tok.",
    "cached_tokens": "cached tok.",
    "completion_tokens": "written tok.",
    "seconds": "s",
    "model_s": "model s",
    "media_s": "media s",
    "gpu_s": "GPU s",
    "usd": "USD",
}
"""Quantities of a question's cost, in the order of the table, with their headings."""

NOT_RECORDED = "not recorded"
"""In place of a figure that the record of another program lacks; a table that is too wide has `-`, and a note."""


@dataclass(frozen=True)
class Table:
    """One table."""

    title: str
    """What it shows."""
    columns: tuple[str, ...]
    """Headings; the first column is text, the others are numbers."""
    rows: tuple[tuple[str, ...], ...]
    """Cells."""
    detail: bool = False
    """Whether it is left out on a terminal."""


def tables(summary: Summary) -> list[Table]:
    """Every table that the summary has content for, the most important first."""
    made = [_headline(summary), _pairs(summary), _buckets(summary), _bucket_tests(summary), _costs(summary)]
    made += [
        _slopes(summary),
        _aiming(summary),
        _ladder(summary),
        _sweep(summary),
        _stops(summary),
        _published(summary),
    ]
    return [table for table in made if table.rows]


def markdown(summary: Summary) -> str:
    """The headline, the tables and the notes as a Markdown page."""
    parts = [f"# {_cell(summary.get('title') or 'Comparison')}", *map(_cell, summary.get("headline", ()))]
    for table in tables(summary):
        rows = [table.columns, ("---", *("---:" for _ in table.columns[1:])), *table.rows]
        body = "\n".join(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows)
        parts.append(f"## {_cell(table.title)}\n\n{body}")
    if summary.get("notes"):
        parts.append("## Notes\n\n" + "\n".join(f"- {_cell(note)}" for note in summary["notes"]))
    if summary.get("command"):
        parts.append(f"Made with:\n\n    {plain(str(summary['command']))}")
    return "\n\n".join(parts) + "\n"


def print_summary(console: Console, summary: Summary) -> None:
    """The same on a terminal, without the tables of details."""
    from rich import box
    from rich.table import Table as Printed
    from rich.text import Text

    for table in tables(summary):
        if table.detail:
            continue
        columns, rows = _fitted(table, console.width)
        printed = Printed(
            title=plain(table.title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
        )
        for number, column in enumerate(columns):
            printed.add_column(Text(column), justify="right" if number else "left", overflow="fold")
        for row in rows:
            printed.add_row(*(Text(cell) for cell in row))
        console.print(printed)
    for line in summary.get("headline", ()):
        console.print(Text(plain(line), "bold"))
    for line in summary.get("notes", ()):
        console.print(Text(f"note: {plain(line)}", "dim"))


def _fitted(table: Table, width: int) -> tuple[list[str], list[list[str]]]:
    """Headings and cells; where the table is wider than the terminal, intervals and headings get lines of their own."""
    columns, rows = [plain(name) for name in table.columns], [[plain(cell) for cell in row] for row in table.rows]
    natural = sum(max(len(cell) for cell in column) + 2 for column in zip(columns, *rows, strict=True))
    if natural <= width:
        return columns, rows
    narrow = [[cell.replace(NOT_RECORDED, "-").replace(" (", "\n(") for cell in row] for row in rows]
    return [name.replace(" ", "\n") for name in columns], narrow


def share(interval: Mapping[str, Any] | None, digits: int = 3) -> str:
    """`0.512 (0.480-0.544)`; `-` where it is not known."""
    if interval is None or interval.get("value") is None:
        return "-"
    value = f"{interval['value']:.{digits}f}"
    if interval.get("low") is None or interval.get("high") is None:
        return value
    between = "-" if interval["low"] >= 0 else " to "
    return f"{value} ({interval['low']:.{digits}f}{between}{interval['high']:.{digits}f})"


def amount(interval: Mapping[str, Any] | None) -> str:
    """A cost, with three significant digits or as a whole number."""
    if interval is None or interval.get("value") is None:
        return "-"
    value = float(interval["value"])
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def p_value(p: float | None) -> str:
    """`0.031`, or `<0.0001`."""
    if p is None:
        return "-"
    return "<0.0001" if p < 1e-4 else f"{p:.4f}"


def _digits(n: int) -> int:
    """Digits after the point that so many questions can carry."""
    return 2 if n < 400 else 3


def _headline(summary: Summary) -> Table:
    digits = _digits(summary["n"])
    rows = [
        (
            arm["name"],
            str(arm["n"]),
            share(arm["accuracy"], digits),
            share(arm["score"], digits),
            share(arm["common_score"], digits),
            str(arm["failed"]),
            str(arm["missing"]),
        )
        for arm in summary["arms"]
    ]
    common = f"of {summary['common']} common"
    columns = ("arm", "n", "right", "mean score", common, "failed", "missing")
    return Table("Right answers and mean score, with 95% intervals", columns, tuple(rows))


def _pairs(summary: Summary) -> Table:
    digits = _digits(summary["n"])
    rows = [
        (
            pair["b"],
            f"{pair['only_a']} : {pair['only_b']}",
            share(pair["diff"], digits),
            share(pair["score_diff"], digits),
            p_value(pair["p"]),
            pair["test"].partition(" permutation")[0].removeprefix("exact ").replace("-", " "),
            "-" if pair["visible"] is None else f"{pair['visible']:.{digits}f}",
            "-" if pair["needed"] is None else f"{pair['needed']:,}",
        )
        for pair in summary["pairs"]
    ]
    columns = ("against", "only one", "right", "score", "p", "test", "visible", "needed")
    title = f"{summary['pairs'][0]['a'] if rows else ''} minus each other arm, paired over {summary['n']} questions"
    return Table(title, columns, tuple(rows))


def _buckets(summary: Summary) -> Table:
    names = [arm["name"] for arm in summary["arms"]]
    rows = [
        (bucket["name"], str(bucket["n"]), *(share(bucket["arms"].get(name), 2) for name in names))
        for bucket in summary["buckets"]
        if len(summary["buckets"]) > 1 or bucket["name"] != "all"
    ]
    return Table("Mean score by duration", ("duration", "n", *names), tuple(rows))


def _bucket_tests(summary: Summary) -> Table:
    rows = [
        (
            f"{pair['a']} - {pair['b']}",
            bucket["name"],
            str(bucket["n"]),
            share(bucket["diff"]),
            p_value(bucket["p"]),
            p_value(bucket["p_holm"]),
        )
        for pair in summary["pairs"]
        for bucket in pair["buckets"]
        if len(pair["buckets"]) > 1
    ]
    columns = ("pair", "duration", "n", "difference", "p", "p (Holm)")
    return Table("Differences by duration", columns, tuple(rows), detail=True)


def _costs(summary: Summary) -> Table:
    known = [name for name in COSTS if any((arm.get("cost") or {}).get(name) for arm in summary["arms"])]
    rows = [
        (arm["name"], *(_spent(arm, name) for name in known))
        for arm in summary["arms"]
        if any((arm.get("cost") or {}).get(name) for name in known)
    ]
    return Table("Cost of a question, on average", ("arm", *(COSTS[name] for name in known)), tuple(rows))


def _spent(arm: Mapping[str, Any], name: str) -> str:
    """A mean cost; the record of another program may not have it."""
    interval = (arm.get("cost") or {}).get(name)
    told = amount(interval)
    if not arm.get("imported"):
        return told
    if interval is None or told == "-":
        return NOT_RECORDED
    return told if interval["n"] == arm["n"] else f"{told} (n={interval['n']})"


def _slopes(summary: Summary) -> Table:
    rows = [
        (arm["name"], COSTS.get(name, name), share(slope, 2))
        for arm in summary["arms"]
        for name, slope in (arm.get("slope") or {}).items()
        if slope is not None
    ]
    rows += [
        (arm["name"], "all turns over all hours", share(arm["turns_per_hour"], 2))
        for arm in summary["arms"]
        if arm.get("turns_per_hour")
    ]
    return Table(
        "Growth of the cost with each hour of video", ("arm", "quantity", "per hour"), tuple(rows), detail=True
    )


_AIMING = {
    "hit": "evidence seen",
    "coverage": "coverage",
    "looks_to_hit": "looks to hit",
    "wasted": "wasted",
    "repeats": "repeats",
    "no_look": "no look",
    "supported": "right, seen",
    "unsupported": "right, unseen",
}


def _aiming(summary: Summary) -> Table:
    aiming = summary.get("aiming") or {}
    rows = [
        (heading, *(share(of_arm.get(quantity), 2) for of_arm in aiming.values()))
        for quantity, heading in _AIMING.items()
        if any(of_arm.get(quantity) for of_arm in aiming.values())
    ]
    return Table("Where they looked, of questions with known evidence", ("", *aiming), tuple(rows))


def _ladder(summary: Summary) -> Table:
    ladder = summary.get("ladder") or {}
    rows = [(step, share(ladder.get(step))) for step in ("blind", "passive", "agent", "oracle") if ladder.get(step)]
    if ladder.get("realised"):
        rows.append(("realised share of what looking can give", share(ladder["realised"])))
    return Table("From blind to oracle", ("arm", "mean score"), tuple(rows))


def _sweep(summary: Summary) -> Table:
    sweep = summary.get("sweep") or {}
    rows = [
        (str(point["value"]), share(point["score"]), share(point["turns"], 1), share(point["frames"], 0))
        for point in sweep.get("points", ())
    ]
    setting = str(sweep.get("setting", "setting"))
    return Table(f"Scaling with {setting}", (setting, "mean score", "turns", "frames"), tuple(rows))


def _stops(summary: Summary) -> Table:
    names = sorted({reason for arm in summary["arms"] for reason in arm.get("stops") or {}})
    rows = [
        (arm["name"], *(str(arm["stops"].get(reason, 0)) for reason in names))
        for arm in summary["arms"]
        if arm.get("stops")
    ]
    return Table("Why the episodes ended", ("arm", *names), tuple(rows), detail=names in ([], ["answered"]))


def _published(summary: Summary) -> Table:
    rows: Sequence[tuple[str, ...]] = [
        (
            figure["system"],
            figure["benchmark"],
            figure["metric"],
            f"{figure['value']:g}",
            "-" if figure["frames"] is None else f"{figure['frames']:g}",
            figure["source"],
        )
        for figure in summary.get("published") or ()
    ]
    columns = ("system", "benchmark", "metric", "published", "frames", "source")
    return Table("Published figures: not measured here, and not tested against", columns, tuple(rows))


def _cell(text: object) -> str:
    return plain(str(text)).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
