"""The functions of the YAML's `!function`; lmms-eval loads this file again for every reference, so it has no state."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

from apr_plugin.scoring.truth import Truth
from apr_plugin.tasks.common import NOT_READ, File, Row, Source, lmms, reply, unreadable

MODULE = "lmms_eval.tasks.longvideobench.utils"

GROUPS = {15: "8-15s", 60: "15-60s", 600: "180-600s", 3600: "900-3600s"}
"""The column `duration_group` and its meaning; the label counts, because a few measured durations are outside it."""

SOURCE = Source(
    task="apr_longvideobench",
    folder="longvideobench",
    title="LongVideoBench (validation)",
    kind="mcq",
    n=1337,
    licence="CC BY-NC-SA 4.0, gated",
    homepage="https://github.com/longvideobench/LongVideoBench",
    files=(File("validation-00000-of-00001.parquet", hub="longvideobench/LongVideoBench"),),
    needs=("question", "correct_choice", "option0", "option1"),
    videos_of=lambda row: [row["video_path"]],
    seconds_of=lambda row: float(row["duration"]),
    labels_of=lambda row, seconds: [GROUPS[int(row["duration_group"])]],
    buckets=tuple(GROUPS.values()),
    harness_folders=("datasets/longvideobench/videos",),
    truth_of=lambda doc: Truth("ABCDE"[doc["correct_choice"]]),
)


def official() -> Any:
    """lmms-eval's module.

    It imports decord for another of its tasks; if that is absent, an empty module replaces it during the import.
    """
    if MODULE in sys.modules:
        return importlib.import_module(MODULE)  # waits for another thread that is loading it
    absent = importlib.util.find_spec("decord") is None
    if absent:
        stand_in = ModuleType("decord")
        stand_in.VideoReader = stand_in.cpu = None  # type: ignore[attr-defined]
        sys.modules["decord"] = stand_in
    try:
        return importlib.import_module(MODULE)
    finally:
        if absent:
            sys.modules.pop("decord", None)


def docs(_stub: Any) -> Any:
    """The official rows."""
    return lmms.docs(SOURCE, doc_to_text, process_results)


def doc_to_text(doc: Row, lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """lmms-eval's prompt, without subtitles."""
    if unreadable(doc):
        return str(NOT_READ)
    return str(official().longvideobench_doc_to_text(doc, dict(lmms_eval_specific_kwargs or {})))


def process_results(doc: Row, results: list[Any]) -> dict[str, Any]:
    """Score by lmms-eval's parser, overall and by duration group.

    A reply that the parser can't read is wrong here and a guess in `lvb_acc`.
    """
    if unreadable(doc):
        return dict(SOURCE.scored(doc, 0.0))
    utils, text = official(), reply(results)
    read = utils.parse_multi_choice_response(text, ["?"], {})  # it guesses among these
    scored: dict[str, Any] = SOURCE.scored(doc, read == "ABCDE"[doc["correct_choice"]])
    return {**scored, "lvb_acc": utils.longvideobench_process_results(doc, [text])["lvb_acc"]}


def official_accuracy(results: list[Any]) -> float:
    """lmms-eval's aggregation."""
    return float(official().longvideobench_aggregate_results(results))
