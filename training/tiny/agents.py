"""Rows of the teacher's episodes in training worlds, made without files.

The n-th row is a turn of an episode that is drawn from its number: world, question, and which turn. Now and then the
teacher's look is replaced by another one, so that the student learns to go on from places where the teacher would not
have been; that turn is in the notes and is no target. And now and then the notes of an earlier turn are wrong, as if
another question had been asked, so that the student does not learn to copy its mistakes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from apr_plugin.loop.notebook import Notebook
from apr_plugin.loop.trajectory import Turn
from apr_plugin.scoring.truth import Truth
from apr_plugin.tasks.needle.make import BUCKETS
from apr_plugin.tasks.needle.palette import PATTERNS
from apr_plugin.tasks.needle.questions import Doc, ParsedQuestion, parse_question
from apr_plugin.training.student import Student
from apr_plugin.training.tiny import listening
from apr_plugin.training.tiny.ears import Ears
from apr_plugin.training.tiny.notes import FRAMES, KINDS, Move, observe, teach, turn_of
from apr_plugin.training.tiny.pictures import NOISE, Eyes
from apr_plugin.training.tiny.prompts import TURNS, WIRE, Heard, Laid, Rows, laid, notebook, notes_only, percept_of
from apr_plugin.training.tiny.worlds import TRAINING, Film, Label, film, question_of, unrelated

LED_ASTRAY = ("overview", "chapter", "scene")
"""Thoughts whose look may be replaced: what the others show is taken as all that there is to see."""


MINE = (0.15, 0.4, 0.7)
"""Shares of the chapter that is asked for in looks of frames that have nothing to do with each other."""


@dataclass(frozen=True)
class Step:
    """One turn of an episode."""

    notes: Notebook
    """The notes before it."""
    labels: tuple[Label, ...]
    """What its prompt shows."""
    turn: Turn
    """The turn."""
    taught: bool
    """Whether it is the teacher's."""
    window_s: tuple[float, float] | None = None
    """Start and end of the sound that its prompt lets hear, in seconds; then it shows nothing."""


def episode(
    seen: Film, doc: Doc, *, chance: random.Random | None = None, astray: float = 0.0, mistaken: float = 0.0
) -> Iterator[Step]:
    """The teacher's episode.

    Args:
        seen: The video.
        doc: The question.
        chance: Draws which looks are replaced, and which notes.
        astray: Chance that a look after the first is replaced. Where the question needs ears, a window that cuts the
            scene is not taken: what it shows would look like the whole scene.
        mistaken: Chance that the notes of a turn are wrong in the prompts after it.
    """
    question, _ = question_of(doc)
    asked = parse_question(question.text)
    notes = notebook(question, seen.meta)
    labels: list[Label] | None = None
    times: Sequence[float] = (0.0, seen.duration_s)
    heard: tuple[listening.Event, ...] | None = None
    window: tuple[float, float] | None = None
    word = ""
    for number in range(1, TURNS + 1):
        move, taught = teach(asked, labels, word, heard), True
        if number == TURNS and (move.num or move.listen):
            return  # no turn is left for another look
        if chance is not None and labels is not None and move.word in LED_ASTRAY and chance.random() < astray:
            low, high = sorted(chance.sample(range(1, len(labels) + 1), 2)) if len(labels) > 1 else (1, 1)
            if asked.kind not in listening.KINDS or not listening.cuts(
                seen.world, asked, times[low - 1], times[high - 1]
            ):
                move, taught = Move(move.think, low, high, FRAMES[move.word]), False
        whole = (0.0, seen.duration_s)
        turn = turn_of(asked, labels, times if move.start or move.words else whole, move, heard)
        yield Step(notes, tuple(labels or ()) if heard is None else (), turn, taught, window)
        if not move.num and not move.listen:
            return
        begin, end = (turn.action.start, turn.action.end)  # type: ignore[union-attr]
        if chance is not None and labels and heard is None and chance.random() < mistaken:
            turn = turn.model_copy(update={"observation": observe(_another(asked, labels, chance), labels)})
        heard, window = None, None
        if move.listen:
            heard, window = listening.events_of(seen.sounds, begin, end), (begin, end)
        else:
            times, labels = seen.frames(begin, end, move.num)
        word = move.word
        notes = notes.with_turn(WIRE.written(turn), percept_of(turn, times, number))


