"""The tree of time of a needle video: chapters, their scenes, and the short events inside scenes.

A `World` is made from a seed alone, before anything is drawn, so that questions can be asked of it and checked without
a video. Times are seconds on a grid of 0.1 s; inside this module they are whole ticks of 0.1 s, so that no rounding
moves an edge.

Every world has these properties (they are tested): chapters tile the video and scenes tile their chapter without gaps;
chapter colours are distinct, and so are the patterns in a chapter; a scene is at least 1/8 of its chapter; a glyph
event lasts at least 2 s and at least 1/24 of its scene; events are in the central 70 % of their scene and never
overlap.
"""

import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum

from .palette import ALL_GLYPHS, BACKGROUNDS, CHIME_S, LOOKALIKES, PATTERNS, PITCHES, Glyph

TICKS_PER_S = 10
CHIME = "chime"

_SHAPES: tuple[tuple[float, int, int], ...] = ((2700, 8, 6), (1200, 6, 5), (300, 4, 4), (60, 3, 2))
"""(least duration in seconds, chapters, scenes per chapter)."""

_MAX_CHIMES = 6
_CHIME_TICKS = round(CHIME_S * TICKS_PER_S)
_WIDE_GAP, _NARROW_GAP = 5, 2  # ticks between neighbouring events; the wide one if it fits


class Role(StrEnum):
    """The purpose of a scene; it decides which kinds of question may be asked about it."""

    GLYPH = "glyph"
    """One glyph event: kind `glyph` and, in its own scene, `when`."""

    ORDER = "order"
    """Three glyph events: kind `order` and, if there are not enough glyph scenes, `when`."""

    SOUND = "sound"
    """Three glyph events, each with a tone of another pitch: kind `sound`."""

    COUNT = "count"
    """One to six chimes: kind `count`."""

    EMPTY = "empty"
    """Only decoys: no question."""


_ROLE_CYCLE = (
    Role.GLYPH,
    Role.COUNT,
    Role.ORDER,
    Role.SOUND,
    Role.GLYPH,
    Role.COUNT,
    Role.EMPTY,
    Role.ORDER,
    Role.SOUND,
    Role.EMPTY,
)


@dataclass(frozen=True)
class Difficulty:
    """The parameters of a world."""

    decoys: float = 0.5
    """Chance, 0 to 1, that a scene gets a decoy.

    It is a glyph event where no glyph is asked for, or a chime where no chimes are counted.
    """

    lookalike: bool = False
    """Chapter colours from LOOKALIKES (two shades of each hue) instead of BACKGROUNDS."""

    event_length: float = 1.0
    """Factor on the length of glyph events, 1 to 3; longer is easier."""

    def __post_init__(self) -> None:
        if not 0 <= self.decoys <= 1:
            raise ValueError(f"decoys is a chance from 0 to 1, not {self.decoys}")
        if not 1 <= self.event_length <= 3:
            raise ValueError(f"event_length is a factor from 1 to 3, not {self.event_length}")


@dataclass(frozen=True)
class Event:
    """Something short: a glyph at the centre of the frame, a sound, or both."""

    start_s: float
    end_s: float
    glyph: Glyph | None
    """The glyph that is visible from start_s to end_s."""
    sound: str | None
    """`chime` or a key of PITCHES; `sound_span_s` says when it sounds."""

    @property
    def sound_span_s(self) -> tuple[float, float] | None:
        """When the sound is on, in seconds: a chime during the whole event, a tone for at least 1 s in its middle."""
        if self.sound is None:
            return None
        if self.sound == CHIME:
            return self.start_s, self.end_s
        start, end = round(self.start_s * TICKS_PER_S), round(self.end_s * TICKS_PER_S)
        margin = (end - start - max(TICKS_PER_S, round(0.6 * (end - start)))) // 2
        return (start + margin) / TICKS_PER_S, (end - margin) / TICKS_PER_S


@dataclass(frozen=True)
class Scene:
    """A stretch of a chapter with one pattern."""

    pattern: str
    start_s: float
    end_s: float
    role: Role
    events: tuple[Event, ...]
    """The events, in order of time."""

    @property
    def glyph_events(self) -> tuple[Event, ...]:
        """The events that show a glyph."""
        return tuple(event for event in self.events if event.glyph is not None)

    @property
    def chimes(self) -> tuple[Event, ...]:
        """The events that are chimes."""
        return tuple(event for event in self.events if event.sound == CHIME)


