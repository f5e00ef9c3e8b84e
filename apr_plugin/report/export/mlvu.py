"""MLVU: of the test split the file that its server takes, of the dev split what its own evaluation writes.

Source: github.com/JUNJIE99/MLVU at fd060c10a43ea48a35100a22688a927b8e531199: `evaluation_test/test_res.json` and
`evaluation_test/test_bench.py` (test: `question_id`, `question_type`, `option`);
`evaluation/multiple_choice_evaluation/choice_bench.py` (dev: `acc_dict` of [right, asked] for each task, `res_list`).
The dev split is scored by oneself, so its file holds the right answers too; its `check_ans` takes the letter before
`)`, or compares the whole reply with the letter, so that a letter alone is read right.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from apr_plugin.errors import AprError
from apr_plugin.files import read_regular
from apr_plugin.report.export.submission import (
    Asked,
    Submission,
    documents,
    join,
    logged,
    pick_tasks,
    tally,
    trajectories,
)
from apr_plugin.runs.opened import Run
from apr_plugin.tasks.common.catalogue import sources
from apr_plugin.tasks.common.rows import unreadable
from apr_plugin.terminal import quoted

TEST, DEV = "mlvu_test", ("apr_mlvu", "mlvu_dev")

HOW_TEST = [
    "The server that takes it is named in `evaluation_test/README.md` of github.com/JUNJIE99/MLVU; whether it still "
    "answers was not checked. Every question of the test file is in it; one without an answer has the empty text.",
]
HOW_DEV = [
    "The dev split is scored by oneself: `acc_dict` holds [right, asked] for each task, and M-Avg is the mean of the "
    "tasks' shares. For the table of the repository open an issue with it (github.com/JUNJIE99/MLVU).",
    "The server takes the test split alone: run lmms-eval's `mlvu_test` with `apr eval`, and export that run with "
    "`--annotations test_question.json`.",
]


def submission(run: Run, annotations: Path | None) -> Submission:
    """The test split's answers by question id, or the dev split as its own evaluation writes it.

    Raises:
        AprError: the run has no question of MLVU, or the file with the ids or the right answers is not here.
    """
    (task, *_) = pick_tasks(run, (TEST, *DEV), "MLVU")
    found, lines = trajectories(run, task), logged(run, task)
    if task == TEST:
        if annotations is None:
            raise AprError(
                "MLVU test: name the benchmark's test_question.json with --annotations; its question ids are in no "
                "file of the run"
            )
        asked = join(_test_rows(annotations), found, lines, "MLVU test")
        content: Any = [
            {
                "question_id": str(one.row["question_id"]),
                "question_type": one.row["question_type"],
                "option": one.letter,
            }
            for one in asked
        ]
        return Submission("MLVU (test)", "test_res.json", content, HOW_TEST, tally(asked))
    rows = documents("apr_mlvu", annotations)
    if isinstance(rows, str):
        raise AprError(f"MLVU dev: {rows}")
    asked = join(rows, found, lines, "MLVU")
    notes = tally(asked, sources()["apr_mlvu"].n)
    if lost := sum(unreadable(one.row) is not None for one in asked):
        notes.append(f"{lost} rows of the annotations can't be read; they are not in the file")
    return Submission("MLVU (dev)", "mlvu_dev_choice.json", _dev(asked), HOW_DEV, notes)


def _dev(asked: list[Asked]) -> dict[str, Any]:
    counted: dict[str, list[int]] = {}
    listed = []
    for one in asked:
        row = one.row
        if unreadable(row) is not None:
            continue
        right, total = counted.setdefault(str(row["task_type"]), [0, 0])
        counted[str(row["task_type"])] = [right + (one.letter == row["answer"]), total + 1]
        listed.append(
            {
                "pred": one.letter,
                "gt": f"({row['answer']}) {row['answer_text']}",
                "question": row["question"],
                "question_type": row["task_type"],
                "video": row["video_name"],
            }
        )
    return {"acc_dict": counted, "res_list": listed}


def _test_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of `test_question.json`."""
    try:
        rows = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError) as error:
        raise AprError(f"{path}: cannot read these annotations: {getattr(error, 'strerror', None) or error}") from error
    needed = ("question_id", "question_type", "question")
    if not isinstance(rows, list) or not rows:
        raise AprError(f"{path}: it is no list of questions; give MLVU's test_question.json")
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or any(not isinstance(row.get(name), str) for name in needed):
            raise AprError(f"{path}: row {number}: it lacks one of {', '.join(needed)}: {quoted(row, 80)}")
    return [{**row, "apr_videos": [row["video"]] if isinstance(row.get("video"), str) else []} for row in rows]
