"""`apr needle make`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from apr_plugin.config import needle_dir
from apr_plugin.errors import AprError


def run_make(out: Path | None, workers: int | None, **spec: Any) -> Path:
    """Make a needle set and say where it is.

    Raises:
        AprError: a bad value, a folder of another set, or a folder that can't be written.
    """
    from apr_plugin.tasks.needle.make import NeedleSpec, load_docs, make_needle

    try:
        made = make_needle(out or needle_dir()[0], NeedleSpec(**spec), workers=workers)
    except ValidationError as error:
        fault = error.errors()[0]
        raise AprError(f"needle make: {'.'.join(map(str, fault['loc'])) or 'options'}: {fault['msg']}, not {fault['input']!r}") from error
    except ValueError as error:
        raise AprError(f"needle make: {error}") from error
    except OSError as error:
        raise AprError(f"needle make: {error.filename or out}: {error.strerror or error}") from error
    docs = load_docs(made)
    console = Console(stderr=True)
    console.print(f"{len({doc['video'] for doc in docs})} videos and {len(docs)} questions in {made}", soft_wrap=True)
    if out is not None:
        console.print(f"use them with: APR_NEEDLE_DIR={made} apr eval --tasks apr_needle --model_args policy=needle", soft_wrap=True)
    return Path(made)
