"""What a reader returns: a `Reading`, or a `DocError` that says what the doc lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from apr_plugin.loop.question import Option, QuestionKind


@dataclass(frozen=True)
class Reading:
    """One harness request after reading: the question, and how to write its answer for the task's own scorer."""

    text: str
    """The question, without its options and without endings such as "answer with the letter".

    It includes the subtitles if the task shows them.
    """

    kind: QuestionKind
    """The kind of the question, which says how it is answered."""

    options: tuple[Option, ...] = ()
    """The options of an `mcq` question, labelled as the scorer labels them."""

    answer_hint: str = ""
    """How to write the answer, if the kind does not say everything ("in centimetres")."""

    write: Callable[[str], str] = str
    """Turns the canonical answer (label, `[[start, end], ...]`, number or text) into text for the task's scorer.

    Anything else is returned unchanged.
    """


Reader = Callable[[Mapping[str, Any], str], Reading]
"""(raw doc, prompt text) -> `Reading`. A reader never looks at a column that contains the right answer."""


class DocError(ValueError):
    """A doc does not have the shape that its reader expects; the message says in a few words what is missing."""


def column(doc: Mapping[str, Any], name: str) -> Any:
    """The value of a column; raises a `DocError` if the doc does not have it."""
    value = doc.get(name)
    if value is None:
        raise DocError(f"no column {name!r}")
    return value
