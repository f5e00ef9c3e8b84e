"""Rows: one turn as a training example, as a reference to a trajectory, and their file.

A row names a line of a trajectory file and a turn in it. Nothing else is stored: the prompt is rebuilt by replay and
media is read from the videos when the row is used (`loading.RowLoader`). `making.make_rows` makes rows. A row may also
name a line of a file of chats and a reply in it (`chats`); it has text only.

The file is JSON Lines. Its first line is a header (schema `apr.rows`, version, settings, counts of what was dropped);
each further line is a row. Paths in it are relative to its folder. Beside it, `NAME.dropped.jsonl` has a line for each
thing that did not become a row.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apr_plugin.errors import AprError
from apr_plugin.files import check_regular
from apr_plugin.training.targets import Reason

SCHEMA = "apr.rows"
VERSION = 1

Key = tuple[str, str, str, int]
"""Task, split, doc id and repeat of a question (`Question.key`)."""

Split = Literal["train", "validation"]


class RowError(AprError):
    """Rows can't be read, made or used; the message names the file and what to do."""


class NoRows(RowError):
    """No row is left; training does not start on nothing."""


class Row(BaseModel):
    """One turn as a training example."""

    model_config = ConfigDict(frozen=True)

    file: str
    """The trajectory file, or the file of chats."""
    start: int = Field(ge=0)
    """Where the line begins in it, in bytes."""
    digest: str
    """16 hex digits of that line."""
    card: str
    """Folder or file of its run's card; empty for a chat."""
    key: Key
    """The question; for a chat its source, no split, the number of its line and 0."""
    turn: int = Field(ge=1)
    """Number of the turn, from 1; in a chat of the assistant's message."""
    source: str = ""
    """Name of where it comes from."""
    target: Literal["tokens", "canonical", "chat"]
    """Whether the target is the recorded tokens with the end of the turn, the student's tokens of the canonical JSON,
    or its tokens of an assistant's message of a chat."""
    rewritten: tuple[int, ...] = ()
    """Numbers of earlier turns that read like their canonical JSON in the prompt."""
    videos: tuple[str, ...] = ()
    """Digests of the question's videos: a video is in one split only."""
    content: str
    """16 hex digits over prompt, media and target, by which equal rows are found."""
    prompt_tokens: int = Field(ge=0)
    """Tokens of the prompt, media included."""
    target_tokens: int = Field(ge=1)
    """Tokens of the target, its end included."""
    visual_tokens: int = Field(default=0, ge=0)
    """Of the prompt's tokens, those of pictures."""
    audio_tokens: int = Field(default=0, ge=0)
    """Of the prompt's tokens, those of sound."""
    split: Split = "train"
    """The part of the data that it belongs to."""
    most_pixels: int | None = Field(default=None, ge=1)
    """Most pixels of its pictures; `None`: they are those that the policy saw."""

    @property
    def tokens(self) -> int:
        """All of its tokens."""
        return self.prompt_tokens + self.target_tokens

    @property
    def where(self) -> str:
        """Its place, for messages."""
        return f"{self.file}, byte {self.start}, turn {self.turn}"


@dataclass(frozen=True)
class Drop:
    """Something that did not become a row."""

    reason: Reason
    source: str
    file: str
    start: int
    """Where its line begins, in bytes."""
    key: Key | None = None
    """The question, if the line could be read."""
    turn: int | None = None
    """The turn; `None`: the whole line."""
    turns: int = 1
    """Turns that were lost with it."""
    many: int = 1
    """How many such things it stands for: chats that were not drawn are one entry."""
    tokens: int | None = None
    """Its length in tokens, if it was too long."""
    detail: str = ""
    """Details in words."""


@dataclass
class RowSet:
    """Rows, and what did not become one."""

    rows: list[Row]
    dropped: list[Drop] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    """The header: student, settings, sources, counts."""

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, split: Split) -> list[Row]:
        """The rows of one part."""
        return [row for row in self.rows if row.split == split]

    def counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """What was dropped, by source and reason.

        `dropped` counts lines and single turns, `turns` all turns that were lost with them, as far as they are known.
        """
        found: dict[str, dict[str, dict[str, int]]] = {}
        for drop in self.dropped:
            count = found.setdefault(drop.source, {}).setdefault(str(drop.reason), {"dropped": 0, "turns": 0})
            count["dropped"] += drop.many
            count["turns"] += drop.turns
        return found

    def told(self) -> str:
        """The counts in words, for messages."""
        reasons: Counter[str] = Counter()
        for drop in self.dropped:
            reasons[str(drop.reason)] += drop.many
        longest = max((drop.tokens for drop in self.dropped if drop.tokens), default=0)
        words = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()) or "nothing was dropped"
        return words + (f" (the longest row had {longest} tokens)" if longest else "")

    def require(self, split: Split = "train") -> RowSet:
        """This set, if it has a row in a part.

        Raises:
            NoRows: it has none; the message has the counts of what was dropped.
        """
        if not self.of(split):
            raise NoRows(f"no row is left in the part {split!r}, so there is nothing to train on: {self.told()}")
        return self


