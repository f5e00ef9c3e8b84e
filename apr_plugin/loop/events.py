"""What happens in an episode while it runs: `Opened`, `Thought`, `TurnEnded`, in the order in which it happens.

`Episode(on_event=…)`, `Agent.episode(on_event=…)` and `run_episodes(on_event=…)` give these values to the caller, in
the event loop, so that an endpoint or a page can show an episode as it happens. An event holds no media. Everything in
it that a model wrote is untrusted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from apr_plugin.loop.parse import ParsedTurn
from apr_plugin.loop.trajectory import Film, Turn

Key = tuple[str, str, str, int]
"""The key of a question (`Question.key`)."""


@dataclass(frozen=True)
class Opened:
    """The question's videos are open; the first prompt is made next. A question without a video has none."""

    question: Key
    films: tuple[Film, ...]
    """The videos, as the policy is told about them."""


@dataclass(frozen=True)
class Thought:
    """The policy wrote a turn that asks for a look, which is carried out next.

    `TurnEnded` follows with the same number, when the look has ended. A turn without a look has `TurnEnded` only.
    """

    question: Key
    number: int
    """Number of the turn, from 1."""
    parsed: ParsedTurn
    """The note, the thought, the confidence and the look."""


@dataclass(frozen=True)
class TurnEnded:
    """A turn was recorded, with what its action showed, or the error."""

    question: Key
    number: int
    """Number of the turn, from 1."""
    turn: Turn
    """The record."""


Event = Opened | Thought | TurnEnded

OnEvent = Callable[[Event], None]
"""Called in the event loop with each event. What it raises ends the run, as with `on_turn`."""
