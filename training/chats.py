"""Chats: ordinary text conversations as rows beside the turns, so that a student forgets less of what it could do.

    rows = make_rows(sources, student, RowSettings(chat_share=0.1), chats=ChatSource("chats.jsonl"))

Training on one task alone loses others (github.com/modelscope/ms-swift/issues/8409 reports 15 points of Video-MME after
SFT); general data in the mixture keeps more of them (arXiv 2506.09428). `forgetting` measures what was lost.

The file is JSON Lines, a chat a line (`chat`). What is no chat of text is dropped and counted with its reason.

A row refers to a line and a reply in it. Its prompt is all messages before the reply in the student's own chat
template, and its target the student's tokens of the reply with the end of the turn. Chats are text of others: as in a
question, what looks like a special token is broken up in a prompt, and a reply that has one is no target.

Only as many chats are encoded as the share needs. They are drawn by the seed and the digest of their line; which part
of the data a chat belongs to depends on these two as well.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from apr_plugin.files import check_regular
from apr_plugin.loop.policy import Prompt
from apr_plugin.training.chat import Chat, NotRead, read_chat
from apr_plugin.training.parts import drawn
from apr_plugin.training.rows import Drop, Key, Row, RowError, RowSet, Split, line_digest
from apr_plugin.training.student import Student
from apr_plugin.training.targets import Reason, ids_of

if TYPE_CHECKING:
    from apr_plugin.training.making import RowSettings

LONGEST_LINE = 4 * 2**20
"""Most bytes of a line: more than a million tokens of English text."""

_PARTS: tuple[Split, ...] = ("train", "validation")


@dataclass(frozen=True)
class ChatSource:
    """A file of chats."""

    file: str | Path
    """The JSON Lines file."""
    name: str = ""
    """Its name in counts; by default the file's name without its ending."""

    @property
    def title(self) -> str:
        """Its name."""
        return self.name or Path(self.file).stem


def target_ids(words: str, student: Student) -> tuple[int, ...] | Reason:
    """The student's tokens of a reply with the end of the turn, or why it is no target.

    Where the chat template opens a thought, the reply has to begin with the same words, and the rest is learned.
    """
    if not words.startswith(student.opened):
        return Reason.OPENED_THOUGHT
    return ids_of(words.removeprefix(student.opened), student)


def prompt_of(row: Row, line: bytes, student: Student) -> tuple[Prompt, tuple[int, ...]]:
    """The prompt of a row of a chat, and the ids of its target.

    Raises:
        RowError: the line has no such reply, or the student can't learn it.
    """
    try:
        chat = read_chat(line)
        if row.turn > len(chat.replies):
            raise NotRead(Reason.NO_REPLY, "it has no such reply")
    except NotRead as error:
        raise RowError(f"{row.where}: {error}; make the rows again") from error
    ids = target_ids(chat.reply(row.turn), student)
    if isinstance(ids, Reason):
        raise RowError(f"{row.where}: this student can't learn the reply ({ids}); make the rows again for it")
    return chat.prompt(row.turn), ids


def check_chats(source: ChatSource) -> None:
    """Look at the beginning of a file of chats, before anything else is done.

    Raises:
        RowError: it can't be read, or is a JSON array.
    """
    path = Path(source.file)
    try:
        check_regular(path)
        with path.open("rb") as file:
            begins = file.read(4096)
    except OSError as error:
        raise RowError(f"{path}: cannot read chats: {error.strerror or error}") from error
    if begins.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        raise RowError(
            f"{path}: it begins with '[': chats are JSON Lines, an object in each line, not one array; this converts "
            "it: jq -c '.[]' FILE > FILE.jsonl"
        )


def chat_rows(
    source: ChatSource,
    student: Student,
    settings: RowSettings,
    *,
    wanted: Mapping[Split, int] | None = None,
    told: Callable[[int], None] | None = None,
) -> tuple[list[Row], list[Drop]]:
    """The rows of a file of chats, each with its part, and everything that did not become one.

    Args:
        source: The file.
        student: The model that is to be trained.
        settings: Seed, share of the chats that is for validation, which replies are targets, whether equal rows stay.
        wanted: Most rows of each part; chats are drawn until there are as many. By default all rows are made.
        told: Called after each chat with the number of rows so far, to show progress.

    Raises:
        RowError: the file can't be read, or is a JSON array.
    """
    return _ChatRows(source, student, settings, wanted).run(told)


