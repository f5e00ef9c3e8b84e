"""The tokens of a turn that make its action: the value of the key `action` in the turn's JSON object."""

from __future__ import annotations

import bisect
import json
from collections.abc import Callable, Sequence
from json.decoder import scanstring  # type: ignore[attr-defined]

import numpy as np
from numpy.typing import NDArray

from apr_plugin.scoring.objects import MAX_OBJECTS, closing_brace
from apr_plugin.scoring.thought import split_thought

_BLANKS = " \t\r\n"
_DECODER = json.JSONDecoder(strict=False)
"""It accepts line breaks in strings, as the parser of turns does."""


def action_span(text: str) -> tuple[int, int] | None:
    """Where the action stands in what a policy wrote: (start, end) in characters, braces included.

    It is the object under the key `action` of the first object that has this key, after any block of thought; as in the
    parser of turns, words around the object and a trailing comma do no harm. `None` if there is none, or if it is cut
    off.
    """
    said = split_thought(text).said
    base = text.rfind(said) if said else -1
    if base < 0:
        return None
    start = text.find("{", base)
    for _ in range(MAX_OBJECTS):
        if start < 0:
            return None
        if (found := _value_of(text, start, "action")) is not None:
            return found
        start = text.find("{", start + 1)
    return None


def _value_of(text: str, start: int, wanted: str) -> tuple[int, int] | None:
    """Where the object under a key of the object that begins at `start` stands."""
    at = start + 1
    try:
        while True:
            at = _after_blanks(text, at)
            if text[at] != '"':
                return None
            key, at = scanstring(text, at + 1, False)
            at = _after_blanks(text, at)
            if text[at] != ":":
                return None
            at = _after_blanks(text, at + 1)
            if key == wanted and text[at] == "{":
                end = closing_brace(text, at)
                return None if end is None else (at, end)
            end = closing_brace(text, at) if text[at] == "{" else _DECODER.raw_decode(text, at)[1]
            at = _after_blanks(text, end or len(text))
            if text[at] != ",":
                return None
            at += 1
    except (ValueError, IndexError, RecursionError):
        return None


def _after_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BLANKS:
        at += 1
    return at


def action_mask(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> NDArray[np.bool_]:
    """Which tokens of a turn are in its action; none if it has no action that can be found.

    A token that holds the edge of the action, such as `:{`, is in it. The tokens are looked up in the text that they
    decode to. No text is tokenised, because a policy may sample other tokens than a tokenizer would choose.

    Args:
        ids: The sampled tokens, shape (n,).
        decode: Gives the text of tokens. It is called about 2 log2(n) times.

    Returns:
        Shape (n,).
    """
    found = np.zeros(len(ids), dtype=bool)
    span = action_span(decode(ids))
    if span is not None:
        counts = range(1, len(ids) + 1)

        def decoded(count: int) -> int:
            return len(decode(ids[:count]))

        first = bisect.bisect_right(counts, span[0], key=decoded)
        last = bisect.bisect_left(counts, span[1], key=decoded)
        found[first : last + 1] = True
    return found
