"""Functions that the YAMLs call when lmms-eval runs one of our tasks: documents, a question's media, a reply's text."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from apr_plugin.errors import AprError
from apr_plugin.scoring.text import NO_ANSWER
from apr_plugin.tasks.common.rows import Row, check_readable, table

if TYPE_CHECKING:
    from apr_plugin.tasks.common.catalogue import Source


def docs(
    source: Source, ask: Callable[..., str] | None = None, score: Callable[[Row, list[Any]], Any] | None = None
) -> Any:
    """A source's documents as a `datasets.Dataset`, for `process_docs`.

    It logs how many questions lack their video; these count as wrong.

    Args:
        source: The task's source.
        ask: The task's `doc_to_text`, if it is not this package's own; a row on which it fails can't be read.
        score: The task's `process_results`, with the same meaning.

    Raises:
        AprError: as `Source.documents`; under lmms-eval's own command line the process ends with that message instead
            of five more attempts.
    """
    from loguru import logger

    from apr_plugin.harnesses.lmms_eval.ending import end_with

    try:
        documents = source.documents()
    except AprError as error:
        end_with(error)
    if source.n and len(documents) != source.n:
        logger.warning(
            f"{source.task}: the annotations have {len(documents)} questions, the official split {source.n}: "
            "a score does not cover the whole benchmark"
        )
    absent = sum(not document["apr_present"] for document in documents)
    if absent:
        logger.warning(
            f"{source.task}: {absent} of {len(documents)} questions lack their video in "
            f"{source.video_folders[0]} and count as wrong; "
            f"`score_present` leaves them out. "
            + (f"List the files with: apr tasks check {source.task}" if source.n else "Make the set again.")
        )

    def attempt(document: Row) -> None:
        if ask is not None:
            ask(document, {"pre_prompt": "", "post_prompt": ""})
        if score is not None:
            score(document, [""])

    state = random.getstate()  # some official scorers guess
    found, faults = table(documents, attempt)
    random.setstate(state)
    if len(faults) == len(documents):
        end_with(
            AprError(
                f"{source.title}: no question of {source.named_files} can be read; the first: {faults[0][1]}; "
                "download it again"
            )
        )
    if faults:
        logger.warning(
            f"{source.task}: {len(faults)} of {len(documents)} questions of {source.named_files} can't be "
            "read and count as wrong; "
            f"the first is question {faults[0][0]} (counted from 0): {faults[0][1]}"
        )
    return found


def doc_to_visual(doc: Row) -> list[str]:
    """The paths of a question's videos; for YAML: `!function apr_plugin.tasks.common.doc_to_visual`.

    Raises:
        AprError: the row can't be read.
    """
    check_readable(doc)
    return list(doc["apr_videos"])


def reply(results: Sequence[Any]) -> str:
    """The text of a model's reply; empty if there is no answer at all, so that no scorer guesses."""
    text = "" if not results or results[0] is None else str(results[0])
    return "" if text.strip() in ("", NO_ANSWER) else text
