"""The text of a reply outside its thought, for every way in which released models mark thought."""

# ruff: noqa: RUF001 - full-width and other signs that models write

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_plugin.scoring.answers import match_option, parse_number
from apr_plugin.scoring.text import answer_part, named_answer
from apr_plugin.scoring.thought import Reply, split_thought
from apr_plugin.scoring.times import parse_spans

MARKS = [
    ("<think>", "</think>"),
    ("<think>\n", "\n</think>\n\n"),
    ("<THINK>", "</THINK>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<scratchpad>", "</scratchpad>"),
    ('<think effort="high">', "</think>"),
    ("<think:6124c78e>", "</think:6124c78e>"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<ifm|think_fast>", "</ifm|think_fast>"),
    ("<longcat_think>", "</longcat_think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|><|open|>response<|sep|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel|>commentary to=functions.look <|message|>", "<|channel|>final <|constrain|>json<|message|>"),
    ("analysisWe need ", ".assistantfinal"),
    ("<|channel>thought\n", "<channel|>"),
    ("<unused94>thought\n", "<unused95>"),
    ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>\n\n<|begin_of_solution|>"),
    ("Here is my thought process: ", " Here is my response: "),
    ("Here's my thought process:", "Here's my response:"),
]
OPTIONS = [("A", "red"), ("B", "blue"), ("C", "green")]
DRAFTS = st.sampled_from(
    [
        "the answer is A",
        "3 dogs",
        "from 10 to 20 s",
        '{"answer": "A"}',
        "A",
        "<answer>A</answer>",
        "\\boxed{A}",
        "[[1, 2]]",
        "",
        "hm\n\nA",
    ]
)


@pytest.mark.parametrize(("opening", "closing"), MARKS)
@given(draft=DRAFTS)
def test_a_thought_is_no_answer_and_what_follows_it_is(opening: str, closing: str, draft: str) -> None:
    assert match_option(f"{opening}{draft}{closing}B", OPTIONS) == "B"
    assert parse_number(f"{opening}{draft}{closing}5") == 5
    assert parse_spans(f"{opening}{draft}{closing}from 7 to 9") == [(7, 9)]
    cut = split_thought(f"{opening}{draft}")
    assert cut == Reply("", thought=True, unclosed=True)
    assert (
        match_option(f"{opening}{draft}", OPTIONS) is None
        and parse_number(f"{opening}{draft}") is None
        and parse_spans(f"{opening}{draft}") == []
    )
    assert answer_part(f"{opening}{draft}{closing}") == ""


@pytest.mark.parametrize(("opening", "closing"), MARKS)
def test_a_block_that_the_chat_template_opened(opening: str, closing: str) -> None:
    """Words such as "Here is my response:" need their opening mark, because the template can't have written it."""
    if "here" not in opening.casefold() and "analysisWe" not in opening:
        assert answer_part(f"maybe A, maybe 3{closing}B") == "B"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("B", "B"),
        ("<think>a</think> A <think>b</think> B", "B"),
        ("<think>a</think> b </think> c", "c"),
        ("B <think>sure?</think>", "B"),
        ("<think>I could write <think> here</think>B", "B"),
        ("B<|end|>", "B"),  # this mark ends the turns of other models
        ("the final answer", "the final answer"),
        ("analysis of the assistant final", "analysis of the assistant final"),
        ("He thought: <b>", "He thought: <b>"),
        ('{"think": "a", "action": 1}', '{"think": "a", "action": 1}'),
        ('{"observation": "the sign says <think>", "n": 1}', '{"observation": "the sign says <think>", "n": 1}'),
        ('So: {"observation": "</think>"} and so on', 'So: {"observation": "</think>"} and so on'),
        ('I could write {"a": "x"} but no.</think>{"b": 2}', '{"b": 2}'),
        ('I could write {"a": "x but no.</think>{"b": 2}', '{"b": 2}'),
    ],
)
def test_what_stands_outside_thought(text: str, said: str) -> None:
    assert answer_part(text) == said


@given(
    st.text(max_size=200)
    | st.lists(st.sampled_from([mark for pair in MARKS for mark in pair] + ["A", "{", "}", '"', " "]), max_size=12).map(
        "".join
    )
)
def test_any_text_is_parted(text: str) -> None:
    reply = split_thought(text)
    assert reply.said in text and (reply.thought or reply.said == text) and not (reply.unclosed and reply.said)
    named_answer(answer_part(text))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{"answer": "B"}', "B"),
        ('```json\n{"answer": {"label": "B"}}\n```', "B"),
        ('["B"]', "B"),
        ('{"Final Answer": 5, "confidence": 0.9}', "5"),
        ('{"count": 1}', "1"),
        ("B", "B"),
        ('{"answer": null}', ""),
        ('{"A": 0.5, "B": 0.4}', ""),
        ('["A", "B"]', ""),
        ("{", "{"),
        ("[1", "[1"),
    ],
)
def test_an_object_that_names_its_answer(text: str, answer: str) -> None:
    assert named_answer(text) == answer


@pytest.mark.parametrize(
    "end",
    [
        "<|im_end|>",
        "<|endoftext|>",
        "</s>",
        "<|eot_id|>\n",
        "<end_of_turn>",
        "<turn|>",
        "<|return|>",
        "<seed:eos>",
        "<｜end▁of▁sentence｜>",
    ],
)
def test_marks_of_a_turn_are_no_part_of_the_answer(end: str) -> None:
    assert answer_part(f"<|begin_of_box|>B<|end_of_box|>{end}") == answer_part(f"B{end}{end}") == "B"


def processor_s(text: str) -> float:
    best = 9.0
    for _ in range(2):
        began = time.process_time()
        match_option(text, OPTIONS)
        parse_number(text)
        parse_spans(text)
        best = min(best, time.process_time() - began)
    return best


@pytest.mark.parametrize(
    "unit",
    [
        "<think>",
        "</think>",
        "{<think>",
        '{"a":"<think>"}',
        "<|channel|>analysis",
        "<think ",
        "[",
        "<",
        "[THINK]",
        "here is my thought process:",
        "◁",
        "answer is ",
        "the answer is A. ",
        "A is correct. ",
        "A. ",
        "not ",
        "\\boxed{",
        "*A*",
        "**",
        "1 to ",
        "1 minute and ",
        "1 h 1 m 1 s ",
        "twenty-",
        "one hundred and ",
        "start 1 end ",
        "between 1 and ",
        "1,",
        '[{"start":1,"end":2},',
        "option A or ",
        "\n",
    ],
)
def test_reading_stays_linear(unit: str) -> None:
    """100 KB take about four times as long as 25 KB; with a quadratic pattern it would be sixteen times."""
    small, large = (unit * (size // len(unit)) for size in (25_000, 100_000))
    assert processor_s(large) <= 8 * processor_s(small) + 0.3
