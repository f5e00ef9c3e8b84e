"""Compares our scores with those of the official code, in the same process.

`docs/scoring.md` quotes the largest differences.

    git clone https://github.com/bytedance/vidi && git clone https://github.com/jayleicn/moment_detr
    python -m benchmarks.official_scorers --vidi vidi --moment-detr moment_detr

The checkouts contain code that is run (read it first), ground truth and prediction files. VUE-TR: every shipped file of
both versions, every cell, as a file for `apr score` and as replies to the task, and random answers with reversed,
overlapping and negative spans. QVHighlights: the shipped sample of predictions and random ones; the official code
rounds to 0.01 points. `--moment-detr` needs scikit-learn, which that code imports. Mean relative accuracy is compared
if lmms-eval is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import multiprocessing.dummy
import random
import sys
import types
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from apr_plugin.cli.score import read_answers, read_queries
from apr_plugin.scoring import vue_tr
from apr_plugin.scoring.answers import mean_relative_accuracy
from apr_plugin.scoring.retrieval import moment_metrics
from apr_plugin.tasks.vue_tr import utils as vue_tr_task

CELLS = [vue_tr.OVERALL, *(value for values in vue_tr.ATTRIBUTES.values() for value in values)]


def load(path: Path, name: str) -> Any:
    """Load the official module, without its plotting library and with NumPy 2's name for `trapz`."""
    if not hasattr(np, "trapz"):
        np.trapz = np.trapezoid  # type: ignore[attr-defined]
    for plotting in ("matplotlib", "matplotlib.pyplot"):
        sys.modules.setdefault(plotting, types.ModuleType(plotting))
    sys.path.insert(0, str(path.parents[1]))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.exists():
        sys.exit(f"{path} does not exist")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def vue_tr_files(checkout: Path) -> Iterator[tuple[str, float]]:
    """Each shipped prediction file and the largest difference in any of its cells, in points."""
    for folder, truth, version in (
        ("VUE_TR", "VUE-TR_ground_truth.json", 1),
        ("VUE_TR_V2", "VUE-TRv2_ground_truth.json", 2),
    ):
        official = load(checkout / folder / "qa_eval.py", f"official_{folder}")
        official.draw_plot = lambda *_arguments, **_named: None
        ground_truth = checkout / folder / truth
        queries = read_queries(ground_truth)
        for path in sorted((checkout / folder).glob("results_*.json")):
            theirs = official.breakdown_results(
                np.array(CELLS), {"x": official.load_result(str(ground_truth), str(path))}, ""
            )
            ours = vue_tr.score(queries, read_answers(path, queries, ground_truth), version)
            of_ours = [[getattr(ours[cell], column) for cell in CELLS] for column in ("precision", "recall", "iou")]
            yield f"{folder}/{path.name}, {3 * len(CELLS)} cells", _largest(of_ours, [scores["x"] for scores in theirs])
            replies = {
                query_id: json.dumps(spans) for query_id, spans in read_answers(path, queries, ground_truth).items()
            }
            ours_as_task = _vue_tr_task(ground_truth, replies)
            official_cells = [theirs[0]["x"][0], theirs[1]["x"][0], *theirs[2]["x"]]
            yield (
                f"{folder}/{path.name} as replies to the task, {len(official_cells)} cells",
                _largest([ours_as_task], [official_cells]),
            )
        yield (
            f"{folder}, 400 sets of 30 random answers",
            max(_vue_tr_random(official, random.Random(seed), version) for seed in range(400)),
        )


