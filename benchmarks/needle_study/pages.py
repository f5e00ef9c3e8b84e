"""The report of the study: a page with all tables, and a file for each of them."""

from __future__ import annotations

import csv
import json
import re
import shutil
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apr_plugin.compare.joined import Comparison
from apr_plugin.report.machine import hardware
from apr_plugin.report.tables import Table
from apr_plugin.training.sft.card import versions

KEPT = ("table.md", "summary.json", "pairs.csv", "questions.csv")
"""Files of a part's own report that are kept with the study."""

TITLES = {
    "training": "What training cost",
    "main": "Agents and passive models",
    "scaling": "Test-time scaling",
    "ablations": "Ablations",
    "transfer": "Transfer",
}


def write_study(
    out: Path,
    work: Path,
    done: Mapping[str, Sequence[Table]],
    missing: Sequence[str],
    comparisons: Mapping[str, Comparison],
    args: Namespace,
) -> None:
    """Write README.md, tables/, card.json, and what is kept of each part's own report.

    Args:
        out: The folder.
        work: Where the runs are; its path is left out of everything.
        done: The tables of each part.
        missing: Parts without a run.
        comparisons: What the tables are of.
        args: Of the command.
    """
    folder = out / "tables"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    page = ["# The small agent and passive models of its family", "", f"    {_hidden(args.command, args)}", ""]
    page += _how(comparisons, args)
    if missing:
        page += ["**Not run:** " + ", ".join(f"{TITLES[name].lower()} (`{name}`)" for name in missing) + ".", ""]
    for name in TITLES:
        if name not in done:
            continue
        page += [f"## {TITLES[name]}", ""]
        if name in comparisons:
            page += [f"Tests of the first arm against each other one, by bucket too: `{name}/table.md`.", ""]
        for number, table in enumerate(done[name], 1):
            page += _markdown(table)
            _csv(folder / f"{name}-{number:02}-{_file(table.title)}.csv", table)
    for name in comparisons:
        _keep(work / name, out / name, args)
    (out / "README.md").write_text("\n".join(page))
    card = {
        "command": _hidden(args.command, args),
        "machine": hardware(),
        "versions": versions(),
        "not_run": list(missing),
    }
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n")


def _how(comparisons: Mapping[str, Comparison], args: Namespace) -> list[str]:
    said = [
        f"Set of seed {args.seed}: {args.videos} videos of each of {args.buckets.replace(',', ', ')}, "
        f"{args.edge} x {args.edge} pixels, made by `apr needle make`'s own code; none is a world of training. "
        "Every answer comes from `apr eval`. Intervals are at 95% and take the questions of one video as one cluster "
        "(`docs/compare.md`).",
        "",
    ]
    said += [
        f"- {name}: {len(one.keys)} questions, arms {', '.join(arm.name for arm in one.arms)}"
        for name, one in comparisons.items()
    ]
    notes = dict.fromkeys(
        note for one in comparisons.values() for note in (*one.notes, *(n for arm in one.arms for n in arm.notes))
    )
    return [*said, *(f"- {_hidden(note, args)}" for note in notes), ""]


def _markdown(table: Table) -> list[str]:
    lines = [f"**{table.title}**", ""]
    if not table.rows:
        return [*lines, "Nothing can be counted.", ""]
    lines += [_row(table.columns), _row(["---", *("---:" for _ in table.columns[1:])])]
    return [*lines, *map(_row, table.rows), ""]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _file(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower().partition(",")[0]).strip("-")[:40].strip("-")


def _csv(file: Path, table: Table) -> None:
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(table.columns)
        writer.writerows(table.rows)


def _hidden(text: str, args: Namespace) -> str:
    """A text without the folders of this machine."""
    places: list[tuple[Any, str]] = [(args.work, "WORK"), (args.out.resolve(), "OUT"), (args.out, "OUT")]
    models = (*args.agents, *args.rivals, *args.others)
    places += [(one.folder, one.name.upper().replace(" ", "-")) for one in models]
    places += [(folder, f"{name.upper()}-RUN") for name, folder in args.runs.items()]
    places += [(Path.cwd(), ".")]
    for path, name in sorted(places, key=lambda place: -len(str(place[0]))):
        text = text.replace(str(path), name)
    return text


def _keep(part: Path, folder: Path, args: Namespace) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if (part / name).is_file():
            (folder / name).write_text(_hidden((part / name).read_text(), args))
    for file in sorted((part / "plots").glob("*.svg")):
        (folder / "plots").mkdir(exist_ok=True)
        shutil.copyfile(file, folder / "plots" / file.name)
    for file in sorted((part / "cards").glob("*/card.*")):
        (folder / "cards" / file.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / "cards" / file.parent.name / file.name).write_text(_hidden(file.read_text(), args))
