"""`make_rows`: from trajectories to rows: prompts rebuilt by replay, targets, lengths; each drop with its reason.

    student = Student.from_pretrained("Qwen/Qwen2.5-Omni-7B", context_tokens=65_536)
    rows = make_rows([Source("out/train.jsonl", "out/card", writer="teacher")], student)
    write_rows("rows.jsonl", rows)

Prompts are rendered with the student's own encoder, without decoding media: tokens depend on sizes alone. Videos are
opened and compared with what the trajectory says of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from apr_plugin.loop.budget import LEAST_FRAME_PIXELS
from apr_plugin.loop.card import Card
from apr_plugin.loop.policy import Prompt
from apr_plugin.loop.replay import FilmError, ReplayError, replay
from apr_plugin.loop.trajectory import DamagedLine, Trajectory, TrajectoryError, Turn
from apr_plugin.loop.wires import WIRES, Wire
from apr_plugin.training.chats import ChatSource, check_chats, with_chats
from apr_plugin.training.parts import balanced, split_by_video, without_duplicates
from apr_plugin.training.rows import Drop, Key, Row, RowError, RowSet, line_digest
from apr_plugin.training.student import Student
from apr_plugin.training.targets import Reason, Target, Writer, canonical, target_of

Find = Callable[[str], str | Path]
"""Gives the present path of a video from the path in the question."""


@dataclass(frozen=True)
class Source:
    """Trajectories of one origin."""

    file: str | Path
    """A trajectory file."""
    card: str | Path
    """The folder or the file of its run's card; or a folder with a subfolder for each hash of a configuration."""
    name: str = ""
    """Its name in counts and shares; by default the file's name without its ending. Several files may share one."""
    writer: Writer = "teacher"
    """Whether the student itself wrote it (`own`)."""
    kept: Collection[Key] | Mapping[Key, Collection[int]] | None = None
    """The questions that are kept, or for each kept question the numbers of the turns that may be targets; by default
    everything."""

    @property
    def title(self) -> str:
        """Its name."""
        return self.name or Path(self.file).stem


