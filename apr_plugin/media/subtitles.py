"""Subtitles of a video: a text file read into cues, and the words for what one look shows.

Three forms are read: SubRip and WebVTT (`00:01:02,500 --> 00:01:04,000`), JSON as LongVideoBench has it (a list of
`start`, `end`, `line`, or of `timestamp`, `text`), and JSON Lines as Video-MME-v2 has it (`start_time`, `end_time`,
`text`). The file is untrusted: it becomes plain text or an error.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from apr_plugin.files import read_regular
from apr_plugin.media.errors import MediaOpenError

LARGEST = 16 * 2**20
"""Bytes of a file at most; the subtitles of a film have about 100,000."""

SUBTITLES = "(Subtitles: "
"""How the words of a look's subtitles begin."""

LONGEST = 6_000
"""Characters that one look shows at most: about ten minutes of speech."""

_TIMES = re.compile(r"^\s*((?:\d+:)?\d+:\d+(?:[.,]\d+)?)\s*-->\s*((?:\d+:)?\d+:\d+(?:[.,]\d+)?)[^\n]*$", re.MULTILINE)
_MARKS = re.compile(r"<[^<>\n]{0,100}>|\{\\[^{}\n]{0,100}\}|\\[Nnh]")


@dataclass(frozen=True)
class Cue:
    """One subtitle."""

    start_s: float
    """When it appears, in seconds of the file."""
    end_s: float
    """When it disappears; infinite if its file does not say."""
    text: str
    """Its words, in one line."""


def read_cues(path: str, from_s: float = 0.0) -> tuple[Cue, ...]:
    """The subtitles of a file, in order of time.

    A cue that can't be read is left out, as players do.

    Args:
        path: The file.
        from_s: The second of the subtitles at which the video begins.

    Raises:
        MediaOpenError: the file can't be read, or has no cue at all.
    """
    try:
        stat = Path(path).stat()
        return _read(path, from_s, stat.st_size, stat.st_mtime_ns)
    except (OSError, ValueError) as error:
        raise MediaOpenError(path, "read subtitles", getattr(error, "strerror", None) or str(error)) from error


@lru_cache(maxsize=64)
def _read(path: str, from_s: float, size: int, mtime_ns: int) -> tuple[Cue, ...]:
    if size > LARGEST:
        raise MediaOpenError(path, "read subtitles", f"it has {size:,} bytes; subtitles have at most {LARGEST:,}")
    text = read_regular(path).decode("utf-8-sig", "replace").replace("\r\n", "\n").replace("\r", "\n")
    cues = []
    for start, end, words in _json(text) if text.lstrip()[:1] in ("[", "{") else _subrip(text):
        line = " ".join(_MARKS.sub(" ", words).split())
        if line and math.isfinite(start) and start <= end and end > from_s:
            cues.append(Cue(start - from_s, end - from_s, line))
    if not cues:
        raise MediaOpenError(path, "read subtitles", "it has no subtitle in SubRip, WebVTT, JSON or JSON Lines")
    return tuple(sorted(cues, key=lambda cue: (cue.start_s, cue.end_s)))


def _subrip(text: str) -> Iterator[tuple[float, float, str]]:
    found = list(_TIMES.finditer(text))
    for at, times in enumerate(found):
        words = text[times.end() : found[at + 1].start() if at + 1 < len(found) else len(text)]
        # Up to the blank line; after it comes the number of the next cue.
        yield _seconds(times[1]), _seconds(times[2]), words.strip("\n").partition("\n\n")[0]


def _json(text: str) -> Iterator[tuple[float, float, str]]:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        items = [item for line in text.split("\n") if (item := _line(line)) is not None]
    for item in items if isinstance(items, list) else [items]:
        try:
            if "timestamp" in item:
                start, end = item["timestamp"]
                yield float(start), float(end) if isinstance(end, float) else math.inf, str(item["text"])
            elif "start_time" in item:
                yield float(item["start_time"]), float(item["end_time"]), str(item["text"])
            else:
                yield _seconds(item["start"]), _seconds(item["end"]), str(item["line"])
        except (KeyError, TypeError, ValueError):
            continue


def _line(line: str) -> Any:
    try:
        return json.loads(line) if line.strip() else None
    except (ValueError, RecursionError):
        return None


def _seconds(text: str) -> float:
    """`1:02:03,5`, `02:03.5` or a number of seconds."""
    total = 0.0
    for part in str(text).replace(",", ".").split(":"):
        total = total * 60 + float(part)
    return total


def at_times(cues: Sequence[Cue], times_s: Iterable[float]) -> list[Cue]:
    """The cues on screen at one of these times, in order, each once."""
    times = list(times_s)
    return _those(cues, lambda cue: any(cue.start_s <= time < cue.end_s for time in times))


def within(cues: Sequence[Cue], start_s: float, end_s: float) -> list[Cue]:
    """The cues that are on screen at some time in a window, in order."""
    return _those(cues, lambda cue: cue.start_s < end_s and cue.end_s > start_s)


def _those(cues: Sequence[Cue], wanted: Callable[[Cue], bool]) -> list[Cue]:
    return list(dict.fromkeys(cue for cue in cues if wanted(cue)))


def in_words(cues: Sequence[Cue], offset_s: float = 0.0) -> str:
    """What a look says of its subtitles; empty if it has none.

    Args:
        cues: The cues that it shows.
        offset_s: Second of the file at which the question's part of it begins.
    """
    parts: list[str] = []
    length = 0
    for cue in cues:
        start, end = max(0.0, cue.start_s - offset_s), cue.end_s - offset_s
        times = f"{start:.2f}s-{end:.2f}s " if math.isfinite(end) else f"{start:.2f}s- "
        part = f'{times}"{cue.text}"'
        length += len(part) + 2
        if length > LONGEST:
            parts.append(f"and {len(cues) - len(parts)} more, which a shorter window would show")
            break
        parts.append(part)
    return f"{SUBTITLES}{'; '.join(parts)})" if parts else ""
