"""Which option a reply names: the usual ways to name one, and texts that name none; labels of options as they are
written in lists."""

# ruff: noqa: RUF001 - full-width and other signs that models write

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_plugin.scoring.answers import match_option
from apr_plugin.scoring.options import split_label, without_labels

OPTIONS = [("A", "A red car"), ("B", "The blue one"), ("C", "Nobody."), ("D", "same"), ("E", "same")]

NAMING = [
    "{L}",
    "({L})",
    "[{L}]",
    "{L}.",
    "{L})",
    "{L}:",
    "**{L}**",
    "`{L}`",
    "“{L}”",
    "{L}!",
    "{L}。",
    "（{L}）",
    "【{L}】",
    "- {L}",
    "{L}. {text}",
    "({L}) {text}",
    "[{L}] {text}",
    "{L}) {text}",
    "{L}: {text}",
    "{L} - {text}",
    "{L} – {text}",
    "**{L}** {text}",
    "**{L}.** {text}",
    "**{L}. {text}**",
    "{L}、{text}",
    "{L}\n\nThe video shows it.",
    "{L}. It is seen at the end.",
    "{L}, because the sky is clear",
    "{L} because it is so",
    "Option {L}",
    "Option {L}: {text}",
    "option ({L})",
    "Choice {L}.",
    "Answer: {L}",
    "Answer - {L}",
    "answer={L}",
    "**Answer:** {L}",
    "**Answer: {L}**",
    "### Answer\n{L}",
    "Answer:\n\n**{L}**",
    "The answer is {L}",
    "The answer is ({L}).",
    "The answer is **{L}**.",
    "The answer is {L} ({text}).",
    "The answer is {L}, which the last frames show.",
    "The correct answer is {L}. {text}",
    "The correct option is {L}: it shows",
    "The answer should be {L}.",
    "The answer must be {L}",
    "My answer is {L}",
    "The best choice is {L}.",
    "The final answer is $\\boxed{{{L}}}$.",
    "\\boxed{{{L}}}",
    "\\boxed{{\\text{{{L}}}}}",
    "\\boxed{{{L}. {text}}}",
    "{L} is the answer.",
    "{L} is correct.",
    "Option {L} is the correct answer",
    "I choose {L}.",
    "I'd go with {L}.",
    "I would pick option {L}",
    "Therefore, {L}.",
    "So, {L}",
    "The frames show a field.\n\n{L}",
    "The frames show a field.\n**{L}**",
    '{{"answer": "{L}"}}',
    '```json\n{{"answer": "{L}"}}\n```',
    "{L}<|im_end|>",
    "<|begin_of_box|>{L}<|end_of_box|>",
    "<answer>{L}</answer>",
    "<answer>{L}. {text}</answer>",
    "<think>one of them</think>\n{L}",
    "答案：{L}",
    "答案是{L}",
    "答案为 {L}。",
    "正确答案是 {L}，因为",
    "我选择 {L}",
    "故选{L}。",
    "选{L}",
    "{L}选项正确",
    "答えは{L}です",
    "정답: {L}",
    "La respuesta es {L}.",
    "La réponse est {L}",
    "Die Antwort ist {L}.",
]
"""Ways to name one option, with the label for `{L}` and its words for `{text}`."""

LABELS = st.sampled_from(["AB", "ABCD", "ABCDE", "ABD", "ACDG", "ABCDEFGHIJKLMN", "12", "1234"])
WORDS = st.sampled_from(
    [
        "red",
        "A man walks",
        "No",
        "Not visible",
        "Nobody.",
        "None of the above",
        "It was 3:15",
        "vitamin C is",
        "the left one",
        "1.5 m",
        "红",
    ]
)


@pytest.mark.parametrize("form", NAMING)
@given(LABELS, st.data())
def test_every_usual_way_of_naming_an_option(form: str, labels: str, data: st.DataObject) -> None:
    options = [(label, f"thing number {label.lower()}") for label in labels]
    label, words = data.draw(st.sampled_from(options))
    assert match_option(form.format(L=label, text=words), options) == label


@given(
    LABELS,
    st.sampled_from(NAMING),
    st.lists(WORDS, min_size=14, max_size=14),
    st.integers(0, 13),
    st.sampled_from(["", " ", "So. ", "Well,\n"]),
)
def test_whatever_the_options_say_no_other_one_is_named(
    labels: str, form: str, words: list[str], at: int, before: str
) -> None:
    options = list(zip(labels, words, strict=False))
    label, text = options[at % len(options)]
    named = match_option(before + form.format(L=label, text=text), options)
    assert named in (label, None) or (form == "{L}" and text == label)


