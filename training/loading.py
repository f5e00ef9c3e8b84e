"""From rows to model inputs: the prompt by replay, its media read from the videos, and the target.

The row of a chat has its prompt and its target from the line of the chat.

`RowCollator` is a `data_collator` of a trainer; it works in worker processes too. Media is decoded for each row, unless
a cache of percepts is given (`training.percepts`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from apr_plugin.loop.card import Card
from apr_plugin.loop.percepts import Percepts
from apr_plugin.loop.policy import Prompt
from apr_plugin.loop.replay import replay
from apr_plugin.loop.trajectory import Trajectory, Turn
from apr_plugin.loop.wires import Wire
from apr_plugin.models.batch import Example, batch_of
from apr_plugin.training.chats import prompt_of
from apr_plugin.training.making import Find, read_line, words_of
from apr_plugin.training.rows import Row, RowError, as_row, line_digest
from apr_plugin.training.student import Student
from apr_plugin.training.targets import canonical, with_end


class RowLoader:
    """Rebuilds rows.

    Args:
        student: The model that is trained; it must read prompts as the one for which the rows were made.
        find: Gives the present path of a video from the path in a question.
        other_versions: Whether to continue with another release of PyAV, although its pixels may differ.
        percepts: Where the pictures and the sound of looks are kept; by default they are decoded each time.
    """

    def __init__(
        self,
        student: Student,
        *,
        find: Find | None = None,
        other_versions: bool = False,
        percepts: Percepts | None = None,
    ) -> None:
        self.student = student
        self.percepts = percepts
        self._find = find
        self._other_versions = other_versions
        self._cards: dict[str, Card] = {}

    def prompt(self, row: Row, *, blank: bool = False) -> tuple[Prompt, tuple[int, ...]]:
        """The prompt of a row, with its media, and the ids of its target.

        Args:
            row: The row.
            blank: Whether media is black and silent, of the true sizes, and nothing is decoded.

        Raises:
            AprError: the trajectory, its card, a video or the file of chats is gone or has changed.
        """
        line = read_line(row.file, row.start)
        if line_digest(line) != row.digest:
            raise RowError(f"{row.where}: the line has changed since the rows were made; make them again")
        if row.target == "chat":
            return prompt_of(row, line, self.student)
        trajectory = Trajectory.from_json(line.decode("utf-8", "replace"), f"{row.file}, byte {row.start}")
        if row.card not in self._cards:
            self._cards[row.card] = Card.read(row.card)
        wire = self._cards[row.card].config.form
        found = replay(
            trajectory,
            self._cards[row.card],
            find=self._find,
            other_versions=self._other_versions,
            turns=(row.turn,),
            blank=blank,
            words=words_of(trajectory, row.rewritten, wire),
            percepts=self.percepts,
            most_pixels=row.most_pixels,
        )
        for prompt, turn in found:
            return prompt, self._target(row, turn, several=len(trajectory.question.videos) > 1, wire=wire)
        raise RowError(f"{row.where}: the trajectory has no such turn; make the rows again")

    def check(self, row: Row) -> None:
        """Rebuild a row without decoding: are its trajectory, card and videos there and unchanged, and its length?

        Raises:
            AprError: see `example`.
        """
        prompt, target = self.prompt(row, blank=True)
        self._compare(row, self.student.encoder.count(prompt).total, len(target))

    def example(self, row: Row | Mapping[str, Any]) -> Example:
        """The encoded prompt of a row and its target.

        Raises:
            AprError: see `prompt`; or the student's tokens are not those for which the row was made.
        """
        row = as_row(row)
        prompt, target = self.prompt(row)
        try:
            encoded = self.student.encoder.encode(prompt)
        except ValueError as error:
            raise RowError(f"{row.where}: {error}") from error
        self._compare(row, len(encoded.ids), len(target))
        return Example(encoded, target)

    @staticmethod
    def _compare(row: Row, prompt: int, target: int) -> None:
        if (prompt, target) != (row.prompt_tokens, row.target_tokens):
            raise RowError(
                f"{row.where}: it has {prompt} and {target} tokens, and had {row.prompt_tokens} and "
                f"{row.target_tokens}; the rows were made for another checkpoint or another release, make them again"
            )

    def _target(self, row: Row, turn: Turn, several: bool, wire: Wire) -> tuple[int, ...]:
        student = self.student
        if row.target == "tokens":
            return with_end(turn.token_ids or (), student)
        return (*student.encoder.turn_ids(canonical(turn, several, wire)), student.end)


class RowCollator:
    """Makes a batch of rows: the arguments of the model's `forward`, with labels (see `models.batch.batch_of`).

    Args:
        loader: Rebuilds the rows.
        side: Where shorter rows are padded.
        mask: Whether there is an attention mask; `None`: only if rows are padded.
        complete: Changes the examples of a batch before they are joined (`sft.dummies.Dummies.complete`).
        distinct: Whether equal pictures are given once (`models.batch.media_of`).
    """

    def __init__(
        self,
        loader: RowLoader,
        *,
        side: Literal["left", "right"] = "right",
        mask: bool | None = None,
        complete: Callable[[Sequence[Example]], list[Example]] | None = None,
        distinct: bool = False,
    ) -> None:
        self.loader = loader
        self.side: Literal["left", "right"] = side
        self.mask = mask
        self.complete = complete
        self.distinct = distinct

    def __call__(self, rows: Sequence[Row | Mapping[str, Any]]) -> dict[str, Any]:
        """One batch of these rows, on the CPU.

        Raises:
            AprError: a row can't be rebuilt; the message names it.
        """
        return self.batch([self.loader.example(row) for row in rows])

    def batch(self, examples: Sequence[Example]) -> dict[str, Any]:
        """One batch of these examples, on the CPU."""
        student = self.loader.student
        return batch_of(
            list(examples) if self.complete is None else self.complete(examples),
            student.family,
            pad=student.pad,
            side=self.side,
            placeholders=student.encoder.ids_of.values(),
            mask=self.mask,
            distinct=self.distinct,
        )
