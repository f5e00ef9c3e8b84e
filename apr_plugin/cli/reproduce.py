"""`apr reproduce`: run again what a card says, with the harness of the run, and say what differs."""

from __future__ import annotations

import shlex
from datetime import datetime
from pathlib import Path

from apr_plugin.errors import AprError
from apr_plugin.report.card_files import CARD_YAML, write_cards
from apr_plugin.report.card_read import check_runnable, differences, read_card, scores
from apr_plugin.runs.opened import open_run
from apr_plugin.terminal import complain, console, one_line, warn

DIFFERENT = 4
"""Exit status: the run ended, and a score is another than the card's."""

_UNANSWERED = 3
"""Exit status of `apr eval` and `apr vlmeval` with questions that could not be answered; its scores are there."""


def run_reproduce(
    card_path: Path,
    *,
    out: Path | None = None,
    dry_run: bool = False,
    trust: bool = False,
    include_path: Path | None = None,
) -> int:
    """Run a card's commands again into a new folder and compare.

    Args:
        card_path: A `card.yaml`, or its folder.
        out: The new folder, which must not hold a run; without it one beside the current folder, named by the time.
        dry_run: Only print the commands.
        trust: Also run model_args that send data to a server or read files that the card chose.
        include_path: The folder of tasks of one's own, where the run used one.

    Returns:
        0 if every score is identical, `DIFFERENT` if one differs; what that command returned where it failed (1, 2), or
        3 where questions stayed unanswered and the scores are identical all the same.

    Raises:
        AprError: the card can't be read or run, the folder is taken, or the new run can't be read.
    """
    from apr_plugin.harnesses.lmms_eval.process import evaluate

    path = card_path / CARD_YAML if card_path.is_dir() else card_path
    card = read_card(path)
    if card.edited:
        warn(f"{path}: it was changed after it was written: its content has another digest than it says")
    folder = out or Path(f"reproduced_{datetime.now():%Y%m%d_%H%M%S}")
    commands = [(command.command, command.arguments(folder, include_path)) for command in card.commands]
    printer = console(soft_wrap=True)
    for name, words in commands:
        printer.print(one_line(shlex.join(["apr", name, *words]), 30_000))
    for command in card.commands:
        if command.other_options:
            warn(f"the run had further options, which a card does not have: {', '.join(command.other_options)}")
    if dry_run:
        if not commands:
            check_runnable(card, path, trust=True, include_path=include_path)
        return 0
    check_runnable(card, path, trust=trust, include_path=include_path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AprError(f"{folder}: it is not empty; a card is run again into a new folder (--out DIR)")
    worst = 0
    for name, words in commands:
        status = evaluate(words, command=name)
        if status not in (0, _UNANSWERED):
            complain(f"apr {name} ended with status {status}; nothing is compared")
            return status if status > 0 else 1
        worst = max(worst, status)
    run = open_run(folder, latest=True)
    new = read_card(write_cards(run, folder, command=shlex.join(["apr", "reproduce", str(card_path)]))[0])
    for said in differences(card, new):
        printer.print(one_line(said))
    if any(True for _ in scores(card, new)):
        printer.print(f"The scores differ. The new run and its card are in {folder}.")
        return DIFFERENT
    printer.print(f"Every score is identical. The new run and its card are in {folder}.")
    return worst
