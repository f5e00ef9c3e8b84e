"""Options from a doc's columns, labelled as the task's prompt and scorer label them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import partial
from string import ascii_uppercase
from typing import Any

from apr_plugin.harnesses.readers.prompt import paragraphs, split_options, strip_instructions
from apr_plugin.harnesses.readers.reading import DocError, Reading
from apr_plugin.loop.question import Option, QuestionKind
from apr_plugin.scoring.options import split_label
from apr_plugin.scoring.writing import write_label

_NO_SUBTITLES = re.compile(r"this video's subtitles are listed below:\s*no subtitles available\.?", re.IGNORECASE)


def by_position(texts: Iterable[object], labels: str = ascii_uppercase) -> tuple[Option, ...]:
    """Options that the task's prompt labels itself, in their order.

    An option may look like "J. Smith" and keeps its J.
    """
    return _at_least_two(
        Option(label=label, text=str(text).strip()) for label, text in zip(labels, texts, strict=False)
    )


def by_prefix(texts: Iterable[object], labels: str = ascii_uppercase) -> tuple[Option, ...]:
    """Options that carry their label ("A. …", "(A) …", "**A.** …"), as the task's prompt shows them unchanged.

    If one of them has no label, all are labelled by position.

    A label can be skipped (some MMR-V questions have A, B, D): the printed labels count.
    """
    plain = [str(text) for text in texts]
    options = [Option(label=label, text=words) for label, words in filter(None, map(split_label, plain))]
    carried = {option.label for option in options}
    return (
        _at_least_two(options) if len(carried) == len(plain) and carried <= set(labels) else by_position(plain, labels)
    )


def by_key(options: object) -> tuple[Option, ...]:
    """Options from a dict of label -> text, or the JSON text of one.

    Labels that this question does not use have an empty value.
    """
    if isinstance(options, str):
        options = json.loads(options)
    if not isinstance(options, Mapping):
        raise DocError("options are not a dict")
    used = {str(label): str(text).strip() for label, text in options.items() if text is not None and str(text).strip()}
    return _at_least_two(Option(label=label, text=used[label]) for label in sorted(used))


def by_columns(doc: Mapping[str, Any], stem: str, count: int, absent: tuple[str, ...] = ()) -> tuple[Option, ...]:
    """Options from numbered columns (`a0`, `a1`, …), labelled by position.

    Args:
        doc: The raw document.
        stem: The columns' name without its number.
        count: How many columns there can be.
        absent: Texts that mean "no such option".
    """
    texts = [doc.get(f"{stem}{index}") for index in range(count)]
    if texts[0] is None:
        raise DocError(f"no column '{stem}0'")
    return by_position(text for text in texts if text is not None and str(text) not in absent)


def printed(options: object) -> tuple[Option, ...]:
    """Options as the prompt prints them: a list of labelled strings, or one string of labelled lines."""
    if isinstance(options, str):
        return _at_least_two(split_options(options).options)
    if isinstance(options, Iterable):
        return by_prefix(option for option in options if str(option).strip())
    raise DocError("options are neither a list nor text")


def mcq(
    question: object, options: tuple[Option, ...], *, context: str = "", written: Mapping[str, str] | None = None
) -> Reading:
    """An `mcq` reading; the bare label is returned unless `written` says otherwise.

    Args:
        question: The question without its options.
        options: Its options.
        context: What the prompt shows besides the question, such as subtitles.
        written: Label -> what is returned for it.
    """
    return Reading(
        text=paragraphs(context, str(question).strip()),
        kind=QuestionKind.MCQ,
        options=options,
        write=partial(write_label, written=written or {option.label: option.label for option in options}),
    )


def context_of(prompt: str, question: object, options: tuple[Option, ...]) -> str:
    """What a prompt shows besides question, options and instructions on the letter: subtitles, or where to look."""
    wanted = str(question).strip()
    start = prompt.rfind(wanted + "\n") if wanted else -1
    start = prompt.rfind(wanted) if wanted and start < 0 else start
    if start < 0:
        return ""
    after = start + len(wanted)
    last = prompt.rfind(options[-1].text, after) if options and options[-1].text else -1
    tail = prompt[last + len(options[-1].text) :] if last >= 0 else ""
    # "Question:" and a bare label before the question belong to it, not to the context.
    lead = re.sub(r"(?:\A|\n)[ \t]*question:[ \t]*\Z", "", prompt[:start], flags=re.IGNORECASE)
    return _NO_SUBTITLES.sub("", paragraphs(strip_instructions(lead), strip_instructions(tail))).strip()


def _at_least_two(options: Iterable[Option]) -> tuple[Option, ...]:
    listed = tuple(options)
    if len(listed) < 2:
        raise DocError(f"{len(listed)} options")
    return listed
