"""No leak: scores of policies without eyes and ears, on the rows as `make` writes them, from hundreds of videos.

Two kinds of blind policies are scored: fixed rules, and policies that learn. The latter learn from half of the videos
what occurs with every word of a question, every position in the file and every option, and are scored on the other
half. Each score must be within 4 standard deviations of chance.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest

from apr_plugin.loop import open_video
from apr_plugin.loop.episode import Episode, EpisodeConfig
from apr_plugin.loop.question import MediaRef, Option, Question, QuestionKind
from apr_plugin.policies.guess import GuessPolicy
from apr_plugin.scoring.intervals import set_iou
from apr_plugin.tasks.needle import make
from apr_plugin.tasks.needle.make import BUCKETS, NeedleSpec
from apr_plugin.tasks.needle.questions import LETTERS, Doc, Kind, max_questions_per_kind, parse_question
from apr_plugin.tasks.needle.utils import process_results
from apr_plugin.tasks.needle.world import Role, Scene, World, tree_shape

CHOICES = {"glyph": 4, "sound": 4, "order": 2, "count": 6}
SPEC = NeedleSpec(seed=11, buckets=("1m", "10m", "120m"), videos_per_bucket=400)


@lru_cache(maxsize=1)
def rows() -> tuple[list[Doc], dict[str, World]]:
    """Every row in the order of the file, and the world of each video."""
    jobs = make._plan(SPEC)
    docs = [json.loads(line) for line in make._docs_text(SPEC, jobs).splitlines()]
    return docs, {f"videos/{job.name}": job.world for job in jobs}


def rows_of(kind: str) -> list[Doc]:
    return [doc for doc in rows()[0] if doc["kind"] == kind]


def is_train(doc: Doc) -> bool:
    return random.Random(doc["video"]).random() < 0.5


def scene_of(doc: Doc) -> Scene:
    asked = parse_question(doc["question"])
    (scene,) = [
        scene
        for chapter, scene in rows()[1][doc["video"]].scenes()
        if (chapter.colour, scene.pattern) == (asked.colour, asked.pattern)
    ]
    return scene


@lru_cache(maxsize=1)
def positions() -> dict[str, int]:
    return {doc["id"]: i for i, doc in enumerate(rows()[0])}


def tenth_of_file(doc: Doc) -> int:
    return 10 * positions()[doc["id"]] // len(positions())


FEATURES: dict[str, Callable[[Doc], Hashable]] = {
    "nothing": lambda doc: 0,
    "bucket": lambda doc: doc["bucket"],
    "colour": lambda doc: parse_question(doc["question"]).colour,
    "pattern": lambda doc: parse_question(doc["question"]).pattern,
    "colour and bucket": lambda doc: (parse_question(doc["question"]).colour, doc["bucket"]),
    "pattern and bucket": lambda doc: (parse_question(doc["question"]).pattern, doc["bucket"]),
    "pitch": lambda doc: parse_question(doc["question"]).pitch,
    "first glyph's colour": lambda doc: next((glyph.colour for glyph in parse_question(doc["question"]).glyphs), None),
    "first glyph's shape": lambda doc: next((glyph.shape for glyph in parse_question(doc["question"]).glyphs), None),
    "last glyph's colour": lambda doc: next(
        (glyph.colour for glyph in parse_question(doc["question"]).glyphs[::-1]), None
    ),
    "last glyph's shape": lambda doc: next(
        (glyph.shape for glyph in parse_question(doc["question"]).glyphs[::-1]), None
    ),
    "tenth of the file": tenth_of_file,
    "odd or even row": lambda doc: positions()[doc["id"]] % 2,
    "row modulo 5": lambda doc: positions()[doc["id"]] % 5,
    "number in the id": lambda doc: doc["id"].rpartition("-")[2],
    "first digit of the video": lambda doc: doc["video"].rpartition("/")[2][0],
    "length of the question": lambda doc: len(doc["question"]),
}


def chance_holds(hits: float, trials: int, chance: float) -> bool:
    """Whether hits are within 4 standard deviations of chance."""
    return abs(hits - trials * chance) <= 4 * math.sqrt(trials * chance * (1 - chance)) + 1


def independent(pairs: Sequence[tuple[Hashable, Hashable]]) -> bool:
    """Whether a chi-square test over a table of pairs stays under 4 standard deviations.

    It uses Wilson and Hilferty's approximation.
    """
    table, left, right = Counter(pairs), Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    freedom = (len(left) - 1) * (len(right) - 1)
    if freedom == 0:
        return True
    expected = {(a, b): left[a] * right[b] / len(pairs) for a in left for b in right}
    statistic = sum((table[cell] - mean) ** 2 / mean for cell, mean in expected.items())
    return statistic <= freedom * (1 - 2 / (9 * freedom) + 4 * math.sqrt(2 / (9 * freedom))) ** 3


# Fixed rules.


def named_first(doc: Doc) -> str:
    """The option that the sentence names first; a bad shuffle would show here."""
    return LETTERS[min(range(len(doc["options"])), key=lambda i: (doc["question"].find(doc["options"][i]) % 10_000, i))]


def alphabetical(doc: Doc) -> str:
    return LETTERS[doc["options"].index(min(doc["options"]))]


def odd_one_out(doc: Doc) -> str:
    """The option that shares most words with the others; wrong options made from the right one would show here."""
    words = Counter(word for option in doc["options"] for word in option.split())
    return LETTERS[
        max(range(len(doc["options"])), key=lambda i: sum(words[word] for word in doc["options"][i].split()))
    ]


def by_name_of_file(doc: Doc) -> str:
    return LETTERS[random.Random(doc["id"]).randrange(len(doc["options"]))]


BLIND = {
    "named_first": named_first,
    "alphabetical": alphabetical,
    "odd_one_out": odd_one_out,
    "random": by_name_of_file,
}
BLIND |= {f"always_{letter}": lambda doc, letter=letter: letter for letter in "AB"}


@pytest.mark.parametrize("policy", BLIND)
@pytest.mark.parametrize("kind", ["glyph", "sound", "order"])
@pytest.mark.parametrize("bucket", SPEC.buckets)
def test_blind_policies_score_at_chance(policy: str, kind: str, bucket: str) -> None:
    docs = [doc for doc in rows_of(kind) if doc["bucket"] == bucket]
    assert chance_holds(sum(BLIND[policy](doc) == doc["answer"] for doc in docs), len(docs), 1 / CHOICES[kind])


# Learnt from other videos.


@pytest.mark.parametrize("kind", CHOICES)
@pytest.mark.parametrize("feature", FEATURES)
def test_likeliest_answer_of_other_videos_is_right_by_chance(kind: str, feature: str) -> None:
    seen: dict[Hashable, Counter[str]] = defaultdict(Counter)
    of = FEATURES[feature]
    for doc in rows_of(kind):
        if is_train(doc):
            seen[of(doc)][doc["answer"]] += 1
    test = [doc for doc in rows_of(kind) if not is_train(doc) and of(doc) in seen]
    hits = sum(seen[of(doc)].most_common(1)[0][0] == doc["answer"] for doc in test)
    assert len(test) > 700 and chance_holds(hits, len(test), 1 / CHOICES[kind])


@pytest.mark.parametrize("kind", ["glyph", "sound", "order"])
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("word", [0, 1])
def test_likeliest_option_of_other_videos_is_right_by_chance(kind: str, feature: str, word: int) -> None:
    """As above, but the policy learns glyphs (their colours or shapes) and not letters."""
    right, offered = Counter[Hashable](), Counter[Hashable]()
    of = FEATURES[feature]
    for doc in rows_of(kind):
        if is_train(doc):
            offered.update((of(doc), option.split()[word]) for option in doc["options"])
            right[of(doc), doc["options"][LETTERS.index(doc["answer"])].split()[word]] += 1
    test = [doc for doc in rows_of(kind) if not is_train(doc)]
    hits = 0
    for doc in test:
        rates = [
            right[of(doc), option.split()[word]] / (offered[of(doc), option.split()[word]] or 1)
            for option in doc["options"]
        ]
        hits += LETTERS[rates.index(max(rates))] == doc["answer"]
    assert chance_holds(hits, len(test), 1 / CHOICES[kind])


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("feature", FEATURES)
def test_nothing_in_a_row_goes_with_its_answer(kind: str, feature: str) -> None:
    of = FEATURES[feature]
    if kind == "when":
        assert independent(
            [(of(doc), int(10 * doc["answer_spans"][0][0] / doc["duration_s"])) for doc in rows_of(kind)]
        )
        return
    assert independent([(of(doc), doc["answer"]) for doc in rows_of(kind)])
    if kind in ("glyph", "sound"):
        for word in (0, 1):
            assert independent(
                [(of(doc), doc["options"][LETTERS.index(doc["answer"])].split()[word]) for doc in rows_of(kind)]
            )


def test_answers_are_spread_evenly() -> None:
    for kind, choices in CHOICES.items():
        counts = Counter(doc["answer"] for doc in rows_of(kind))
        assert set(counts) == set("123456" if kind == "count" else LETTERS[:choices])
        assert all(chance_holds(hits, counts.total(), 1 / choices) for hits in counts.values())


# `when`: blind spans.


def best_blind_iou(
    spans: Sequence[tuple[float, float]], is_training: Sequence[bool], length: float, steps: int = 200
) -> tuple[float, float]:
    """Mean IoU, on the other half, of the best fixed span of this length in [0, 1], and of spans anywhere."""
    starts = np.linspace(0, 1 - length, steps)
    begin, end = np.array(spans).T[:, :, None]
    overlap = np.clip(np.minimum(end, starts + length) - np.maximum(begin, starts), 0, None)
    scores = overlap / (length + end - begin - overlap)
    train = np.array(is_training)
    return float(scores[~train][:, scores[train].mean(axis=0).argmax()].mean()), float(scores[~train].mean())


@pytest.mark.parametrize("bucket", SPEC.buckets)
def test_when_a_blind_span_is_hardly_better_than_one_anywhere(bucket: str) -> None:
    docs = [doc for doc in rows_of("when") if doc["bucket"] == bucket]
    spans = [
        (doc["answer_spans"][0][0] / doc["duration_s"], doc["answer_spans"][0][1] / doc["duration_s"]) for doc in docs
    ]
    typical = float(np.mean([end - start for start, end in spans]))
    for length in (typical, 2 * typical, 4 * typical, 0.3):
        best, anywhere = best_blind_iou(spans, [is_train(doc) for doc in docs], length)
        assert best <= 2 * anywhere + 0.01 and best <= 0.06, (length, best, anywhere)


@pytest.mark.parametrize("bucket", SPEC.buckets)
def test_when_even_the_right_scene_does_not_tell_the_place(bucket: str) -> None:
    """A span at the most likely place of the asked scene, compared with one anywhere in the part that has events.

    The edges of the scene are given.
    """
    docs = [doc for doc in rows_of("when") if doc["bucket"] == bucket]
    spans = []
    for doc in docs:
        scene, (start, end) = scene_of(doc), doc["answer_spans"][0]
        length = 0.7 * (scene.end_s - scene.start_s)
        room = scene.start_s + 0.15 / 0.7 * length
        spans.append(((start - room) / length, (end - room) / length))
    best, anywhere = best_blind_iou(
        spans, [is_train(doc) for doc in docs], float(np.mean([end - start for start, end in spans]))
    )
    assert best <= 1.5 * anywhere + 0.02, (best, anywhere)


def test_when_alone_in_its_scene_an_event_is_anywhere() -> None:
    places = []
    for doc in rows_of("when"):
        scene, (start, end) = scene_of(doc), doc["answer_spans"][0]
        if scene.role is Role.GLYPH and len(scene.events) == 1:
            low, high = (
                scene.start_s + 0.15 * (scene.end_s - scene.start_s),
                scene.end_s - 0.15 * (scene.end_s - scene.start_s),
            )
            places.append(min(9, max(0, int(10 * (start - low + 0.05) / (high - low - (end - start) + 0.1)))))
    assert len(places) > 300
    assert all(chance_holds(hits, len(places), 0.1) for hits in Counter(places).values()) and len(set(places)) == 10


def test_when_any_of_a_scene_s_events_is_asked_for() -> None:
    ranks = Counter[int]()
    for doc in rows_of("when"):
        events = scene_of(doc).glyph_events
        if len(events) > 1:
            ranks[[event.start_s for event in events].index(doc["answer_spans"][0][0])] += 1
    assert all(chance_holds(ranks[rank], ranks.total(), 1 / 3) for rank in range(3))


# The order of the rows.


@pytest.mark.parametrize("of", ["kind", "bucket", "video"])
def test_neighbouring_rows_are_strangers(of: str) -> None:
    docs = rows()[0]
    counts = Counter(doc[of] for doc in docs)
    chance = sum(count * (count - 1) for count in counts.values()) / (len(docs) * (len(docs) - 1))
    assert chance_holds(sum(a[of] == b[of] for a, b in itertools.pairwise(docs)), len(docs) - 1, chance)
    assert independent([(tenth_of_file(doc), doc["kind"]) for doc in docs])
    assert independent([(tenth_of_file(doc), doc["bucket"]) for doc in docs])


@pytest.mark.parametrize("kind", CHOICES)
def test_the_answer_before_foretells_nothing(kind: str) -> None:
    for docs in (rows_of(kind), [doc for doc in rows()[0] if doc["kind"] in CHOICES]):
        assert independent([(a["answer"], b["answer"]) for a, b in itertools.pairwise(docs)])
    same = sum(a["answer"] == b["answer"] for a, b in itertools.pairwise(rows_of(kind)))
    assert chance_holds(same, len(rows_of(kind)) - 1, 1 / CHOICES[kind])


def test_another_seed_is_another_order() -> None:
    texts = []
    for seed in (0, 1):
        spec = NeedleSpec(seed=seed, buckets=("1m",), videos_per_bucket=20)
        docs = [json.loads(line) for line in make._docs_text(spec, make._plan(spec)).splitlines()]
        texts.append([doc["kind"] for doc in docs])
    assert texts[0] != texts[1]


# What one document tells about another.


@pytest.mark.parametrize("bucket", BUCKETS)
@pytest.mark.parametrize("most", [False, True])
def test_no_question_names_the_answer_of_another_about_its_scene(bucket: str, most: bool) -> None:
    """Two questions about a scene, side by side, do not narrow their options down either.

    (`order` names its own answer, one of two.)
    """
    chapters, scenes = tree_shape(BUCKETS[bucket])
    per_kind = min(9, max_questions_per_kind(chapters * scenes)) if most else 2
    spec = NeedleSpec(buckets=(bucket,), videos_per_bucket=20, questions_per_kind=per_kind)
    by_scene: dict[tuple[str, str, str], list[Doc]] = defaultdict(list)
    for line in make._docs_text(spec, make._plan(spec)).splitlines():
        doc = json.loads(line)
        asked = parse_question(doc["question"])
        by_scene[doc["video"], asked.colour, asked.pattern].append(doc)
    for docs in by_scene.values():
        for a, b in itertools.permutations(docs, 2):
            if a["kind"] in ("glyph", "sound"):
                assert a["options"][LETTERS.index(a["answer"])] not in b["question"]
                assert b["kind"] == "count" or set(a["options"]) == set(b["options"])


def test_when_says_nothing_about_order() -> None:
    """The glyph that `when` names is the first of a pair of its scene as often as the second."""
    named = {(doc["video"], parse_question(doc["question"]).glyphs[0].name) for doc in rows_of("when")}
    docs = [doc for doc in rows_of("order") if sum((doc["video"], option) in named for option in doc["options"]) == 1]
    hits = sum((doc["video"], doc["options"][LETTERS.index(doc["answer"])]) in named for doc in docs)
    assert len(docs) > 300 and chance_holds(hits, len(docs), 0.5)


# A real run of the guessing policy through the loop.


def test_guess_policy_scores_at_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = {doc["video"]: doc["duration_s"] for doc in rows()[0]}

    def borrow(path: str, _settings: object) -> SimpleNamespace:
        return SimpleNamespace(
            duration_s=lengths[path], sound_s=lengths[path], fps=10.0, has_video=True, has_audio=True, size=(112, 112)
        )

    monkeypatch.setattr(open_video, "POOL", SimpleNamespace(borrow=borrow, give_back=lambda video: None))
    monkeypatch.setattr(open_video, "media_digest", lambda path: (0, ""))  # there is no file
    docs = rows()[0][:1500]
    scores: dict[str, list[float]] = defaultdict(list)
    chance_of_when: list[list[float]] = []

    async def ask_all() -> None:
        for doc in docs:
            kind = {"when": QuestionKind.GROUNDING, "count": QuestionKind.NUMBER}.get(doc["kind"], QuestionKind.MCQ)
            options = tuple(Option(label=LETTERS[i], text=text) for i, text in enumerate(doc["options"]))
            question = Question(
                text=doc["question"],
                kind=kind,
                options=options,
                videos=(MediaRef(path=doc["video"]),),
                doc_id=doc["id"],
            )
            trajectory = await Episode(question, GuessPolicy(), EpisodeConfig(arm="passive", passive_frames=0)).run()
            assert trajectory.answer_valid, trajectory.stop_detail
            scores[doc["kind"]].append(
                process_results({**doc, "apr_present": True, "apr_buckets": []}, [trajectory.answer])["score"]
            )

    asyncio.run(ask_all())
    for kind, choices in CHOICES.items():
        assert len(scores[kind]) > 200 and chance_holds(sum(scores[kind]), len(scores[kind]), 1 / choices)
    for doc in docs:
        if doc["kind"] == "when":
            tenth = doc["duration_s"] / 10
            chance_of_when.append(
                [set_iou([(i * tenth, (i + 1) * tenth)], [tuple(doc["answer_spans"][0])]) for i in range(10)]
            )
    table = np.array(chance_of_when)
    assert abs(sum(scores["when"]) - table.mean(axis=1).sum()) <= 4 * math.sqrt(table.var(axis=1).sum())
