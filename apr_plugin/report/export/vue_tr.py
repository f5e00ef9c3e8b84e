"""VUE-TR and VUE-TR-V2: a list of `{query_id, video_id, duration, query, answer: [[start_s, end_s]], task}`.

Source: github.com/bytedance/vidi at fc30c870843a8e8e76864702b48b400b712fe0a8, `VUE_TR/README.md` and
`VUE_TR/qa_eval.py` (`VUE_TR_V2/qa_eval.py` likewise). There is no server. The script scores the queries in the file
alone, so every query is written; one without an answer has `[]`, which its IoU and recall count as 0, and which version
1 of its precision leaves out.
"""

from __future__ import annotations

from pathlib import Path

from apr_plugin.report.export.submission import (
    Asked,
    Row,
    Submission,
    documents,
    join,
    logged,
    pick_tasks,
    tally,
    trajectories,
)
from apr_plugin.runs.opened import Run
from apr_plugin.scoring.intervals import parse_spans
from apr_plugin.tasks.common.catalogue import sources
from apr_plugin.tasks.common.rows import unreadable

_COLUMNS = ("query_id", "video_id", "duration", "query", "task")


def submission(run: Run, annotations: Path | None) -> Submission:
    """VUE-TR; see the module.

    Raises:
        AprError: the run has no question of it.
    """
    return _submission(run, annotations, "", "VUE-TR", "VUE_TR")


def submission_v2(run: Run, annotations: Path | None) -> Submission:
    """VUE-TR-V2; see the module.

    Raises:
        AprError: the run has no question of it.
    """
    return _submission(run, annotations, "_v2", "VUE-TR-V2", "VUE_TR_V2")


def _submission(run: Run, annotations: Path | None, version: str, title: str, folder: str) -> Submission:
    whole = f"apr_vue_tr{version}"
    tasks = pick_tasks(run, [whole, *(f"{whole}_{part}" for part in ("vision", "vision_audio", "audio"))], title)
    notes: list[str] = []
    asked: dict[str, Asked] = {}
    for task in tasks:
        found, lines = trajectories(run, task), logged(run, task)
        rows = documents(task, annotations)
        if isinstance(rows, str):
            notes.append(
                f"{task}: {rows}. Without them only the queries of the run are written, from lmms-eval's samples"
            )
            joined = [Asked(_row(lines.get(doc_id, {})), one) for doc_id, one in found.items()]
        else:
            joined = join(rows, found, lines, title)
        for number, one in enumerate(joined):
            name = str(one.row.get("query_id", f"{task} {number}"))
            if name not in asked or asked[name].trajectory is None:
                asked[name] = one
    listed = list(asked.values())
    known = [one for one in listed if "query_id" in one.row and unreadable(one.row) is None]
    notes = [*tally(listed, sources()[whole].n), *notes]
    if len(known) < len(listed):
        notes.append(
            f"{len(listed) - len(known)} queries have no query_id, in the annotations or in the samples; they are not "
            "in the file"
        )
    content = [{name: one.row.get(name) for name in _COLUMNS} | {"answer": _spans(one)} for one in known]
    for row in content:
        row["task"] = row["task"] or "temporal_retrieval"
    content.sort(
        key=lambda row: (0, row["query_id"], "") if isinstance(row["query_id"], int) else (1, 0, str(row["query_id"]))
    )
    if empty := sum(not row["answer"] for row in content):
        notes.append(f"{empty} of {len(content)} queries have no span; the official IoU and recall count them as 0")
    how = [
        f"There is no server: score it with the official script, in `{folder}` of github.com/bytedance/vidi: `python3 "
        "-u qa_eval.py --pred_path FILE` (it reads the shipped results of other models too), or with `apr score "
        f"{whole.removeprefix('apr_')} --ground-truth GT.json --predictions FILE`, which gives the same figures and, "
        "beside them, those with missing queries as 0.",
        "The script scores the queries in the file alone. Its precision in version 1 leaves out queries without a "
        "span.",
    ]
    return Submission(title, f"results_{folder}.json", content, how, notes)


def _row(line: Row) -> Row:
    """What the task logs of a query."""
    found = line.get("prediction")
    return found if isinstance(found, dict) and isinstance(found.get("query_id"), int) else {}


def _spans(one: Asked) -> list[list[float]]:
    found = one.trajectory
    if found is None or found.answer is None:
        return []
    return [[float(start), float(end)] for start, end in parse_spans(found.answer)]