@dataclass(frozen=True)
class Chapter:
    """A stretch of the video with one background colour."""

    colour: str
    start_s: float
    end_s: float
    scenes: tuple[Scene, ...]


@dataclass(frozen=True)
class Segment:
    """A stretch of time in which the picture doesn't change."""

    start_s: float
    end_s: float
    colour: str
    pattern: str
    glyph: Glyph | None


@dataclass(frozen=True)
class World:
    """Everything about one needle video."""

    seed: int
    duration_s: float
    difficulty: Difficulty
    chapters: tuple[Chapter, ...]

    @classmethod
    def from_seed(
        cls,
        seed: int,
        duration_s: float,
        difficulty: Difficulty | None = None,
        shape: tuple[int, int] | None = None,
    ) -> "World":
        """Make the world of a seed; the same arguments always make the same world.

        Args:
            seed: any integer.
            duration_s: length of the video in seconds, 60 or more, a multiple of 0.1.
            difficulty: the parameters; None means the default ones.
            shape: chapters, and scenes per chapter; None means what a video of this length has (`tree_shape`).
        """
        difficulty = difficulty or Difficulty()
        n_chapters, n_scenes = shape or tree_shape(duration_s)
        ticks = round(duration_s * TICKS_PER_S)
        if abs(ticks - duration_s * TICKS_PER_S) > 1e-6:
            raise ValueError(f"duration_s must be a multiple of 0.1 s, not {duration_s}")
        rng = random.Random(
            f"needle world:{seed}:{ticks}:{difficulty.decoys}:{difficulty.lookalike}:{difficulty.event_length}"
        )
        jitter = 0.15 if duration_s >= 120 else 0.03  # a short scene must have room for three events
        colours = _chapter_colours(rng, n_chapters, difficulty.lookalike)
        roles = list(scene_roles(n_chapters * n_scenes))
        rng.shuffle(roles)
        deck = _GlyphDeck(rng)
        chapters = []
        for colour, (start, end) in zip(colours, _split(rng, 0, ticks, n_chapters, jitter), strict=True):
            patterns = rng.sample(PATTERNS, n_scenes)
            scenes = []
            for pattern, (scene_start, scene_end) in zip(
                patterns, _split(rng, start, end, n_scenes, jitter), strict=True
            ):
                role = roles.pop()
                events = _events(rng, deck, role, scene_start, scene_end, difficulty)
                scenes.append(Scene(pattern, scene_start / TICKS_PER_S, scene_end / TICKS_PER_S, role, events))
            chapters.append(Chapter(colour, start / TICKS_PER_S, end / TICKS_PER_S, tuple(scenes)))
        return cls(seed, ticks / TICKS_PER_S, difficulty, tuple(chapters))

    def scenes(self) -> Iterator[tuple[Chapter, Scene]]:
        """Every scene with its chapter, in order of time."""
        for chapter in self.chapters:
            for scene in chapter.scenes:
                yield chapter, scene

    def segments(self) -> Iterator[Segment]:
        """What is on screen, as stretches that tile the video in order of time."""
        for chapter, scene in self.scenes():
            at = scene.start_s
            for event in scene.glyph_events:
                if event.start_s > at:
                    yield Segment(at, event.start_s, chapter.colour, scene.pattern, None)
                yield Segment(event.start_s, event.end_s, chapter.colour, scene.pattern, event.glyph)
                at = event.end_s
            if scene.end_s > at:
                yield Segment(at, scene.end_s, chapter.colour, scene.pattern, None)

    def sounds(self) -> Iterator[tuple[float, float, str]]:
        """Every sound as (start_s, end_s, `chime` or a pitch), in order of time."""
        for _, scene in self.scenes():
            for event in scene.events:
                if event.sound is not None and event.sound_span_s is not None:
                    yield *event.sound_span_s, event.sound

    def glyphs(self) -> tuple[Glyph, ...]:
        """The distinct glyphs that appear anywhere in the video, sorted."""
        return tuple(
            sorted(
                {event.glyph for _, scene in self.scenes() for event in scene.glyph_events if event.glyph is not None}
            )
        )

    def digest(self) -> str:
        """Hex SHA-256 of everything in this world."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def tree_shape(duration_s: float) -> tuple[int, int]:
    """Number of chapters, and of scenes per chapter, of a video of this length in seconds."""
    for least_s, n_chapters, n_scenes in _SHAPES:
        if duration_s >= least_s:
            return n_chapters, n_scenes
    raise ValueError(f"a needle video lasts at least {_SHAPES[-1][0]:g} s, not {duration_s}")


def scene_roles(n_scenes: int) -> tuple[Role, ...]:
    """The roles of a video with this many scenes, before they are shuffled."""
    return tuple(_ROLE_CYCLE[i % len(_ROLE_CYCLE)] for i in range(n_scenes))


class _GlyphDeck:
    """Deals glyphs so that each of them comes once before any comes again."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._cards: list[Glyph] = []

    def deal(self, count: int) -> list[Glyph]:
        """Deal `count` glyphs that differ from each other."""
        hand: list[Glyph] = []
        while len(hand) < count:
            if not self._cards:
                self._cards = self._rng.sample(ALL_GLYPHS, len(ALL_GLYPHS))
            card = next((card for card in self._cards if card not in hand), None)
            if card is None:
                self._cards = []
                continue
            self._cards.remove(card)
            hand.append(card)
        return hand


