"""How models mark their thought, and the text of a reply outside it. Pure functions.

All code uses these rules. A reply is the text outside thought. If a thought is never closed, there is no reply. If a
closing mark has no opening mark (because the chat template wrote that one into the prompt), everything before it is
thought. If there are several parts outside thought, the last one counts.

The marks are those of released models, taken from the reasoning parsers of vLLM 0.32 (`vllm/reasoning`) and the
models' own chat templates:

- `<think>`, `<thinking>`, `<thought>`, `<reasoning>` and the like, with a prefix, a suffix or an attribute: Qwen, GLM,
  DeepSeek, InternVL, MiMo, MiniCPM-V, Step, Nemotron, EXAONE, Hunyuan (`<think:…>`), LongCat (`<longcat_think>`), Seed
  (`<seed:think>`), MiniMax (`<mm:think>`), K2 (`<ifm|think>`), many fine-tunes;
- `[THINK]`: Magistral, Ministral;
- `◁think▷`: Kimi-VL; `<|open|>think<|sep|>`: Kimi K3;
- `<|channel|>analysis<|message|>` and `<|channel|>final<|message|>`, or `analysis…assistantfinal…` if a decoder
  drops special tokens: gpt-oss;
- `<|channel>thought` and `<channel|>`: Gemma 4; `<unused94>`: MedGemma;
- `<|START_THINKING|>`: Command A; `<|inner_prefix|>`: Apertus; `<|begin_of_thought|>`: OpenThinker, Sky-T1;
- `Here is my thought process:` and `Here is my response:`: Granite 3.2.
"""

# ruff: noqa: RUF001 - full-width and other signs that models write

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from apr_plugin.scoring.objects import MAX_OBJECTS, MAX_SCANNED_CHARS, closing_brace

_NAMES = r"(?:think(?:ing)?|thoughts?|reasoning|reason|analysis|reflection|scratchpad|inner_?monologue)"
_TAG = rf"(?:[a-z]{{1,12}}[:_|])?{_NAMES}(?:_[a-z]{{1,10}}|:[0-9a-z]{{1,20}})?(?:\s[^<>]{{0,60}})?"
_HEADER = r"[^<]{0,80}(?:<\|constrain\|>[^<]{0,40})?<\|message\|>"

_PAIRS = {
    "tag": (rf"<{_TAG}>", rf"</{_TAG}>"),
    "square": (r"\[THINK\]", r"\[/THINK\]"),
    "triangle": (r"◁think▷", r"◁/think▷"),
    "sep": (r"<\|open\|>\s{0,2}think\s{0,2}<\|sep\|>", r"<\|close\|>\s{0,2}think\s{0,2}<\|sep\|>"),
    "channel": (
        rf"<\|channel\|>\s{{0,2}}(?:analysis|commentary)\b{_HEADER}",
        rf"<\|channel\|>\s{{0,2}}final\b{_HEADER}",
    ),
    "gemma": (
        r"<\|channel>\s{0,2}(?:thought|analysis)\b",
        r"<channel\|>|<\|channel>\s{0,2}(?:content|final|response)\b",
    ),
    "unused": (r"<unused94>", r"<unused95>"),
    "token": (
        r"<\|(?:start_thinking|inner_prefix|begin_of_th(?:ought|ink)|think(?:ing)?)\|>",
        r"<\|(?:end_thinking|inner_suffix|end_of_th(?:ought|ink)|/think(?:ing)?)\|>",
    ),
    "words": (r"here(?:['’]s|\sis)\smy\sthought\sprocess:", r"here(?:['’]s|\sis)\smy\sresponse:"),
    "plain": (r"(?-i:(?:assistant)?analysis(?=[A-Z]))", r"(?-i:assistant\s{0,2}final)"),
}
"""The opening and the closing mark of each family."""

_ENDS_BLOCK_ONLY = {"channel": r"<\|end\|>"}
"""Marks that end a block of the family, but are not marks of thought elsewhere (`<|end|>` ends the turns of several
models)."""

_WORDS = frozenset(("words", "plain"))
"""Families that are marked by ordinary words; these count only in a reply that begins with their opening mark."""


def _pattern(first: str) -> str:
    """A pattern of the marks of all families whose opening mark begins like this."""
    families = [family for family, (opening, _) in _PAIRS.items() if opening.startswith(first)]
    patterns = [
        f"(?P<open_{family}>{_PAIRS[family][0]})|(?P<close_{family}>{_PAIRS[family][1]})" for family in families
    ]
    patterns += [f"(?P<end_{family}>{pattern})" for family, pattern in _ENDS_BLOCK_ONLY.items() if family in families]
    return "|".join(patterns)


_SYMBOLS = re.compile("|".join(f"(?={first})(?:{_pattern(first)})" for first in ("<", r"\[", "◁")), re.IGNORECASE)
_EVERY = re.compile(f"{_SYMBOLS.pattern}|{_pattern('here')}|{_pattern('(?-i:')}", re.IGNORECASE)
_BEGINS_WITH_WORDS = re.compile(
    rf"\s{{0,9}}(?:{'|'.join(_PAIRS[family][0] for family in sorted(_WORDS))})", re.IGNORECASE
)


@dataclass(frozen=True)
class Reply:
    """A reply, separated from its thought."""

    said: str
    """The text outside thought; empty if the thought is never closed, or if nothing follows it."""

    thought: bool = False
    """Whether the reply contains thought."""

    unclosed: bool = False
    """Whether the thought is never closed."""


def split_thought(text: str) -> Reply:
    """Separate a reply from its thought.

    Marks inside the strings of a readable JSON object are ordinary words.
    """
    inside: str | None = None
    said, start, skip_to, seen = "", 0, 0, False
    objects = _Objects(text)
    for mark in (_EVERY if _BEGINS_WITH_WORDS.match(text) else _SYMBOLS).finditer(text):
        kind, _, family = (mark.lastgroup or "").partition("_")
        if mark.start() < skip_to:
            continue
        if inside is None:
            skip_to = objects.end_around(start, mark.start())
            if skip_to or kind == "end" or (kind == "close" and family in _WORDS):
                continue
            piece = text[start : mark.start()]
            said = "" if kind == "close" else piece if piece.strip() else said
            inside, start, seen = (family if kind == "open" else None), mark.end(), True
        elif family == inside and kind != "open":
            inside, start = None, mark.end()
    if inside is not None:
        return Reply("", thought=True, unclosed=True)
    piece = text[start:]
    return Reply(piece if piece.strip() else said if seen else piece, thought=seen)


class _Objects:
    """The readable JSON objects of a text; it is searched only as far as needed, up to a limit."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._tried = 0
        self._scanned = 0

    def end_around(self, start: int, position: int) -> int:
        """The end of the object that begins at `start` or later and contains `position`; 0 if there is none."""
        self._at = max(self._at, start)
        while self._tried < MAX_OBJECTS and self._scanned < MAX_SCANNED_CHARS:
            begin = self._text.find("{", self._at, position)
            if begin < 0:
                return 0
            self._tried += 1
            end = closing_brace(self._text, begin)
            self._scanned += (end or len(self._text)) - begin
            self._at = begin + 1
            if end is None or not _is_object(self._text[begin:end]):
                continue
            self._at = end
            if end > position:
                return end
        return 0


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text, strict=False), dict)
    except (ValueError, RecursionError):
        return False
