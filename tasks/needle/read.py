"""A needle set as a `Source`: made on this machine if no folder is named.

Its questions are read from a file that somebody else may have damaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from apr_plugin.config import needle_dir
from apr_plugin.errors import AprError
from apr_plugin.loop.question import Question, QuestionKind
from apr_plugin.scoring.truth import Evidence, Truth, spans_text
from apr_plugin.scoring.writing import write_number
from apr_plugin.tasks.common.catalogue import File, Source
from apr_plugin.tasks.common.choices import question_of
from apr_plugin.tasks.common.rows import FAULTS, Row, Unreadable, number
from apr_plugin.tasks.needle.make import BUCKETS, DOCS_NAME, NeedleSpec, finished, make_needle
from apr_plugin.tasks.needle.questions import Kind

FORMS = {Kind.WHEN: QuestionKind.GROUNDING, Kind.COUNT: QuestionKind.NUMBER}
"""How a kind of question is answered; the other kinds are answered by an option."""

SPANS_HINT = "one or more time spans in seconds"
"""How an answer that is time spans is written."""


@dataclass(frozen=True)
class NeedleSet(Source):
    """One kind of question of the needle set in `APR_NEEDLE_DIR`, or of the default set.

    The default set is made when it is first needed.
    """

    @property
    def home(self) -> Path:
        """The folder of the set."""
        folder: Path = needle_dir()[0]
        return folder

    @property
    def video_folders(self) -> tuple[Path, ...]:
        """The folder of the set, in which its rows name their videos."""
        return (self.home,)

    def local_file(self, file: File) -> Path | None:
        """The rows of a finished set, or `None`."""
        try:
            folder = finished(self.home)
        except FileNotFoundError:
            return None
        return Path(folder, file.name)

    def fetch(self, file: File) -> Path:
        """Make the default set.

        Raises:
            AprError: a folder is named, and contains no set.
        """
        folder, named = needle_dir()
        if named:
            raise AprError(f"no needle set in {folder} (APR_NEEDLE_DIR): make it with `apr needle make --out {folder}`")
        made = make_needle(folder, NeedleSpec())
        return Path(made, file.name)


def needle_set(kind: Kind) -> NeedleSet:
    """The questions of one kind."""
    form = FORMS.get(kind, QuestionKind.MCQ)
    return NeedleSet(
        task=f"apr_needle_{kind}",
        folder="needle",
        title="Needle",
        kind=str(form),
        n=0,
        licence="made on this machine",
        homepage="",
        files=(File(DOCS_NAME),),
        rows_of=partial(_rows, kind),
        videos_of=lambda row: [row["video"]],
        seconds_of=lambda row: number(row["duration_s"]),
        labels_of=lambda row, seconds: [row["bucket"]],
        buckets=tuple(BUCKETS),
        prefix="iou_set" if kind is Kind.WHEN else "acc",
        question_of=asked,
        write=write_number if kind is Kind.COUNT else str,
        truth_of=truth_of,
    )


def asked(doc: Row) -> Question:
    """What a document asks."""
    if doc["options"]:
        question: Question = question_of(doc)
        return question
    form = FORMS[Kind(doc["kind"])]
    hint = SPANS_HINT if form is QuestionKind.GROUNDING else "a whole number"
    return Question(text=doc["question"].strip(), kind=form, answer_hint=hint)


def truth_of(doc: Row) -> Truth:
    """The right answer, and the events on which it rests."""
    answer = spans_text(doc["answer_spans"]) if doc["kind"] == Kind.WHEN else str(doc["answer"])
    return Truth(answer, tuple(Evidence(number(start), number(end)) for start, end in doc["spans"]))


def _rows(kind: Kind, contents: Sequence[Any]) -> Iterator[Row | Unreadable]:
    """The rows of one kind; rows that can't be read and have no kind count in the first kind."""
    for row in contents[0]:
        own, found = _read(row)
        if own is kind:
            yield found


def _read(row: Any) -> tuple[Kind, Row | Unreadable]:
    kind = next(iter(Kind))
    if isinstance(row, Unreadable):
        return kind, row
    try:
        kind = Kind(row["kind"])
        _check(row)
    except FAULTS as error:
        return kind, Unreadable.by(error)
    return kind, row


def _check(doc: Mapping[str, Any]) -> None:
    """Check that a document can be asked and scored.

    Raises:
        KeyError, TypeError, ValueError: it can't be asked or scored.
    """
    options = doc["options"]
    if not isinstance(options, list) or not all(
        isinstance(text, str) for text in (doc["question"], doc["video"], doc["bucket"], *options)
    ):
        raise TypeError("question, video, bucket and options are not all text")
    if doc["kind"] == Kind.WHEN:
        if options or not [(number(start), number(end)) for start, end in doc["answer_spans"]]:
            raise ValueError("it has options, or no right span")
    elif options:
        if not isinstance(doc["answer"], str) or len(options) > 10:
            raise TypeError("its answer is not a letter")
    else:
        number(doc["answer"])
