"""Finds the answer in a reply. Pure functions."""

# ruff: noqa: RUF001 - full-width and other signs that models write

from __future__ import annotations

import json
import re
import sys
from typing import Any

from apr_plugin.scoring.thought import split_thought

NO_ANSWER = "(null)"
"""The text that is returned for a question without an answer. It is not "", because on empty text some scorers abort,
and some leave the question out of the denominator or count it as right. It contains none of the letters A to J in
either case, no digit and no word that an option may contain ("unanswered" is right for "red" in MMVU), so that no
scorer finds an answer in it. Where lmms-eval guesses for an unreadable answer, it guesses here too."""

ANSWER_KEYS = (
    "final_answer",
    "answer",
    "prediction",
    "result",
    "choice",
    "option",
    "label",
    "letter",
    "selected_option",
    "content",
    "response",
    "value",
)
"""Keys of an answer in a JSON object; the first key that an object has counts."""

_ANSWER_MARKS = (
    ("<answer>", "</answer>"),
    ("<final_answer>", "</final_answer>"),
    ("<|begin_of_box|>", "<|end_of_box|>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ("<|open|>response<|sep|>", "<|close|>response<|sep|>"),
    ("<CONCLUSION>", "</CONCLUSION>"),
)
"""Marks that models write around an answer: R1-like fine-tunes, GLM-V, OpenThinker, Command A, Kimi K3, LLaVA-CoT."""

_TURN_MARK = (
    r"<[|｜][A-Za-z_▁]{1,40}[|｜]>|</?s>|<(?:eos|bos|end_of_turn|start_of_turn|end_of_utterance|turn\||\|turn)>"
    r"|<seed:[a-z]{2,4}>|\[/?INST\]"
)
_LEADING_MARKS = re.compile(rf"(?:\s|{_TURN_MARK})*+")
_LAST_MARK = re.compile(rf"(?:{_TURN_MARK})\Z")
_FENCE = re.compile(r"\A```[a-zA-Z0-9]{0,12}[ \t]{0,9}\n?(.*?)\n?[ \t]{0,9}```\Z", re.DOTALL)
_LONGEST_MARK = 48


def answer_part(text: str) -> str:
    """The answer in a reply: the content of its last answer marks, without its thought.

    Marks of a turn at the ends are removed. The result is empty if the reply's thought is never closed
    (`apr_plugin.scoring.thought`). Marks of an answer are `<answer>` and the like. A reply without them is kept whole,
    except for its thought.
    """
    text = split_thought(text).said
    opening, closing, begin = "", "", -1
    for first, last in _ANSWER_MARKS:
        if (found := text.rfind(first)) > begin:
            opening, closing, begin = first, last, found
    if begin >= 0:
        text = text[begin + len(opening) :].partition(closing)[0]
    return without_turn_marks(text)


def without_turn_marks(text: str) -> str:
    """The text without blanks and special tokens of a chat template (`<|im_end|>`, `</s>`) at its ends."""
    text = text[match.end() :] if (match := _LEADING_MARKS.match(text)) else text
    while mark := _LAST_MARK.search(text := text.rstrip(), max(0, len(text) - _LONGEST_MARK)):
        text = text[: mark.start()]
    return text


def json_value(text: str) -> Any:
    """The JSON value if the whole text is one, bare or in a code fence; `None` if it is not JSON."""
    bare = fenced[1] if (fenced := _FENCE.match(text)) else text
    if bare.strip()[:1] not in tuple('[{"'):
        return None
    try:
        return json.loads(bare)
    except (ValueError, RecursionError):
        return None


def named_answer(text: str) -> str:
    """The answer that a JSON reply names (`{"answer": "B"}`, `{"count": 5}`, a list of one), or nothing.

    Any other reply is returned unchanged.
    """
    value = json_value(text)
    if value is None:
        return text
    for _ in range(3):
        if isinstance(value, list):
            value = value[0] if len(value) == 1 else None
        elif isinstance(value, dict):
            lower = {str(key).casefold().replace(" ", "_"): item for key, item in value.items()}
            value = next(
                (lower[key] for key in ANSWER_KEYS if key in lower),
                next(iter(lower.values())) if len(lower) == 1 else None,
            )
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        return str(value)
    return value if isinstance(value, str) else ""
