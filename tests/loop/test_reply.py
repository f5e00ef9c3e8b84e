"""From a completion to an answer, in every arm: thought is not an answer, and neither is a reply that was cut off
during thought."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from apr_testing import Playback, answer, look, turn

from apr_plugin.loop import (
    Budget,
    Episode,
    EpisodeConfig,
    ErrorCode,
    Generation,
    MediaRef,
    Option,
    Prompt,
    Question,
    Sampling,
    StopReason,
    Trajectory,
)
from apr_plugin.loop.action import Answer, GetFrames
from apr_plugin.loop.parse import parse_turn

Videos = Mapping[str, Path]
DRAFT, FINAL = (
    turn({"type": "get_frames", "start": 1.0, "end": 2.0, "num": 4}),
    turn({"type": "answer", "content": "B"}),
)


def ask(path: Path, kind: str = "mcq") -> Question:
    options = (Option(label="A", text="one"), Option(label="B", text="two")) if kind == "mcq" else ()
    return Question(text="which?", kind=kind, options=options, videos=(MediaRef(path=str(path)),))  # type: ignore[arg-type]


def play(question: Question, policy: Any, budget: Budget | None = None, **config: Any) -> Trajectory:
    return asyncio.run(Episode(question, policy, EpisodeConfig(budget=budget or Budget(turns=4), **config)).run())


class Cut(Playback):
    """Returns its texts as if each had been cut off at its length limit."""

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        return replace(await super().generate(prompt, sampling), finish_reason="length")


@pytest.mark.parametrize(
    "text",
    [
        f"<think>I could write {DRAFT} but no.</think>\n{FINAL}",
        f"I could write {DRAFT} but no.\n</think>\n\n{FINAL}",
        f"[THINK]{DRAFT}[/THINK]{FINAL}",
        f"◁think▷{DRAFT}◁/think▷```json\n{FINAL}\n```",
        f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>{FINAL}<|return|>",
        f"<|channel>thought\n{DRAFT}<channel|>{FINAL}<turn|>",
        f"<think>{{</think>{FINAL}",
    ],
)
@pytest.mark.parametrize("cut", [False, True])
def test_a_draft_in_a_thought_is_never_carried_out(text: str, cut: bool) -> None:
    parsed = parse_turn(text, cut=cut)
    assert parsed.action == Answer(content="B") and "left out a block of thought" in parsed.repairs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"<think>I could write {DRAFT}", "never closed"),
        (f"<think>{FINAL}", "never closed"),
        (f"<think>{FINAL}</think>", "after the thought"),
        (f"{DRAFT} is not it</think>\n", "after the thought"),
        ("<think>hm</think> B", "no JSON object"),
    ],
)
def test_a_thought_alone_is_no_turn_and_the_model_reads_why(text: str, words: str) -> None:
    error = parse_turn(text).error
    assert error is not None and error.code is ErrorCode.MALFORMED_JSON and words in error.message


def test_the_key_think_and_marks_in_strings_are_no_blocks() -> None:
    for words in ("<think>", "</think>", "<think>a</think>", "[THINK]"):
        written = turn({"type": "answer", "content": "B"}, think=words, observation=f"the sign says {words}")
        for text in (written, f"So: {written}", f"```json\n{written}\n```"):
            parsed = parse_turn(text)
            assert parsed.action == Answer(content="B") and parsed.think == words


def test_a_turn_that_was_cut_off_is_carried_out_where_it_begins_with_its_object() -> None:
    for text in (DRAFT, f"{DRAFT}\nNow I", f"```json\n{DRAFT}\n```\nAnd then"):
        assert isinstance(parse_turn(text, cut=True).action, GetFrames)
    for text in (f"I could write {DRAFT} but", f"Okay.\n{DRAFT}"):
        error = parse_turn(text, cut=True).error
        assert error is not None and "cut off at its length limit" in error.message
        assert isinstance(parse_turn(text).action, GetFrames)


@pytest.mark.parametrize("text", [FINAL[:-1], f"```json\n{FINAL[:-1]}\n```", f"Here: {FINAL[:-1]}"])
def test_a_missing_last_brace_is_mended_and_said(text: str) -> None:
    parsed = parse_turn(text)
    assert parsed.action == Answer(content="B") and "closed the object" in parsed.repairs


@pytest.mark.parametrize(
    "text",
    [
        FINAL[:-2],
        FINAL[:-3],
        FINAL[: FINAL.index(', "action"')],
        '{"action": {"type": "answer"}, "x": {"y": 1}',
        '{"a": {"b": 1}',
        '{"a": {"b": 1} ',
    ],
)
def test_an_object_that_is_never_closed_is_named_as_that(text: str) -> None:
    error = parse_turn(text).error
    assert error is not None and (
        "never closed" in error.message or "'content'" in error.message or "'action'" in error.message
    )
    if '"action": {"type": "answer"}' not in text:
        assert "never closed" in error.message


def outcome(done: Trajectory) -> tuple[Any, ...]:
    return done.stop_reason, done.answer, done.answer_valid


UNFINISHED = [
    ("mcq", "<think>\nAt first sight the answer is A, because it is red. But wait, later it"),
    ("mcq", "<think>the answer is A</think>"),
    ("number", "<think>\nFirst I see 3 dogs, then"),
    ("grounding", "◁think▷from 1 to 2"),
    ("free_form", "<think>It may be a dog"),
    ("mcq", '{"observation": "o", "think": "t", "action": {"type": "answer", "content": "<think>The answer is A"}}'),
]


@pytest.mark.parametrize(("kind", "text"), UNFINISHED)
def test_a_reply_that_ends_in_thought_is_no_answer_in_any_arm(shared_videos: Videos, kind: str, text: str) -> None:
    question = ask(shared_videos["sound"], kind=kind)
    for policy in (Playback, Cut):
        for frames in (4, 0):
            passive = play(question, policy([text]), arm="passive", passive_frames=frames)
            assert outcome(passive) == (StopReason.TURNS, None, False), passive.stop_detail
        forced = play(question, policy([look(0, 1), text]), budget=Budget(turns=2))
        assert outcome(forced) == (StopReason.TURNS, None, False) and "no answer" in forced.stop_detail
        agent = play(
            question, policy([look(0, 1), f"<think>{answer('A')}", look(0, 1), "<think>"]), budget=Budget(turns=3)
        )
        assert (
            agent.answer is None and agent.turns[1].error is not None and "never closed" in agent.turns[1].error.message
        )


@pytest.mark.parametrize(
    ("kind", "text", "valid"),
    [
        ("mcq", "B. The car that", "B"),
        ("mcq", "The answer is B. The", "B"),
        ("mcq", "Okay, so A is red. The answer is A. But", None),
        ("mcq", "First, A.\nB", None),
        ("number", "There are 3 dogs at first, but", None),
        ("grounding", "It seems to be from 1 to 2, but", None),
        ("number", "<think>3?</think>There are 2", "2"),
        ("mcq", answer("B") + "\nNow", "B"),
        ("mcq", f"I could write {answer('A')}, but", None),
    ],
)
def test_of_a_reply_cut_off_without_a_mark_of_thought_only_the_beginning_counts(
    shared_videos: Videos, kind: str, text: str, valid: str | None
) -> None:
    question = ask(shared_videos["sound"], kind=kind)
    passive = play(question, Cut([text]), arm="passive")
    forced = play(question, Cut([look(0, 1), text]), budget=Budget(turns=2, refuse_blind_answer=True))
    assert passive.answer == valid and passive.answer_valid == (valid is not None)
    assert valid is not None or "cut off" in passive.stop_detail
    assert forced.answer == valid and forced.answer_valid == (valid is not None)


def test_words_of_a_free_answer_that_was_cut_off_are_kept_and_not_called_valid(shared_videos: Videos) -> None:
    done = play(ask(shared_videos["sound"], kind="free_form"), Cut(["A dog runs over the"]), arm="passive")
    assert outcome(done) == (StopReason.ANSWERED, "A dog runs over the", False) and "cut off" in done.stop_detail
    whole = play(ask(shared_videos["sound"], kind="free_form"), Cut(["<think>hm</think>A dog"]), arm="passive")
    assert outcome(whole) == (StopReason.ANSWERED, "A dog", True)


@pytest.mark.parametrize(
    "text",
    [
        look(0, 1),
        json.dumps({"observation": "I saw 3 dogs", "action": None}),
        '{"observation": "3 dogs", "action": {"type": "ans',
    ],
)
def test_a_turn_that_is_no_answer_is_not_read_as_one(shared_videos: Videos, text: str) -> None:
    for kind in ("number", "grounding", "mcq"):
        done = play(ask(shared_videos["sound"], kind=kind), Playback([text]), arm="passive")
        assert outcome(done) == (StopReason.TURNS, None, False)


def test_an_object_with_an_answer_is_taken_where_an_answer_is_asked_for(shared_videos: Videos) -> None:
    question = ask(shared_videos["sound"])
    assert play(question, Playback(['{"answer": "B"}']), arm="passive").answer == "B"
    assert (
        play(
            question, Playback([look(0, 1), "still looking", '```json\n{"answer": "B"}\n```']), budget=Budget(turns=2)
        ).answer
        == "B"
    )
