"""What each token of a turn counts: first judgements most (`TargetText`, `training.sft.weights`).

With equal weights a small model is right about nearly every flag while its notes can be copied from those before, and
wrong about the first one, on which everything rests. So the first time that a colour, a pattern or a glyph is judged
counts 6, the same judgement again 1; the thought and the names in the action 4, its first word 8; the fixed strings
of the wire 0.5. A first turn, which is rare, counts 3 throughout. In a turn about a look without pictures (rows of
text) the notes only repeat the prompt: there the flags count, and the words nothing. That the notes end counts 3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from apr_plugin.tasks.needle.palette import GLYPH_COLOURS, GLYPH_SHAPES
from apr_plugin.training.sft.weights import TargetText
from apr_plugin.training.tiny.notes import NOTHING

THINK = '", "think": "'
FLAGS = frozenset(";-+!")
_GLYPHS = frozenset((*GLYPH_COLOURS, *GLYPH_SHAPES))
_NAME = re.compile(r"#\d+")
_FIXED = re.compile(r'\s*[{}",\[\]:]|<\|')
"""The beginning of what the wire writes around words."""

FIXED, NAMED, FIRST, AGAIN, AFTER, WORD, OPENING, SEEN = 0.5, 1.0, 6.0, 1.0, 4.0, 8.0, 3.0, 3.0


def turn(target: TargetText) -> Sequence[float]:
    """The weights of a caption (all equal) or of a turn."""
    pieces = target.pieces
    if not any(piece == THINK for piece in pieces) and not pieces[0].startswith("{"):
        return [1.0] * len(pieces)
    if NOTHING in (piece.strip() for piece in pieces[:4]):
        return [OPENING] * len(pieces)
    words = target.visual_tokens > 0
    weights: list[float] = []
    judged: set[tuple[str, ...]] = set()
    entry: tuple[str, ...] | None = None
    thinking = False
    for before, piece in zip(("", *pieces[:-1]), pieces, strict=True):
        word = piece.strip()
        if thinking and before == THINK:
            weights.append(WORD)
        elif _FIXED.match(piece) and not (thinking and word == ":"):
            thinking = thinking or piece == THINK
            weights.append(SEEN if piece == THINK else FIXED)
        elif thinking:
            weights.append(AFTER)
        elif _NAME.fullmatch(word):
            entry = ()
            weights.append(NAMED)
        elif entry is None:
            weights.append(1.0)
        else:
            weights.append(_noted(word, entry, judged, words))
            entry = (*entry, word)
    return weights


def _noted(word: str, entry: tuple[str, ...], judged: set[tuple[str, ...]], words: bool) -> float:
    """The weight of a token of a note: `entry` is what the note has so far."""
    if entry and (len(entry) == 1 or word in FLAGS):
        new = entry not in judged
        judged.add(entry)
        if not words and word not in FLAGS:
            return float(new)  # which pattern can't be known, but that the note goes on
        return FIRST if new else AGAIN
    if not words:
        return 0.0
    return SEEN if len(entry) > 1 and word in _GLYPHS else 1.0
