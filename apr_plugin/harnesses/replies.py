"""The text that goes back to a harness for a finished question."""

from __future__ import annotations

import logging
from collections.abc import Callable

from apr_plugin.errors import told
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.scoring.text import NO_ANSWER

_log = logging.getLogger(__name__)


def reply_of(trajectory: Trajectory, write: Callable[[str], str], *, strict: bool) -> str:
    """The answer in the form that the task's scorer reads; `NO_ANSWER` if there is none. It is never empty.

    Args:
        trajectory: The finished question.
        write: The reader's own function (`Reading.write`); if it fails, the answer goes back unchanged.
        strict: Whether an agent's answer in a wrong form is kept back: a scorer that searches for a letter would find
            one in it.
    """
    text = trajectory.answer or ""
    if strict and trajectory.arm == "agent" and not trajectory.answer_valid:
        return NO_ANSWER
    if trajectory.answer_valid:
        try:
            text = write(text)
        except Exception as error:  # noqa: BLE001 - the answers of all the others must reach their scorer
            _log.error(
                "apr: %s doc %s: the answer goes back unchanged: %s",
                trajectory.question.task,
                trajectory.question.doc_id,
                told(error),
            )
    return text if text.strip() else NO_ANSWER
