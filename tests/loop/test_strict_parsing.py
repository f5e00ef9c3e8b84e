"""`parsing=strict`: what a turn costs, how an answer counts, and how both relate to repair."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from apr_testing import Playback, answer, look, turn
from hypothesis import given
from hypothesis import strategies as st

from apr_plugin.loop import (
    Budget,
    Episode,
    EpisodeConfig,
    ErrorCode,
    MediaRef,
    Option,
    Question,
    QuestionKind,
    StopReason,
    Trajectory,
)
from apr_plugin.loop.action import Answer, GetAudio, GetClip, GetFrames
from apr_plugin.loop.answer import canonical_answer, strict_answer
from apr_plugin.loop.feedback import ActionError
from apr_plugin.loop.parse import MAX_TEXT_CHARS, parse_strictly, parse_turn

Videos = dict[str, Path]
OPTIONS = (Option(label="A", text="red"), Option(label="B", text="blue"))
FRAMES: dict[str, Any] = {"type": "get_frames", "start": 1.0, "end": 2.5, "num": 4}
GOOD = turn(FRAMES)
LOOKED = GetFrames(start=1.0, end=2.5, num=4)

TURNS: dict[str, tuple[str, object]] = {
    "the strict form": (GOOD, LOOKED),
    "over several lines": (json.dumps(json.loads(GOOD), indent=2), LOOKED),
    "blanks around it": (f"\n {GOOD}\u00a0\n", LOOKED),
    "keys in another order": (json.dumps(dict(reversed(json.loads(GOOD).items()))), LOOKED),
    "a key twice": (GOOD.replace('"num": 4', '"num": 9, "num": 4'), LOOKED),
    "whole seconds": (turn(FRAMES | {"start": 1}), LOOKED),
    "confidence 1.7": (turn(FRAMES, confidence=1.7), LOOKED),
    "confidence -3": (turn(FRAMES, confidence=-3), LOOKED),
    "confidence true": (turn(FRAMES, confidence=True), LOOKED),
    "confidence NaN": (turn(FRAMES, confidence=float("nan")), LOOKED),
    "an unknown argument": (turn(FRAMES | {"fps": 3}), LOOKED),
    "another action's argument": (turn(FRAMES | {"content": ["B"]}), LOOKED),
    "a video where there is one": (turn(FRAMES | {"video": "the first"}), LOOKED),
    "num true": (turn(FRAMES | {"num": True}), GetFrames(start=1.0, end=2.5, num=1)),
    "start false": (turn({"type": "get_clip", "start": False, "end": 3}), GetClip(start=0.0, end=3.0)),
    "empty words": (turn(FRAMES, observation="", think=""), LOOKED),
    "sound": (turn({"type": "get_audio", "start": 1, "end": 2}), GetAudio(start=1.0, end=2.0)),
    "an answer": (answer(" B. "), Answer(content=" B. ")),
    "an empty answer": (answer(""), Answer(content="")),
    "a fence": (f"```json\n{GOOD}\n```", ErrorCode.MALFORMED_JSON),
    "an opened fence": ("```", ErrorCode.MALFORMED_JSON),
    "words before": (f"Sure! {GOOD}", ErrorCode.MALFORMED_JSON),
    "words after": (f"{GOOD} done", ErrorCode.MALFORMED_JSON),
    "two objects": (f"{GOOD}\n{GOOD}", ErrorCode.MALFORMED_JSON),
    "a brace too many": (GOOD + "}", ErrorCode.MALFORMED_JSON),
    "a thought before": (f"<think>hm</think>{GOOD}", ErrorCode.MALFORMED_JSON),
    "a turn's end mark": (f"{GOOD}<|im_end|>", ErrorCode.MALFORMED_JSON),
    "a byte order mark": (f"\ufeff{GOOD}", ErrorCode.MALFORMED_JSON),
    "quoted": (json.dumps(GOOD), ErrorCode.MALFORMED_JSON),
    "single quotes": (GOOD.replace('"', "'"), ErrorCode.MALFORMED_JSON),
    "a list": (f"[{GOOD}]", ErrorCode.MALFORMED_JSON),
    "a trailing comma": (GOOD[:-1] + ",}", ErrorCode.MALFORMED_JSON),
    "a brace missing": (GOOD[:-1], ErrorCode.MALFORMED_JSON),
    "a line break in a string": (GOOD.replace("seen", "se\nen"), ErrorCode.MALFORMED_JSON),
    "nothing": ("", ErrorCode.MALFORMED_JSON),
    "words": ("The answer is B.", ErrorCode.MALFORMED_JSON),
    "no confidence": (GOOD.replace('"confidence": 0.5, ', ""), ErrorCode.MISSING_KEY),
    "no observation": (GOOD.replace('"observation": "seen", ', ""), ErrorCode.MISSING_KEY),
    "no action": ('{"observation": "", "think": "", "confidence": 1}', ErrorCode.MISSING_KEY),
    "no num": (GOOD.replace(', "num": 4', ""), ErrorCode.MISSING_KEY),
    "no type": (GOOD.replace('"type": "get_frames", ', ""), ErrorCode.MISSING_KEY),
    "no content": (turn({"type": "answer"}), ErrorCode.MISSING_KEY),
    "a key too many": (turn(FRAMES, plan="x"), ErrorCode.UNKNOWN_KEY),
    "confidence a string": (turn(FRAMES, confidence="0.5"), ErrorCode.WRONG_TYPE),
    "confidence null": (turn(FRAMES, confidence=None), ErrorCode.WRONG_TYPE),
    "observation a list": (turn(FRAMES, observation=["seen"]), ErrorCode.WRONG_TYPE),
    "think null": (turn(FRAMES, think=None), ErrorCode.WRONG_TYPE),
    "action null": (turn(None), ErrorCode.WRONG_TYPE),
    "num 4.0": (turn(FRAMES | {"num": 4.0}), ErrorCode.WRONG_TYPE),
    "num a string": (turn(FRAMES | {"num": "4"}), ErrorCode.WRONG_TYPE),
    "start a string": (turn(FRAMES | {"start": "1.0"}), ErrorCode.WRONG_TYPE),
    "end null": (turn(FRAMES | {"end": None}), ErrorCode.WRONG_TYPE),
    "content a number": (turn({"type": "answer", "content": 2}), ErrorCode.WRONG_TYPE),
    "content a list": (turn({"type": "answer", "content": [[1, 2]]}), ErrorCode.WRONG_TYPE),
    "start NaN": (turn(FRAMES | {"start": float("nan")}), ErrorCode.NOT_FINITE),
    "end Infinity": (turn(FRAMES | {"end": float("inf")}), ErrorCode.NOT_FINITE),
    "another action": (turn({"type": "zoom", "start": 0, "end": 1}), ErrorCode.UNKNOWN_ACTION),
    "a type that is no text": (turn({"type": ["answer"]}), ErrorCode.UNKNOWN_ACTION),
}


@pytest.mark.parametrize("name", list(TURNS))
def test_what_a_turn_is(name: str) -> None:
    text, expected = TURNS[name]
    parsed = parse_strictly(text)
    assert (parsed.error.code if parsed.error else parsed.action) == expected and parsed.repairs == ()
    repaired = parse_turn(text)
    if repaired.error is not None and parsed.error is not None:
        assert parsed.error == repaired.error, "a policy reads the same words"


def test_a_video_is_an_argument_where_there_are_several() -> None:
    assert parse_strictly(turn(FRAMES | {"video": 1}), several=True).action == GetFrames(
        start=1.0, end=2.5, num=4, video=1
    )
    refused = parse_strictly(turn(FRAMES | {"video": "1"}), several=True).error
    assert refused is not None and refused.code == ErrorCode.WRONG_TYPE


def test_what_is_not_offered_is_unknown() -> None:
    refused = parse_strictly(turn({"type": "get_audio", "start": 1, "end": 2}), offered=("get_frames", "answer")).error
    assert refused is not None and refused.code == ErrorCode.UNKNOWN_ACTION


WRONG = object()
"""The answer ends the episode and counts as wrong."""

ANSWERS: list[tuple[QuestionKind, str, object]] = [
    *((QuestionKind.MCQ, text, "B") for text in ("B", "b", " B\n")),
    *((QuestionKind.MCQ, text, WRONG) for text in ("B.", "(B)", "B. blue", "blue", "The answer is B", "Z", "", "AB",
    "\uff22", "[]")),
    (QuestionKind.GROUNDING, "[[10, 20], [40, 50]]", "[[10.0, 20.0], [40.0, 50.0]]"),
    (QuestionKind.GROUNDING, " [10, 20]\n", "[[10.0, 20.0]]"),
    (QuestionKind.GROUNDING, "[[10, 20], [12, 28]]", "[[10.0, 28.0]]"),
    (QuestionKind.GROUNDING, "[[10.12345, 19.98765]]", "[[10.12345, 19.98765]]"),
    (QuestionKind.GROUNDING, "[[0, 999]]", "[[0.0, 999.0]]"),
    (QuestionKind.GROUNDING, '[["10", " 20 "]]', "[[10.0, 20.0]]"),
    (QuestionKind.GROUNDING, "[[0, 100], [900, 810]]", "[[0.0, 100.0]]"),
    (QuestionKind.GROUNDING, "[[-5, 20], [30, 40]]", "[[30.0, 40.0]]"),
    *((QuestionKind.GROUNDING, text, WRONG) for text in ("[]", "null", "[[20, 10]]", "[20, 10]", "[[-5, 20]]")),
    *((QuestionKind.GROUNDING, text, ErrorCode.ANSWER_FORM) for text in (
        "from 10 to 20", "10-20", "10, 20", "[[10, 20]].", "```[[10, 20]]```", "[[10, 20],]", "", "7", "true", "{}",
        '"[[1, 2]]"',
        '[["0:10", "0:20"]]', '["10", "20"]', "[10, 20, 30]", "[[10, 20, 30]]", "[[]]", "[10]", "[[1, null]]",
        "[[NaN, 3]]", "[1, Infinity]",
        '[["nan", 3]]', "[" * 5000, '{"start": 1, "end": 2}',
    )),
    (QuestionKind.NUMBER, "3", "3"),
    (QuestionKind.NUMBER, "3.50", "3.5"),
    (QuestionKind.NUMBER, "2 or 3", "2"),
    (QuestionKind.NUMBER, "1,000", "1"),
    (QuestionKind.NUMBER, ".5", "5"),
    (QuestionKind.NUMBER, "about -3 cm", "-3"),
    (QuestionKind.NUMBER, "1e3", "1"),
    (QuestionKind.NUMBER, "9" * 400, WRONG),
    *((QuestionKind.NUMBER, text, ErrorCode.ANSWER_FORM) for text in ("three", "", "NaN", "many")),
    (QuestionKind.FREE_FORM, " a red car ", "a red car"),
    (QuestionKind.FREE_FORM, "<think>hm</think>red", "<think>hm</think>red"),
    (QuestionKind.FREE_FORM, "", WRONG),
]  # fmt: skip


def asked(kind: QuestionKind, *paths: Path) -> Question:
    options = OPTIONS if kind is QuestionKind.MCQ else ()
    return Question(text="which?", kind=kind, options=options, videos=tuple(MediaRef(path=str(path)) for path in paths))


@pytest.mark.parametrize(
    ("kind", "content", "expected"), ANSWERS, ids=[f"{kind}-{content[:24]!a}" for kind, content, _ in ANSWERS]
)
def test_what_an_answer_counts_as(kind: QuestionKind, content: str, expected: object) -> None:
    question = asked(kind)
    taken = strict_answer(question, content, 600.0)
    if isinstance(taken, ActionError):
        repaired = canonical_answer(question, content, 600.0)
        assert taken.code == expected and (not isinstance(repaired, ActionError) or repaired == taken)
    elif expected is WRONG:
        assert (taken.text, taken.valid) == (content.strip(), False) and "wrong" in taken.remark
    else:
        assert taken == (expected, True, "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
NUMBERS = st.integers(-5, 10**6) | st.floats(allow_nan=False, allow_infinity=False)
ACTIONS = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["get_frames", "get_audio", "get_clip", "answer"]),
        "start": NUMBERS,
        "end": NUMBERS,
        "num": st.integers(),
        "content": st.text(),
    },
    optional={"x": JSON, "fps": JSON},
)
SLIPS = st.sampled_from(["", "", " ", "\n", "```", ",", "}", "x", "\t", '"', "\\"])


@given(
    st.fixed_dictionaries(
        {"observation": st.text(), "think": st.text(), "confidence": NUMBERS, "action": ACTIONS | JSON},
        optional={"plan": JSON},
    ),
    st.lists(st.tuples(st.integers(0, 400), SLIPS), max_size=2),
    st.booleans(),
)
def test_what_strict_takes_repair_takes_unrepaired(
    value: dict[str, Any], slips: list[tuple[int, str]], indented: bool
) -> None:
    text = json.dumps(value, indent=1 if indented else None)
    for place, slip in slips:
        text = text[:place] + slip + text[place:]
    strict, repaired = parse_strictly(text), parse_turn(text)
    assert (strict.action is None) != (strict.error is None) and strict.repairs == ()
    if strict.action is None:
        assert repaired.error is None or repaired.error == strict.error
        return
    assert (strict.action, strict.observation, strict.think, strict.confidence) == (
        repaired.action, repaired.observation, repaired.think, repaired.confidence
    )  # fmt: skip
    noted = {
        note
        for note in repaired.repairs
        if not note.startswith("ignored unknown arguments") and note != "confidence was no number from 0 to 1"
    }
    assert noted == set()


@given(st.text(max_size=300) | st.text('{}[]":,\\ \n`0123456789eE.-+NaIfintyaction', max_size=300))
def test_no_text_raises(text: str) -> None:
    parsed = parse_strictly(text)
    assert (parsed.action is None) != (parsed.error is None)
    for kind in QuestionKind:
        taken = strict_answer(asked(kind), text)
        assert isinstance(taken, ActionError) or taken.valid or taken.remark


@pytest.mark.parametrize(
    "text", ['{"a":' * 40_000, "{" * MAX_TEXT_CHARS, '{"a":' + "9" * 9000 + "}", "[" * 200_000], ids=range(4)
)
def test_what_no_reader_takes_is_an_error(text: str) -> None:
    assert parse_strictly(text).error is not None


def play(question: Question, policy: Playback, budget: Budget | None = None, **config: Any) -> Trajectory:
    return asyncio.run(
        Episode(question, policy, EpisodeConfig(budget=budget or Budget(turns=4), parsing="strict", **config)).run()
    )


def test_an_episode_read_strictly(shared_videos: Videos) -> None:
    policy = Playback([look(0, 1), f"Sure! {look(2, 3)}", answer("B."), answer("B")])
    done = play(asked(QuestionKind.MCQ, shared_videos["sound"]), policy)
    assert [t.error.code if t.error else None for t in done.turns] == [None, ErrorCode.MALFORMED_JSON, None]
    assert (done.stop_reason, done.answer, done.answer_valid) == (
        StopReason.ANSWERED,
        "B.",
        False,
    ) and "label alone" in done.stop_detail
    assert "nothing before or after it" in policy.prompts[2].text
    repaired = asyncio.run(
        Episode(done.question, Playback([look(0, 1), f"Sure! {look(2, 3)}", answer("B.")]), EpisodeConfig()).run()
    )
    assert (repaired.answer, repaired.answer_valid) == ("B", True)


def test_an_answer_that_is_an_error_costs_a_turn(shared_videos: Videos) -> None:
    question = asked(QuestionKind.GROUNDING, shared_videos["sound"])
    done = play(question, Playback([look(0, 1), answer("from 1 to 2"), answer("[[1, 200]]")]))
    assert done.turns[1].error is not None and done.turns[1].error.code == ErrorCode.ANSWER_FORM
    assert (done.answer, done.answer_valid) == ("[[1.0, 200.0]]", True)
    last = play(question, Playback([look(0, 1), answer("from 1 to 2")]), Budget(turns=2, on_last_turn="fail"))
    assert (last.stop_reason, last.answer) == (StopReason.TURNS, None)


@pytest.mark.parametrize(
    ("reply", "stop", "given", "valid"),
    [
        (answer("b"), StopReason.FORCED, "B", True),
        (answer("B."), StopReason.FORCED, "B.", False),
        ("B", StopReason.TURNS, None, False),
        (look(0, 3), StopReason.TURNS, None, False),
        (f"```\n{answer('B')}\n```", StopReason.TURNS, None, False),
        ('{"action": {"type": "answer", "content": "B"}}', StopReason.TURNS, None, False),
    ],
)
def test_the_forced_call_is_read_strictly(
    shared_videos: Videos, reply: str, stop: StopReason, given: str | None, valid: bool
) -> None:
    done = play(
        asked(QuestionKind.MCQ, shared_videos["sound"]), Playback([look(0, 1), look(0, 2), reply]), Budget(turns=2)
    )
    assert (done.stop_reason, done.answer, done.answer_valid, done.turns[-1].forced) == (stop, given, valid, True)


def test_parsing_has_no_say_in_the_passive_arm(shared_videos: Videos) -> None:
    done = play(
        asked(QuestionKind.MCQ, shared_videos["sound"]), Playback(["The answer is B."]), arm="passive", passive_frames=2
    )
    assert (done.answer, done.answer_valid) == ("B", True)


def test_parsing_is_of_the_configuration() -> None:
    policy = Playback([])
    assert EpisodeConfig(parsing="strict").hash(policy) != EpisodeConfig().hash(policy)