def _vue_tr_task(ground_truth: Path, replies: Mapping[int, str]) -> list[float]:
    """What the task computes for replies: precision and recall overall, IoU of every cell."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in vue_tr_task.rows_of([json.loads(ground_truth.read_text("utf-8"))]):
        labels = [row[attribute] for attribute in vue_tr.ATTRIBUTES]
        if row["query_id"] in replies:
            scored = vue_tr_task.process_results(
                {**row, "apr_present": True, "apr_buckets": labels}, [replies[row["query_id"]]]
            )
            for name in scored.keys() & {
                "vue_precision",
                "vue_recall",
                "vue_iou",
                *(f"vue_iou_{label}" for label in labels),
            }:
                found[name].append(scored[name])
    return [
        fmean(found[name])
        for name in ("vue_precision", "vue_recall", "vue_iou", *(f"vue_iou_{cell}" for cell in CELLS[1:]))
    ]


def _vue_tr_random(official: Any, pick: random.Random, version: int) -> float:
    results, queries, answers = [], [], {}
    for query_id in range(30):
        ends = sorted(pick.sample(range(60), 2 * pick.randint(1, 4)))
        true = [(float(start), float(end)) for start, end in zip(ends[::2], ends[1::2], strict=True)]
        spans = [(pick.uniform(-3, 62), pick.uniform(-3, 62)) for _ in range(pick.choice([0, 1, 1, 2, 5]))]
        answer = (
            [span if pick.random() < 0.3 else (min(span), max(span)) for span in spans] if pick.random() < 0.8 else true
        )
        array = np.array(answer)
        if answer:
            array[:, 0], array[:, 1] = np.floor(array[:, 0]), np.ceil(array[:, 1])
        results.append({"answer": array, "gt": np.array(true)})
        queries.append(vue_tr.Query(query_id, true, "short", "phrase", "vision"))
        answers[query_id] = answer
    ours = vue_tr.score(queries, answers, version)[vue_tr.OVERALL]
    precision, recall = official.compute_precision_recall(results)
    return _largest(
        [[ours.precision, ours.recall, ours.iou]], [[precision, recall, official.success_overlap(results)[1]]]
    )


def qvhighlights(checkout: Path) -> Iterator[tuple[str, float]]:
    """The shipped sample and random predictions, each with the largest difference of any metric, in points."""
    official = load(checkout / "standalone_eval" / "eval.py", "official_qvhighlights")
    official.mp = multiprocessing.dummy  # threads are enough, and no processes are left
    sample, truth = (
        [json.loads(line) for line in (checkout / path).read_text("utf-8").splitlines()]
        for path in ("standalone_eval/sample_val_preds.jsonl", "data/highlight_val_release.jsonl")
    )
    yield "QVHighlights, shipped sample of predictions", _qvhighlights(official, sample, truth)
    yield (
        "QVHighlights, 60 sets of 60 random questions",
        max(_qvhighlights(official, *_random_windows(random.Random(seed))) for seed in range(60)),
    )


def _random_windows(pick: random.Random) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    predictions, truths = [], []
    for qid in range(60):
        ends = sorted(pick.sample(range(0, 151, 2), 2 * pick.randint(1, 5)))
        true = [[start, end] for start, end in zip(ends[::2], ends[1::2], strict=True)]
        windows = []
        for _ in range(pick.randint(1, 14)):
            start, end = (
                pick.choice(true) if pick.random() < 0.4 else sorted((pick.uniform(0, 150), pick.uniform(0, 150)))
            )
            start = max(0, start + pick.choice([-4, -2, 0, 0, 2]))
            windows.append([start, max(end, start + 1), round(pick.random(), 1)])
        truths.append({"qid": qid, "relevant_windows": true})
        predictions.append({"qid": qid, "pred_relevant_windows": windows})
    return predictions, truths


def _qvhighlights(official: Any, predictions: list[dict[str, Any]], truths: list[dict[str, Any]]) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = official.eval_moment_retrieval(predictions, truths, verbose=False)
    windows = {row["qid"]: row["pred_relevant_windows"] for row in predictions}
    ours = moment_metrics(
        [windows[row["qid"]] for row in truths],
        [[(start, end) for start, end in row["relevant_windows"]] for row in truths],
    )
    full = theirs["full"]
    expected = {f"map_{length}": theirs[length]["MR-mAP"]["average"] for length in ("short", "middle", "long")}
    expected |= {"map": full["MR-mAP"]["average"], "map_0.5": full["MR-mAP"]["0.5"], "map_0.75": full["MR-mAP"]["0.75"]}
    expected |= {f"r1_best_{threshold}": full["MR-R1"][threshold] for threshold in ("0.5", "0.7")}
    return max(abs(100 * ours[name] - value) for name, value in expected.items())


def mra() -> Iterator[tuple[str, float]]:
    """Compare with lmms-eval's copy of VSI-Bench's function.

    There are 200,000 random pairs, many of them exactly on a threshold.
    """
    if importlib.util.find_spec("lmms_eval") is None:
        return
    from lmms_eval.tasks.vsibench import utils as vsibench

    pick, largest = random.Random(0), 0.0
    for _ in range(200_000):
        true = pick.choice([pick.randint(1, 60), round(pick.uniform(0.1, 50), 2)])
        guess = pick.choice([pick.randint(0, 60), round(true * pick.choice([step / 20 for step in range(10, 31)]), 6)])
        largest = max(
            largest,
            abs(mean_relative_accuracy(guess, true) - vsibench.mean_relative_accuracy(guess, true, 0.5, 0.95, 0.05)),
        )
    yield "mean relative accuracy, 200,000 pairs", 100 * largest


def _largest(ours: list[list[float]], theirs: list[Any]) -> float:
    return 100 * float(np.max(np.abs(np.array(ours) - np.array(theirs))))


def main() -> None:
    """Print the largest difference of each comparison, in points (hundredths of the whole scale)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vidi", type=Path, help="A checkout of bytedance/vidi.")
    parser.add_argument("--moment-detr", type=Path, help="A checkout of jayleicn/moment_detr.")
    asked = parser.parse_args()
    if asked.vidi:
        _print(vue_tr_files(asked.vidi))
    if asked.moment_detr:
        _print(qvhighlights(asked.moment_detr))
    _print(mra())


def _print(found: Iterator[tuple[str, float]]) -> None:
    for what, difference in found:
        print(f"{what}: largest difference {difference:.1e} points", flush=True)


if __name__ == "__main__":
    main()
