"""What the needle YAMLs call by `!function`. lmms-eval runs this file anew for every reference, so it keeps no state."""

from __future__ import annotations

import json
from typing import Any

from apr_plugin.config import needle_dir
from apr_plugin.scoring.answers import match_option, parse_number
from apr_plugin.scoring.intervals import parse_spans, set_iou
from apr_plugin.tasks.common.rows import NOT_READ, UNREADABLE, check_readable, table, unreadable

Doc = dict[str, Any]

HINTS = {
    "number": "Answer with one whole number only.",
    "spans": "Answer with the time span in seconds from the beginning of the video, as [[start, end]], and nothing else.",
    "option": "Answer with the option's letter only.",
}


def _docs(kind: str) -> Any:
    from loguru import logger

    from apr_plugin.tasks.needle.make import NeedleSpec, make_needle
    from apr_plugin.tasks.needle.read import read_docs

    folder, named = needle_dir()
    try:
        found = read_docs(folder)
    except FileNotFoundError as error:
        if named:
            raise FileNotFoundError(f"no needle set in {folder} (APR_NEEDLE_DIR): make it with `apr needle make --out {folder}`") from error
        found = read_docs(make_needle(folder, NeedleSpec()))
    docs = [doc for doc in found if doc["kind"] == kind]
    if not docs:
        raise ValueError(f"{folder} holds no {kind} questions; make them with: apr needle make --out DIR")
    rows, faults = table([{UNREADABLE: doc[UNREADABLE]} if UNREADABLE in doc else doc for doc in docs])
    if faults:
        at, why = faults[0]
        logger.warning(f"{len(faults)} of {len(docs)} {kind} questions in {folder} can't be read and count as wrong; the first is number {at}: {why}")
    return rows


def glyph_docs(_stub: Any) -> Any:
    """Questions about what is seen."""
    return _docs("glyph")


def when_docs(_stub: Any) -> Any:
    """Questions answered by a time span."""
    return _docs("when")


def sound_docs(_stub: Any) -> Any:
    """Questions that join a tone to what is on screen."""
    return _docs("sound")


def count_docs(_stub: Any) -> Any:
    """Questions answered by counting sounds."""
    return _docs("count")


def order_docs(_stub: Any) -> Any:
    """Questions about which of two comes first."""
    return _docs("order")


def doc_to_visual(doc: Doc) -> list[str]:
    """The video's path.

    Raises:
        AprError: the row can't be read.
    """
    check_readable(doc)
    return [doc["video"]]


def doc_to_text(doc: Doc, lmms_eval_specific_kwargs: Doc | None = None) -> str:
    """The question, its options, and how the answer is written."""
    if unreadable(doc):
        return str(NOT_READ)
    hint = HINTS["spans" if doc["kind"] == "when" else "option" if doc["options"] else "number"]
    return "\n".join([doc["question"], *(f"{label}. {text}" for label, text in _options(doc)), hint])


def doc_to_target(doc: Doc) -> str:
    """The right answer in its canonical form; only logged."""
    if unreadable(doc) is not None:
        return ""
    return json.dumps(doc["answer_spans"]) if doc["kind"] == "when" else str(doc["answer"])


def process_results(doc: Doc, results: list[Any]) -> dict[str, float]:
    """Score one answer in [0, 1], overall and under its duration bucket.

    An answer that can't be read scores 0 and stays in the denominator. Safe in threads; never raises on what a model wrote.
    """
    if unreadable(doc) is not None:
        return {"score": 0.0}
    text = str(results[0]) if results and results[0] is not None else ""
    bucket = doc["bucket"]
    if doc["kind"] == "when":
        iou = set_iou(parse_spans(text), [(start, end) for start, end in doc["answer_spans"]])
        return {"score": iou, "r1_iou_0.5": float(iou >= 0.5), f"miou_{bucket}": iou}
    right = match_option(text, _options(doc)) == doc["answer"] if doc["options"] else parse_number(text) == float(doc["answer"])
    return {"score": float(right), f"acc_{bucket}": float(right)}


def _options(doc: Doc) -> list[tuple[str, str]]:
    return [("ABCDEFGHIJ"[i], text) for i, text in enumerate(doc["options"])]
