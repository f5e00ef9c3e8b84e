"""`apr ask`: ask one question and print the turns while it is answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apr_plugin.agent import Agent, make_question
from apr_plugin.cli.trace import print_end, print_question, print_turn
from apr_plugin.errors import UNANSWERED, AprError
from apr_plugin.files import check_regular
from apr_plugin.loop.question import Question, QuestionKind
from apr_plugin.loop.trajectory import StopReason
from apr_plugin.models import bundled
from apr_plugin.runs.arguments import parse_model_args
from apr_plugin.runs.meter import run_sync
from apr_plugin.terminal import console, quoted

SCRIPTED = "policy=needle"
"""Who answers where nobody was named and the agent of this package was not trained on the question."""


def run_ask(
    videos: Sequence[str],
    text: str,
    options: Sequence[str],
    kind: str | None,
    model_args: str | None,
    save: Path | None,
) -> int:
    """Ask the question and return the exit status: 0 with an answer in the right form, 3 without.

    Without model_args, `by_default` chooses who answers.

    Raises:
        AprError: a bad option, kind or model_arg, or a trajectory that could not be saved.
    """
    if _is_file(text) and not any(_is_file(path) for path in videos):
        raise AprError(f"the question comes last, after the video: apr ask {text} {quoted(videos[0])}")
    if save is not None:
        _check_writable(save)
    question = make_question(videos, text, options=options, kind=kind)
    if model_args is None:
        model_args, question = by_default(question)
        if model_args == bundled.MODEL_ARGS:
            told = f"no --model-args: {bundled.NAME} answers, the small agent of this package"
            console(stderr=True).print(told, soft_wrap=True)
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


def by_default(question: Question) -> tuple[str, Question]:
    """Who answers if nobody was named, and the question as it is put to them.

    It is the agent of this package if it is there and was trained on such a question: about one file of a needle set
    (`needle.jsonl` is beside it or one folder up), in the benchmark's words, of a kind that it was taught. A question
    for time spans then gets that form, unless another was named; others need their options. Otherwise it is the
    scripted policy, and the question stays as it is.

    Args:
        question: A free form also stands for a form that was not named.

    Raises:
        AprError: what the agent was trained on can't be read.
    """
    agent = bundled.bundled_agent()
    if agent is None or len(question.videos) != 1 or not _is_file(question.videos[0].path):
        return SCRIPTED, question
    from apr_plugin.tasks.needle.make import DOCS_NAME
    from apr_plugin.tasks.needle.questions import parse_question
    from apr_plugin.tasks.needle.read import FORMS, SPANS_HINT

    folder = Path(question.videos[0].path).resolve().parent
    if not any((place / DOCS_NAME).is_file() for place in (folder, folder.parent)):
        return SCRIPTED, question
    try:
        kind = parse_question(question.text).kind
    except ValueError:
        return SCRIPTED, question
    form = FORMS.get(kind, QuestionKind.MCQ)
    if kind not in bundled.needle_kinds():
        return SCRIPTED, question
    if form is QuestionKind.GROUNDING and question.kind in (QuestionKind.FREE_FORM, form):
        return agent, question.model_copy(update={"kind": form, "answer_hint": SPANS_HINT})
    return (agent if question.kind is form else SCRIPTED), question


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
