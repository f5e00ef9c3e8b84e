"""`apr published`: figures that others measured, with the source of each."""

from __future__ import annotations

import json
from itertools import groupby

from rich.table import Table
from rich.text import Text

from apr_plugin.report.published import PublishedScore, benchmarks, published
from apr_plugin.terminal import console


def run_published(benchmark: str | None, as_json: bool) -> None:
    """Print the figures of one benchmark, or the list of benchmarks.

    Raises:
        AprError: there is no such benchmark.
    """
    if benchmark is None:
        counts = {name: len(published(name)) for name in benchmarks()}
        if as_json:
            print(json.dumps(counts, indent=1))  # noqa: T201
            return
        table = Table(title="figures from papers; for one benchmark: apr published BENCHMARK", title_justify="left")
        table.add_column("benchmark")
        table.add_column("figures", justify="right")
        for name, count in counts.items():
            table.add_row(name, str(count))
        console().print(table)
        return
    scores = published(benchmark)
    if as_json:
        print(json.dumps([score.model_dump() for score in scores], indent=1))  # noqa: T201
        return
    out = console()
    for metric, rows in groupby(scores, key=lambda score: score.metric):
        out.print(_table(f"{scores[0].benchmark}, {metric}: published, not measured here", list(rows)))


def _table(title: str, scores: list[PublishedScore]) -> Table:
    table = Table(title=Text(title), title_justify="left")
    table.add_column("system", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("frames", justify="right")
    table.add_column("source", overflow="fold")
    table.add_column("note", overflow="fold")
    decimals = max(len(f"{score.value:g}".partition(".")[2]) for score in scores)
    for score in scores:
        frames = f"{score.frames:g}" if score.frames is not None else ""
        table.add_row(Text(score.system), f"{score.value:.{decimals}f}", frames, Text(score.source), Text(score.note))
    return table
