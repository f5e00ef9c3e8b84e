"""`View`: what a visitor sees of an investigation, and `after`: the next view after an event. Pure values.

The events of a turn come in this order: `Saw` (the media of the turn before, as the policy sees it), `Wrote` (its
thought and action), `Looked` (what came of the action).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from apr_plugin.loop.budget import Budget
from apr_plugin.loop.parse import ParsedTurn
from apr_plugin.loop.policy import Generation, Usage
from apr_plugin.loop.question import Question
from apr_plugin.loop.trajectory import Shown, Trajectory, Turn

Stage = Literal["idle", "waiting", "looking", "ended", "refused"]


@dataclass(frozen=True)
class Refused:
    """The investigation was not begun."""

    message: str
    """Why, and what to do."""


@dataclass(frozen=True)
class Waiting:
    """It waits for others to end."""

    ahead: int
    """How many wait before it."""


@dataclass(frozen=True)
class Began:
    """It has a place, and its video is being opened."""


@dataclass(frozen=True)
class Opened:
    """Its video is open."""

    durations_s: tuple[float, ...]
    """Length of each video."""
    turns: int
    """How many turns it may take."""


@dataclass(frozen=True)
class Saw:
    """The policy now sees what it asked for."""

    thumbnails: tuple[tuple[float, str], ...] = ()
    """Time in seconds, and a small WebP picture as base64, of some of the frames."""
    wave: tuple[int, ...] | None = None
    """Loudness over the sound's window, from 0 to 100; `None` without sound."""


@dataclass(frozen=True)
class Wrote:
    """The policy wrote a turn; its action has not been carried out."""

    number: int
    """The turn, from 1."""
    parsed: ParsedTurn
    """Its parts."""
    generation: Generation
    """Its tokens and entropies."""


@dataclass(frozen=True)
class Looked:
    """A turn is over."""

    number: int
    """The turn, from 1."""
    turn: Turn
    """Its record."""


@dataclass(frozen=True)
class Ticked:
    """Time has passed."""

    seconds: float
    """Since it began."""


@dataclass(frozen=True)
class Ended:
    """It is over, whatever came of it."""

    trajectory: Trajectory
    """Everything that happened."""
    downloads: str = ""
    """Names the finished investigation in the addresses of its downloads; empty if there are none."""


Event = Refused | Waiting | Began | Opened | Saw | Wrote | Looked | Ticked | Ended


@dataclass(frozen=True)
class Card:
    """One turn, as far as it is known."""

    number: int
    """From 1."""
    wrote: Wrote | None = None
    """What the policy wrote; `None` where that could be read only with the whole turn."""
    turn: Turn | None = None
    """Its record, when it is over."""
    saw: Saw | None = None
    """What its look showed, once the policy sees it."""

    @property
    def usage(self) -> Usage | None:
        """Its tokens, as soon as they are known."""
        if self.turn is not None:
            return self.turn.usage
        return None if self.wrote is None else self.wrote.generation.usage


@dataclass(frozen=True)
class Cost:
    """What was spent so far. A count that the policy does not give is `None`."""

    turns: int
    looks: int
    frames: int
    visual_tokens: int
    audio_s: float
    prompt_tokens: int | None
    completion_tokens: int | None
    model_s: float
    media_s: float


@dataclass(frozen=True)
class View:
    """What a visitor sees."""

    stage: Stage = "idle"
    """Where it is."""
    message: str = ""
    """Why it was refused."""
    ahead: int = 0
    """How many wait before it."""
    question: Question | None = None
    """What was asked."""
    budget: Budget = field(default_factory=Budget)
    """Its limits."""
    durations_s: tuple[float, ...] = ()
    """Length of each video, once they are open."""
    turns: int = 0
    """How many turns it may take, once that is known."""
    cards: tuple[Card, ...] = ()
    """Its turns."""
    seconds: float = 0.0
    """Since it began."""
    trajectory: Trajectory | None = None
    """Everything, when it is over."""
    downloads: str = ""
    """Names it in the addresses of its downloads."""

    @property
    def looks(self) -> list[tuple[int, Shown]]:
        """Every look with its turn, in order; turn 0 is what an arm without looks was shown."""
        first = () if self.trajectory is None else self.trajectory.first_shown
        taken = ((card.number, card.turn.shown) for card in self.cards if card.turn is not None)
        return [*((0, shown) for shown in first), *((n, shown) for n, shown in taken if shown is not None)]

    @property
    def cost(self) -> Cost:
        """What was spent so far."""
        usages = [usage for card in self.cards if (usage := card.usage) is not None]
        turns = [card.turn for card in self.cards if card.turn is not None]
        shown = [shown for _, shown in self.looks]
        return Cost(
            turns=sum(not turn.forced for turn in turns) + sum(card.turn is None for card in self.cards),
            looks=len(shown),
            frames=sum(len(one.times_s) for one in shown),
            visual_tokens=sum(one.visual_tokens for one in shown),
            audio_s=sum(one.audio_s for one in shown),
            prompt_tokens=_sum([usage.prompt_tokens for usage in usages]),
            completion_tokens=_sum([usage.completion_tokens for usage in usages]),
            model_s=sum(turn.model_s for turn in turns),
            media_s=sum(turn.media_s for turn in turns),
        )


def after(view: View, event: Event) -> View:
    """The view after one more event."""
    match event:
        case Refused():
            return replace(view, stage="refused", message=event.message)
        case Waiting():
            return replace(view, stage="waiting", ahead=event.ahead)
        case Began():
            return replace(view, stage="looking")
        case Opened():
            return replace(view, durations_s=event.durations_s, turns=event.turns)
        case Saw():
            return view if not view.cards else _with_last(view, replace(view.cards[-1], saw=event))
        case Wrote():
            return replace(view, cards=(*view.cards, Card(event.number, event)))
        case Looked():
            if view.cards and view.cards[-1].number == event.number:
                return _with_last(view, replace(view.cards[-1], turn=event.turn))
            return replace(view, cards=(*view.cards, Card(event.number, turn=event.turn)))
        case Ticked():
            return replace(view, seconds=event.seconds)
        case Ended(trajectory, downloads):
            return replace(
                view,
                stage="ended",
                trajectory=trajectory,
                downloads=downloads,
                seconds=trajectory.timings.total_s,
                durations_s=trajectory.video_durations_s or view.durations_s,
                turns=trajectory.turns_allowed,
            )


def _with_last(view: View, card: Card) -> View:
    return replace(view, cards=(*view.cards[:-1], card))


def _sum(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