def _another(asked: ParsedQuestion, labels: Sequence[Label], draw: random.Random) -> ParsedQuestion:
    """A question about another chapter or scene."""
    if draw.random() < 0.7:
        return replace(asked, colour=draw.choice(labels)[0])
    return replace(asked, pattern=draw.choice(PATTERNS))


def answer_of(seen: Film, doc: Doc) -> tuple[str | None, Truth, int]:
    """The teacher's answer, the truth, and the number of turns."""
    steps = list(episode(seen, doc))
    _, truth = question_of(doc)
    action = steps[-1].turn.action
    return getattr(action, "content", None), truth, len(steps)


def maker(
    *,
    student: Student,
    seed: int,
    worlds: int = 1_000_000,
    astray: float = 0.06,
    mistaken: float = 0.12,
    unlike: float = 0.0,
    opening: bool = False,
    noise: float = NOISE,
    kinds: Sequence[str] = KINDS,
) -> Rows:
    """A maker of rows of whole episodes (`training.sft.mixes.RowMaker`).

    Args:
        student: The model that is trained.
        seed: Draws episodes and turns, and the disturbance of pictures.
        worlds: Seeds of worlds that are used for each length of video.
        astray: See `episode`.
        mistaken: See `episode`.
        unlike: Share of the rows after a look in which the look is replaced by frames that have nothing to do with each
            other; their target ends where the thought begins.
        opening: Whether all rows are first turns, which are short and name what is asked for.
        noise: See `Eyes`.
        kinds: Of the questions; by default those that need no ears.
    """

    @lru_cache(maxsize=64)
    def steps(number: int) -> tuple[Film, Doc, list[Step]]:
        draw = random.Random(f"agents:{seed}:{number}")
        seen, doc = drawn(draw, worlds, kinds)
        played = episode(seen, doc, chance=draw, astray=astray, mistaken=mistaken)
        if opening:
            return seen, doc, [next(played)]
        return seen, doc, [step for step in played if step.taught]

    def lay(index: int) -> Laid:
        # A row for each turn of the mean episode; which one is drawn.
        seen, doc, found = steps(index // 4)
        step = found[(index % 4 + index // 4) % len(found)]
        if step.window_s is not None:
            return laid(student, step.notes, (), WIRE.written(step.turn), Heard(seen.sounds, *step.window_s))
        draw = random.Random(f"unlike:{seed}:{index}")
        if not step.labels or draw.random() >= unlike:
            return laid(student, step.notes, step.labels, WIRE.written(step.turn))
        labels = unrelated(draw, question_of(doc)[0], len(step.labels), draw.choice(MINE))
        noted = observe(asked_of(doc), labels)
        words = WIRE.written(step.turn.model_copy(update={"observation": noted}))
        return notes_only(student, laid(student, step.notes, labels, words), words, noted)

    return Rows(lay, Eyes(student, seed, noise), Ears(student, seed))


def drawn(draw: random.Random, worlds: int, kinds: Sequence[str] = KINDS) -> tuple[Film, Doc]:
    """A world and a question of one of these kinds about it."""
    seen, docs = film(TRAINING.start + draw.randrange(worlds), draw.choice(tuple(BUCKETS)))
    return seen, draw.choice([doc for doc in docs if doc["kind"] in kinds])


def asked_of(doc: Doc) -> ParsedQuestion:
    """What a document asks, read from its words."""
    return parse_question(doc["question"])
