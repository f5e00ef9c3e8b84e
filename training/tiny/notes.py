"""The notes of the small agent, and its scripted teacher: pure functions of what a look showed.

A note is the frame's name, what it shows, and a flag:

    #1 red;#2 blue plain-#3 blue striped+#4 blue striped green circle!

`;` another chapter, `-` another scene of the chapter, `+` the scene, `!` the scene with what is asked for. A thought
is one word, what is asked for, the first and the last frame that support it, and the frames between which to look next,
or that are the answer: `scene blue striped#3#4:#2#4`. So what is asked for is written right before each look, apart
from the other words of the question. A thought that answers with words repeats the entry of its frame:
`found#4 blue striped green circle`. No time is ever copied: actions and answers name frames of the newest look. For
sounds see `training.tiny.listening`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from apr_plugin.loop.action import Action, Answer, GetAudio, GetFrames
from apr_plugin.loop.references import Named
from apr_plugin.loop.trajectory import Turn
from apr_plugin.tasks.needle.palette import Glyph
from apr_plugin.tasks.needle.questions import Kind, ParsedQuestion
from apr_plugin.training.tiny import listening
from apr_plugin.training.tiny.pictures import name_of
from apr_plugin.training.tiny.worlds import Label

Flag = Literal[";", "-", "+", "!"]

FRAMES = {"overview": 20, "chapter": 20, "scene": 24, "inner": 24, "found": 12}
"""Frames of the look that follows a thought."""

MOST_FRAMES = max(FRAMES.values())
"""Names of frames that are ever written."""

SURE = {
    "overview": 0.1,
    "chapter": 0.3,
    "scene": 0.5,
    "inner": 0.5,
    "found": 0.8,
    "edges": 0.9,
    "listen": 0.5,
    "heard": 0.9,
}
"""The confidence of a thought."""

NOTHING = "none"
"""The note of the first turn, before anything was shown."""

KINDS = (Kind.GLYPH, Kind.WHEN, Kind.ORDER)
"""Kinds of question that the teacher can answer with eyes alone."""

EVERY = (*KINDS, *listening.KINDS)
"""Kinds of question that it can answer."""


_COUNTS = {"found": "!", "scene": "+!", "chapter": "-+!"}
"""The words of thoughts, and the flags on which they rest, the best first."""


def flag(asked: ParsedQuestion, label: Label) -> Flag:
    """How far a frame is what is asked for."""
    colour, pattern, glyph = label
    if colour != asked.colour:
        return ";"
    if pattern != asked.pattern:
        return "-"
    return "!" if glyph is not None and (not asked.glyphs or glyph in asked.glyphs) else "+"


def observe(asked: ParsedQuestion, labels: Sequence[Label]) -> str:
    """The notes of a look."""
    return "".join(_entry(asked, number, label) for number, label in enumerate(labels, 1))


def _entry(asked: ParsedQuestion, number: int, label: Label) -> str:
    mark = flag(asked, label)
    return f"#{number} {label[0] if mark == ';' else name_of(label)}{mark}"


@dataclass(frozen=True)
class Move:
    """A thought, and what follows from it."""

    think: str
    """Its words, without what is asked for."""
    start: int = 0
    """Number of the frame of the newest look where the next window (or the answer) begins; 0: the whole video."""
    end: int = 0
    """Number of the frame where it ends."""
    num: int = 0
    """Frames to look at; 0: the thought is an answer, or `listen`."""
    words: str = ""
    """The answer, if it is in words."""
    listen: bool = False
    """Whether the window is listened to."""

    @property
    def word(self) -> str:
        """The first word of the thought."""
        return self.think.partition("#")[0].partition(":")[0]


def teach(
    asked: ParsedQuestion,
    labels: Sequence[Label] | None,
    before: str,
    heard: Sequence[listening.Event] | None = None,
) -> Move:
    """What the teacher thinks and does.

    Args:
        asked: The question.
        labels: What the newest look with frames shows, in order; `None`: nothing was looked at.
        before: The word of the thought before.
        heard: What sounds in the newest look, if that is a sound.
    """
    whole = Move("overview", num=FRAMES["overview"])
    if not labels:
        return whole
    flags = [flag(asked, label) for label in labels]
    if asked.kind in listening.KINDS:
        return _listening(asked, labels, listening.next_look(flags, before), heard) or whole
    hits_of = {
        word: [number for number, mark in enumerate(flags, 1) if mark in counts] for word, counts in _COUNTS.items()
    }
    word = next((word for word, hits in hits_of.items() if hits), None)
    if word is None:
        return whole
    if word == "found" and len(_seen(asked, labels, hits_of["found"])) < len(asked.glyphs):
        word = "scene"  # one of the two is still to be seen
    if (word, before) in (("chapter", "chapter"), ("scene", "inner")):
        return whole  # the look before was at the wrong place: all of a chapter or scene would have shown more
    hits = hits_of[word]
    first, last = hits[0], hits[-1]
    low, high = max(first - 1, 1), min(last + 1, len(labels))
    if word == "found" and asked.kind is not Kind.WHEN:
        glyph = labels[first - 1][2]
        assert glyph is not None
        return Move(f"found#{first} {glyph.name}", words=glyph.name)
    if word == "found" and before == "found":
        return Move(f"edges#{first}#{last}:#{first}#{high}", first, high)
    if word == "scene" and before == "scene" and last > first:
        word, low, high = "inner", first, last
    return Move(f"{word}#{first}#{last}:#{low}#{high}", low, high, FRAMES[word])


def _listening(
    asked: ParsedQuestion,
    labels: Sequence[Label],
    look: listening.Look | None,
    heard: Sequence[listening.Event] | None,
) -> Move | None:
    if heard is not None and asked.kind is Kind.COUNT:
        count = listening.counted(heard, asked)
        return Move(f"heard:{count}", words=str(count))
    if heard is not None:
        found = listening.shown_at(heard, asked, [glyph for _, _, glyph in labels])
        return found and Move(f"heard#{found[0]} {found[1].name}", words=found[1].name)
    if look is None:
        return None
    think = f"{look.word}#{look.first}#{look.last}:#{look.low}#{look.high}"
    return Move(think, look.low, look.high, FRAMES.get(look.word, 0), listen=look.word == "listen")


def _seen(asked: ParsedQuestion, labels: Sequence[Label], hits: Sequence[int]) -> set[Glyph]:
    """The glyphs that the question names and these frames show."""
    return {glyph for number in hits if (glyph := labels[number - 1][2]) is not None and glyph in asked.glyphs}


def _thought(asked: ParsedQuestion, move: Move) -> str:
    """Its words, with what is asked for; before words for an answer come those of the frame's entry, to be copied."""
    rest = move.think.removeprefix(move.word)
    place, blank, words = rest.partition(" ")
    if blank:
        return f"{move.word}{place} {asked.colour} {asked.pattern} {words}"
    return " ".join([move.word, asked.colour, asked.pattern, *(glyph.name for glyph in asked.glyphs)]) + rest


