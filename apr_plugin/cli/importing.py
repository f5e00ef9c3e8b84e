"""`apr import`: records of other programs as a run, with what they lack."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from apr_plugin.runs.foreign.importing import import_run
from apr_plugin.runs.foreign.writing import Written
from apr_plugin.terminal import console, plain, warn


def run_import(
    source: Path, out: Path, *, format_name: str, task: str, scorer: str, like: Path | None, force: bool
) -> int:
    """Import, and print what was read, left out and not recorded.

    Raises:
        AprError: nothing could be read, or the folder is taken.
    """
    with console(stderr=True).status("reading …") as status:
        done = import_run(
            source.expanduser(),
            out.expanduser().absolute(),
            format_name=format_name.strip().lower(),
            task=task,
            scorer=scorer,
            like=None if like is None else like.expanduser(),
            force=force,
            told=lambda count: status.update(f"reading … {count:,} trajectories"),
        )
    _print(done)
    return 0


def _print(done: Written) -> None:
    printer = console(soft_wrap=True)
    if done.already:
        printer.print(Text("the same import is there already; nothing was written"))
    table = Table(box=box.SIMPLE_HEAD, title="what was read", title_justify="left")
    table.add_column("")
    table.add_column("trajectories", justify="right")
    for task, count in sorted(done.tasks.items()):
        table.add_row(Text(plain(task, 80)), f"{count:,}")
    table.add_row("with a score", f"{done.scored:,}")
    for reason, count in sorted(done.left.items()):
        table.add_row(Text(f"left out: {reason.replace('_', ' ')}"), f"{count:,}")
    for name, count in sorted(done.absent.items()):
        table.add_row(Text(f"not recorded: {name.replace('_', ' ')}"), f"{count:,}")
    printer.print(table)
    for line in done.named:
        warn(f"left out: {line}")
    for note in done.notes:
        printer.print(Text(f"note: {plain(note)}"))
    printer.print(Text(f"the run: {plain(str(done.folder))}"))
