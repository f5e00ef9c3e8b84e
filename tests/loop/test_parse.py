"""The parser: the strict form, every repair, every error, and no text that raises or takes long."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from apr_testing import turn
from hypothesis import given
from hypothesis import strategies as st

from apr_plugin.loop.action import Answer, GetAudio, GetClip, GetFrames
from apr_plugin.loop.feedback import ErrorCode
from apr_plugin.loop.parse import MAX_TEXT_CHARS, parse_turn

FRAMES: dict[str, Any] = {"type": "get_frames", "start": 1.0, "end": 2.5, "num": 4}
GOOD = turn(FRAMES)
SECONDS = st.floats(allow_nan=False, allow_infinity=False)
VIDEO = st.integers(-5, 10**6)
ACTIONS = st.one_of(
    st.builds(GetFrames, start=SECONDS, end=SECONDS, num=st.integers(-(10**6), 10**9), video=VIDEO),
    st.builds(GetAudio, start=SECONDS, end=SECONDS, video=VIDEO),
    st.builds(GetClip, start=SECONDS, end=SECONDS, video=VIDEO),
    st.builds(Answer, content=st.text(st.characters(exclude_categories=["Cs"]))),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
KEYS = st.sampled_from(
    ["observation", "think", "confidence", "action", "type", "start", "end", "num", "content", "video", "x"]
)
TURNISH = st.dictionaries(
    KEYS,
    JSON | st.dictionaries(KEYS, JSON | st.sampled_from(["get_frames", "answer", "get_audio"]), max_size=6),
    max_size=6,
)


@given(
    st.text(max_size=400)
    | st.text('{}[]":,\\ \n`0123456789eE.-+NaIfintyaction', max_size=400)
    | st.text(st.characters(categories=["Cs", "Ll"]))
)
def test_no_text_raises(text: str) -> None:
    parsed = parse_turn(text)
    assert (parsed.action is None) != (parsed.error is None)


@given(TURNISH, st.text(max_size=10), st.text(max_size=10))
def test_no_json_raises(value: dict[str, Any], before: str, after: str) -> None:
    parsed = parse_turn(before + json.dumps(value) + after)
    assert (parsed.action is None) != (parsed.error is None)
    for text in (parsed.observation, parsed.think, *parsed.repairs, parsed.error.message if parsed.error else ""):
        text.encode()  # it has no lone surrogates
    assert parsed.confidence is None or 0 <= parsed.confidence <= 1


@given(ACTIONS, st.text(st.characters(exclude_categories=["Cs"])), st.floats(0, 1))
def test_every_action_round_trips_without_repairs(action: Any, words: str, confidence: float) -> None:
    for ascii_only in (True, False):
        written = {"observation": words, "think": words, "confidence": confidence, "action": action.model_dump()}
        parsed = parse_turn(json.dumps(written, ensure_ascii=ascii_only))
        assert parsed.error is None and parsed.repairs == ()
        assert parsed.action == action and type(parsed.action) is type(action)
        assert (parsed.observation, parsed.think, parsed.confidence) == (words, words, confidence)


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * 40_000, '{"a":' * 30_000 + "}" * 30_000, "{" * 100 + "," * 100_000 + "}" * 100, "{" * 200_000,
        '{"' * 100_000, "[" * 200_000,
        "{" * 64 + " " * 190_000 + "}" * 64, '{"action":1,' * 60 + '"x":"' + "y" * 190_000 + '"' + "}," * 60,
        "x" * MAX_TEXT_CHARS * 3,
        '{"observation":"' + "\\" * 199_000, "{}" * 100_000,
        '{"action":{"type":"answer","content":' + "9" * 100_000 + "}}",
        "\ud800" * 200_000,
        "{<think>" * 25_000, "{a" * 90_000 + "<think>", '{"a":"<think>' * 15_000, "</think>" * 25_000 + "{",
        "<|channel|>analysis" * 10_000,
    ],
    ids=range(18),
)  # fmt: skip
def test_attacks_finish_fast(text: str) -> None:
    began = time.process_time()
    assert parse_turn(text).error is not None
    assert time.process_time() - began < 2.0  # processor time, so that the test does not fail on a busy machine


@pytest.mark.parametrize("depth", [100, 900, 960, 985, 990, 995, 1000, 5000])
@pytest.mark.parametrize("key", ["observation", "think", "confidence", "action", "type", "start", "content"])
def test_deep_nesting_is_a_value_or_an_error(depth: int, key: str) -> None:
    nest = "[" * depth + "]" * depth
    action = (
        {"type": "get_frames", "start": 1, "end": 2, "num": 1} if key == "start" else {"type": "answer", "content": "x"}
    )
    value = json.loads(turn(action))
    (value if key in value else value["action"])[key] = "NEST"
    parse_turn(json.dumps(value).replace('"NEST"', nest))


def _repaired(text: str) -> tuple[Any, tuple[str, ...]]:
    parsed = parse_turn(text)
    assert parsed.error is None, parsed.error
    return parsed.action, parsed.repairs


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (f"```json\n{GOOD}\n```", "removed a code fence"),
        (f"```\n{GOOD}\n```", "removed a code fence"),
        (f"Here you go: {GOOD}", "ignored text around the object"),
        (f"{GOOD}\nDone.", "ignored text around the object"),
        ("\ufeff" + GOOD, "ignored text around the object"),
        (GOOD[:-1] + ",}", "removed a trailing comma"),
        (GOOD[:-2] + ", }}", "removed a trailing comma"),
        (GOOD.replace("1.0", '"1.0"'), "start was a string"),
        (GOOD.replace("2.5", '"2.5s"'), "end was a string"),
        (GOOD.replace('"num": 4', '"num": "4"'), "num was a string"),
        (GOOD.replace('"num": 4', '"num": 4.0'), "num was no integer"),
        (turn(FRAMES | {"video": 0.0}), "video was no integer"),
        (GOOD.replace('"confidence": 0.5, ', ""), "confidence was missing"),
        (GOOD.replace("0.5", '"0.5"'), "confidence was a string"),
        (GOOD.replace("0.5", "1.5"), "confidence was no number from 0 to 1"),
        (GOOD.replace("0.5", "NaN"), "confidence was no number from 0 to 1"),
        (GOOD.replace("seen", "first\nsecond"), "accepted line breaks within a string"),
        (GOOD.replace('"seen"', '["seen"]'), "observation was not a string"),
        (turn(FRAMES | {"fps": 3}), "ignored unknown arguments 'fps'"),
        (turn(FRAMES, mood="good"), "ignored unknown keys 'mood'"),
    ],
)
def test_each_repair_works_and_is_named(text: str, note: str) -> None:
    action, repairs = _repaired(text)
    assert action == GetFrames(start=1.0, end=2.5, num=4)
    assert note in repairs
    assert len(repairs) == (2 if '"0.5"' in text and "no number" in note else 1)


def test_the_strict_form_needs_no_repair_and_integers_are_seconds() -> None:
    assert _repaired(GOOD) == (GetFrames(start=1.0, end=2.5, num=4), ())
    assert _repaired(turn({"type": "get_audio", "start": 1, "end": 2})) == (GetAudio(start=1.0, end=2.0), ())


@pytest.mark.parametrize(
    ("content", "text"), [([[1.5, 4]], "[[1.5, 4]]"), (7, "7"), ({"a": 1}, '{"a": 1}'), (True, "true")]
)
def test_content_that_is_no_string_becomes_one(content: object, text: str) -> None:
    assert _repaired(turn({"type": "answer", "content": content})) == (
        Answer(content=text),
        ("content was not a string",),
    )


def test_the_first_object_with_an_action_counts_and_braces_in_strings_do_not() -> None:
    tricky = turn({"type": "answer", "content": '}{ \\" }'}, think='not {"action": 1}')
    assert _repaired(f"I think {{maybe}} so.\n{tricky}\n{GOOD}")[0] == Answer(content='}{ \\" }')
    assert _repaired("So: " + json.dumps({"result": json.loads(GOOD)}))[0] == GetFrames(start=1.0, end=2.5, num=4)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("", ErrorCode.MALFORMED_JSON, "empty"),
        ("B", ErrorCode.MALFORMED_JSON, "'B'"),
        (GOOD[:-2], ErrorCode.MALFORMED_JSON, "never closed"),
        ("{'action': 1}", ErrorCode.MALFORMED_JSON, "character 1"),
        ("[1, 2]", ErrorCode.MALFORMED_JSON, "no JSON object"),
        ('{"think": "x"}', ErrorCode.MISSING_KEY, "'think'"),
        (turn({"start": 1}), ErrorCode.MISSING_KEY, "'type'"),
        (turn({"type": "get_frames", "start": 1.0, "end": 2.0}), ErrorCode.MISSING_KEY, "'num'"),
        (turn({"type": "answer"}), ErrorCode.MISSING_KEY, "'content'"),
        (turn(None), ErrorCode.WRONG_TYPE, "null"),
        (turn(FRAMES | {"start": "soon"}), ErrorCode.WRONG_TYPE, "'soon'"),
        (turn(FRAMES | {"start": [1]}), ErrorCode.WRONG_TYPE, "a list"),
        (turn(FRAMES | {"start": True}), ErrorCode.WRONG_TYPE, "true or false"),
        (turn(FRAMES | {"num": 2.5}), ErrorCode.WRONG_TYPE, "2.5"),
        (turn({"type": "answer", "content": None}), ErrorCode.WRONG_TYPE, "null"),
        (turn(FRAMES | {"start": math.nan}), ErrorCode.NOT_FINITE, "nan"),
        (turn(FRAMES | {"end": math.inf}), ErrorCode.NOT_FINITE, "inf"),
        (turn(FRAMES | {"end": "-Infinity"}), ErrorCode.NOT_FINITE, "-inf"),
        (turn(FRAMES | {"num": 10**400}), ErrorCode.NOT_FINITE, "inf"),
        (turn({"type": "rm -rf", "start": 1}), ErrorCode.UNKNOWN_ACTION, "'rm -rf'"),
        (turn({"type": ["get_frames"]}), ErrorCode.UNKNOWN_ACTION, "get_audio"),
    ],
)
def test_what_cannot_be_repaired_is_an_error_that_names_it(text: str, code: ErrorCode, words: str) -> None:
    parsed = parse_turn(text)
    assert parsed.error is not None and parsed.error.code == code
    assert words in parsed.error.message
    assert parsed.action is None


def test_lone_surrogates_become_question_marks() -> None:
    text = turn({"type": "answer", "content": "a\ud800b"}, observation="\udfff")
    for written in (text, text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass")):
        parsed = parse_turn(written)
        assert parsed.action == Answer(content="a?b") and parsed.observation == "?"
    assert parse_turn(turn({"type": "answer", "content": "😀"})).action == Answer(content="😀")


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1,, "action": {"type": "answer", "content": "A"}}',
        '{"observation": "a" "think": "", "action": {"type": "answer", "content": "A"}}',
    ],
)
def test_an_object_that_cannot_be_read_is_not_taken_for_its_inner_one(text: str) -> None:
    error = parse_turn(text).error
    assert error is not None and error.code is ErrorCode.MALFORMED_JSON and "at character" in error.message


def test_a_missing_note_or_thought_is_an_error_except_where_only_the_answer_counts() -> None:
    text = GOOD.replace('"observation": "seen", ', "").replace('"think": "so", ', "")
    error = parse_turn(text).error
    assert error is not None and error.code is ErrorCode.MISSING_KEY and "'observation' and 'think'" in error.message
    forgiven = parse_turn(text, answer_only=True)
    assert forgiven.action is not None and forgiven.repairs == ("observation was missing", "think was missing")
