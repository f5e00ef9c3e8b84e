"""`export`: a finished run in the form that a leaderboard takes.

There is one file per board; a new board is a file and a line here. Every question of the board's set is written, also
one that the run could not answer or was not asked. A README beside the file says how many those are, how the file is
sent, and which ways are reported dead.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from apr_plugin.errors import AprError
from apr_plugin.report.export import longvideobench, lvbench, mlvu, model_card, videomme, vue_tr
from apr_plugin.report.export.submission import Submission, write
from apr_plugin.runs.opened import Run
from apr_plugin.terminal import quoted

__all__ = ["BOARDS", "Board", "Exported", "export"]

Board = Callable[[Run, Path | None], Submission]
"""(run, file of annotations or `None`) -> what is written."""

BOARDS: dict[str, Board] = {
    "lvbench": lvbench.submission,
    "videomme": videomme.submission,
    "longvideobench": longvideobench.submission,
    "mlvu": mlvu.submission,
    "vue_tr": vue_tr.submission,
    "vue_tr_v2": vue_tr.submission_v2,
    "model_card": model_card.submission,
}
"""By name on the command line."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    files: tuple[Path, ...]
    """The board's own file first; the README last."""
    notes: tuple[str, ...]
    """What is missing or doubtful, one sentence each; they are in the README too."""


def export(board: str, run: Run, out: Path | None = None, *, annotations: Path | None = None) -> Exported:
    """Write a run in a board's form.

    Args:
        board: A name in `BOARDS`.
        run: From `open_run`.
        out: The file to write; without it `export_BOARD/` in the current folder, under the board's own file name.
        annotations: The benchmark's own file of questions; without it the one below `APR_DATA` or in the hub's cache.

    Raises:
        AprError: there is no such board, the run has no question of it, what it needs is missing, or the file can't be
            written; the message says what to do.
    """
    name = board.strip().lower().replace("-", "_").removeprefix("apr_")
    if name not in BOARDS:
        close = difflib.get_close_matches(name, BOARDS, n=1)
        meant = f"; did you mean {close[0]}?" if close else "."
        raise AprError(f"there is no board {quoted(board, 60)}{meant} There are: {', '.join(BOARDS)}, inspect")
    made = BOARDS[name](run, annotations)
    return Exported(write(made, out or Path(f"export_{name}") / made.file, run), tuple(made.notes))
