"""The questions about a needle world: their exact words, a parser for them, and their documents.

Only the video may tell the answer. Four things are independent random streams, none of which sees the others' draws:
the scene that is asked about, the other options, their order, and the order in which a sentence names two glyphs. Nor
does one document tell another's answer: a question that names a glyph is never about a scene where `glyph` or `sound`
ask for it, and questions about one scene share their options.
"""

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypedDict, TypeVar

from .palette import BACKGROUNDS, GLYPH_COLOURS, GLYPH_SHAPES, LOOKALIKES, PATTERNS, PITCHES, Glyph
from .world import Chapter, Event, Role, Scene, World, scene_roles

LETTERS = "ABCD"

_T = TypeVar("_T")


class Kind(StrEnum):
    """The kinds of question."""

    GLYPH = "glyph"
    """Multiple choice: what is seen in a scene."""

    WHEN = "when"
    """Temporal grounding: when a named glyph is on."""

    SOUND = "sound"
    """Multiple choice for ears and eyes: what is on screen while a tone sounds."""

    COUNT = "count"
    """A number: how many chimes a scene has."""

    ORDER = "order"
    """Multiple choice with two options: which of two events comes first."""


TEMPLATES: dict[Kind, str] = {
    Kind.GLYPH: "Which glyph appears in the {pattern} scene of the {colour} chapter?",
    Kind.WHEN: "When is the {glyph} visible in the {pattern} scene of the {colour} chapter?",
    Kind.SOUND: "What is on screen when the {pitch} tone sounds in the {pattern} scene of the {colour} chapter?",
    Kind.COUNT: "How many chimes sound in the {pattern} scene of the {colour} chapter?",
    Kind.ORDER: "In the {pattern} scene of the {colour} chapter, which comes first: the {glyph} or the {other}?",
}
"""The words of each kind; `parse_question` parses them."""


class Doc(TypedDict):
    """One row of `needle.jsonl`; every row has every key, of the same type."""

    id: str
    """An id that is unique in the set and contains nothing about the answer."""
    video: str
    """Path of the video, relative to the folder of the set (absolute once loaded)."""
    duration_s: float
    bucket: str
    """Duration bucket: 1m, 10m, 30m, 60m or 120m."""
    kind: str
    """A value of `Kind`."""
    question: str
    options: list[str]
    """Four options, two for `order`, none if the answer is not a letter."""
    answer: str
    """A letter for multiple choice, digits for `count`, empty for `when`."""
    spans: list[list[float]]
    """Evidence: the stretches [start, end] in seconds that are needed for the answer."""
    answer_spans: list[list[float]]
    """The right answer of `when`, in seconds; empty for other kinds."""


@dataclass(frozen=True)
class ParsedQuestion:
    """What a question asks, parsed from its words."""

    kind: Kind
    colour: str
    """The chapter's colour."""
    pattern: str
    """The scene's pattern."""
    glyphs: tuple[Glyph, ...] = ()
    """The glyphs that the sentence names, in its order: one for `when`, two for `order`."""
    pitch: str | None = None
    """The tone's pitch, for `sound`."""


def _regex(template: str) -> re.Pattern[str]:
    glyph = f"(?:{'|'.join(GLYPH_COLOURS)}) (?:{'|'.join(GLYPH_SHAPES)})"
    choices = {
        "pattern": "|".join(PATTERNS),
        "colour": "|".join([*BACKGROUNDS, *LOOKALIKES]),
        "pitch": "|".join(PITCHES),
        "glyph": glyph,
        "other": glyph,
    }
    return re.compile(re.sub(r"\\{(\w+)\\}", lambda match: f"(?P<{match[1]}>{choices[match[1]]})", re.escape(template)))


_REGEXES = {kind: _regex(template) for kind, template in TEMPLATES.items()}


def parse_question(text: str) -> ParsedQuestion:
    """Parse a question from any text that contains its sentence, such as a prompt; ValueError if none does."""
    for kind, regex in _REGEXES.items():
        if match := regex.search(text):
            found = match.groupdict()
            glyphs = tuple(Glyph.parse(found[key]) for key in ("glyph", "other") if key in found)
            return ParsedQuestion(kind, found["colour"], found["pattern"], glyphs, found.get("pitch"))
    raise ValueError(f"not a needle question: {text!r}")


def max_questions_per_kind(n_scenes: int) -> int:
    """The number of different questions of every kind for a video with this many scenes."""
    roles = scene_roles(n_scenes)
    # An order scene has three events to find and three pairs to order.
    glyphs, events = (
        roles.count(Role.GLYPH),
        3 * roles.count(Role.ORDER),
    )
    return min(glyphs, roles.count(Role.COUNT), 3 * roles.count(Role.SOUND), events, (glyphs + events) // 2)


class LetterDeck:
    """Deals the position of the right option, so that every letter is right equally often.

    One deck is used for a whole set of videos and sees neither worlds nor questions.
    """

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"needle letters:{seed}")
        self._cards: dict[int, list[int]] = {}

    def deal(self, n_options: int) -> int:
        """Index, 0 to n_options - 1, of the right option."""
        cards = self._cards.setdefault(n_options, [])
        if not cards:
            cards += self._rng.sample(range(n_options), n_options)
        return cards.pop()


def ask(world: World, video: str, bucket: str, per_kind: int, letters: LetterDeck) -> list[Doc]:
    """Ask `per_kind` questions of every kind about a world.

    Args:
        world: the world that the questions are about.
        video: the value of the documents' `video`; its stem starts their ids.
        bucket: the duration bucket of the documents.
        per_kind: questions of each kind, at most `max_questions_per_kind`.
        letters: deals the position of the right option.
    """
    n_scenes = sum(1 for _ in world.scenes())
    if not 1 <= per_kind <= max_questions_per_kind(n_scenes):
        raise ValueError(
            f"per_kind must be 1 to {max_questions_per_kind(n_scenes)} for a video of {world.duration_s:g} s, "
            f"not {per_kind}"
        )
    return _Asker(world, video, bucket, letters).ask(per_kind)


