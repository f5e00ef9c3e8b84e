"""`apr ask`: one question, watched while it is answered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from apr_plugin import interrupt
from apr_plugin.cli.trace import print_end, print_question, print_turn
from apr_plugin.errors import UNANSWERED, AprError
from apr_plugin.files import check_regular
from apr_plugin.loop.episode import Episode
from apr_plugin.loop.question import MediaRef, Option, Question, QuestionKind
from apr_plugin.loop.trajectory import StopReason
from apr_plugin.runs.arguments import parse_model_args as parse_model_args
from apr_plugin.runs.settings import read_settings
from apr_plugin.terminal import console, quoted

_OPTION = re.compile(r"\(?([A-Za-z]|\d{1,2})[.):]\)?\s+(.+)", re.DOTALL)
"""A label is one letter or a number: "Dr. No" is an option without one."""


def run_ask(videos: Sequence[str], text: str, options: Sequence[str], kind: str | None, model_args: str, save: Path | None) -> int:
    """Ask; returns the exit status: 0 with an answer in the right form, 3 without.

    Raises:
        AprError: a bad option, kind or model_arg, or a trajectory that could not be saved.
    """
    if _is_file(text) and not any(_is_file(path) for path in videos):
        raise AprError(f"the question comes last, after the video: apr ask {text} {quoted(videos[0])}")
    if save is not None:
        _check_writable(save)
    question = Question(text=text, kind=_kind(kind, options), options=_options(options), videos=tuple(MediaRef(path=path) for path in videos))
    settings = read_settings(parse_model_args(model_args))
    out = console()
    print_question(out, question)
    episode = Episode(question, settings.policy, settings.config, on_turn=lambda number, turn: print_turn(out, number, turn))
    try:
        trajectory = interrupt.run(episode.run())
    except KeyboardInterrupt:
        trajectory = episode.cancelled()
    except SystemExit:  # nobody reads what is printed any more, or it can't be written
        if save is not None:
            episode.cancelled().write(save)
        raise
    finally:
        settings.policy.close()
    if save is not None:
        trajectory.write(save)  # before its end is printed, which may fail
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
    except OSError:  # a question is longer than a name may be
        return False


def _kind(kind: str | None, options: Sequence[str]) -> QuestionKind:
    if kind is None:
        return QuestionKind.MCQ if options else QuestionKind.FREE_FORM
    if kind not in list(QuestionKind):
        raise AprError(f"--kind must be one of {', '.join(QuestionKind)}, not {quoted(kind)}")
    if kind == QuestionKind.MCQ and not options:
        raise AprError('a question of kind mcq needs options: --option "A. …" --option "B. …"')
    return QuestionKind(kind)


def _options(options: Sequence[str]) -> tuple[Option, ...]:
    found = []
    for number, text in enumerate(options):
        if not text.strip():
            raise AprError(f"option {number + 1} is empty")
        match = _OPTION.fullmatch(text.strip())
        found.append(Option(label=match[1], text=match[2]) if match else Option(label=chr(ord("A") + number), text=text.strip()))
    if len({option.label for option in found}) < len(found):
        raise AprError(f"two options have the same label: {', '.join(option.label for option in found)}")
    return tuple(found)
