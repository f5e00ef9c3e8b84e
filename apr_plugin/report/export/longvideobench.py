"""LongVideoBench: `{id: letter}`, of the test split for the board, of the validation split to compare.

Source: lmms-eval 0.7.3, `tasks/longvideobench/utils.py`, `longvideobench_aggregate_results_for_submission`, which
writes `longvideobench_test_for_submission.json` with one prediction for each `id`;
github.com/longvideobench/LongVideoBench at fc3c553250cfee6853a722f9b181f1b69f478426 names that evaluation in its README
and has no script of its own. The board's test split has no public answers; `apr_longvideobench` asks the validation
split.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

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

TEST = ("longvideobench_test_v", "longvideobench_test_i")
VALIDATION = ("apr_longvideobench", "longvideobench_val_v", "longvideobench_val_i")

HOW_TEST = [
    "The board (https://huggingface.co/spaces/longvideobench/LongVideoBench) takes this file. Mail to the authors' "
    "addresses is reported as undeliverable (LongVideoBench issue 15), and where to send the test split was asked "
    "without an answer (issue 14); try the Space's discussions.",
]
HOW_VALIDATION = [
    "This is the validation split, whose answers are public. The board takes the test split alone: run lmms-eval's "
    "`longvideobench_test_v` with `apr eval`, and export that run.",
    "Mail to the authors' addresses is reported as undeliverable (LongVideoBench issue 15).",
]


def submission(run: Run, annotations: Path | None) -> Submission:
    """The answered letter by question id; the empty text where there is none.

    Ids come from the annotations, or else from lmms-eval's samples.

    Raises:
        AprError: the run has no question of LongVideoBench.
    """
    (task, *_) = pick_tasks(run, (*TEST, *VALIDATION), "LongVideoBench")
    found, lines = trajectories(run, task), logged(run, task)
    test = task in TEST
    rows = "" if test else documents("apr_longvideobench", annotations)
    notes: list[str] = []
    if isinstance(rows, str):
        notes += [f"{rows}. Ids are from lmms-eval's samples, of the questions of the run alone"] if rows else []
        asked = [Asked(_row(lines.get(doc_id, {})), one, lines.get(doc_id, {})) for doc_id, one in found.items()]
    else:
        asked = join(rows, found, lines, "LongVideoBench")
    notes = [*tally(asked, 0 if test else sources()["apr_longvideobench"].n), *notes]
    known = [one for one in asked if "id" in one.row and unreadable(one.row) is None]
    if len(known) < len(asked):
        notes.append(
            f"{len(asked) - len(known)} questions have no id, in the annotations or in the samples (--log_samples); "
            "they are not in the file"
        )
    content = {str(one.row["id"]): one.letter for one in known}
    if empty := sum(not letter for letter in content.values()):
        notes.append(f'{empty} ids have the empty text "" as answer')
    name = "longvideobench_test_for_submission.json" if test else "longvideobench_validation.json"
    title = f"LongVideoBench ({'test' if test else 'validation'})"
    return Submission(title, name, content, HOW_TEST if test else HOW_VALIDATION, notes)


def _row(line: Mapping[str, object]) -> dict[str, object]:
    """The id that lmms-eval's scorer logs."""
    accuracy, sent = line.get("lvb_acc"), line.get("submission")
    if isinstance(accuracy, Mapping) and "id" in accuracy:
        return {"id": accuracy["id"]}
    return {"id": next(iter(sent))} if isinstance(sent, Mapping) and sent else {}
