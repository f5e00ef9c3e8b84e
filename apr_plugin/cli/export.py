"""`apr export`: a finished run in the form of a leaderboard, of a model card, of another program, or as cards."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from apr_plugin.errors import AprError
from apr_plugin.runs.opened import open_run
from apr_plugin.terminal import console, one_line, warn


def run_export(
    board: str,
    run_folder: Path,
    out: Path | None = None,
    *,
    annotations: Path | None = None,
    config: str | None = None,
    latest: bool = False,
) -> None:
    """Write a run in another form, and print where it is and what is missing of it.

    Args:
        board: A name in `report.export.BOARDS`, `inspect`, `lmms_trace`, or `card`.
        run_folder: What `open_run` takes.
        out: The file to write; for `inspect`, `lmms_trace` and `card` a folder. Without it a folder in the current
            one; traces go beside the trajectories.
        annotations: The benchmark's own file of questions.
        config: The configuration's hash, where the folder has several.
        latest: Of several configurations take the one that was evaluated last.

    Raises:
        AprError: there is no such board or run, or what the board needs is missing.
    """
    name = board.strip().lower()
    if name in ("inspect", "lmms_trace", "card") and annotations is not None:
        raise AprError(f"--annotations has no meaning for {name}; leave it out")
    run = open_run(run_folder, config=config, latest=latest)
    printer = console(soft_wrap=True)
    notes: tuple[str, ...] = tuple(run.problems)
    files: tuple[Path, ...]
    if name == "card":
        from apr_plugin.report.card_files import write_cards

        files = write_cards(run, out or Path("export_card"), command=shlex.join(["apr", *sys.argv[1:]]))
    elif name == "inspect":
        from apr_plugin.report.inspect_log import write_inspect_logs

        files = tuple(write_inspect_logs(run, out or Path("export_inspect")))
    elif name == "lmms_trace":
        from apr_plugin.report.lmms_trace import write_traces

        files = tuple(write_traces(run, out))
    else:
        from apr_plugin.report.export import export

        done = export(name, run, out, annotations=annotations)
        files, notes = done.files, done.notes
    for note in notes:
        warn(note)
    for file in files:
        printer.print(one_line(str(file)))
