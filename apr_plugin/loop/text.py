"""Text that any file and any connection accepts."""

from __future__ import annotations

import re

_SURROGATE = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with `?` in place of lone surrogates.

    Neither UTF-8 nor a JSON reader accepts them, and a model or a file name can contain them.
    """
    return _SURROGATE.sub("?", text)
