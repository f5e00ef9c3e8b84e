"""The records of a file that another program wrote, one at a time, and why one of them is left out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path, PureWindowsPath
from typing import Any

from apr_plugin.errors import AprError, require
from apr_plugin.files import check_regular
from apr_plugin.loop.text import printable

LONGEST_LINE = 64 * 2**20
"""Bytes of one line at most; a longer one is left out."""

LONGEST_JSON = 1024 * 2**20
"""Bytes of a file that has to be read as a whole (`.json`)."""


class Unmapped(StrEnum):
    """Why a foreign trajectory is left out."""

    BAD_RECORD = "bad_record"
    """It lacks a field or has a wrong one; the detail names it."""
    MISSING_STEPS = "missing_steps"
    """Turns are missing that can't be found in later prompts."""
    NO_VIDEO = "no_video"
    """It names no video, or one that is not there or outside the folder of videos."""
    UNREADABLE = "unreadable"
    """The episode could not be played: the video can't be decoded."""
    UNKNOWN_KIND = "unknown_kind"
    """Its question is of an unknown kind."""
    PROMPT_DIFFERS = "prompt_differs"
    """A prompt came out differently from the recorded one."""
    UNKNOWN_TOOL = "unknown_tool"
    """It calls a tool for which there is no action."""
    SEVERAL_CALLS = "several_calls"
    """A turn has several calls; here a turn has one action."""
    NO_ACTION = "no_action"
    """A turn has neither a call nor an answer, or both, or can't be read."""
    NO_CALL = "no_call"
    """It answers without a single look."""
    LOOK_REFUSED = "look_refused"
    """A look that was shown there is refused here, so that later turns would tell of what was not shown."""
    UNANSWERED = "unanswered"
    """The episode ended without its answer."""
    TOO_LARGE = "too_large"
    """It is larger than what is read."""
    TWICE = "twice"
    """A record of the same question came before it."""


class Left(Exception):
    """Leaves one trajectory out."""

    def __init__(self, reason: Unmapped, detail: str = "") -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def number(value: object, name: str) -> float:
    """A finite number from a foreign field, also as text.

    Raises:
        Left: it is none.
    """
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            found = float(value)
        except (ValueError, OverflowError):
            found = math.nan
        if math.isfinite(found):
            return found
    raise Left(Unmapped.BAD_RECORD, f"{name} is no number: {str(value)[:80]!r}")


def file_name(path: object) -> str:
    """The last part of a foreign path of any system; the rest of it means nothing here. Empty if it is no path."""
    name = PureWindowsPath(path).name if isinstance(path, str) else ""
    return printable(name)[:255].replace("\0", "?")


def records(file: str | Path) -> Iterator[tuple[str, Any]]:
    """Each record of a file (`.jsonl`, `.json` with a list, `.parquet`) with its place; `None` for a broken line.

    Raises:
        AprError: the file can't be read, is too large, or has another ending; or pyarrow is not installed.
    """
    path = Path(file)
    try:
        check_regular(path)
        if path.suffix == ".parquet":
            yield from _parquet(path)
        elif path.suffix == ".json":
            data = whole_json(path)
            yield from ((f"record {n}", each) for n, each in enumerate(data if isinstance(data, list) else [data], 1))
        elif path.suffix == ".jsonl":
            for n, line in lines_of(path):
                if line is None or line.strip():
                    yield f"line {n}", None if line is None else _loaded(line)
        else:
            raise AprError(f"{path}: only .jsonl, .json and .parquet files are read")
    except (OSError, ValueError, RecursionError) as error:
        raise AprError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def lines_of(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Each line of a file with its number from 1; `None` in place of one that is longer than `LONGEST_LINE`."""
    with path.open("rb") as file:
        n = 0
        while line := file.readline(LONGEST_LINE + 1):
            n += 1
            if len(line) <= LONGEST_LINE:
                yield n, line
                continue
            while line and not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE)
            yield n, None


def whole_json(path: Path) -> Any:
    """The content of a file of JSON.

    Raises:
        AprError: it is too large.
        OSError, ValueError, RecursionError: it can't be read, or is no JSON.
    """
    size = path.stat().st_size
    if size > LONGEST_JSON:
        raise AprError(f"{path}: {size:,} bytes; a file that is read as a whole has at most {LONGEST_JSON:,}")
    return json.loads(path.read_bytes())


def _loaded(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    require("pyarrow", "train")
    import pyarrow.parquet

    done = 0
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=64):
        for each in batch.to_pylist():
            done += 1
            yield f"record {done}", each
