"""The ears of the scripted teacher: what it listens to, what it notes of a sound, and what it answers.

Pure functions of flags and of events, below `training.tiny.notes`. A note of a sound names each event, and where in
the window its middle lies, by the name of the nearest of 24 frames spread evenly over the window:

    " low#4 chime#9 high#20!"

`!` is what the question asks for; a window without a sound is `none`. The teacher listens to exactly the window of its
look before, so `#20` there is the frame that was on screen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from apr_plugin.tasks.needle.palette import Glyph
from apr_plugin.tasks.needle.questions import Kind, ParsedQuestion
from apr_plugin.tasks.needle.world import CHIME, World

KINDS = (Kind.SOUND, Kind.COUNT)
"""Kinds of question that need ears."""

PARTS = 24
"""Names of places in a window: those of the frames of a look at a scene."""

ENOUGH = 8
"""Frames of a scene from which the window of the next look is within it: less than 1/7 of the scene is cut off, and
events are in its central 70 %."""

SILENT = "none"
"""The note of a window without a sound."""

Sound = tuple[float, float, str]
"""Start and end in seconds, and a name: `chime` or a pitch (`World.sounds`)."""


@dataclass(frozen=True)
class Event:
    """A sound of a window."""

    name: str
    """`chime` or a pitch."""
    place: int
    """Number of the nearest of `PARTS` frames, from 1."""


@dataclass(frozen=True)
class Look:
    """Where the teacher looks or listens next; numbers are those of frames of its newest look with frames."""

    word: str
    """`chapter`, `scene`, `inner` or `listen`."""
    first: int
    """First frame that supports it."""
    last: int
    """Last one."""
    low: int
    """Frame at which the next window begins."""
    high: int
    """Frame at which it ends."""


def events_of(sounds: Iterable[Sound], start_s: float, end_s: float) -> tuple[Event, ...]:
    """The sounds whose middle is in a window, in order of time."""
    found = []
    for begin, end, name in sounds:
        share = ((begin + end) / 2 - start_s) / (end_s - start_s)
        if 0 <= share < 1:
            found.append(Event(name, 1 + round(share * (PARTS - 1))))
    return tuple(found)


def wanted(asked: ParsedQuestion, event: Event) -> bool:
    """Whether a sound is what the question asks for."""
    return event.name == (asked.pitch if asked.kind is Kind.SOUND else CHIME)


def words_of(events: Sequence[Event], asked: ParsedQuestion | None = None) -> str:
    """The note of a sound; without a question, no event has a flag."""
    return "".join(
        f" {event.name}#{event.place}{'!' if asked is not None and wanted(asked, event) else ''}" for event in events
    ) or SILENT  # fmt: skip


_EVENT = re.compile(r" ?(\w+)#(\d+)(!?)")


def read_words(note: str) -> list[tuple[Event, bool]]:
    """The events of a note, and whether each is flagged, as far as they can be read."""
    return [(Event(match[1], int(match[2])), bool(match[3])) for match in _EVENT.finditer(note)]


def judged(note: str, events: Sequence[Event]) -> tuple[bool, bool]:
    """Whether the names of a note are right, in order, and whether each place is within one 24th too."""
    read = [event for event, _ in read_words(note)]
    names = [event.name for event in read] == [event.name for event in events] and (
        bool(events) or note.strip() == SILENT
    )
    return names, names and all(abs(one.place - other.place) <= 1 for one, other in zip(read, events, strict=True))


def next_look(flags: Sequence[str], before: str) -> Look | None:
    """Where the teacher looks on its way to a scene, or that it listens.

    Args:
        flags: Those of the newest look (`notes.flag`).
        before: The word of the thought before that look.

    Returns:
        The look; `None`: the whole video again.
    """
    count = len(flags)
    for word, counts in (("scene", "+!"), ("chapter", "-+!")):
        hits = [number for number, mark in enumerate(flags, 1) if mark in counts]
        if not hits:
            continue
        first, last = hits[0], hits[-1]
        if len(hits) == count:
            # Nothing but the scene: it was narrowed down to it, or this is a part of it.
            return Look("listen", first, last, 1, count) if (word, before) == ("scene", "inner") else None
        if word == "scene" and len(hits) >= ENOUGH:
            return Look("inner", first, last, first, last)
        return Look(word, first, last, max(first - 1, 1), min(last + 1, count))
    return None


def counted(events: Sequence[Event], asked: ParsedQuestion) -> int:
    """How many sounds are what is asked for."""
    return sum(wanted(asked, event) for event in events)


def shown_at(
    events: Sequence[Event], asked: ParsedQuestion, glyphs: Sequence[Glyph | None]
) -> tuple[int, Glyph] | None:
    """The frame that was on screen at the first sound that is asked for, and its glyph.

    Args:
        events: The sounds of a window.
        asked: The question.
        glyphs: The glyph of each frame of a look at the same window.

    Returns:
        The nearest frame with a glyph; `None`: the sound is not there, or no frame has a glyph.
    """
    place = next((event.place for event in events if wanted(asked, event)), None)
    seen = [(number, glyph) for number, glyph in enumerate(glyphs, 1) if glyph is not None]
    if place is None or not seen:
        return None
    at = 1 + (place - 1) * (len(glyphs) - 1) / (PARTS - 1)
    return min(seen, key=lambda one: abs(one[0] - at))


def cuts(world: World, asked: ParsedQuestion, start_s: float, end_s: float) -> bool:
    """Whether an edge of a window is in the scene that is asked for: its frames would look like the whole scene."""
    for chapter, scene in world.scenes():
        if (chapter.colour, scene.pattern) == (asked.colour, asked.pattern):
            return any(scene.start_s < edge < scene.end_s for edge in (start_s, end_s))
    return False
