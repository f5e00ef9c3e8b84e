"""Gives foreign questions the names that a run of ours has for them, so that `apr compare` joins both.

Task, split and doc id of a harness are its own; another program has others. The same question is known by its words,
its options and, where both name one, its first video.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from apr_plugin.loop.question import Question
from apr_plugin.runs.foreign.found import Found
from apr_plugin.runs.opened import Run

_Names = tuple[str, str, str]


class Matching:
    """The questions of a run, by what they say.

    Args:
        run: From `open_run`.
    """

    def __init__(self, run: Run) -> None:
        self._known: dict[tuple[str, tuple[str, ...]], dict[str, set[_Names]]] = {}
        for trajectory in run:
            question = trajectory.question
            by_video = self._known.setdefault(_said(question), {})
            by_video.setdefault(_video(question), set()).add(question.key[:3])
        self.unknown = 0
        """Questions that the run does not have, or has more than once."""

    def named(self, found: Found) -> Found:
        """The same with the names of the run's question; unchanged if there is none, or more than one."""
        question = found.trajectory.question
        by_video = self._known.get(_said(question), {})
        names = by_video.get(_video(question), set())
        if not names and ("" in by_video or not _video(question)):
            names = set().union(*by_video.values())
        if len(names) != 1:
            self.unknown += 1
            return found
        task, split, doc_id = next(iter(names))
        changed = question.model_copy(update={"task": task, "split": split, "doc_id": doc_id})
        return replace(found, trajectory=found.trajectory.model_copy(update={"question": changed}))


def _said(question: Question) -> tuple[str, tuple[str, ...]]:
    """Words and options, without differences in case and blanks; the order of options does not count."""
    return _plain(question.text), tuple(sorted(_plain(option.text) for option in question.options))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _video(question: Question) -> str:
    return Path(question.videos[0].path).stem if question.videos else ""
