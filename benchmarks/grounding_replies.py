"""Computes the grounding tasks' scores for replies that are known beforehand.

It uses no model and no video, only annotations, which the tasks download.

    python -m benchmarks.grounding_replies                       # the reply to every question is the whole video
    python -m benchmarks.grounding_replies \
        --predictions apr_qvhighlights_val=sample_val_preds.jsonl \
        --predictions apr_vue_tr=results_Vidi.json

The first command shows the score of a reply that names everything, for comparison with an mIoU. The second passes
official prediction files through the tasks as replies, so that the figures can be compared with the official ones:
`standalone_eval/sample_val_preds.jsonl` of jayleicn/moment_detr with its `sample_val_preds_metrics_raw.json`,
`VUE_TR*/results_*.json` of bytedance/vidi with its `results_table.csv`.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from tqdm import tqdm

from apr_plugin.errors import AprError
from apr_plugin.tasks.activitynet_captions import utils as activitynet
from apr_plugin.tasks.charades_sta import utils as charades
from apr_plugin.tasks.common import Source
from apr_plugin.tasks.longvale import utils as longvale
from apr_plugin.tasks.qvhighlights import utils as qvhighlights
from apr_plugin.tasks.tacos import utils as tacos
from apr_plugin.tasks.vue_tr import utils as vue

Score = Callable[[Any, list[Any]], Mapping[str, Any]]

TASKS: dict[str, tuple[Source, Score]] = {
    source.task: (source, score)
    for source, score in (
        (charades.SOURCE, charades.process_results),
        (activitynet.SOURCE, activitynet.process_results),
        (activitynet.VAL, activitynet.process_results),
        (tacos.SOURCE, tacos.process_results),
        (longvale.SOURCE, longvale.process_results),
        (qvhighlights.SOURCE, qvhighlights.process_results),
        (qvhighlights.VAL, qvhighlights.process_results),
        (vue.ALL, vue.process_results),
        (vue.ALL_V2, vue.process_results),
    )
}
SHOWN = ("score", "r1_hull_0.3", "r1_hull_0.5", "r1_hull_0.7", "r1_best_0.5", "r1_best_0.7", "map", "map_0.5",
    "map_0.75", "map_long", "map_middle",
         "map_short", "vue_iou", "vue_precision", "vue_recall", "no_span")  # fmt: skip


def whole_video(row: Mapping[str, Any]) -> str:
    """The reply that names the whole video."""
    return json.dumps([[0, row["duration"]]])


def predicted(path: Path) -> Callable[[Mapping[str, Any]], str | None]:
    """The replies of an official prediction file; `None` for a question that it lacks."""
    text = path.read_text("utf-8")
    lines = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    replies: dict[int, str] = {}
    for line in lines:
        if "pred_relevant_windows" in line:
            replies[line["qid"]] = json.dumps([window[:2] for window in line["pred_relevant_windows"]])
        else:
            replies[line.get("query_id", line.get("id"))] = json.dumps([span for span in line["answer"] if span])
    return lambda row: replies.get(row.get("qid", row.get("query_id")))


def figures(
    source: Source, score: Score, reply: Callable[[Mapping[str, Any]], str | None]
) -> tuple[dict[str, float], int, int]:
    """The mean of each metric in percent over the questions with a reply; the number of these, and of all questions."""
    found: dict[str, list[float]] = defaultdict(list)
    rows = source.rows()
    for row in tqdm(rows, desc=source.task, leave=False, delay=2):
        if (words := reply(row)) is not None:
            labels = list(source.labels_of(row, source.seconds_of(row)))
            for name, value in score({**row, "apr_present": True, "apr_buckets": labels}, [words]).items():
                if isinstance(value, int | float):
                    found[name].append(value)
    return {name: 100 * fmean(values) for name, values in found.items()}, len(found["score"]), len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--predictions",
        action="append",
        default=[],
        metavar="TASK=FILE",
        help="an official prediction file; may be given several times",
    )
    parser.add_argument("--all", action="store_true", help="print every metric")
    args = parser.parse_args()
    asked = [(task, predicted(Path(name))) for task, _, name in (given.partition("=") for given in args.predictions)]
    console = Console()
    for task, reply in asked or [(task, whole_video) for task in TASKS]:
        try:
            found, n, of = figures(*TASKS[task], reply)
        except AprError as error:
            console.print(f"{task}: {error}", style="yellow", markup=False)
            continue
        shown = [name for name in (found if args.all else SHOWN) if name in found]
        console.print(
            f"{task} ({n} of {of}): " + ", ".join(f"{name} {found[name]:.2f}" for name in shown),
            markup=False,
            soft_wrap=True,
        )


if __name__ == "__main__":
    main()
