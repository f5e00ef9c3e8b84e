"""LVBench: `{uid: letter}`, the answer file of its own `scripts/test_acc.py`.

Source: github.com/THUDM/LVBench (now zai-org/LVBench) at f998d95541cd5f0953c52449b185c6467b9b099d: the form in
`scripts/construct_random_answers.py`, the scoring in `lvbench/metrics/compute_accuracy.py`. It compares strings
exactly, and a uid that is missing leaves the denominator. So every uid is written, and one without an answer as the
empty text, which equals no letter and therefore counts as wrong.
"""

from __future__ import annotations

from pathlib import Path

from apr_plugin.errors import AprError
from apr_plugin.report.export.submission import Submission, documents, join, logged, pick_tasks, tally, trajectories
from apr_plugin.runs.opened import Run
from apr_plugin.tasks.common.catalogue import sources
from apr_plugin.tasks.common.rows import unreadable

TASKS = ("apr_lvbench", "lvbench")

HOW = [
    "The board takes the `result.json` that the official script makes of this file, with fractions per question "
    "type: clone github.com/zai-org/LVBench, put the benchmark's `video_info.meta.jsonl` into `data/` and this file "
    "as `scripts/random_answers.json` (the name is fixed in the script), `pip install -e . jsonlines`, and in "
    "`scripts` run `python test_acc.py`.",
    "The script compares strings exactly and leaves uids that are missing out of its denominator. Every uid is in "
    "this file; one without an answer has the empty text, which counts as wrong. A question with several types "
    "counts in each.",
    "Send `result.json` at https://huggingface.co/spaces/THUDM/LVBench. LVBench issue 17 (open, not answered) "
    "reports that this link has expired; the issue tracker is the way that is left.",
]


def submission(run: Run, annotations: Path | None) -> Submission:
    """Every uid of LVBench with the answered letter.

    Raises:
        AprError: the run has no question of LVBench, or the annotations, which alone hold the uids, are not here.
    """
    (task, *_) = pick_tasks(run, TASKS, "LVBench")
    rows = documents("apr_lvbench", annotations)
    if isinstance(rows, str):
        raise AprError(f"{rows}, or name the file with --annotations: its uids are in no file of the run")
    asked = join(rows, trajectories(run, task), logged(run, task), "LVBench")
    notes = tally(asked, sources()["apr_lvbench"].n)
    if lost := sum(unreadable(one.row) is not None for one in asked):
        notes.append(f"{lost} rows of the annotations can't be read and have no uid; they are not in the file")
    content = {str(one.row["uid"]): one.letter for one in asked if unreadable(one.row) is None}
    if empty := sum(not letter for letter in content.values()):
        notes.append(
            f'{empty} of {len(content)} uids have the empty text "" as answer, which the official script counts as '
            "wrong"
        )
    return Submission("LVBench", "lvbench_answers.json", content, HOW, notes)
