"""Training worlds: the needle world by seeds of their own, without a file.

Sets that are made (`apr needle make`) take 64-bit seeds that are hashes. Training takes small ones, so the two don't
meet (`meets` checks it for a set), and what gates measure lies in a third range.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from apr_plugin.errors import AprError
from apr_plugin.loop.question import Question
from apr_plugin.loop.wires import VideoMeta
from apr_plugin.scoring.truth import Truth
from apr_plugin.tasks.needle.make import BUCKETS, NeedleSpec, video_seed
from apr_plugin.tasks.needle.palette import ALL_GLYPHS, BACKGROUNDS, PATTERNS, Glyph
from apr_plugin.tasks.needle.questions import Doc, LetterDeck, ask, max_questions_per_kind, parse_question
from apr_plugin.tasks.needle.read import asked, truth_of
from apr_plugin.tasks.needle.world import TICKS_PER_S, World

TRAINING = range(0, 2**40)
"""Seeds of worlds that rows are made of."""

GATES = range(2**40, 2**41)
"""Seeds of worlds that gates measure with."""

FPS = 10.0
"""Frames per second of a made video (`NeedleSpec.fps`)."""

_BACKGROUNDS = tuple(BACKGROUNDS)

Label = tuple[str, str, Glyph | None]
"""What a frame shows: background, pattern, glyph."""


class Film:
    """A world as a video that can be looked at.

    Args:
        world: The world.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.duration_s = world.duration_s
        segments = list(world.segments())
        self.starts_s = [segment.start_s for segment in segments]
        self.labels: list[Label] = [(segment.colour, segment.pattern, segment.glyph) for segment in segments]

    @property
    def meta(self) -> VideoMeta:
        """What a policy is told of it."""
        return VideoMeta(self.duration_s, FPS, True)

    def at(self, time_s: float) -> Label:
        """What is on screen."""
        return self.labels[bisect.bisect_right(self.starts_s, time_s + 1e-6) - 1]

    def frames(self, start_s: float, end_s: float, num: int) -> tuple[tuple[float, ...], list[Label]]:
        """Times and labels of a look with `get_frames`: spread evenly, on the grid of frames, each frame once."""
        last = round(self.duration_s * TICKS_PER_S) - 1
        asked_s = np.linspace(start_s, min(end_s, self.duration_s), num)
        ticks = sorted({min(int((time_s + 1e-6) * TICKS_PER_S), last) for time_s in asked_s})
        times = tuple(tick / TICKS_PER_S for tick in ticks)
        return times, [self.at(time_s) for time_s in times]


@lru_cache(maxsize=2048)
def film(seed: int, bucket: str) -> tuple[Film, tuple[Doc, ...]]:
    """A world of a seed, and everything that can be asked about it.

    Raises:
        AprError: the seed is in no range of training.
    """
    if seed not in TRAINING and seed not in GATES:
        raise AprError(f"world {seed}: training takes seeds from 0 to {GATES.stop - 1}")
    world = World.from_seed(seed, BUCKETS[bucket])
    most = max_questions_per_kind(sum(1 for _ in world.scenes()))
    return Film(world), tuple(ask(world, f"{seed}.mp4", bucket, most, LetterDeck(seed)))


def question_of(doc: Doc) -> tuple[Question, Truth]:
    """What a document asks, as the tasks ask it, and its answer."""
    row = dict(doc)
    return asked(row), truth_of(row)


def unrelated(draw: random.Random, question: Question, count: int, mine: float) -> list[Label]:
    """What frames show that have nothing to do with each other, so that none can be guessed from its neighbours.

    Half of the other chapters have a colour that the question or its options name for a glyph, if they name one: it is
    not enough that a colour occurs there.

    Args:
        draw: Draws them.
        question: A question about a glyph.
        count: How many frames.
        mine: Share of the frames that are of the chapter that is asked for.
    """
    asked = parse_question(question.text)
    words = " ".join([question.text, *(option.text for option in question.options)]).split()
    named = [colour for colour in _BACKGROUNDS if colour in words and colour != asked.colour]
    labels: list[Label] = []
    for _ in range(count):
        same, glyph = draw.random() < mine, draw.choice(ALL_GLYPHS) if draw.random() < 0.66 else None
        if asked.glyphs and glyph is not None and draw.random() < 0.4:
            glyph = draw.choice(asked.glyphs)
        pattern = asked.pattern if same and draw.random() < 0.5 else draw.choice(PATTERNS)
        others = named if named and draw.random() < 0.5 else _BACKGROUNDS
        labels.append((asked.colour if same else draw.choice(others), pattern, glyph))
    return labels


def seeds_of(spec: NeedleSpec) -> Iterator[int]:
    """The seeds of the worlds of a set."""
    for bucket in spec.buckets:
        for number in range(spec.videos_per_bucket):
            yield video_seed(spec.seed, bucket, number)


def meets(spec: NeedleSpec) -> list[int]:
    """The seeds of a set that training may use too; empty if it can be an evaluation set."""
    return [seed for seed in seeds_of(spec) if seed in TRAINING or seed in GATES]
