"""A judge's verdict on one step: its rating, read from what the judge wrote, which is untrusted; and its file."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_plugin.errors import AprError
from apr_plugin.loop.feedback import ActionError
from apr_plugin.loop.files import lines
from apr_plugin.loop.parse import find_object
from apr_plugin.loop.text import printable
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.scoring.thought import split_thought
from apr_plugin.terminal import one_line

SCHEMA = "apr.verdict"
VERSION = 1

LEAST, MOST = 1, 5
"""The scale of ratings."""

LONGEST_REASON = 1000
LONGEST_TEXT = 2000
"""Most characters that are kept of a reason, and of a reply that has no verdict."""

_RATING = re.compile(r'"rating"\s*:\s*("?)\s*([+-]?[\d.]+)')
_AS_TEXT = re.compile(r"\s*([1-5])(?:\.0+)?\s*(?:/\s*5)?\s*")


@dataclass(frozen=True)
class Read:
    """What a reply says."""

    rating: int | None
    """1 to 5; `None` for nonsense."""
    reason: str = ""
    fault: str = ""
    """Why there is no rating."""


def read_verdict(text: str, *, cut: bool = False) -> Read:
    """Read a judge's reply; this never raises, whatever the text.

    The object is found and repaired as a turn's is (code fences, words around it, a block of thought). A reply with
    several ratings that differ has none: a judge may have quoted what the agent wrote.

    Args:
        text: What the judge wrote.
        cut: Whether it was cut off at its length limit.
    """
    found = find_object(text, "rating", cut=cut)
    if isinstance(found, ActionError):
        return Read(None, fault=one_line(found.message, 300))
    reason = found.get("reason", "")
    reason = printable(reason if isinstance(reason, str) else json.dumps(reason))[:LONGEST_REASON]
    if "rating" not in found:
        return Read(None, reason, "the object has no rating")
    rating = _rating(found["rating"])
    if rating is None:
        return Read(
            None, reason, f"the rating is {one_line(repr(found['rating'])[:60])}, not a whole number from 1 to 5"
        )
    given = {number for _, number in _RATING.findall(split_thought(text).said)}
    if len({_rating(number) for number in given} | {rating}) > 1:
        return Read(None, reason, "it has several ratings that differ")
    return Read(rating, reason)


def _rating(value: Any) -> int | None:
    if isinstance(value, str):
        match = _AS_TEXT.fullmatch(value[:20])
        return int(match[1]) if match else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if value == int(value) and LEAST <= value <= MOST else None


@dataclass(frozen=True)
class Verdict:
    """What a judge said of one turn of a trajectory."""

    key: tuple[str, str, str, int]
    """Of the trajectory's question: task, split, id and attempt."""
    config_hash: str
    """Of the trajectory."""
    digest: str
    """Of the trajectory's turns (`turns_digest`), so that no verdict is taken for one of other turns."""
    turn: int
    """Counted from 1."""
    rating: int | None
    """1 to 5; `None` where the reply was nonsense."""
    reason: str = ""
    """The judge's own words."""
    fault: str = ""
    """Why there is no rating."""
    text: str = ""
    """The beginning of a reply without a rating."""

    def to_json(self) -> str:
        """One line."""
        task, split, doc_id, repeat = self.key
        data = {
            "schema": SCHEMA,
            "version": VERSION,
            "task": task,
            "split": split,
            "id": doc_id,
            "attempt": repeat,
            "config_hash": self.config_hash,
            "digest": self.digest,
            "turn": self.turn,
            "rating": self.rating,
            "reason": self.reason,
            "fault": self.fault,
            "text": self.text,
        }
        return json.dumps(data)

    @classmethod
    def from_json(cls, line: bytes | str, where: str) -> Verdict:
        """Read one line.

        Raises:
            AprError: a newer release wrote it.
            ValueError: it is not a verdict.
        """
        data = json.loads(line)
        if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("version"), int):
            raise ValueError(f"this is not an {SCHEMA} line")
        if data["version"] > VERSION:
            raise AprError(f"{where}: verdict version {data['version']} is newer than {VERSION}; upgrade apr-plugin")
        try:
            rating = data["rating"]
            if rating is not None and _rating(rating) is None:
                raise ValueError(f"rating {rating!r}")
            key = (str(data["task"]), str(data["split"]), str(data["id"]), int(data["attempt"]))
            texts = (str(data.get(name, "")) for name in ("reason", "fault", "text"))
            return cls(key, str(data["config_hash"]), str(data["digest"]), int(data["turn"]), _rating(rating), *texts)
        except (KeyError, TypeError) as error:
            raise ValueError(f"it has no {error}") from error


def read_verdicts(path: Path, problems: list[str] | None = None) -> Iterator[Verdict]:
    """The verdicts of a file, in order; lines that can't be read are left out.

    Args:
        path: The file; a missing one has none.
        problems: Gets a sentence for each line that can't be read.

    Raises:
        AprError: the file can't be read, or a newer release wrote it.
    """
    if not path.exists():
        return
    for number, _, line in lines(path):
        try:
            yield Verdict.from_json(line, f"{path}, line {number}")
        except (ValueError, RecursionError) as error:
            if problems is not None:
                problems.append(one_line(f"{path}, line {number}: {error}; left out", 300))


def turns_digest(trajectory: Trajectory) -> str:
    """16 hex digits over what a judge is shown of a trajectory."""
    shown = [
        (turn.text, turn.observation, turn.think, None if turn.action is None else turn.action.model_dump(mode="json"))
        for turn in trajectory.turns
    ]
    text = json.dumps([trajectory.question.text, shown], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
