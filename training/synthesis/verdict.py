"""What a judge says: the rating of one step, or which turn was pivotal; read from untrusted text, and its files."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

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

PICK_SCHEMA = "apr.fork"
PICK_VERSION = 1

Key = tuple[str, str, str, int]
"""Task, split, id and attempt of a question."""

LEAST, MOST = 1, 5
"""The scale of ratings."""

LONGEST_REASON = 1000
LONGEST_TEXT = 2000
"""Most characters that are kept of a reason, and of a reply that has no verdict."""

_RATING = re.compile(r'"rating"\s*:\s*("?)\s*([+-]?[\d.]+)')
_TURN = re.compile(r'"turn"\s*:\s*("?)\s*([+-]?[\d.]+)')
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
    reason = _reason(found)
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


def _reason(found: dict[str, Any]) -> str:
    reason = found.get("reason", "")
    return printable(reason if isinstance(reason, str) else json.dumps(reason))[:LONGEST_REASON]


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
        said = {"turn": self.turn, "rating": self.rating}
        return json.dumps(_head(SCHEMA, VERSION, self.key, self.config_hash, self.digest) | said | _words(self))

    @classmethod
    def from_json(cls, line: bytes | str, where: str) -> Verdict:
        """Read one line.

        Raises:
            AprError: a newer release wrote it.
            ValueError: it is not a verdict.
        """
        data = _record(line, where, SCHEMA, VERSION, "verdict")
        try:
            rating = data["rating"]
            if rating is not None and _rating(rating) is None:
                raise ValueError(f"rating {rating!r}")
            return cls(*_about(data), int(data["turn"]), _rating(rating), *_words_of(data))
        except (KeyError, TypeError) as error:
            raise ValueError(f"it has no {error}") from error


@dataclass(frozen=True)
class Pick:
    """Which turn of a trajectory a judge calls the pivotal one."""

    key: tuple[str, str, str, int]
    """As of a `Verdict`."""
    config_hash: str
    digest: str
    turn: int | None
    """Counted from 1; `None` where the reply was nonsense."""
    reason: str = ""
    """The judge's own words."""
    fault: str = ""
    """Why there is no turn."""
    text: str = ""
    """The beginning of a reply without a turn."""

    def to_json(self) -> str:
        """One line."""
        head = _head(PICK_SCHEMA, PICK_VERSION, self.key, self.config_hash, self.digest)
        return json.dumps(head | {"turn": self.turn} | _words(self))

    @classmethod
    def from_json(cls, line: bytes | str, where: str) -> Pick:
        """Read one line.

        Raises:
            AprError: a newer release wrote it.
            ValueError: it is not a pick.
        """
        data = _record(line, where, PICK_SCHEMA, PICK_VERSION, "pick")
        try:
            turn = None if data["turn"] is None else int(data["turn"])
            if turn is not None and turn < 1:
                raise ValueError(f"turn {turn}")
            return cls(*_about(data), turn, *_words_of(data))
        except (KeyError, TypeError) as error:
            raise ValueError(f"it has no {error}") from error


def read_pick(text: str, turns: int, *, cut: bool = False) -> tuple[int | None, str, str]:
    """Read the turn that a judge chose; this never raises, whatever the text.

    As for a rating, a reply that names several turns that differ has none.

    Args:
        text: What the judge wrote: `{"turn": 3, "reason": "…"}`.
        turns: How many turns the trajectory has.
        cut: Whether the reply was cut off at its length limit.

    Returns:
        The turn, counted from 1, or `None`; its reason; and why there is no turn.
    """
    found = find_object(text, "turn", cut=cut)
    if isinstance(found, ActionError):
        return None, "", one_line(found.message, 300)
    reason = _reason(found)
    if "turn" not in found:
        return None, reason, "the object has no turn"
    turn = _whole(found["turn"])
    if turn is None or not 1 <= turn <= turns:
        shown = one_line(repr(found["turn"])[:60])
        return None, reason, f"the turn is {shown}, not a whole number from 1 to {turns}"
    if len({_whole(number) for _, number in _TURN.findall(split_thought(text).said)} | {turn}) > 1:
        return None, reason, "it names several turns that differ"
    return turn, reason, ""


def _whole(value: Any) -> int | None:
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d{1,6})(?:\.0+)?\s*", value[:20])
        return int(match[1]) if match else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else None


def read_picks(path: Path, problems: list[str] | None = None) -> Iterator[Pick]:
    """The picks of a file, as `read_verdicts` reads verdicts."""
    return _records(path, Pick.from_json, problems)


def read_verdicts(path: Path, problems: list[str] | None = None) -> Iterator[Verdict]:
    """The verdicts of a file, in order; lines that can't be read are left out.

    Args:
        path: The file; a missing one has none.
        problems: Gets a sentence for each line that can't be read.

    Raises:
        AprError: the file can't be read, or a newer release wrote it.
    """
    return _records(path, Verdict.from_json, problems)


_T = TypeVar("_T")


def _records(path: Path, read: Callable[[bytes | str, str], _T], problems: list[str] | None) -> Iterator[_T]:
    if not path.exists():
        return
    for number, _, line in lines(path):
        try:
            yield read(line, f"{path}, line {number}")
        except (ValueError, RecursionError) as error:
            if problems is not None:
                problems.append(one_line(f"{path}, line {number}: {error}; left out", 300))


def _head(schema: str, version: int, key: Key, config_hash: str, digest: str) -> dict[str, Any]:
    task, split, doc_id, repeat = key
    head = {"schema": schema, "version": version, "task": task, "split": split, "id": doc_id, "attempt": repeat}
    return head | {"config_hash": config_hash, "digest": digest}


def _about(data: dict[str, Any]) -> tuple[Key, str, str]:
    key = (str(data["task"]), str(data["split"]), str(data["id"]), int(data["attempt"]))
    return key, str(data["config_hash"]), str(data["digest"])


def _words(said: Verdict | Pick) -> dict[str, str]:
    return {"reason": said.reason, "fault": said.fault, "text": said.text}


def _words_of(data: dict[str, Any]) -> tuple[str, str, str]:
    return str(data.get("reason", "")), str(data.get("fault", "")), str(data.get("text", ""))


def _record(line: bytes | str, where: str, schema: str, version: int, what: str) -> dict[str, Any]:
    data = json.loads(line)
    if not isinstance(data, dict) or data.get("schema") != schema or not isinstance(data.get("version"), int):
        raise ValueError(f"this is not an {schema} line")
    if data["version"] > version:
        raise AprError(f"{where}: {what} version {data['version']} is newer than {version}; upgrade apr-plugin")
    return data


def turns_digest(trajectory: Trajectory) -> str:
    """16 hex digits over what a judge is shown of a trajectory."""
    shown = [
        (turn.text, turn.observation, turn.think, None if turn.action is None else turn.action.model_dump(mode="json"))
        for turn in trajectory.turns
    ]
    text = json.dumps([trajectory.question.text, shown], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
