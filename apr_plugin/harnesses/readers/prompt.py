"""A reader that uses the prompt alone: the fallback for every task without a reader.

Every pattern here starts from a fixed phrase or a line start and has bounded repeats, so that a prompt of 100,000
characters (a film's subtitles) is read in linear time.
"""

# ruff: noqa: RUF001 - full-width and other signs that models write

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from apr_plugin.harnesses.readers.reading import Reading
from apr_plugin.loop.question import Option, QuestionKind
from apr_plugin.scoring.options import label_of, label_pattern
from apr_plugin.scoring.writing import write_label

_CAPITAL = "[A-ZＡ-Ｚ]"
_CJK = r"\u3000-\u30ff\u3400-\u9fff\uff00-\uffef"

_LINE_MARKER = re.compile(
    rf"^[ \t]*(?:[-•][ \t]*|\*[ \t]+)?(?:(?i:option|choice|选项|選項)[ \t]*)?{label_pattern(_CAPITAL)}[ \t]*",
    re.MULTILINE,
)
"""A label that begins a line: "A. ", "(A) ", "A) ", "A: ", "- A) ", "[A] ", "**A.** ", "A、", "（A）", "Option A: "."""

_INLINE_MARK = rf"(?:[.)](?=[{_CJK}]|\s)|[．）、])"

_INLINE_MARKER = re.compile(rf"(?:(?<!\S)|(?<=[{_CJK}])){label_pattern(_CAPITAL, _INLINE_MARK)}[ \t]*")
"""A label within a line. "A:" is left out: within a line it is a speaker more often than an option."""

MAX_STEP = 3
"""How many letters further on the next label of a list may be: two labels in a row may be missing (A, B, D)."""

_PLACEHOLDER = re.compile(r"<(?:image|video|audio)>[ \t]*")
"""Media tokens of another model's template; a policy that has such tokens too would count them as media."""

_INSTRUCTIONS = tuple(
    re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for pattern in (
        r"(?:please )?select the best (?:answer|option) to the following multiple-choice question"
        r"(?: based on the video(?: and (?:the )?subtitles)?)?\.",
        r"only one option is the most accurate answer in relation to the question and the video\.",
        r"(?:please )?(?:directly )?(?:answer|respond|reply)(?: (?:the|this) question)?(?: directly)? with "
        r"(?:only |just )?(?:the |one |a |your )?"
        r"(?:single |correct )?(?:option|letter|choice)\b[^\n.]{0,80}\.?",
        r"answer (?:the|this) question with A, ?B\b[^\n.]{0,60}\.?",
        r"(?:please )?(?:directly |only )give the best option[.:]?",
        r"please only output one english character\.?",
        r"please perform a detailed reasoning based on the provided video frames[^\n]{0,300}",
        r"carefully watch this video and pay attention to every detail\.",
        r"based on your observations, select the best option that accurately addresses the question\.",
        r"these are (?:the )?frames of a video(?: and the corresponding audio)?\.",
        r"the best answer is:[ \t]*$",
        r"^best option:[ \t]*\(?[ \t]*$",
        r"^(?:options?|choices|answer|question):[ \t]*$",
        r"\Aquestion:[ \t]*",
    )
)
"""What prompts say about the letter to write.

The loop states its own answer form, and "directly" would contradict it.
"""


@dataclass(frozen=True)
class Split:
    """A prompt, split at its options."""

    stem: str
    """The text before the options."""

    options: tuple[Option, ...]
    """The options; none if fewer than two labels, beginning with A, were found."""

    tail: str
    """The text after them."""


@dataclass(frozen=True)
class _Marker:
    label: str
    style: str
    start: int
    end: int


def read_prompt(doc: Mapping[str, Any], prompt: str) -> Reading:
    """Read the options if the prompt lists some, else a free-form question; this never raises.

    Args:
        doc: Not used.
        prompt: The prompt as the harness would show it.
    """
    split = split_options(prompt)
    if not split.options:
        return Reading(text=_PLACEHOLDER.sub("", prompt).strip(), kind=QuestionKind.FREE_FORM)
    return Reading(
        text=paragraphs(strip_instructions(split.stem), strip_instructions(split.tail)),
        kind=QuestionKind.MCQ,
        options=split.options,
        write=partial(write_label, written={option.label: option.label for option in split.options}),
    )


