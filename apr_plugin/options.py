"""How the words of a `key=value` option are read, for every policy and every setting of a run.

A harness passes options as text, as numbers or as other values, each in its own way (lmms-eval makes `True` of `true`,
8 of `8` and 8.0 of `8.0`). The command line passes text alone. The same word means the same in all of them.

| kind | what is read |
|---|---|
| true or false | `true`, `yes`, `on`, `1` and `false`, `no`, `off`, `0`, in any case |
| number | as Python reads it: `8`, `8.0`, `1e3`; never `nan`, never a truth value |
| whole number | a number without a fraction: `8.0` is 8 |
| nothing | `none`, in any case, if an option may be left out |
| JSON object | `{"a": 1}`, or a mapping |
| list | words separated by `;`, `|`, commas or spaces, with or without `[ ]`, or a list |

Each function raises `ValueError` with the option's name, the allowed values, and the given value.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from apr_plugin.terminal import quoted

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def given(value: Any) -> Any:
    """The value, or `None` if it means that there is none."""
    return None if isinstance(value, str) and value.strip().lower() == "none" else value


def flag(name: str, value: Any) -> bool:
    """Read a truth value.

    Raises:
        ValueError: it is not a truth value.
    """
    number = as_number(value)
    word = str(int(number)) if number in (0, 1) else str(value).strip().lower()
    if word not in _WORDS:
        raise ValueError(f"{name} must be true or false, not {quoted(value, 80)}")
    return _WORDS[word]


def as_number(value: Any) -> float:
    """The number in a value of any type; `nan` if it contains none."""
    try:
        return math.nan if isinstance(value, bool) else float(str(value))
    except (ValueError, OverflowError):
        return math.nan


def as_whole(value: Any) -> float:
    """The whole number in a value of any type, as an `int`; `nan` if it contains none."""
    number = as_number(value)
    if not number.is_integer():
        return math.nan
    try:
        return int(str(value))  # exact, unlike a float
    except ValueError:
        return int(number)


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Read a whole number; both limits are allowed.

    Raises:
        ValueError: it is not a whole number, or outside the limits.
    """
    number = as_whole(value)
    if not (least <= number and (most is None or number <= most)):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {limits}, not {quoted(value, 80)}")
    return int(number)


def number(name: str, value: Any, above: float, most: float | None = None, unit: str = "") -> float:
    """Read a finite number.

    Args:
        name: The name of the option.
        value: The value as it was given.
        above: The number must be above this.
        most: The number must be at most this.
        unit: Its unit, for the message: "seconds".

    Raises:
        ValueError: it is not a number, or outside the limits.
    """
    found = as_number(value)
    if not (above < found < math.inf and (most is None or found <= most)):
        limits = f"above {above:g}" + (f" and at most {most:g}" if most is not None else "")
        raise ValueError(f"{name} must be a number {f'of {unit} ' if unit else ''}{limits}, not {quoted(value, 80)}")
    return found


def one_of(name: str, value: Any, known: Sequence[str]) -> str:
    """Read one of several words.

    Raises:
        ValueError: it is another word.
    """
    if value not in known:
        raise ValueError(f"{name} must be {', '.join(known[:-1])} or {known[-1]}, not {quoted(value, 80)}")
    return str(value)


def words(value: Any) -> list[str]:
    """Read a list of words."""
    if isinstance(value, str):
        return [word for word in re.split(r"[;|,\s]+", value.strip().removeprefix("[").removesuffix("]")) if word]
    return [str(word) for word in (value or ())]


def json_object(name: str, value: Any) -> dict[str, Any]:
    """Read a mapping, or the JSON of one; empty if nothing was given.

    Raises:
        ValueError: it is neither.
    """
    found = given(value)
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name} must be a JSON object: {error}") from error
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise ValueError(f"{name} must be a JSON object, not {quoted(value, 80)}")
    return dict(found)
