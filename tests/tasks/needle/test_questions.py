import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_plugin.tasks.needle.palette import BACKGROUNDS, LOOKALIKES, PATTERNS, PITCHES, Glyph
from apr_plugin.tasks.needle.questions import (
    LETTERS,
    TEMPLATES,
    Doc,
    Kind,
    LetterDeck,
    ask,
    max_questions_per_kind,
    parse_question,
)
from apr_plugin.tasks.needle.world import Difficulty, World, tree_shape

difficulties = st.builds(Difficulty, st.floats(0, 1), st.booleans(), st.floats(1, 3))
worlds = st.builds(World.from_seed, st.integers(), st.sampled_from([60, 600, 1800, 3600, 7200]), difficulties)


def ask_all(world: World, seed: int = 0) -> list[Doc]:
    chapters, scenes = tree_shape(world.duration_s)
    return ask(world, "videos/abc.mp4", "1m", max_questions_per_kind(chapters * scenes), LetterDeck(seed))


def solve(world: World, doc: Doc) -> tuple[str, list]:
    """Answer a question from its words and the world alone; every step asserts that only one thing fits the words."""
    asked = parse_question(doc["question"])
    (scene,) = [
        scene for chapter, scene in world.scenes() if (chapter.colour, scene.pattern) == (asked.colour, asked.pattern)
    ]
    if asked.kind is Kind.COUNT:
        return str(len(scene.chimes)), [[event.start_s, event.end_s] for event in scene.chimes]
    if asked.kind is Kind.GLYPH:
        (event,) = scene.glyph_events
    elif asked.kind is Kind.WHEN:
        (event,) = [event for event in scene.glyph_events if event.glyph == asked.glyphs[0]]
        return "", [[event.start_s, event.end_s]]
    elif asked.kind is Kind.SOUND:
        (event,) = [event for event in scene.events if event.sound == asked.pitch]
    else:
        first, second = (event for event in scene.glyph_events if event.glyph in asked.glyphs)
        assert {first.glyph, second.glyph} == set(asked.glyphs)
        spans = [[first.start_s, first.end_s], [second.start_s, second.end_s]]
        return LETTERS[doc["options"].index(first.glyph.name)], spans
    return LETTERS[doc["options"].index(event.glyph.name)], [[event.start_s, event.end_s]]


@given(worlds)
@settings(max_examples=150, deadline=None)
def test_every_question_has_exactly_its_answer(world):
    for doc in ask_all(world):
        answer, spans = solve(world, doc)
        assert answer == doc["answer"]
        assert spans == doc["spans"]
        assert doc["answer_spans"] == (spans if doc["kind"] == "when" else [])


@given(worlds)
@settings(max_examples=100, deadline=None)
def test_documents_have_one_form(world):
    docs = ask_all(world)
    assert len({doc["id"] for doc in docs}) == len({doc["question"] for doc in docs}) == len(docs)
    counts = Counter(doc["kind"] for doc in docs)
    assert set(counts) == set(Kind) and len(set(counts.values())) == 1
    names = {glyph.name for glyph in world.glyphs()}
    for doc in docs:
        assert list(doc) == list(Doc.__annotations__)
        n_options = {"glyph": 4, "sound": 4, "order": 2}.get(doc["kind"], 0)
        assert len(doc["options"]) == len(set(doc["options"])) == n_options
        assert set(doc["options"]) <= names, "wrong options are glyphs of the same video"
        assert all(0 <= start < end <= world.duration_s for start, end in doc["spans"]) and doc["spans"]


def test_sound_options_are_the_glyphs_of_the_scene_and_one_more():
    world = World.from_seed(5, 600)
    for doc in ask_all(world):
        if doc["kind"] == "sound":
            asked = parse_question(doc["question"])
            (scene,) = [
                scene
                for chapter, scene in world.scenes()
                if (chapter.colour, scene.pattern) == (asked.colour, asked.pattern)
            ]
            assert len({event.glyph.name for event in scene.glyph_events} & set(doc["options"])) == 3


@pytest.mark.parametrize("duration_s", [60, 1800])
def test_glyph_and_when_ask_about_different_scenes(duration_s):
    docs = ask(World.from_seed(0, duration_s), "videos/abc.mp4", "30m", 2, LetterDeck(0))
    asked = {
        kind: {doc["question"].split(" in the ")[1] for doc in docs if doc["kind"] == kind}
        for kind in ("glyph", "when")
    }
    assert not {text.rstrip(".?") for text in asked["glyph"]} & {text.rstrip(".?") for text in asked["when"]}


def test_templates_and_parser_agree_on_every_word():
    glyph, other = Glyph("red", "ring"), Glyph("pink", "cross")
    for (kind, template), pattern, colour, pitch in itertools.product(
        TEMPLATES.items(), PATTERNS, [*BACKGROUNDS, *LOOKALIKES], PITCHES
    ):
        text = template.format(pattern=pattern, colour=colour, pitch=pitch, glyph=glyph.name, other=other.name)
        asked = parse_question(f"Question:\n{text}\nA. red ring")
        assert (asked.kind, asked.pattern, asked.colour) == (kind, pattern, colour)
        assert asked.pitch == (pitch if kind is Kind.SOUND else None)
        assert asked.glyphs == {Kind.WHEN: (glyph,), Kind.ORDER: (glyph, other)}.get(kind, ())


@pytest.mark.parametrize(
    "text", ["", "Which glyph appears?", "Which glyph appears in the tartan scene of the red chapter?"]
)
def test_other_texts_are_no_questions(text):
    with pytest.raises(ValueError, match="not a needle question"):
        parse_question(text)


def test_too_many_questions_are_refused():
    with pytest.raises(ValueError, match="1 to 2 for a video of 60 s, not 3"):
        ask(World.from_seed(0, 60), "videos/abc.mp4", "1m", 3, LetterDeck(0))


def test_letter_deck_is_balanced():
    deck = LetterDeck(3)
    assert Counter(deck.deal(4) for _ in range(400)) == dict.fromkeys(range(4), 100)
