"""A message becomes a question: by the data set that built it, or from its words alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from apr_plugin.errors import told
from apr_plugin.harnesses.media import picture
from apr_plugin.harnesses.readers import Reading, read_prompt
from apr_plugin.harnesses.readers.prompt import paragraphs, strip_instructions
from apr_plugin.harnesses.vlmeval.message import Heard, read_message
from apr_plugin.harnesses.vlmeval.session import Asking, Truths
from apr_plugin.loop.policy import ImagePart
from apr_plugin.loop.question import MediaRef, Question, QuestionKind
from apr_plugin.loop.text import printable
from apr_plugin.media.confine import Roots
from apr_plugin.runs.truths import DocKey
from apr_plugin.scoring.truth import Truth


@dataclass(frozen=True)
class Asked:
    """One request of VLMEvalKit."""

    asking: Asking
    """The question, and what comes with it."""

    write: Callable[[str], str] = str
    """Turns the canonical answer into the text that the data set's scorer reads."""


class Rows(Protocol):
    """A data set of ours, or one of VLMEvalKit's under our name, in the process that evaluates."""

    def asked(self, index: str, heard: Heard) -> Asked:
        """What the row with this index asks; `heard` is the message that was built from it."""
        ...

    def key(self, index: str) -> tuple[str, str, str]:
        """Task, split and doc id of the row."""
        ...

    def truths(self) -> dict[DocKey, Truth]:
        """What is right, by document, where it is known."""
        ...


DATASETS: dict[str, Rows] = {}
"""The data sets that were made in this process, by the name under which VLMEvalKit knows them."""


def read_request(message: Any, dataset: str, media_root: Roots) -> Asked:
    """The question in a message. It never raises: a request that can't be read becomes a question that fails.

    Args:
        message: In any of VLMEvalKit's forms.
        dataset: The name that VLMEvalKit passes with it; used where the message does not name its row.
        media_root: A folder that has to contain every file (`media_root=`).
    """
    try:
        heard = replace(read_message(message), media_root=media_root)
    except Exception as error:  # noqa: BLE001 - it comes from others
        return unreadable(dataset, "", "unreadable", told(error))
    name, index = heard.marked.get("dataset", dataset), heard.marked.get("index", "")
    rows = DATASETS.get(name)
    try:
        if fault := heard.marked.get("fault"):
            return unreadable(*((name, "", index) if rows is None else rows.key(index)), fault)
        if rows is not None and index:
            return rows.asked(index, heard)
        return from_words(heard, dataset)
    except Exception as error:  # noqa: BLE001 - a row comes from others and can raise anything
        return unreadable(name, "", index or heard.digest(), told(error))


def from_words(heard: Heard, task: str) -> Asked:
    """The question in the words of the message; a digest of it is its doc id."""
    reading = read_prompt({}, whole_prompt(heard))
    return build(reading, heard, task=task, doc_id=heard.digest(), reader="prompt")


def whole_prompt(heard: Heard) -> str:
    """The user's words, after what the system prompt says besides how to write the answer."""
    return paragraphs(strip_instructions(heard.system), heard.prompt)


def build(
    reading: Reading,
    heard: Heard,
    *,
    task: str,
    doc_id: str,
    reader: str,
    split: str = "",
    videos: Sequence[MediaRef] | None = None,
    evidence: Sequence[tuple[float, float]] = (),
    truths: Truths | None = None,
) -> Asked:
    """The request as it is answered. Without videos, the message's own files are what it is about."""
    refs = tuple(MediaRef(path=path) for path in heard.films) if videos is None else tuple(videos)
    left_out = f" ({len(heard.images)} pictures beside the video are not shown)" if refs and heard.images else ""
    question = Question(
        text=reading.text,
        kind=reading.kind,
        options=reading.options,
        answer_hint=reading.answer_hint,
        videos=refs,
        task=task,
        split=split,
        doc_id=doc_id,
        reader=reader + left_out,
    )
    pictures = partial(_pictures, heard.images, heard.media_root) if heard.images and not refs else None
    return Asked(Asking(question, pictures, tuple(evidence), truths), reading.write)


def unreadable(task: str, split: str, doc_id: str, why: str) -> Asked:
    """A question that can't be asked: it ends as `media_unreadable` with the reason."""
    question = Question(
        text="(this question can't be read)",
        kind=QuestionKind.FREE_FORM,
        videos=(MediaRef(path=f"<no question: {printable(why)[:500]}>"),),
        task=task,
        split=split,
        doc_id=doc_id,
    )
    return Asked(Asking(question))


def _pictures(paths: Sequence[str], media_root: Roots, pixels: int | None) -> list[ImagePart]:
    return [picture(path, media_root, pixels) for path in paths]