def write_rows(path: str | Path, rows: RowSet) -> None:
    """Write a set of rows, and beside it what was dropped; files that are there are replaced.

    Raises:
        NoRows: there is no row to train on.
        RowError: a file can't be written.
    """
    rows.require()
    file = Path(path)
    header = {"schema": SCHEMA, "version": VERSION} | rows.about
    header |= {"rows": len(rows), "splits": dict(Counter(row.split for row in rows.rows)), "dropped": rows.counts()}
    folder = file.absolute().parent

    def moved(row: Row) -> Row:
        return row.model_copy(update={name: _relative(getattr(row, name), folder) for name in ("file", "card")})

    drops = (
        {"reason": str(drop.reason)}
        | {
            name: _relative(value, folder) if name == "file" else value
            for name, value in vars(drop).items()
            if name != "reason" and value not in (None, "") and (name, value) != ("many", 1)
        }
        for drop in rows.dropped
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _replace(file.with_suffix(".dropped.jsonl"), (json.dumps(drop, ensure_ascii=False) for drop in drops))
        _replace(file, (json.dumps(header, ensure_ascii=False), *(moved(row).model_dump_json() for row in rows.rows)))
    except OSError as error:
        raise RowError(f"{file}: cannot write rows: {error.strerror or error}") from error


def read_rows(path: str | Path, *, split: Split | None = None) -> RowSet:
    """Read a file of rows; what was dropped is only in the header's counts (`about["dropped"]`).

    Args:
        path: The file.
        split: Only one part; by default all.

    Raises:
        NoRows: it has no row of this part.
        RowError: it can't be read, is damaged or cut off, or has a newer version.
    """
    file = Path(path)
    rows, header = [], None
    for number, text in _lines(file):
        data = _json(text, f"{file}, line {number}")
        if header is None:
            header = _header(data, file)
            continue
        try:
            row = Row.model_validate(data)
        except ValidationError as error:
            fault = error.errors(include_input=False, include_context=False, include_url=False)[0]
            raise RowError(
                f"{file}, line {number}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}; the line is damaged, make "
                "the rows again"
            ) from error
        folder = file.absolute().parent
        places = {name: str(folder / place) for name in ("file", "card") if (place := getattr(row, name))}
        rows.append(row.model_copy(update=places))
    if header is None:
        raise RowError(f"{file}: it is empty; make the rows again")
    if len(rows) != header.get("rows"):
        raise RowError(
            f"{file}: it has {len(rows)} rows, and its header says {header.get('rows')}; it was cut off or changed, "
            "make the rows again"
        )
    found = RowSet([row for row in rows if split is None or row.split == split], about=header)
    if not found.rows:
        part = "" if split is None else f" in the part {split!r}"
        raise NoRows(f"{file}: it has no row{part}, so there is nothing to train on")
    return found


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    try:
        check_regular(file)
        with file.open(encoding="utf-8") as lines:
            yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise RowError(f"{file}: cannot read rows: {getattr(error, 'strerror', None) or error}") from error


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{where}: not JSON ({error}); the line is damaged, make the rows again") from error


def _header(data: Any, file: Path) -> dict[str, Any]:
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("version"), int):
        raise RowError(f"{file}: this is not an {SCHEMA} file")
    if data["version"] > VERSION:
        raise RowError(
            f"{file}: rows of version {data['version']} are newer than {VERSION}, which this release reads; upgrade "
            "apr-plugin"
        )
    return {key: value for key, value in data.items() if key not in ("schema", "version")}


def _relative(path: str, folder: Path) -> str:
    return os.path.relpath(Path(path).absolute(), folder) if path else ""


def line_digest(line: bytes) -> str:
    """16 hex digits of a line (`Row.digest`)."""
    return hashlib.sha256(line).hexdigest()[:16]


def _replace(file: Path, lines: Iterable[str]) -> None:
    """Write a file that is there as a whole or not at all."""
    part = file.with_name(file.name + ".part")
    with part.open("w", encoding="utf-8") as out:
        out.writelines(f"{line}\n" for line in lines)
        out.flush()
        os.fsync(out.fileno())
    part.replace(file)


def as_row(value: Row | Mapping[str, Any]) -> Row:
    """A row from a row, or from its values, as a table (`datasets.Dataset`) gives them."""
    return value if isinstance(value, Row) else Row.model_validate(value)


def tokens_of(rows: Sequence[Row]) -> int:
    """Tokens of all rows together."""
    return sum(row.tokens for row in rows)
