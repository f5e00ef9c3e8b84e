"""Text that any file and any connection takes."""

from __future__ import annotations

import re
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with lone surrogates as `?`: neither UTF-8 nor a JSON reader takes them, and a model or a file name can bring them."""
    return _SURROGATE.sub("?", text)


def printable_within(value: Any) -> Any:
    """The same value with every text in it `printable`, in lists and dicts too: an Arrow table, which holds a harness's rows, takes no other."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable_within(key): printable_within(item) for key, item in value.items()}
    return [printable_within(item) for item in value] if isinstance(value, list) else value