def split_options(text: str) -> Split:
    """Find the last list of options in a text; lists before it are a dialogue in the subtitles, or an example.

    Options at line starts are preferred to options within a line. The last option ends with its line.
    """
    run = _last_run(_markers(text, _LINE_MARKER, _line_style), recent=True)
    inline = run is None
    if run is None:
        run = _last_run(
            (marker for marker in _markers(text, _INLINE_MARKER, _inline_style) if _may_open(text, marker)),
            recent=False,
        )
    if run is None:
        return Split(text, (), "")
    line_end = text.find("\n", run[-1].end)
    end = len(text) if line_end < 0 else line_end
    stops = [marker.start for marker in run[1:]] + [end]
    texts = [text[marker.end : stop].strip() for marker, stop in zip(run, stops, strict=True)]
    if inline:
        texts = [option.rstrip(",;，； ") for option in texts]
        texts[-1] = strip_instructions(texts[-1])
    options = tuple(Option(label=marker.label, text=option) for marker, option in zip(run, texts, strict=True))
    return Split(text[: run[0].start], options, text[end:])


def strip_instructions(text: str) -> str:
    """Remove what a prompt says about writing a letter, and the media placeholders; keep everything else."""
    text = _PLACEHOLDER.sub("", text)
    for pattern in _INSTRUCTIONS:
        text = pattern.sub("", text)
    kept: list[str] = []
    for line in text.split("\n"):
        if line.strip() or (kept and kept[-1]):
            kept.append(line.rstrip() if line.strip() else "")
    return "\n".join(kept).strip()


def paragraphs(*parts: str) -> str:
    """Join the parts that are not empty, with a blank line between them."""
    return "\n\n".join(part for part in parts if part)


def _markers(text: str, pattern: re.Pattern[str], style_of: Callable[[re.Match[str]], str]) -> list[_Marker]:
    found = [
        _Marker(label=label_of(match), style=style_of(match), start=match.start(), end=match.end())
        for match in pattern.finditer(text)
    ]
    # "A: …" twice is two people talking, not two lists of options.
    speakers = [marker.label for marker in found if marker.style == ":"]
    return [marker for marker in found if marker.style != ":"] if len(speakers) > len(set(speakers)) else found


def _line_style(match: re.Match[str]) -> str:
    """One style for all labels that begin lines, however they are written, except "A:", which may be a speaker."""
    return ":" if match["mark"] in (":", "：") else "line"


def _inline_style(match: re.Match[str]) -> str:
    held = next(group for group in ("bold", "round", "square", "label") if match[group])
    return held if held != "label" else unicodedata.normalize("NFKC", match["mark"])


def _may_open(text: str, marker: _Marker) -> bool:
    """Whether "A." within a line can open a list.

    It can after the end of a sentence; in "vitamin A. or B." it can't.
    """
    if marker.style not in (".", "、") or marker.label != "A":
        return True
    before = text[max(0, marker.start - 20) : marker.start].rstrip()
    return not before or before[-1] in ".?!:;,)\"'？。！：；，）"


def _last_run(markers: Iterable[_Marker], *, recent: bool) -> list[_Marker] | None:
    """Of all runs A, B, … in one style that have at least two labels, the one that begins last.

    Labels may be left out (A, B, D).

    A label belongs to the latest run whose next label it can be, so that "(B) both (A) and more (C) none" is A, B, C.

    Args:
        markers: In order of the text.
        recent: Whether a run that lacks a label but grew more recently goes before a run whose next label is this one.
    """
    ending: dict[tuple[str, int], list[list[_Marker]]] = {}
    runs: list[list[_Marker]] = []
    for marker in markers:
        letter = ord(marker.label)
        if marker.label == "A":
            run = [marker]
            runs.append(run)
        else:
            stacks = [stack for step in range(1, MAX_STEP + 1) if (stack := ending.get((marker.style, letter - step)))]
            if not stacks:
                continue
            run = (max(stacks, key=lambda stack: stack[-1][-1].start) if recent else stacks[0]).pop()
            run.append(marker)
        ending.setdefault((marker.style, letter), []).append(run)
    long_enough = [run for run in runs if len(run) > 1]
    return long_enough[-1] if long_enough else None
