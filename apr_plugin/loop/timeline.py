"""`Phase`: a stretch of an episode, and when it began and ended, for timelines of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, ParamSpec

P = ParamSpec("P")


@dataclass(frozen=True)
class Phase:
    """One stretch of an episode's time."""

    question: tuple[str, str, str, int]
    """Key of the question."""
    turn: int
    """Number of its turn, from 1; 0 for opening and saving."""
    what: Literal["open", "wait", "look", "generate", "save"]
    """`open` the videos, `wait` for a decoding thread or for memory, `look` (decode), `generate` (waiting for the
    policy), `save` the trajectory."""
    began_s: float
    """When it began, by `time.perf_counter`."""
    ended_s: float
    """When it ended, by the same clock."""


OnPhase = Callable[[Phase], None]
"""Called in the event loop when a phase ends."""


class Callers:
    """Calls the caller's functions.

    An exception from one of them belongs to the caller; it is not a failure of the question.
    """

    def __init__(self) -> None:
        self.raised: BaseException | None = None
        """The exception of a call."""

    def __call__(self, call: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> None:
        """Call the function, and keep its exception."""
        try:
            call(*arguments, **named)
        except BaseException as error:
            self.raised = error
            raise