@dataclass
class _ChatRows:
    source: ChatSource
    student: Student
    settings: RowSettings
    wanted: Mapping[Split, int] | None
    rows: list[Row] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    made: Counter[Split] = field(default_factory=Counter)
    seen: set[str] = field(default_factory=set)

    def run(self, told: Callable[[int], None] | None) -> tuple[list[Row], list[Drop]]:
        path = Path(self.source.file)
        left = 0
        check_chats(self.source)
        try:
            with path.open("rb") as file:
                places = self._places(file)
                for start, number, validation in places.tolist():
                    split: Split = "validation" if validation else "train"
                    if self._full(split):
                        left += 1
                        continue
                    file.seek(start)
                    self._chat(start, number, split, file.readline())
                    if told is not None:
                        told(len(self.rows))
        except OSError as error:
            raise RowError(f"{path}: cannot read chats: {error.strerror or error}") from error
        if left:
            words = "chats that were not drawn: the share needs no more"
            self._drop(Reason.BALANCE, 0, None, turns=0, many=left, detail=words)
        self.rows.sort(key=lambda row: (row.start, row.turn))
        return self.rows, self.drops

    def _places(self, file: BinaryIO) -> Any:
        """Start, number and part of each line in the order in which they are drawn, shape (lines, 3)."""
        found: list[tuple[int, int, bool]] = []
        order: list[float] = []
        seed, share = self.settings.seed, self.settings.validation
        for start, number, line in _lines(file):
            if line is None:
                self._drop(Reason.HUGE_LINE, start, number, turns=0, detail=f"more than {LONGEST_LINE:,} bytes")
                continue
            if not line.strip():
                continue
            digest = line_digest(line)
            found.append((start, number, drawn(seed, f"part of chat {digest}") < share))
            order.append(drawn(seed, f"chat {digest}"))
        places = np.array(found, np.int64).reshape(-1, 3)
        return places[np.argsort(np.array(order), kind="stable")]

    def _full(self, split: Split) -> bool:
        return self.wanted is not None and self.made[split] >= self.wanted.get(split, 0)

    def _key(self, number: int) -> Key:
        return (self.source.title, "", str(number), 0)

    def _drop(self, reason: Reason, start: int, number: int | None, **more: Any) -> None:
        key = None if number is None else self._key(number)
        self.drops.append(Drop(reason, self.source.title, str(self.source.file), start, key, **more))

    def _chat(self, start: int, number: int, split: Split, line: bytes) -> None:
        try:
            chat = read_chat(line)
        except NotRead as error:
            self._drop(error.reason, start, number, turns=0, detail=str(error))
            return
        for turn in range(1, len(chat.replies) + 1):
            made = Reason.BALANCE if self._full(split) else self._row(chat, turn, start, number, split, line)
            if isinstance(made, Row):
                self.made[split] += 1
                self.rows.append(made)
            elif isinstance(made, Reason):
                self._drop(made, start, number, turn=turn)
            else:
                reason, more = made
                self._drop(reason, start, number, turn=turn, **more)
                if "turns" in more:
                    return

    def _row(
        self, chat: Chat, turn: int, start: int, number: int, split: Split, line: bytes
    ) -> Row | Reason | tuple[Reason, dict[str, Any]]:
        from jinja2 import TemplateError

        place = chat.replies[turn - 1]
        last_only = self.settings.replies == "last" and turn < len(chat.replies)
        if last_only or place in chat.unwanted:
            return Reason.NOT_KEPT
        if not chat.reply(turn).strip() or not chat.messages[place - 1].text.strip():
            return Reason.EMPTY
        target = target_ids(chat.reply(turn), self.student)
        if isinstance(target, Reason):
            return target
        try:
            encoded = self.student.encoder.lay_out(chat.prompt(turn))
        except (TemplateError, ValueError, TypeError) as error:
            return Reason.TEMPLATE, {"detail": str(error)[:300]}
        tokens, most = len(encoded.ids) + len(target), self.student.context_tokens
        if tokens > most:
            # Every later prompt has this one in it.
            later = {"turns": len(chat.replies) - turn + 1} if len(encoded.ids) >= most else {}
            return Reason.TOO_LONG, {"tokens": tokens} | later
        content = hashlib.blake2b(encoded.ids.tobytes(), digest_size=8)
        content.update(json.dumps([[], target]).encode())
        if self.settings.deduplicate and content.hexdigest() in self.seen:
            return Reason.DUPLICATE
        self.seen.add(content.hexdigest())
        return Row(
            file=str(self.source.file),
            start=start,
            digest=line_digest(line),
            card="",
            key=self._key(number),
            turn=turn,
            source=self.source.title,
            target="chat",
            content=content.hexdigest(),
            prompt_tokens=len(encoded.ids),
            target_tokens=len(target),
            split=split,
        )


def _lines(file: BinaryIO) -> Iterator[tuple[int, int, bytes | None]]:
    """Start in bytes, number from 1 and content of each line; `None` for one that is longer than `LONGEST_LINE`."""
    start = number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number, size = number + 1, len(line)
        whole = size <= LONGEST_LINE
        rest = line
        while not whole and rest and not rest.endswith(b"\n"):
            rest = file.readline(2**20)
            size += len(rest)
        yield start, number, line if whole else None
        start += size


def with_chats(
    made: RowSet,
    source: ChatSource,
    student: Student,
    settings: RowSettings,
    told: Callable[[int], None] | None = None,
) -> None:
    """Add to rows of turns as many of chats as their share needs (`RowSettings.chat_share`), in each part.

    If the file has too few, all of them are taken, and `made.about["notes"]` says it.

    Raises:
        RowError: the file can't be read, or no chat became a row to train on.
    """
    share, turns = settings.chat_share, {part: len(made.of(part)) for part in _PARTS}
    wanted = {part: round(share / (1 - share) * count) for part, count in turns.items()}
    wanted["train"] = max(1, wanted["train"])
    rows, drops = chat_rows(source, student, settings, wanted=wanted, told=told)
    found = Counter(row.split for row in rows)
    if not found["train"]:
        raise RowError(f"{source.file}: no chat became a row to train on: {RowSet([], drops).told()}")
    if found["train"] < wanted["train"]:
        made.about.setdefault("notes", []).append(
            f"{source.file}: it gave {found['train']:,} of the {wanted['train']:,} train rows that a share of "
            f"{share:g} needs; chats are {found['train'] / (found['train'] + turns['train']):.1%} of the train rows"
        )
    made.about["chats"] = {
        "name": source.title,
        "file": str(source.file),
        "wanted": wanted,
        "rows": {part: found[part] for part in _PARTS},
        "share_of_target_tokens": _of_targets(made.of("train"), [row for row in rows if row.split == "train"]),
    }
    made.rows += rows
    made.dropped += drops


def _of_targets(turns: Sequence[Row], chats: Sequence[Row]) -> float:
    """The share of the chats in all target tokens, which is about their share in the loss."""
    ours, others = (sum(row.target_tokens for row in rows) for rows in (chats, turns))
    return round(ours / (ours + others), 4)
