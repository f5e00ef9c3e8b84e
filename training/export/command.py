"""`apr train export`: a file of rows as the data of another trainer."""

from __future__ import annotations

from pathlib import Path

from rich.progress import Progress

from apr_plugin import terminal
from apr_plugin.errors import WrongUsage
from apr_plugin.training.export import FORMATS
from apr_plugin.training.export.exporting import SKIPPED, export_rows
from apr_plugin.training.loading import RowLoader
from apr_plugin.training.rows import Split, read_rows
from apr_plugin.training.student import Student


def run_export(rows: Path, form: str, student: str, out: Path, split: str, limit: int | None) -> None:
    """Export rows, and say what was written and what was not.

    Args:
        rows: The file of `apr train rows`.
        form: A name in `FORMATS`.
        student: The checkpoint that the other trainer trains: a folder, or a name on the hub.
        out: The new folder.
        split: The part of the rows.
        limit: Only so many rows, from the first.

    Raises:
        AprError: rows or the student can't be read, the folder can't be written, or no row could be exported.
    """
    if form not in FORMATS:
        raise WrongUsage(f"--format {terminal.quoted(form, 40)}: it is {' or '.join(FORMATS)}")
    part: Split
    if split == "train":
        part = "train"
    elif split == "validation":
        part = "validation"
    else:
        raise WrongUsage(f"--split {terminal.quoted(split, 40)}: it is train or validation")
    out = out.expanduser()
    found = read_rows(rows.expanduser(), split=part)
    chosen = found.rows[:limit]
    console = terminal.console(stderr=True)
    with console.status("reading the student's processor …"):
        reads = Student.from_pretrained(student)
    made_for = found.about.get("student") or {}
    if made_for.get("digest") not in (None, reads.digest):
        terminal.warn(
            f"the rows were made for {made_for.get('name')}, which {student} is not, or not with these settings; a row "
            "that has another length with it is left out"
        )
    settings = found.about.get("settings") or {}
    loader = RowLoader(reads, other_versions=bool(settings.get("other_versions")))
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("rows", total=len(chosen))
        made = export_rows(
            chosen,
            loader,
            FORMATS[form],
            out,
            checkpoint=_from_anywhere(student),
            split=part,
            told=lambda done: bar.update(task, completed=done),
        )
    say = terminal.console()
    if made.resumed:
        say.print(f"{made.resumed:,} rows had been done by an earlier export", soft_wrap=True)
    say.print(f"{made.rows:,} of {len(chosen):,} rows for {FORMATS[form].title} in {out}", soft_wrap=True)
    say.print(f"not exported: {made.told()}" + (f" (see {SKIPPED})" if made.skipped else ""), soft_wrap=True)


def _from_anywhere(student: str) -> str:
    """The checkpoint as it is found from every folder: the settings are used in the folder of the export."""
    folder = Path(student).expanduser()
    return str(folder.absolute()) if folder.is_dir() else student
