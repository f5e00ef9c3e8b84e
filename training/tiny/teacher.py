"""`policy=needle_notes`: the teacher of `notes`, as a policy that looks at real files and sometimes errs.

    apr train synthesize … --teacher "policy=needle_notes,wire=compact,frame_references=true,frame_times=false,turns=9,
    frame_pixels=50176,clip_pixels=50176"

It reads the question, its own notes and the pictures of the newest look from the prompt, and nothing else: each picture
by its pixels (`tasks.needle.perceive.read_frame`), which need 96 on the shorter side, more than the student is shown.
It writes turns of the compact wire, which name frames. Errors are drawn from the seed of the turn, so that trajectories
hold what a student needs as well: how to go on after a look at the wrong place, and after an action that was refused.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from apr_plugin.errors import AprError
from apr_plugin.loop.action import Answer, GetFrames
from apr_plugin.loop.policy import Generation, Message, PolicyDefaults, Prompt, Sampling
from apr_plugin.loop.references import Named
from apr_plugin.tasks.needle.palette import BACKGROUNDS, PATTERNS, Glyph
from apr_plugin.tasks.needle.perceive import read_frame
from apr_plugin.tasks.needle.policy import read_case
from apr_plugin.tasks.needle.questions import Kind, ParsedQuestion
from apr_plugin.training.tiny.notes import FRAMES, KINDS, NOTHING, Move, teach, turn_of
from apr_plugin.training.tiny.playing import entries
from apr_plugin.training.tiny.prompts import PROFILE, TURNS, WIRE
from apr_plugin.training.tiny.worlds import Label

LEAST_EDGE = 96
"""Pixels of the shorter side that `read_frame` needs."""

ARGUMENTS = {
    "wire": PROFILE.wire,
    "frame_references": PROFILE.frame_references,
    "frame_times": PROFILE.frame_times,
    "turns": TURNS,
    "frame_pixels": 224 * 224,
    "clip_pixels": 224 * 224,
}
"""How it is asked: as the small agent is (`prompts.PROFILE`), except for the size of pictures."""


class Teach(Protocol):
    """What the teacher thinks and does about one kind of question, see `notes.teach`."""

    def __call__(self, asked: ParsedQuestion, labels: Sequence[Label] | None, before: str) -> Move:
        """A thought, and what follows from it."""
        ...


TEACHERS: dict[Kind, Teach] = dict.fromkeys(KINDS, teach)
"""By the kind of question; another kind is an entry here."""


@dataclass(frozen=True)
class Known:
    """What the teacher knows when it writes a turn."""

    labels: tuple[Label, ...] | None
    """What the newest look showed; `None`: nothing was looked at."""
    before: str
    """The word of the thought that led to this look."""
    fresh: bool
    """Whether the look is in the prompt. Otherwise an action was refused after it, and it is in the notes."""


class NotesTeacher(PolicyDefaults):
    """The teacher of the small agent, with mistakes. The same seed makes the same mistakes.

    Args:
        wrong: Chance that a look after the first goes to a wrong place.
        slips: Chance that an action is one that is refused.
        hasty: Chance that a turn after the first is an early answer, guessed.
    """

    name = "needle_notes"

    def __init__(self, wrong: float = 0.06, slips: float = 0.04, hasty: float = 0.02) -> None:
        for name, value in (("wrong", wrong), ("slips", slips), ("hasty", hasty)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise AprError(f"policy {self.name}: {name}={value!r}: it must be from 0 to 1")
        if wrong + slips + hasty > 1:
            raise AprError(f"policy {self.name}: wrong, slips and hasty must not be above 1 together")
        self.wrong, self.slips, self.hasty = float(wrong), float(slips), float(hasty)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """Write the next turn."""
        return Generation(await asyncio.to_thread(self._written, prompt, random.Random(sampling.seed)))

    def describe(self) -> dict[str, Any]:
        """Its chances; the version counts changes of behaviour."""
        return {"policy": self.name, "version": 1, "wrong": self.wrong, "slips": self.slips, "hasty": self.hasty}

    def _written(self, prompt: Prompt, chance: random.Random) -> str:
        case = read_case(next((one.text for one in prompt.messages if one.role == "user"), ""))
        if case.asked is None or case.asked.kind not in TEACHERS:
            kinds = ", ".join(TEACHERS)
            raise AprError(f"policy {self.name}: it answers questions of the needle tasks of the kinds {kinds} only")
        known = known_of(prompt)
        move = TEACHERS[case.asked.kind](case.asked, known.labels, known.before)
        options = [text for _, text in case.options]
        draw = chance.random()
        if prompt.final and move.num:
            move = _guess(move, known.labels, options, chance)
        elif known.labels and move.num:
            if draw < self.hasty:
                move = _guess(move, known.labels, options, chance)
            elif draw < self.hasty + self.wrong:
                move = _astray(move, known.labels, chance)
        slips = bool(move.num) and not prompt.final and 1 - draw < self.slips
        return _words(case.asked, known, move, chance if slips else None)


def known_of(prompt: Prompt) -> Known:
    """What a prompt tells: the newest look from its pictures, or from the notes if an action was refused after it."""
    said = (_said(message, "think").partition("#")[0] for message in prompt.messages if _own(message))
    thoughts = ["", *(words.partition(" ")[0] for words in said)]
    pictures, _ = prompt.newest_media()
    if pictures:
        return Known(tuple(_label(image) for image in pictures), thoughts[-1], True)
    notes = [_said(message, "observation") for message in prompt.messages if _own(message)]
    for number in reversed(range(len(notes))):
        if found := entries(notes[number]):
            return Known(tuple(noted(*found[name]) for name in sorted(found)), thoughts[number], False)
    return Known(None, "", False)


def _own(message: Message) -> bool:
    return message.role == "assistant"


def _said(turn: Message, key: str) -> str:
    with suppress(ValueError, KeyError, TypeError):  # a turn that is not this policy's own gives no information
        return str(json.loads(turn.text)[key])
    return ""


def _label(image: Any) -> Label:
    if min(image.shape[:2]) < LEAST_EDGE:
        height, width = image.shape[:2]
        raise AprError(
            f"policy needle_notes: it can't read pictures of {width}x{height}; it needs {LEAST_EDGE} pixels on the "
            f"shorter side: frame_pixels={ARGUMENTS['frame_pixels']}"
        )
    reading = read_frame(image)
    return reading.background, reading.pattern, reading.glyph


def noted(colour: str | None, pattern: str | None, one: str | None, other: str | None, mark: str | None) -> Label:
    """A label from its entry; of another chapter's frames, only the colour was noted."""
    glyph = None if one is None or other is None else Glyph(one, other)
    return colour or next(iter(BACKGROUNDS)), pattern or PATTERNS[0], glyph


