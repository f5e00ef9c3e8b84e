"""`apr ask`: ask one question and print the turns while it is answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apr_plugin.agent import Agent, make_question
from apr_plugin.cli.trace import print_end, print_question, print_turn
from apr_plugin.errors import UNANSWERED, AprError
from apr_plugin.files import check_regular
from apr_plugin.loop.trajectory import StopReason
from apr_plugin.runs.arguments import parse_model_args
from apr_plugin.runs.meter import run_sync
from apr_plugin.terminal import console, quoted


def run_ask(
    videos: Sequence[str], text: str, options: Sequence[str], kind: str | None, model_args: str, save: Path | None
) -> int:
    """Ask the question and return the exit status: 0 with an answer in the right form, 3 without.

    Raises:
        AprError: a bad option, kind or model_arg, or a trajectory that could not be saved.
    """
    if _is_file(text) and not any(_is_file(path) for path in videos):
        raise AprError(f"the question comes last, after the video: apr ask {text} {quoted(videos[0])}")
    if save is not None:
        _check_writable(save)
    question = make_question(videos, text, options=options, kind=kind)
    given: dict[str, Any] = parse_model_args(model_args)
    agent = Agent(**given)
    out = console()
    print_question(out, question)
    episode = agent.episode(question, on_turn=lambda number, turn: print_turn(out, number, turn))
    try:
        trajectory = run_sync(episode.run())
    except KeyboardInterrupt:
        trajectory = episode.cancelled()
    except SystemExit:  # the reader of the output is gone, or the output can't be written
        if save is not None:
            episode.cancelled().write(save)
        raise
    finally:
        agent.close()
    if save is not None:
        trajectory.write(save)  # first, because printing the end may fail
    print_end(out, trajectory)
    if trajectory.stop_reason is StopReason.CANCELLED:
        return 130
    return 0 if trajectory.answer_valid else UNANSWERED


def _check_writable(path: Path) -> None:
    try:
        if path.exists():
            check_regular(path)
        path.open("ab").close()
    except (OSError, ValueError) as error:  # a name with a null character
        raise AprError(f"--save {path}: cannot write: {getattr(error, 'strerror', None) or error}") from error


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # a question may be too long for a file name
        return False
