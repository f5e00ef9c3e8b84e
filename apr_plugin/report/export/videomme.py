"""Video-MME: a list of videos, each with its three questions and the model's `response`.

Source: github.com/MME-Benchmarks/Video-MME at 06c2315b892f88578f81d73205d07cf576f292b9,
`evaluation/output_test_template.json` (whose trailing commas make it no JSON; this file is) and README, "Leaderboard".
Scored by `eval_your_results.py` of github.com/thanku-all/parse_answer at afd52cfe3dde5b3685e0d4f760c10c756860c758: it
takes the first of the capital letters A to D in a response, wants 300 videos of each duration, and leaves a response
without such a letter out of its denominator.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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

TASKS = ("apr_videomme", "videomme")

HOW = [
    "Send the file by mail to the address in the repository's README, section Leaderboard "
    "(https://github.com/MME-Benchmarks/Video-MME). Issues 38 and 39 (June and September "
    "2025) report mails without an answer.",
    "The published script is `eval_your_results.py` of github.com/thanku-all/parse_answer: `python "
    "eval_your_results.py --results_file FILE --video_duration_type short,medium,long`. It wants all 300 videos of "
    "each duration, and it leaves a response without one of the letters A to D out of its denominator. So its figure "
    "is too high where questions have no answer: the run's own card has the score over all of them.",
    "Say in the mail how many frames a question saw, and that no subtitles were shown.",
]


def submission(run: Run, annotations: Path | None) -> Submission:
    """Every question of Video-MME with the response, grouped by video.

    Without annotations the questions of the run alone are written, as lmms-eval's samples describe them.

    Raises:
        AprError: the run has no question of Video-MME.
    """
    (task, *_) = pick_tasks(run, TASKS, "Video-MME")
    found, lines = trajectories(run, task), logged(run, task)
    rows = documents("apr_videomme", annotations)
    notes: list[str] = []
    if isinstance(rows, str):
        notes.append(f"{rows}. Without them only the questions of the run are written, from lmms-eval's samples")
        asked = [Asked(_row(lines.get(doc_id, {})), one, lines.get(doc_id, {})) for doc_id, one in found.items()]
    else:
        asked = join(rows, found, lines, "Video-MME")
    notes = [*tally(asked, sources()["apr_videomme"].n), *notes]
    if unknown := sum("question_id" not in one.row or unreadable(one.row) is not None for one in asked):
        notes.append(
            f"{unknown} questions have no question_id, in the annotations or in the samples; they are not in the file"
        )
    videos: dict[str, dict[str, Any]] = {}
    empty = 0
    for one in asked:
        if "question_id" not in one.row or unreadable(one.row) is not None:
            continue
        row = one.row
        video = str(row.get("video_id") or str(row["question_id"]).rpartition("-")[0])
        about = {name: row.get(name) for name in ("duration", "domain", "sub_category")}
        entry = videos.setdefault(video, {"video_id": video, **about, "questions": []})
        empty += not one.reply
        entry["questions"].append(
            {
                "question_id": str(row["question_id"]),
                "task_type": row.get("task_type"),
                "question": row.get("question") or (one.trajectory.question.text if one.trajectory else ""),
                "options": list(row.get("options") or _options(one)),
                "answer": row.get("answer"),
                "response": one.reply,
            }
        )
    if empty:
        notes.append(
            f"{empty} responses are empty: the published script leaves them out of its denominator instead of "
            "counting them as wrong"
        )
    per = {name: sum(video["duration"] == name for video in videos.values()) for name in ("short", "medium", "long")}
    if any(count != 300 for count in per.values()):
        told = ", ".join(f"{name} {count}" for name, count in per.items())
        notes.append(f"the published script wants 300 videos of each duration and stops with fewer; here: {told}")
    content = sorted(videos.values(), key=lambda video: str(video["video_id"]))
    return Submission("Video-MME", "videomme_results.json", content, HOW, notes)


def _row(line: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that lmms-eval's scorer logs, under the benchmark's own names."""
    logged = line.get("videomme_perception_score")
    if not isinstance(logged, Mapping) or not isinstance(logged.get("question_id"), str):
        return {}
    names = {"duration": "duration", "category": "domain", "sub_category": "sub_category", "task_category": "task_type"}
    return {own: logged.get(theirs) for theirs, own in names.items()} | {
        "question_id": logged["question_id"],
        "answer": logged.get("answer"),
    }


def _options(one: Asked) -> list[str]:
    return [f"{option.label}. {option.text}" for option in one.trajectory.question.options] if one.trajectory else []