def _astray(move: Move, labels: Sequence[Label], chance: random.Random) -> Move:
    """The same thought, with other frames than those that it should name."""
    low, high = sorted(chance.sample(range(1, len(labels) + 1), 2)) if len(labels) > 1 else (1, 1)
    head = move.think.partition(":")[0] if "#" in move.think else f"{move.word}#{low}#{high}"
    return Move(f"{head}:#{low}#{high}", low, high, FRAMES[move.word])


def _guess(move: Move, labels: Sequence[Label] | None, options: Sequence[str], chance: random.Random) -> Move:
    """An answer that nothing supports."""
    frames = len(labels or ())
    if options:
        words = chance.choice(options)
        return Move(f"found#1 {words}", words=words)
    if frames < 2:
        return Move("edges", 0, 0)
    low, high = sorted(chance.sample(range(1, frames + 1), 2))
    return Move(f"edges#{low}#{high}:#{low}#{high}", low, high)


def _words(asked: ParsedQuestion, known: Known, move: Move, slip: random.Random | None) -> str:
    """The turn as text; `slip` draws how its action is wrong."""
    frames = len(known.labels or ())
    # Actions have names in place of times; any times in the right order give them.
    times = [float(number) for number in range(max(frames, 2))]
    if not move.num and not move.words and not move.start:
        turn = turn_of(asked, known.labels, times, Move("overview", num=1))
        think = turn.think.replace("overview", move.word, 1)
        turn = turn.model_copy(update={"think": think, "action": Answer(content="[[#0.1,#0.2]]"), "named": None})
    else:
        turn = turn_of(asked, known.labels, times, move)
    if known.labels is not None and not known.fresh:
        turn = turn.model_copy(update={"observation": NOTHING})
    if slip is not None and isinstance(turn.action, GetFrames) and turn.named is not None:
        named = turn.named
        beyond = Named(start=named.start, end=f"#{frames + slip.randint(1, 9)}")
        turn = turn.model_copy(update={"named": slip.choice((beyond, Named(start=named.end, end=named.start)))})
    return WIRE.written(turn)
