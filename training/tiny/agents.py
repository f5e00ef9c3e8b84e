"""Rows of the teacher's episodes in training worlds, made without files.

The n-th row is a turn of an episode that is drawn from its number: world, question, and which turn. Now and then the
teacher's look is replaced by another one, so that the student learns to go on from places where the teacher would not
have been; that turn is in the notes and is no target.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from apr_plugin.loop.notebook import Notebook
from apr_plugin.loop.trajectory import Turn
from apr_plugin.models.batch import Example
from apr_plugin.scoring.truth import Truth
from apr_plugin.tasks.needle.make import BUCKETS
from apr_plugin.tasks.needle.questions import Doc, ParsedQuestion, parse_question
from apr_plugin.training.student import Student
from apr_plugin.training.tiny import listening
from apr_plugin.training.tiny.ears import Ears, waveform
from apr_plugin.training.tiny.notes import FRAMES, KINDS, Move, teach, turn_of
from apr_plugin.training.tiny.pictures import Eyes
from apr_plugin.training.tiny.prompts import TURNS, WIRE, heard_row, notebook, percept_of, row
from apr_plugin.training.tiny.worlds import TRAINING, Film, Label, film, question_of


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


def episode(seen: Film, doc: Doc, *, chance: random.Random | None = None, astray: float = 0.0) -> Iterator[Step]:
    """The teacher's episode.

    Args:
        seen: The video.
        doc: The question.
        chance: Draws which looks are replaced.
        astray: Chance that a look after the first is replaced. Where the question needs ears, a window that cuts the
            scene is not taken: what it shows would look like the whole scene.
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
        if chance is not None and labels is not None and move.num and chance.random() < astray:
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
        heard, window = None, None
        if move.listen:
            heard, window = listening.events_of(seen.sounds, begin, end), (begin, end)
        else:
            times, labels = seen.frames(begin, end, move.num)
        word = move.word
        notes = notes.with_turn(WIRE.written(turn), percept_of(turn, times, number))


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
    noise: float = 0.06,
    kinds: Sequence[str] = KINDS,
) -> Callable[[int], Example]:
    """A maker of rows of whole episodes (`training.sft.mixes.RowMaker`).

    Args:
        student: The model that is trained.
        seed: Draws episodes and turns, and the disturbance of pictures.
        worlds: Seeds of worlds that are used for each length of video.
        astray: See `episode`.
        noise: See `Eyes`.
        kinds: Of the questions; by default those that need no ears.
    """
    eyes, ears = Eyes(student, seed, noise), Ears(student, seed)

    @lru_cache(maxsize=64)
    def steps(number: int) -> tuple[Film, list[Step]]:
        draw = random.Random(f"agents:{seed}:{number}")
        seen, doc = drawn(draw, worlds, kinds)
        return seen, [step for step in episode(seen, doc, chance=draw, astray=astray) if step.taught]

    def make(index: int) -> Example:
        # A row for each turn of the mean episode; which one is drawn.
        seen, found = steps(index // 4)
        step = found[(index % 4 + index // 4) % len(found)]
        if step.window_s is not None:
            samples = waveform(seen.sounds, *step.window_s)
            return heard_row(student, step.notes, samples, WIRE.written(step.turn), ears, index)
        return row(student, step.notes, step.labels, WIRE.written(step.turn), eyes, index)

    return make


def drawn(draw: random.Random, worlds: int, kinds: Sequence[str] = KINDS) -> tuple[Film, Doc]:
    """A world and a question of one of these kinds about it."""
    seen, docs = film(TRAINING.start + draw.randrange(worlds), draw.choice(tuple(BUCKETS)))
    return seen, draw.choice([doc for doc in docs if doc["kind"] in kinds])


def asked_of(doc: Doc) -> ParsedQuestion:
    """What a document asks, read from its words."""
    return parse_question(doc["question"])
