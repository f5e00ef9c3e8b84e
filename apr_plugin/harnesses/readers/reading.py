"""What a reader hands back: a `Reading`, or a `DocError` that says what the doc lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from apr_plugin.loop.question import Option, QuestionKind


@dataclass(frozen=True)
class Reading:
    """One harness request, read: what is asked, and how its answer is written down for the task's own scorer."""

    text: str
    """The question, without its options and without endings such as "answer with the letter"; with the subtitles of a
    task that shows them."""

    kind: QuestionKind
    """How it is answered."""

    options: tuple[Option, ...] = ()
    """The options of an `mcq` question, labelled as the scorer labels them."""

    answer_hint: str = ""
    """How the answer is to be written, where the kind does not say all ("in centimetres")."""

    write: Callable[[str], str] = str
    """Canonical answer (label, `[[start, end], ...]`, number or text) -> the text the scorer reads right. Anything else
    is returned unchanged."""


Reader = Callable[[Mapping[str, Any], str], Reading]
"""(raw doc, prompt text) -> `Reading`. A reader never looks at a column that contains the right answer."""


class DocError(ValueError):
    """A doc is not of the shape its reader knows; the message says in a few words what is missing."""


def column(doc: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or a `DocError` where the doc has none."""
    value = doc.get(name)
    if value is None:
        raise DocError(f"no column {name!r}")
    return value
