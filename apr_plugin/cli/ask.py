"""`apr ask`: one question, watched while it is answered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from apr_plugin import interrupt
from apr_plugin.cli.trace import print_end, print_question, print_turn
from apr_plugin.errors import UNANSWERED, AprError
from apr_plugin.harnesses.settings import read_settings
from apr_plugin.loop.episode import Episode
from apr_plugin.loop.question import MediaRef, Option, Question, QuestionKind
from apr_plugin.loop.trajectory import StopReason

_OPTION = re.compile(r"\(?([A-Za-z]|\d{1,2})[.):]\)?\s+(.+)", re.DOTALL)
"""A label is one letter or a number: "Dr. No" is an option without one."""


def run_ask(videos: Sequence[str], text: str, options: Sequence[str], kind: str | None, model_args: str, save: Path | None) -> int:
    """Ask; returns the exit status: 0 with an answer in the right form, 3 without.

    Raises:
        AprError: a bad option, kind or model_arg, or a trajectory that could not be saved.
    """
    if Path(text).is_file() and not any(Path(path).exists() for path in videos):
        raise AprError(f"the question comes last, after the video: apr ask {text} {videos[0]!r}")
    if save is not None:
        _check_writable(save)
    question = Question(text=text, kind=_kind(kind, options), options=_options(options), videos=tuple(MediaRef(path=path) for path in videos))
    settings = read_settings(parse_model_args(model_args))
    console = Console(highlight=False)
    print_question(console, question)
    episode = Episode(question, settings.policy, settings.config, on_turn=lambda number, turn: print_turn(console, number, turn))
    try:
        trajectory = interrupt.run(episode.run())
    except KeyboardInterrupt:
        trajectory = episode.cancelled()
    finally:
        settings.policy.close()
    print_end(console, trajectory)
    if save is not None:
        trajectory.write(save)
    if trajectory.stop_reason is StopReason.CANCELLED:
        return 130
    return 0 if trajectory.answer_valid else UNANSWERED


def _check_writable(path: Path) -> None:
    try:
        path.open("ab").close()
    except OSError as error:
        raise AprError(f"--save {path}: cannot write: {error.strerror}") from error


def parse_model_args(text: str) -> dict[str, object]:
    """`key=value,key=value` as lmms-eval reads it, so that one text works for both.

    A comma inside brackets, braces or quotes belongs to the value; `true`, `false` and numbers become values of their own.

    Raises:
        AprError: a part is not `key=value`.
    """
    found: dict[str, object] = {}
    for part in _split_at_commas(text):
        key, equals, value = part.partition("=")
        if not equals:
            raise AprError(f"--model-args: {part!r} is not key=value (a value with commas stands in brackets: base_url=[URL,URL])")
        found[key] = _value(value)
    return found


def _split_at_commas(text: str) -> list[str]:
    parts, depth, quote, start = [], 0, "", 0
    for at, char in enumerate(text):
        if char in "\"'" and text[at - 1 : at] != "\\":
            quote = "" if char == quote else quote or char
        elif not quote and char in "{[":
            depth += 1
        elif not quote and char in "}]":
            depth -= 1
        elif not quote and depth == 0 and char == ",":
            parts.append(text[start:at])
            start = at + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def _value(text: str) -> object:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text) if text.isnumeric() else float(text)
    except ValueError:
        return text


def _kind(kind: str | None, options: Sequence[str]) -> QuestionKind:
    if kind is None:
        return QuestionKind.MCQ if options else QuestionKind.FREE_FORM
    if kind not in list(QuestionKind):
        raise AprError(f"--kind must be one of {', '.join(QuestionKind)}, not {kind!r}")
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
