"""Rows that teach notes: one look, and what is to be noted of it.

`maker` makes looks whose frames have nothing to do with each other, about a question that is made up, so that a note
can't be guessed from its neighbours. `windows` makes one look of a real world with a short turn before it, and the
whole next turn as the target; with `text=True` the notes are given and only the thought and the action remain, with no
picture at all.
"""

from __future__ import annotations

import math
import random

from apr_plugin.loop.question import Question
from apr_plugin.loop.wires import VideoMeta
from apr_plugin.tasks.needle.make import BUCKETS
from apr_plugin.tasks.needle.palette import ALL_GLYPHS, BACKGROUNDS, PATTERNS
from apr_plugin.tasks.needle.questions import TEMPLATES, Kind, parse_question
from apr_plugin.tasks.needle.read import asked as asked_by
from apr_plugin.training.student import Student
from apr_plugin.training.tiny.agents import asked_of, drawn
from apr_plugin.training.tiny.notes import FRAMES, MOST_FRAMES, Move, flag, observe, teach, turn_of
from apr_plugin.training.tiny.pictures import NOISE, Eyes
from apr_plugin.training.tiny.prompts import WIRE, Laid, Rows, laid, notebook, notes_only, percept_of
from apr_plugin.training.tiny.worlds import FPS, question_of, unrelated

_BACKGROUNDS = tuple(BACKGROUNDS)


def made_up(draw: random.Random) -> Question:
    """A question about nothing, in the benchmark's words."""
    kind = draw.choice((Kind.GLYPH, Kind.WHEN, Kind.WHEN, Kind.ORDER))
    names = [glyph.name for glyph in draw.sample(ALL_GLYPHS, 4)]
    text = TEMPLATES[kind].format(
        pattern=draw.choice(PATTERNS), colour=draw.choice(_BACKGROUNDS), glyph=names[0], other=names[1]
    )
    options = {Kind.GLYPH: names, Kind.ORDER: names[:2]}.get(kind, [])
    return asked_by({"kind": str(kind), "question": text, "options": options})


def maker(*, student: Student, seed: int, least: int = 1, most: int = 4, noise: float = NOISE) -> Rows:
    """A maker of looks of independent frames; two thirds are of the chapter that is asked for.

    Args:
        student: The model that is trained.
        seed: Draws everything.
        least: Fewest frames.
        most: Most frames.
        noise: See `Eyes`.
    """

    def lay(index: int) -> Laid:
        draw = random.Random(f"describing:{seed}:{index}")
        question = made_up(draw)
        asked = parse_question(question.text)
        duration = BUCKETS[draw.choice(tuple(BUCKETS))]
        labels = unrelated(draw, question, draw.randint(least, most), 0.66)
        begin = draw.uniform(0, duration - 2)
        step = math.exp(draw.uniform(math.log(0.1), math.log(max(0.11, (duration - 1 - begin) / max(1, most)))))
        times = tuple(round(begin + n * step, 1) for n in range(len(labels)))
        first = turn_of(asked, None, (0.0, duration), Move("overview", num=FRAMES["overview"]))
        looked = first.model_copy(
            update={"action": first.action.model_copy(update={"start": times[0], "end": times[-1] + 0.1})}  # type: ignore[union-attr]
        )
        notes = notebook(question, VideoMeta(duration, FPS, True)).with_turn(
            WIRE.written(first), percept_of(looked, times, 1)
        )
        move = teach(asked, labels, "overview")
        words = WIRE.written(turn_of(asked, labels, times if move.start else (0.0, duration), move))
        # What follows from frames without a world means nothing.
        return notes_only(student, laid(student, notes, labels, words), words, observe(asked, labels))

    return Rows(lay, Eyes(student, seed, noise))


def windows(
    *,
    student: Student,
    seed: int,
    least: int = 4,
    most: int = MOST_FRAMES,
    text: bool = False,
    worlds: int = 1_000_000,
    noise: float = NOISE,
) -> Rows:
    """A maker of single looks at training worlds, near what is asked for and at every scale.

    Args:
        student: The model that is trained.
        seed: Draws everything.
        least: Fewest frames.
        most: Most frames.
        text: Whether the notes are given in the prompt's place of pictures: no picture, and a target of the same words.
        worlds: See `agents.maker`.
        noise: See `Eyes`.
    """

    def lay(index: int) -> Laid:
        draw = random.Random(f"windows:{seed}:{index}")
        seen, doc = drawn(draw, worlds)
        question, _ = question_of(doc)
        asked = asked_of(doc)
        event = doc["spans"][0][0]
        size = math.exp(draw.uniform(math.log(3), math.log(seen.duration_s)))
        share = draw.uniform(0, 1) if draw.random() < 0.85 else draw.uniform(-1, 2)
        start = min(max(0.0, event + 1 - size * share), seen.duration_s - 1)
        times, labels = seen.frames(start, min(seen.duration_s, start + size), draw.randint(least, most))
        flags = {flag(asked, label) for label in labels}
        best = "!" if "!" in flags else "+" if "+" in flags else ";"
        before = draw.choice(_BEFORE[best] if best != "!" or asked.kind is Kind.WHEN else _BEFORE["+"])
        # A turn before, of few frames that lie around the window, whose thought is the one that the teacher had.
        wide = (max(0.0, times[0] - draw.uniform(0, 60)), min(seen.duration_s, times[-1] + draw.uniform(0, 60)))
        shown, earlier = seen.frames(*wide, draw.randint(2, 4))
        think = before if before == "overview" else f"{before}#1#{len(shown)}:#1#{len(shown)}"
        looked = turn_of(asked, earlier, shown, Move(think, 1, len(shown), FRAMES[before]))
        moved = looked.action.model_copy(update={"start": times[0], "end": times[-1] + 0.1})  # type: ignore[union-attr]
        notes = notebook(question, seen.meta).with_turn(
            WIRE.written(looked), percept_of(looked.model_copy(update={"action": moved}), times, 2)
        )
        move = teach(asked, labels, before)
        words = WIRE.written(
            turn_of(asked, labels, times if move.start or move.words else (0.0, seen.duration_s), move)
        )
        if text:
            notes.forget_media()
        return laid(student, notes, [] if text else labels, words)

    return Rows(lay, Eyes(student, seed, noise))


_BEFORE = {
    "!": ("found", "found", "scene"),
    "+": ("scene", "inner", "chapter", "overview", "overview"),
    ";": ("chapter", "overview", "overview"),
}
"""Thoughts that may have led to a look, by the best flag in it."""
