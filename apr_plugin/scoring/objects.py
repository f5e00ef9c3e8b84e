"""Where a JSON object ends in a text. Pure functions."""

from __future__ import annotations

import re

MAX_OBJECTS = 64
"""How many opening braces of a text are tried as the beginning of an object."""

MAX_SCANNED_CHARS = 500_000
"""How many characters are read in total in the search for objects, so that any text takes only a fraction of a
second."""

_STEP = re.compile(r'"(?:[^"\\]|\\.)*+"|"|\{+|\}+', re.DOTALL)
"""A whole string, or a row of braces; a quote without a partner begins a string that never ends."""


def closing_brace(text: str, start: int) -> int | None:
    """Where the object that begins at `start` ends (after its closing brace), or `None` if it is never closed.

    Braces in strings don't count.
    """
    return _scan(text, start)[0]


def lacks_one_brace(text: str, start: int) -> bool:
    """Whether the object that begins at `start` lacks only one closing brace, at the end of the text."""
    end, depth, in_string = _scan(text, start)
    return end is None and depth == 1 and not in_string and text.rstrip().endswith("}")


def _scan(text: str, start: int) -> tuple[int | None, int, bool]:
    """(end or `None`, braces still open, whether the text ends within a string)."""
    depth = 0
    for match in _STEP.finditer(text, start):
        step = match[0]
        if step[0] == "{":
            depth += len(step)
        elif step[0] == "}":
            if len(step) >= depth:
                return match.start() + depth, 0, False
            depth -= len(step)
        elif step == '"':
            return None, depth, True
    return None, depth, False