JOINED = [
    "{L} or {M}",
    "{L} and {M}",
    "{L}, {M}",
    "{L}/{M}",
    "{L} & {M}",
    "({L}) or ({M})",
    "{L}) or {M})",
    "{L} - {M}",
    "either {L} or {M}",
    "neither {L} nor {M}",
    "The answer is {L} or {M}",
    "The answer is {L}, or {M}",
    "The answer is {L} (or {M})",
    "The answer is either {L} or {M}",
    "Answer: {L}, {M}",
    "Answer: {L}\n{M}",
    "{L}\n{M}",
    "{L}.\n{M}.",
    "{L}. wrong\n{M}. right",
    "{L}: no. {M}: yes.",
    "{L}) wrong {M}) right",
    "Option {L}: wrong\nOption {M}: right",
    "{L} is correct. {M} is correct.",
    "{L}. The answer is {M}.",
    "{L} or {M} is correct",
    "我选{L}或{M}",
    "{L}和{M}正确",
    "答案是{L}、{M}",
    "{L}. not sure, maybe {M}",
    "{L} 或 {M}",
]


@pytest.mark.parametrize("form", JOINED)
@pytest.mark.parametrize("pair", ["AB", "BA", "BC", "12"])
def test_two_options_are_none(form: str, pair: str) -> None:
    options = [(label, f"thing number {label.lower()}") for label in ("1234" if pair == "12" else "ABCD")]
    assert match_option(form.format(L=pair[0], M=pair[1]), options) is None


@pytest.mark.parametrize(
    "content",
    [
        "A man walks",
        "A man walks. The answer is unclear.",
        "not B",
        "The answer is not B",
        "The answer isn't B.",
        "The answer cannot be B.",
        "不选B",
        "答案不是B",
        "I don't think the answer is A.",
        "I would not choose B",
        "If the answer is A, it rains",
        "It is not clear whether the answer is A.",
        "A. wrong",
        "B is not correct",
        "the answer is a mystery",
        "The Answer Is A Mystery",
        "Answer: A man in red",
        "Is the answer B?",
        "It's A. M. Smith",
        "All of A, B and C",
        "None of the above",
        "Based on the video, option B seems plausible",
        "Looking at A. B. C., I can't say",
        "A, B, C",
        "A\nB\nC",
        "A.\nB.\nC.",
        "A. wrong\nB. right\nC. wrong",
        '{"A": 0.5, "B": 0.5}',
        '{"answer": ["A", "B"]}',
        "I say A man did",
        "\\boxed{}",
        "\\boxed{A or B}",
    ],
)
def test_what_names_no_option(content: str) -> None:
    assert match_option(content, OPTIONS) is None


@pytest.mark.parametrize(
    ("content", "label"),
    [
        ("The answer is A. No, the answer is B.", "B"),
        ("A is wrong. B is correct. C is wrong.", "B"),
        ("Option A is wrong, option B is right.", "B"),
        ("A is not shown, so the answer is B.", "B"),
        ("The answer is B, not A.", "B"),
        ("Answer: the blue one", "B"),
        ("B The blue one", "B"),
        ("The man in A is red.\nSo B is correct.", "B"),
        ("B. The blue one\n\nA. is wrong: it is not red.\nC. is wrong: somebody is there.", "B"),
        ("C. maybe\nB. right", None),
        ("A. red: no.\nB. blue: yes.\n\nSo the answer is B.", "B"),
        ("\uff22", "B"),
        ("(B", "B"),
    ],
)
def test_the_option_that_is_meant(content: str, label: str) -> None:
    assert match_option(content, OPTIONS) == label


@pytest.mark.parametrize(
    ("content", "label"),
    [
        ("B. The blue one is at the", "B"),
        ("The answer is B because the", "B"),
        ("Answer: (B)\nThe", "B"),
        ("Okay, the answer is B. But wait, the", None),
        ("B", "B"),
        ("The car is red.\n\nB", None),
        ("First I see that the answer is B", None),
    ],
)
def test_of_a_reply_that_was_cut_off_only_the_beginning_counts(content: str, label: str | None) -> None:
    assert match_option(content, OPTIONS, opening=True) == label


@pytest.mark.parametrize(
    "form",
    [
        "{}. x",
        "{}) x",
        "{}: x",
        "({}) x",
        "[{}] x",
        "**{}.** x",
        "**{}** x",
        "**({})** x",
        "**{}**: x",
        "__{}.__ x",
        "{}、x",
        "{}．x",
        "（{}）x",
        "{}：x",
        "【{}】x",
        "- {}. x",
        "* {}) x",
        "{} . x",
        "{}.x",
    ],
)
@pytest.mark.parametrize("label", ["A", "D", "3"])
def test_labels_of_options(form: str, label: str) -> None:
    assert split_label(form.format(label)) == (label, "x")
    assert without_labels([form.format(each) for each in "ABD"]) == ["x"] * 3


def test_words_that_look_like_labels_stay() -> None:
    for texts in (["A man", "A dog"], ["J. Smith", "A. Jones"], ["A man", "plays"], ["A. red", "blue"]):
        assert without_labels(texts) == texts
    assert without_labels(["A.0", "B 1", "C: x", "D. J. Smith"]) == ["0", "1", "x", "J. Smith"]