class _Asker:
    def __init__(self, world: World, video: str, bucket: str, letters: LetterDeck) -> None:
        key = f"{world.seed}:{world.duration_s}"
        self._scene_rng = random.Random(f"needle scenes:{key}")
        self._option_rng = random.Random(f"needle options:{key}")
        self._sentence_rng = random.Random(f"needle sentences:{key}")
        self._world = world
        self._video = video
        self._bucket = bucket
        self._letters = letters
        self._glyphs = world.glyphs()
        self._strangers: dict[tuple[str, str], list[str]] = {}

    def ask(self, per_kind: int) -> list[Doc]:
        by_role = {role: self._shuffled(pair for pair in self._world.scenes() if pair[1].role is role) for role in Role}
        glyph_scenes = by_role[Role.GLYPH]
        tones = self._shuffled(
            (*pair, event) for pair in by_role[Role.SOUND] for event in pair[1].glyph_events if event.sound
        )
        orders = [(*pair, self._shuffled(range(3))) for pair in by_role[Role.ORDER]]
        pairs = [
            (chapter, scene, self._two_of(scene.glyph_events, left_out[i]))
            for i in range(3)
            for chapter, scene, left_out in orders
        ]
        # The question names the glyph, so `glyph` must not ask for it.
        shown = [(*pair, pair[1].glyph_events[0]) for pair in glyph_scenes[per_kind:]]
        shown += self._shuffled((*pair, event) for pair in by_role[Role.ORDER] for event in pair[1].glyph_events)
        docs = [self._glyph(i, *pair) for i, pair in enumerate(glyph_scenes[:per_kind])]
        docs += [self._when(i, *place) for i, place in enumerate(shown[:per_kind])]
        docs += [self._sound(i, *tone) for i, tone in enumerate(tones[:per_kind])]
        docs += [self._count(i, *pair) for i, pair in enumerate(by_role[Role.COUNT][:per_kind])]
        docs += [self._order(i, *pair) for i, pair in enumerate(pairs[:per_kind])]
        return docs

    def _shuffled(self, items: Iterable[_T]) -> list[_T]:
        shuffled = list(items)
        self._scene_rng.shuffle(shuffled)
        return shuffled

    @staticmethod
    def _two_of(events: tuple[Event, ...], left_out: int) -> tuple[Event, ...]:
        return tuple(event for i, event in enumerate(events) if i != left_out)

    def _glyph(self, i: int, chapter: Chapter, scene: Scene) -> Doc:
        (event,) = scene.glyph_events
        return self._doc(i, Kind.GLYPH, chapter, scene, [event], self._wrong(event, [], 3))

    def _when(self, i: int, chapter: Chapter, scene: Scene, event: Event) -> Doc:
        return self._doc(i, Kind.WHEN, chapter, scene, [event], [], glyph=_name(event))

    def _sound(self, i: int, chapter: Chapter, scene: Scene, event: Event) -> Doc:
        others = [_name(other) for other in scene.glyph_events if other is not event]
        place = chapter.colour, scene.pattern
        # One for all tones of a scene: otherwise the options that two questions share would tell the answer.
        if place not in self._strangers:
            self._strangers[place] = self._wrong(event, others, 1)
        return self._doc(
            i, Kind.SOUND, chapter, scene, [event], others + self._strangers[place], pitch=str(event.sound)
        )

    def _count(self, i: int, chapter: Chapter, scene: Scene) -> Doc:
        return self._doc(i, Kind.COUNT, chapter, scene, list(scene.chimes), [])

    def _order(self, i: int, chapter: Chapter, scene: Scene, events: tuple[Event, ...]) -> Doc:
        first, second = events
        names = self._sentence_rng.sample([_name(first), _name(second)], 2)
        return self._doc(
            i, Kind.ORDER, chapter, scene, [first, second], [_name(second)], glyph=names[0], other=names[1]
        )

    def _wrong(self, right: Event, taken: list[str], count: int) -> list[str]:
        """Glyphs that do appear in this video, but are neither the answer nor already an option."""
        names = [glyph.name for glyph in self._glyphs if glyph != right.glyph and glyph.name not in taken]
        return self._option_rng.sample(names, count)

    def _doc(
        self, i: int, kind: Kind, chapter: Chapter, scene: Scene, events: list[Event], wrong: list[str], **words: str
    ) -> Doc:
        """A document whose right option, if it has options, is the first of `events`."""
        options: list[str] = []
        answer = str(len(events)) if kind is Kind.COUNT else ""
        if wrong:
            options = self._option_rng.sample(wrong, len(wrong))
            at = self._letters.deal(len(wrong) + 1)
            options.insert(at, _name(events[0]))
            answer = LETTERS[at]
        spans = [[event.start_s, event.end_s] for event in events]
        stem = self._video.rpartition("/")[2].partition(".")[0]
        return Doc(
            id=f"{stem}-{kind}-{i}",
            video=self._video,
            duration_s=self._world.duration_s,
            bucket=self._bucket,
            kind=str(kind),
            question=TEMPLATES[kind].format(pattern=scene.pattern, colour=chapter.colour, **words),
            options=options,
            answer=answer,
            spans=spans,
            answer_spans=[list(span) for span in spans] if kind is Kind.WHEN else [],
        )


def _name(event: Event) -> str:
    if event.glyph is None:
        raise ValueError(f"an event without a glyph has no name: {event}")
    return event.glyph.name
