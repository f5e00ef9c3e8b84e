"""Text that any file and any connection takes."""

from __future__ import annotations

import re

_SURROGATE = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with lone surrogates as `?`: neither UTF-8 nor a JSON reader takes them, and a model or a file name can bring them."""
    return _SURROGATE.sub("?", text)
