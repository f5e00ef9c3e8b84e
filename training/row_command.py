"""`apr train rows`: the kept trajectories of a folder as rows of a student."""

from __future__ import annotations

from pathlib import Path

from rich.progress import Progress

from apr_plugin import terminal
from apr_plugin.errors import WrongUsage
from apr_plugin.files import read_regular
from apr_plugin.training.making import RowSettings, Source, make_rows
from apr_plugin.training.rows import write_rows
from apr_plugin.training.student import Student
from apr_plugin.training.synthesis.funnel import kept_files


def settings_of(validation: float, seed: int, repaired: str) -> RowSettings:
    """The settings of the command line.

    Raises:
        WrongUsage: a word is not known.
    """
    if repaired not in ("rewrite", "drop"):
        raise WrongUsage(f"--repaired {terminal.quoted(repaired, 40)}: it is rewrite or drop")
    return RowSettings(validation=validation, seed=seed, repaired="rewrite" if repaired == "rewrite" else "drop")


def run_rows(out: Path, student: str, file: Path, context_tokens: int | None, settings: RowSettings) -> None:
    """Make the rows, write them, and say what became none.

    Args:
        out: The folder of the trajectories, after `apr train funnel`.
        student: The checkpoint that is to be trained: a folder, or a name on the hub.
        file: Where the rows go.
        context_tokens: The longest row; `None` is what the student was made for.
        settings: What becomes a row.

    Raises:
        AprError: nothing is kept, the student can't be read, or no row is left to train on.
    """
    if file.suffix != ".jsonl":
        raise WrongUsage(f"{file}: the rows are JSON Lines; name a file that ends with .jsonl")
    out = out.expanduser()
    kept = kept_files(out)
    sources = [Source(one.file, one.card, one.source, "teacher", one.keys) for one in kept]
    console = terminal.console(stderr=True)
    with console.status("reading the student's processor …"):
        reads = Student.from_pretrained(student, context_tokens=context_tokens)
    total = sum(len(one.keys) for one in kept)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("trajectories", total=total)
        made = make_rows(sources, reads, settings, told=lambda done: bar.update(task, completed=min(done, total)))
    made.about["funnel"] = _funnel(out)
    write_rows(file, made)
    parts = ", ".join(f"{len(made.of(part)):,} for {part}" for part in ("train", "validation"))
    terminal.console().print(f"{len(made):,} rows ({parts}) of {total:,} trajectories in {file}", soft_wrap=True)
    terminal.console().print(f"no rows: {made.told()}", soft_wrap=True)


def _funnel(out: Path) -> str | None:
    """The table of the funnel, for the model card; `None` if it is gone."""
    try:
        return read_regular(out / "funnel.md").decode("utf-8", "replace")
    except OSError:
        return None