def _chapter_colours(rng: random.Random, count: int, lookalike: bool) -> list[str]:
    if not lookalike:
        return rng.sample(list(BACKGROUNDS), count)
    names = list(LOOKALIKES)
    hues = rng.sample([names[i : i + 2] for i in range(0, len(names), 2)], math.ceil(count / 2))
    colours = [name for hue in hues for name in rng.sample(hue, 2)][:count]
    rng.shuffle(colours)
    return colours


def _split(rng: random.Random, start: int, end: int, count: int, jitter: float) -> list[tuple[int, int]]:
    """Cut [start, end) ticks into `count` parts whose lengths differ by up to `jitter` from equal."""
    weights = [rng.uniform(1 - jitter, 1 + jitter) for _ in range(count)]
    edges = [start + round((end - start) * sum(weights[:i]) / sum(weights)) for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def _events(
    rng: random.Random, deck: _GlyphDeck, role: Role, start: int, end: int, difficulty: Difficulty
) -> tuple[Event, ...]:
    """Fill a scene of [start, end) ticks as its role requires, plus decoys that do not disturb its questions."""
    room_start, room_end = start + math.ceil(0.15 * (end - start)), end - math.ceil(0.15 * (end - start))
    items: list[tuple[int, Glyph | None, str | None]] = []
    if role is Role.COUNT:
        items += [(_CHIME_TICKS, None, CHIME)] * rng.randint(1, _MAX_CHIMES)
    else:
        sounds_of: dict[Role, list[str | None]] = {
            Role.GLYPH: [None],
            Role.ORDER: [None] * 3,
            Role.SOUND: [*PITCHES],
            Role.EMPTY: [],
        }
        sounds = sounds_of[role]
        items += [
            (_glyph_ticks(rng, end - start, difficulty), glyph, sound)
            for glyph, sound in zip(deck.deal(len(sounds)), sounds, strict=True)
        ]
    if role in (Role.COUNT, Role.EMPTY) and rng.random() < difficulty.decoys:
        decoy = (_glyph_ticks(rng, end - start, difficulty), deck.deal(1)[0], None)
        items += [decoy] if _fits([*items, decoy], room_end - room_start) else []
    if role is not Role.COUNT and rng.random() < difficulty.decoys:
        chime = (_CHIME_TICKS, None, CHIME)
        items += [chime] if _fits([*items, chime], room_end - room_start) else []
    rng.shuffle(items)
    gap = _WIDE_GAP if _fits(items, room_end - room_start) else _NARROW_GAP
    slack = room_end - room_start - sum(ticks for ticks, _, _ in items) - gap * (len(items) - 1)
    at = room_start
    events = []
    offsets = sorted(rng.randint(0, slack) for _ in items)
    for (ticks, glyph, sound), offset in zip(items, offsets, strict=True):
        events.append(Event((at + offset) / TICKS_PER_S, (at + offset + ticks) / TICKS_PER_S, glyph, sound))
        at += ticks + gap
    return tuple(events)


def _glyph_ticks(rng: random.Random, scene_ticks: int, difficulty: Difficulty) -> int:
    """Length of a glyph event: at least 2 s and 1/24 of the scene, and short enough for three of them to fit."""
    wanted = max(2.0 * TICKS_PER_S, scene_ticks / 24 * rng.uniform(1.05, 1.5)) * difficulty.event_length
    return max(2 * TICKS_PER_S, math.ceil(scene_ticks / 24), math.floor(min(wanted, 0.7 * scene_ticks / 4)))


def _fits(items: list[tuple[int, Glyph | None, str | None]], room: int) -> bool:
    return sum(ticks for ticks, _, _ in items) + _WIDE_GAP * (len(items) - 1) <= room
