"""The text of `--model_args`: `key=value,key=value`, read as lmms-eval reads it.

It is refused if lmms-eval's reading would silently drop something.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from apr_plugin.errors import AprError
from apr_plugin.terminal import quoted


def parse_model_args(text: str) -> dict[str, object]:
    """Parse `key=value,key=value` as lmms-eval does, so that one text works for both.

    A comma inside brackets, braces or quotes belongs to the value; `true`, `false` and numbers become values of that
    type.

    Raises:
        AprError: a part is not `key=value`, or an argument is given twice.
    """
    check_once(text)
    found: dict[str, object] = {}
    for part in _split_at_commas(text):
        key, equals, value = part.partition("=")
        if not equals:
            raise AprError(
                f"--model-args: {quoted(part)} is not key=value (put a value with commas in brackets: "
                "base_url=[URL,URL])"
            )
        found[key] = _value(value)
    return found


def without_arguments(text: str, *names: str) -> str:
    """The same list of `key=value` without some of its arguments."""
    return ",".join(part for part in _split_at_commas(text) if part.partition("=")[0] not in names)


def split_arguments(text: str) -> dict[str, str]:
    """The arguments of `key=value,key=value` by name, each value as it is written.

    Raises:
        AprError: a part is not `key=value`, or an argument is given twice.
    """
    check_once(text)
    found: dict[str, str] = {}
    for part in _split_at_commas(text):
        key, equals, value = part.partition("=")
        if not equals:
            raise AprError(f"{quoted(part)} is not key=value (put a value with commas in brackets: base_url=[URL,URL])")
        found[key] = value
    return found


def join_arguments(arguments: Mapping[str, object]) -> str:
    """The reverse of `split_arguments`."""
    return ",".join(f"{key}={value}" for key, value in arguments.items())


def check_once(text: str) -> None:
    """Check that no argument is given twice; lmms-eval would silently take the last value.

    Raises:
        AprError: an argument is given twice; the message has both values.
    """
    pairs = [part.partition("=") for part in _split_at_commas(text)]
    for key, count in Counter(key for key, _, _ in pairs).items():
        if count > 1:
            values = " and ".join(quoted(value, 60) for own, _, value in pairs if own == key)
            raise AprError(f"model_arg {quoted(key, 60)} is given {count} times: {values}; give it only once")


def _split_at_commas(text: str) -> list[str]:
    parts, depth, quote, start = [], 0, "", 0
    for at, char in enumerate(text):
        if char in "\"'" and text[at - 1 : at] != "\\":
            quote = "" if char == quote else quote or char
        elif not quote and char in "{[":
            depth += 1
        elif not quote and char in "}]":
            depth -= 1
        elif not quote and depth == 0 and char == ",":
            parts.append(text[start:at])
            start = at + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def _value(text: str) -> object:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text) if text.isnumeric() else float(text)
    except ValueError:
        return text
