"""What may go into a published file: no secret, no character that a terminal obeys, no value that JSON lacks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from apr_plugin.terminal import plain

LEFT_OUT = "(left out)"
"""In place of a secret."""

_NAME = re.compile(
    r"(?i)(^|[_.-])(api_?key|(auth|access|hf|bearer)?_?token|secret|passw(or)?d|authorization|credential)$"
)
"""Names of arguments and columns that hold one. `max_new_tokens` and `api_key_env` are none."""

_VALUES = re.compile(
    r"(?i:(?P<user>[a-z][a-z0-9+.-]*://)[^/\s@,\]\"']+@)"
    r"|(?P<name>(?i:[?&](?:[a-z_]*key|token|secret|password|sig(?:nature)?)=))[^&\s,\]\"']+"
    r"|\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,})\b"
    r"|(?P<bearer>(?i:\bbearer\s+))[A-Za-z0-9._~+/=-]{8,}"
)
"""Secrets by their form: the user in a URL, a key in its query, keys of the hub and of model servers."""

_ARGUMENT = re.compile(r"(?P<name>[\w.-]+)=(?P<value>[^,\s\]\"']+)")


def without_secrets(text: str) -> str:
    """The text with `(left out)` in place of what looks like a key, a token or a password."""

    def replaced(found: re.Match[str]) -> str:
        if found["user"]:
            return found["user"]
        return f"{found['name'] or found['bearer'] or ''}{LEFT_OUT}"

    def argument(found: re.Match[str]) -> str:
        return f"{found['name']}={LEFT_OUT}" if _NAME.search(found["name"]) else found[0]

    return _ARGUMENT.sub(argument, _VALUES.sub(replaced, text))


def clean(value: Any, *, secrets: bool = False) -> Any:
    """The same as plain JSON values: without control characters and lone surrogates; no NaN and no infinity.

    Args:
        value: Mappings, lists, texts, numbers; anything else becomes its text.
        secrets: Keep what looks like a secret. Only for texts of a public data set and of a model.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {
            plain(str(name)): LEFT_OUT
            if item and not secrets and _NAME.search(str(name))
            else clean(item, secrets=secrets)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [clean(item, secrets=secrets) for item in value]
    text = plain(str(value))
    return text if secrets else without_secrets(text)


def hidden(value: Any) -> Any:
    """The same JSON value with `without_secrets` in every text; names of fields and numbers stay."""
    if isinstance(value, Mapping):
        return {name: hidden(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [hidden(item) for item in value]
    return without_secrets(value) if isinstance(value, str) else value


def code(text: str) -> str:
    """A text as code in Markdown, whatever backquotes, bars and newlines it holds."""
    words = " ".join(plain(text).split()).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", words)), default=0))
    blank = " " if words.startswith("`") or words.endswith("`") else ""
    return f"{fence}{blank}{words}{blank}{fence}" if words else ""
