"""A needle set's questions from a file that another hand may have spoiled: one that can't be read stands for itself alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apr_plugin.tasks.common.rows import FAULTS, UNREADABLE, number, reason
from apr_plugin.tasks.needle.make import BUCKETS, DOCS_NAME, finished
from apr_plugin.tasks.needle.questions import Kind


def read_docs(out_dir: Path | str) -> list[dict[str, Any]]:
    """The documents of a needle set, with absolute video paths.

    In place of one that can't be read stand its `kind`, where that can be read, else the first there is, and `apr_unreadable`, the reason.

    Raises:
        FileNotFoundError: the folder holds no finished set.
    """
    out = finished(out_dir)
    lines = (out / DOCS_NAME).read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    return [_read(line, at, out) for at, line in enumerate(lines, 1) if line.strip()]


def _read(line: str, at: int, out: Path) -> dict[str, Any]:
    kind = next(iter(Kind))
    try:
        doc: dict[str, Any] = json.loads(line)
        kind = Kind(doc["kind"])
        _check(doc)
        return {**doc, "video": str(out / doc["video"])}
    except FAULTS as error:
        return {"kind": kind.value, UNREADABLE: f"line {at}: {reason(error)}"}


def _check(doc: Mapping[str, Any]) -> None:
    """See that a document can be asked and scored.

    Raises:
        KeyError, TypeError, ValueError: it can't.
    """
    options = doc["options"]
    if not isinstance(options, list) or not all(isinstance(text, str) for text in (doc["question"], doc["video"], doc["bucket"], *options)):
        raise TypeError("question, video, bucket and options are not all text")
    if doc["bucket"] not in BUCKETS:
        raise ValueError(f"there is no bucket {doc['bucket'][:40]!r}")
    if doc["kind"] == Kind.WHEN:
        if not [(number(start), number(end)) for start, end in doc["answer_spans"]]:
            raise ValueError("it has no right span")
    elif options:
        if not isinstance(doc["answer"], str) or len(options) > 10:
            raise TypeError("its answer is no letter")
    else:
        number(doc["answer"])
