"""`apr needle make`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from apr_plugin.config import needle_dir
from apr_plugin.errors import AprError
from apr_plugin.terminal import console

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_RENAMED = {"videos_per_bucket": "--videos", "questions_per_kind": "--questions", "gop_s": "--gop"}
"""Options whose name differs from the field of `NeedleSpec`."""

_LIMITS = {
    "greater_than_equal": ("at least", "ge"),
    "less_than_equal": ("at most", "le"),
    "multiple_of": ("a multiple of", "multiple_of"),
}


def run_make(out: Path | None, workers: int | None, **spec: Any) -> Path:
    """Make a needle set and print where it is.

    Raises:
        AprError: a bad value, a folder of another set, or a folder that can't be written.
    """
    from apr_plugin.tasks.needle.make import NeedleSpec, OtherSpecError, load_docs, make_needle

    try:
        made = make_needle(out or needle_dir()[0], NeedleSpec(**spec), workers=workers)
    except ValidationError as error:
        raise AprError(f"needle make: {_fault(error.errors()[0])}") from error
    except OtherSpecError as error:
        names = re.compile(rf"(?<=[( ])({'|'.join(NeedleSpec.model_fields)})(?=: )")
        raise AprError(f"needle make: {names.sub(lambda match: _option(match[1]), str(error))}") from error
    except ValueError as error:
        raise AprError(f"needle make: {_of_options(str(error))}") from error
    except OSError as error:
        raise AprError(f"needle make: {error.filename or out}: {error.strerror or error}") from error
    docs = load_docs(made)
    told = console(stderr=True)
    told.print(f"{len({doc['video'] for doc in docs})} videos and {len(docs)} questions in {made}", soft_wrap=True)
    if out is not None:
        told.print(
            f"use them with: APR_NEEDLE_DIR={made} apr eval --tasks apr_needle --model_args policy=needle",
            soft_wrap=True,
        )
    return Path(made)


def _option(field: str) -> str:
    return _RENAMED.get(field, f"--{field.replace('_', '-')}")


def _fault(fault: ErrorDetails) -> str:
    """What is wrong with a value, with the option names of the command line."""
    if fault["type"] == "value_error":
        return _of_options(str(fault["ctx"]["error"]))
    option = _option(str(fault["loc"][0]))
    if fault["type"] not in _LIMITS or fault["input"] != fault["input"]:  # nan is neither above nor below a limit
        return f"{option} can't be {fault['input']!r}"
    words, key = _LIMITS[fault["type"]]
    return f"{option} must be {words} {fault['ctx'][key]:g}, not {fault['input']!r}"


def _of_options(message: str) -> str:
    """A message of ours, with its first word, the name of a field, changed to the option."""
    field, rest = message.split(" ", 1)
    return f"{_option(field)} {rest}"