class RowSettings(BaseModel):
    """What becomes a row."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repaired: Literal["rewrite", "drop"] = "rewrite"
    """A turn that the parser repaired (fences, words around the object, a trailing comma) is written again as its
    canonical JSON, in the target and in later prompts alike; or it is no target and stays in later prompts as it is."""
    forced: bool = False
    """Whether the last call for an answer alone may be a target. It comes after all turns were used up without an
    answer, which is not to be learned, and the published form of the loop (`on_last_turn=fail`) has no such call."""
    validation: float = Field(default=0.05, ge=0, lt=1)
    """About which share of the videos is for validation."""
    seed: int = 0
    """It draws the parts, and the rows that stay where sources are balanced."""
    balance: Literal["none", "equal"] | dict[str, float] = "none"
    """As many train rows of each source, or the shares of the sources by name; what is too much is dropped."""
    deduplicate: bool = True
    """Whether one of several equal rows stays."""
    other_versions: bool = False
    """Whether trajectories that another release of PyAV decoded are used."""
    most_pixels: int | None = Field(default=None, ge=LEAST_FRAME_PIXELS)
    """Most pixels of a picture: the student sees smaller ones than the teacher did, read from the videos in that size;
    by default those that the teacher saw."""
    chat_share: float = Field(default=0.1, gt=0, lt=1)
    """The share of all train rows that are chats, if there are chats; the same share of the validation rows."""
    replies: Literal["each", "last"] = "each"
    """Which replies of a chat may be targets. `each`: every reply is an example of what the student is to keep, and the
    first ones, whose prompts are short, are the most like ordinary requests. `last`: one row for each chat, with the
    longest prompts; for data in which only the last reply is good."""


def make_rows(
    sources: Sequence[Source],
    student: Student,
    settings: RowSettings | None = None,
    *,
    chats: ChatSource | None = None,
    find: Find | None = None,
    told: Callable[[int], None] | None = None,
    told_chats: Callable[[int], None] | None = None,
) -> RowSet:
    """Make the rows of these trajectories, and of chats beside them.

    Args:
        sources: Where the trajectories are.
        student: The model that is to be trained.
        settings: What becomes a row.
        chats: A file of chats, of which as many become rows as `settings.chat_share` says. They have no part in
            `settings.balance`.
        find: Gives the present path of a video from the path in a question.
        told: Called after each trajectory with the number of those that were read, to show progress.
        told_chats: Called after each chat with the number of its rows so far.

    Returns:
        The rows, each with its part, and everything that did not become one. Every turn of every trajectory is in one
        of both. What the user should know besides is in `about["notes"]`.

    Raises:
        AprError: a file or a card can't be read, or a file has a newer version; or no row is left to train on.
    """
    wanted, made, done = settings or RowSettings(), RowSet([]), 0
    if chats is not None:
        check_chats(chats)
    abouts = []
    for source in sources:
        maker = _Maker(source, student, wanted, find, made)
        for _ in maker.run():
            done += 1
            if told is not None:
                told(done)
        abouts.append(maker.about())
    if wanted.deduplicate:
        made.rows, others = without_duplicates(made.rows)
        made.dropped += [_dropped(Reason.DUPLICATE, row) for row in others]
    made.rows = split_by_video(made.rows, wanted.validation, wanted.seed)
    made.rows, others = balanced(made.rows, wanted.balance, wanted.seed)
    made.dropped += [_dropped(Reason.BALANCE, row) for row in others]
    made.about = {
        "student": {"name": student.name, "digest": student.digest, "context_tokens": student.context_tokens},
        "settings": wanted.model_dump(mode="json"),
        "sources": abouts,
    }
    made.require()
    if chats is not None:
        with_chats(made, chats, student, wanted, told_chats)
    return made


def read_line(file: str | Path, start: int) -> bytes:
    """The line of a file that begins at this byte, with its newline.

    Raises:
        TrajectoryError: the file can't be read.
    """
    try:
        with Path(file).open("rb") as lines:
            lines.seek(start)
            return lines.readline()
    except OSError as error:
        raise TrajectoryError(f"{file}: cannot read trajectories: {error.strerror or error}") from error


def find_card(place: str | Path, config_hash: str) -> Path:
    """The card of a configuration: the place itself, or what it holds for this hash."""
    own = Path(place) / config_hash
    return own if own.is_dir() else Path(place)


@dataclass
class _Maker:
    """Makes the rows of one source."""

    source: Source
    student: Student
    settings: RowSettings
    find: Find | None
    made: RowSet
    lines: int = 0
    turns: int = 0
    cards: dict[str, Card] = field(default_factory=dict)

    def about(self) -> dict[str, Any]:
        """The source, for the header."""
        return {
            "name": self.source.title,
            "file": str(self.source.file),
            "writer": self.source.writer,
            "lines": self.lines,
            "turns": self.turns,
        }

    def run(self) -> Iterator[None]:
        def damaged(start: int, _: int, error: DamagedLine) -> None:
            self.lines += 1
            self._drop(Reason.BROKEN_LINE, start, turns=0, detail=str(error))

        for start, _, trajectory in Trajectory.iterate_with_places(self.source.file, damaged):
            self.lines += 1
            self.turns += len(trajectory.turns)
            self._rows(start, trajectory)
            yield
        if (cut := _cut_line(Path(self.source.file))) is not None:
            self.lines += 1
            self._drop(Reason.BROKEN_LINE, cut, turns=0, detail="the last line is incomplete")

    def _drop(self, reason: Reason, start: int, trajectory: Trajectory | None = None, **more: Any) -> None:
        key = None if trajectory is None else trajectory.question.key
        turns = {"turns": len(trajectory.turns)} if trajectory is not None and "turn" not in more else {}
        drop = Drop(reason, self.source.title, str(self.source.file), start, key, **(turns | more))
        self.made.dropped.append(drop)

    def _rows(self, start: int, trajectory: Trajectory) -> None:
        refused = self._refused(trajectory)
        if refused is not None:
            self._drop(refused, start, trajectory)
            return
        several = len(trajectory.question.videos) > 1
        wire = self._card(trajectory).config.form
        found = [self._target(turn, several, wire) for turn in trajectory.turns]
        targets = {number: each for number, each in enumerate(found, 1) if isinstance(each, Target)}
        words = {
            number: target.words
            for number, target in targets.items()
            if target.words != trajectory.turns[number - 1].text
        }
        allowed = self._allowed(trajectory)
        wanted = [number for number in targets if allowed is None or number in allowed]
        line = read_line(self.source.file, start)
        made: list[Row | tuple[Reason, int, dict[str, Any]]] = []
        try:
            prompts = replay(
                trajectory,
                self._card(trajectory),
                find=self.find,
                other_versions=self.settings.other_versions,
                turns=wanted,
                blank=True,
                most_pixels=self.settings.most_pixels,
                words=lambda number, turn: words.get(number, turn.text),
            )
            for number, (prompt, turn) in zip(wanted, prompts if wanted else (), strict=True):
                before = tuple(other for other in words if other < number)
                made.append(self._row(start, line, trajectory, number, turn, targets[number], prompt, before))
        except FilmError as error:
            self._drop(Reason.VIDEO, start, trajectory, detail=str(error))
            return
        except ReplayError as error:
            self._drop(Reason.NOT_REBUILT, start, trajectory, detail=str(error))
            return
        for number, each in enumerate(found, 1):
            if isinstance(each, Reason):
                self._drop(each, start, trajectory, turn=number)
            elif number not in wanted:
                self._drop(Reason.NOT_KEPT, start, trajectory, turn=number)
        for row in made:
            if isinstance(row, Row):
                self.made.rows.append(row)
            else:
                reason, number, more = row
                self._drop(reason, start, trajectory, turn=number, **more)

    def _refused(self, trajectory: Trajectory) -> Reason | None:
        """Why a whole trajectory is not used."""
        if trajectory.budget is None:
            return Reason.OLD_VERSION
        if trajectory.arm != "agent":
            return Reason.OTHER_ARM
        if trajectory.stop_reason.failed:
            return Reason.UNFINISHED
        if self.source.kept is not None and trajectory.question.key not in self.source.kept:
            return Reason.NOT_KEPT
        return None

    def _allowed(self, trajectory: Trajectory) -> Collection[int] | None:
        kept = self.source.kept
        return kept[trajectory.question.key] if isinstance(kept, Mapping) else None

    def _target(self, turn: Turn, several: bool, wire: Wire) -> Target | Reason:
        settings = self.settings
        rewrite = settings.repaired == "rewrite"
        return target_of(
            turn,
            self.student,
            self.source.writer,
            several=several,
            rewrite=rewrite,
            forced=settings.forced,
            wire=wire,
        )

    def _card(self, trajectory: Trajectory) -> Card:
        place = str(find_card(self.source.card, trajectory.config_hash))
        if place not in self.cards:
            self.cards[place] = Card.read(place)
        return self.cards[place]

    def _row(
        self,
        start: int,
        line: bytes,
        trajectory: Trajectory,
        number: int,
        turn: Turn,
        target: Target,
        prompt: Prompt,
        rewritten: tuple[int, ...],
    ) -> Row | tuple[Reason, int, dict[str, Any]]:
        try:
            encoded = self.student.encoder.lay_out(prompt)
        except ValueError as error:
            return Reason.MEDIUM, number, {"detail": str(error)}
        size = encoded.size
        known = turn.usage.prompt_tokens
        if target.own and not rewritten and known is not None and known != size.total:
            return Reason.OTHER_PROMPT, number, {"detail": f"{size.total} tokens here, {known} then"}
        if size.total + len(target.ids) > self.student.context_tokens:
            return Reason.TOO_LONG, number, {"tokens": size.total + len(target.ids)}
        seen: list[Any] = []
        if encoded.media:
            shown = trajectory.turns[number - 2].shown
            assert shown is not None
            seen = [trajectory.videos[shown.video].digest, shown.kind, shown.file_s, shown.sound_file_s]
            seen += [shown.width, shown.height, shown.fps]
            seen += [] if self.settings.most_pixels is None else [self.settings.most_pixels]
        content = hashlib.blake2b(encoded.ids.tobytes(), digest_size=8)
        content.update(json.dumps([seen, target.ids]).encode())
        return Row(
            file=str(self.source.file),
            start=start,
            digest=line_digest(line),
            card=str(find_card(self.source.card, trajectory.config_hash)),
            key=trajectory.question.key,
            turn=number,
            source=self.source.title,
            target="tokens" if target.own else "canonical",
            rewritten=rewritten,
            videos=tuple(film.digest for film in trajectory.videos),
            content=content.hexdigest(),
            prompt_tokens=size.total,
            target_tokens=len(target.ids),
            visual_tokens=size.visual,
            audio_tokens=size.audio,
            most_pixels=self.settings.most_pixels,
        )


def _cut_line(file: Path) -> int | None:
    """Where an incomplete last line begins, which a killed run leaves; `None` if the file ends with a whole line."""
    with file.open("rb") as lines:
        size = lines.seek(0, 2)
        begins = size
        while begins > 0:
            step = min(65_536, begins)
            lines.seek(begins - step)
            newline = lines.read(step).rfind(b"\n")
            if newline >= 0:
                begins += newline + 1 - step
                return begins if begins < size else None
            begins -= step
    return 0 if size else None


def _dropped(reason: Reason, row: Row) -> Drop:
    return Drop(reason, row.source, row.file, row.start, row.key, row.turn)


def words_of(
    trajectory: Trajectory, rewritten: Collection[int], wire: Wire = WIRES["apr"]
) -> Callable[[int, Turn], str]:
    """What each turn reads like in the later prompts of a row, for `replay`.

    Raises:
        RowError: a turn that is to be rewritten has no canonical form.
    """
    several = len(trajectory.question.videos) > 1

    def words(number: int, turn: Turn) -> str:
        if number not in rewritten:
            return turn.text
        if turn.action is None or turn.confidence is None:
            raise RowError(f"turn {number} can't be written again: it has no action or no confidence")
        return canonical(turn, several, wire)

    return words
