"""The truths of a run's questions: a file beside its trajectories, written while it is evaluated and read afterwards.

A truth is never part of a question, a prompt or a trajectory. It is joined to them by task, split and doc id.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apr_plugin.loop.files import append_line, lines
from apr_plugin.scoring.truth import Evidence, Truth

SCHEMA = "apr.truth"
VERSION = 1

TRUTHS_FILE = "truths.ndjson"
"""Its name in a run's folder. It is JSON Lines; files of trajectories, which tasks name, end otherwise."""

DocKey = tuple[str, str, str]
"""Task, split and doc id: what names a document. All repeats of a question have one truth."""

_log = logging.getLogger(__name__)


def write_truths(folder: Path, truths: Mapping[DocKey, Truth]) -> None:
    """Add the truths that the folder does not have yet. Several processes may call this.

    Raises:
        TrajectoryError: the file can't be written.
    """
    known = read_truths(folder)
    for key, truth in truths.items():
        if known.get(key) != truth:
            append_line(folder / TRUTHS_FILE, _line(key, truth))


def read_truths(folder: Path) -> dict[DocKey, Truth]:
    """The truths of a run; empty if its tasks gave none. Of two truths of a document, the later one counts."""
    path = folder / TRUTHS_FILE
    if not path.is_file():
        return {}
    found: dict[DocKey, Truth] = {}
    for number, _, line in lines(path):
        try:
            data = json.loads(line)
            key = (str(data["task"]), str(data["split"]), str(data["doc_id"]))
            found[key] = _truth(data)
        except (ArithmeticError, ValueError, KeyError, TypeError, RecursionError) as error:  # an infinite number, too
            _log.warning("%s, line %d: no truth (%s); left out", path, number, type(error).__name__)
    return found


def _line(key: DocKey, truth: Truth) -> str:
    task, split, doc_id = key
    answer = truth.answer if isinstance(truth.answer, str) else list(truth.answer)
    evidence = [[part.start_s, part.end_s, part.video] for part in truth.evidence]
    data = {"schema": SCHEMA, "version": VERSION, "task": task, "split": split, "doc_id": doc_id}
    return json.dumps(data | {"answer": answer, "evidence": evidence})


def _truth(data: Mapping[str, Any]) -> Truth:
    answer = data["answer"]
    evidence = tuple(Evidence(float(start), float(end), int(video)) for start, end, video in data["evidence"])
    return Truth(answer if isinstance(answer, str) else tuple(map(str, answer)), evidence)