def turn_of(
    asked: ParsedQuestion,
    labels: Sequence[Label] | None,
    times_s: Sequence[float],
    move: Move,
    heard: Sequence[listening.Event] | None = None,
) -> Turn:
    """A turn of the teacher, for `Wire.written`.

    Args:
        asked: The question.
        labels: What the newest look with frames shows.
        times_s: The times of its frames; with none, those of the whole video (start, end).
        move: What the teacher does.
        heard: What sounds in the newest look, if that is a sound.
    """
    names = ("#0.1", "#0.2") if not move.start else (f"#{move.start}", f"#{move.end}")
    action: Action
    named: Named | None = None
    if move.words:
        action = Answer(content=move.words)
    elif move.num or move.listen:
        begin, end = (times_s[0], times_s[-1]) if not move.start else (times_s[move.start - 1], times_s[move.end - 1])
        action = GetAudio(start=begin, end=end) if move.listen else GetFrames(start=begin, end=end, num=move.num)
        named = Named(start=names[0], end=names[1])
    else:
        content = f"[[{names[0]},{names[1]}]]"
        spans = f"[[{times_s[move.start - 1]:.3f},{times_s[move.end - 1]:.3f}]]"
        action, named = Answer(content=spans), Named(content=content)
    note = NOTHING if labels is None else observe(asked, labels)
    note = note if heard is None else listening.words_of(heard, asked)
    think = _thought(asked, move)
    return Turn(text="", observation=note, think=think, confidence=SURE[move.word], action=action, named=named)
