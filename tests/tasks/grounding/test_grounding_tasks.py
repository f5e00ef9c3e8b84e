"""The grounding tasks in lmms-eval: one run of the model `apr` on small data sets; every number computed by hand."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest import approx
from task_testing import FAILS, TaskBench, check_spoiled, check_truths, counted
from task_testing import TASKS as TASKS_FOLDER

pytest.importorskip("lmms_eval")

from apr_plugin.cli.score import run_score
from apr_plugin.scoring import vue_tr
from apr_plugin.tasks.activitynet_captions import utils as activitynet
from apr_plugin.tasks.charades_sta import utils as charades
from apr_plugin.tasks.common import grounding
from apr_plugin.tasks.common.catalogue import sources
from apr_plugin.tasks.longvale import utils as longvale
from apr_plugin.tasks.qvhighlights import utils as qvhighlights
from apr_plugin.tasks.tacos import utils as tacos
from apr_plugin.tasks.vue_tr import utils as vue

pytestmark = pytest.mark.xdist_group("lmms_eval")

CHARADES = """\
AAA01 2.0 6.0##person opens a door.
AAA01 8.0 12.0##person sits on a sofa.
AAA01 9.0 3.0##person has no time at all.
BBB02 10.0 20.0##person is laughing.
BBB02 0.0 10.0##person drinks water.
CCC03 1.0 2.0##a person sneezes.
"""
LENGTHS = [
    {"id": "AAA01", "subject": "X", "length": "18.0"},
    {"id": "BBB02", "subject": "Y", "length": "31.0"},
    {"id": "CCC03", "length": "25.5"},
]

ACTIVITYNET = {
    "v_aaaaaaaaaaa": {
        "duration": 20.04,
        "timestamps": [[5, 10], [0, 8], [4, 4]],
        "sentences": ["A man sings.", " He bows to them.", " Nothing."],
    },
    "v_bbbbbbbbbbb": {"duration": 70.0, "timestamps": [[60.5, 70]], "sentences": ["The credits roll."]},
}
ACTIVITYNET_VAL = {
    "v_aaaaaaaaaaa": {"duration": 20.04, "timestamps": [[10, 20]], "sentences": ["People clap {loudly}"]}
}

TACOS = {
    "s30-d52.avi": {
        "timestamps": [[0, 294], [294, 588], [588, 588]],
        "sentences": ["She took out kiwi", "She peeled the kiwi", "She waits"],
        "fps": 29.4,
        "num_frames": 588,
    }
}

LONGVALE = {
    "DUDyTjJGqsQ": {
        "duration": 30.0,
        "timestamps": [[2, 12], [20.0, 30.0]],
        "sentences": ["An engine starts with a roar.", "A bell rings."],
    }
}

QVHIGHLIGHTS = [
    {
        "qid": 7,
        "query": "Chef cuts onions",
        "duration": 45,
        "vid": "aaaaaaaaaaa_60.0_210.0",
        "relevant_windows": [[0, 10], [20, 40]],
    },
    {
        "qid": 8,
        "query": "Chef tastes soup.",
        "duration": 45,
        "vid": "aaaaaaaaaaa_60.0_210.0",
        "relevant_windows": [[2, 6]],
    },
    {
        "qid": 9,
        "query": "A busy kitchen",
        "duration": 45,
        "vid": "bbbbbbbbbbb_0.0_150.0",
        "relevant_windows": [[0, 40]],
    },
]
for row in QVHIGHLIGHTS:
    row |= {"relevant_clip_ids": [0], "saliency_scores": [[1, 2, 3]]}


def _vue(number: int, query: str, gt: list[list[float]], duration: str, form: str, modality: str) -> dict[str, Any]:
    return {
        "query_id": number, "video_id": "coPfnSFOXj0", "duration": 30.0, "query": query, "gt": gt,
        "task": "temporal_retrieval",
        "duration_category": duration, "query_format": form, "query_modality": modality,
    }  # fmt: skip


VUE = [
    _vue(0, "red bicycle", [[0, 10]], "ultra-short", "keyword", "vision"),
    _vue(1, "storm that is heard before it is seen", [[2, 4], [10, 14]], "short", "phrase", "vision+audio"),
    _vue(2, "Somebody counts to ten.", [[5, 6.5]], "ultra-long", "sentence", "audio"),
]

ANSWERS = {
    "opens a door": "[[2, 6]]", "sits on a sofa": "[[8, 10]]", "is laughing": "[[25, 30]]", "drinks water": FAILS,
    "sneezes": "[[1, 2]]",
    "man sings": "[[1, 2], [5, 10]]", "bows": "[[0, 2]]", "credits": FAILS, "clap {loudly}": "[[10, 20]]",
    "took out kiwi": "[[0, 10]]", "peeled": "[[12, 14]]",
    "engine": "[[20, 21], [2, 12]]", "bell": "[[25, 30]]",
    "onions": "[[0, 5], [20, 40]]", "soup": FAILS, "kitchen": "[[0, 30]]",
    "bicycle": "[[0.4, 9.6]]", "storm": "[[20, 26], [2, 4]]", "counts to ten": FAILS,
}  # fmt: skip

TASKS = (
    "apr_charades_sta", "apr_activitynet_captions", "apr_activitynet_captions_val", "apr_tacos", "apr_longvale",
    "apr_longvale_all",
    "apr_qvhighlights", "apr_qvhighlights_val", "apr_vue_tr", "apr_vue_tr_vision", "apr_vue_tr_vision_audio",
    "apr_vue_tr_audio",
    "apr_vue_tr_v2", "apr_vue_tr_v2_vision", "apr_vue_tr_v2_vision_audio", "apr_vue_tr_v2_audio",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    root = tmp_path_factory.mktemp("grounding")
    with pytest.MonkeyPatch.context() as patch:
        bench = TaskBench(root, patch)
        bench.place(
            charades.SOURCE, [CHARADES, LENGTHS], {"Charades_v1_480/AAA01.mp4": 18, "Charades_v1_480/BBB02.mp4": 31}
        )
        bench.place(activitynet.SOURCE, [ACTIVITYNET], {"v_aaaaaaaaaaa.mp4": 20, "v_bbbbbbbbbbb.mp4": 70})
        bench.place(activitynet.VAL, [ACTIVITYNET_VAL])
        bench.place(tacos.SOURCE, [TACOS], {"s30-d52.mp4": 20})  # the official name ends in .avi
        bench.place(longvale.SOURCE, [LONGVALE], {"video_test_1171/DUDyTjJGqsQ.mp4": 30})
        bench.place(
            qvhighlights.SOURCE, [QVHIGHLIGHTS], {"aaaaaaaaaaa_60.0_210.0.mp4": 45, "bbbbbbbbbbb_0.0_150.0.mp4": 45}
        )
        bench.place(qvhighlights.VAL, [QVHIGHLIGHTS[2:]])
        bench.place(vue.ALL, [VUE], {"coPfnSFOXj0.mp4": 30})
        bench.place(vue.ALL_V2, [VUE])
        yield bench.run(",".join(TASKS), ANSWERS, bootstrap_iters=0)


def test_charades_sta(run: dict[str, Any]) -> None:
    """IoU 1, 1/2, 0, failed, video missing; the line whose end is before its start is not a question."""
    got = run["apr_charades_sta"]
    assert got["n"] == 5
    assert got["score"] == got["iou_hull"] == approx(0.3)
    assert (got["r1_hull_0.3"], got["r1_hull_0.5"], got["r1_hull_0.7"]) == approx((0.4, 0.4, 0.2))
    assert (got["score_present"], got["n_present"]) == (approx(0.375), 4)
    assert (got["iou_hull_0-20s"], got["n_0-20s"]) == (approx(0.75), 2)
    assert (got["iou_hull_20-30s"], got["n_20-30s"]) == (0, 1)
    assert (got["iou_hull_30-40s"], got["n_30-40s"]) == (0, 2)
    assert "iou_hull_over_40s" not in got
    assert got["no_span"] == approx(0.4)
    assert got["iou_hull_0-20s_stderr_clt"] == approx(0.25)  # values 1 and 1/2: deviation 0.3536, over the root of 2
    assert [sample["score"] for sample in run["samples"]["apr_charades_sta"]] == [1, 0.5, 0, 0, 0]


def test_activitynet_captions(run: dict[str, Any]) -> None:
    """Of two spans, the longer one is returned to a scorer that reads one: IoU 1; then 2 of 8 seconds; then failed."""
    got = run["apr_activitynet_captions"]
    assert (got["score"], got["n"]) == (approx(1.25 / 3), 3)
    assert (got["iou_hull_0-1min"], got["n_0-1min"]) == (approx(0.625), 2)
    assert (got["iou_hull_1-2min"], got["n_1-2min"]) == (0, 1)
    assert got["r1_hull_0.3"] == approx(1 / 3)
    assert run["apr_activitynet_captions_val"]["score"] == 1


def test_tacos(run: dict[str, Any]) -> None:
    """Frame numbers at 29.4 a second: 0 to 10 s and 10 to 20 s; IoU 1 and 0.2."""
    got = run["apr_tacos"]
    assert (got["score"], got["n"], got["n_0-2min"]) == (approx(0.6), 2, 2)
    assert (got["r1_hull_0.1"], got["r1_hull_0.3"]) == (1, 0.5)
    assert got["n_present"] == 2
    sample = run["samples"]["apr_tacos"][1]
    assert sample["doc"]["duration"] == approx(20.0) and sample["doc"]["spans"][0] == approx([10.0, 20.0])


def test_longvale_one_span_or_all(run: dict[str, Any]) -> None:
    """One reply, two protocols: the longest span fits (IoU 1); all spans cover one second too many (10 of 11)."""
    one, every = run["apr_longvale"], run["apr_longvale_all"]
    assert one["score"] == one["iou_hull_0-2min"] == approx(0.75)
    assert every["score"] == every["iou_set"] == every["iou_set_0-2min"] == approx((10 / 11 + 0.5) / 2)
    assert every["precision_set"] == approx((10 / 11 + 1) / 2)
    assert every["recall_set"] == approx(0.75)
    asked = [run["samples"][task][0]["doc"]["question"] for task in ("apr_longvale", "apr_longvale_all")]
    assert [text.split(" the video")[0] for text in asked] == ["When in", "In which parts of"]


def test_qvhighlights(run: dict[str, Any]) -> None:
    """The ranking is [20, 40], [0, 5] against [0, 10] and [20, 40]; then a failure; then [0, 30] against [0, 40].

    First query: average precision 1 at IoU 0.5, 1/2 at the nine others, so 0.55. Its window of 10 s is found at rank 2
    and only at IoU 0.5: 0.05. Third query: IoU 0.75 reaches six of the ten thresholds, so 0.6.
    """
    got = run["apr_qvhighlights"]
    assert got["score"] == got["iou_best"] == approx(1.75 / 3)
    assert (got["r1_best_0.5"], got["r1_best_0.7"]) == approx((2 / 3, 2 / 3))
    assert got["map"] == approx((0.55 + 0.6) / 3)
    assert (got["map_0.5"], got["map_0.75"]) == approx((2 / 3, 1.5 / 3))
    assert (got["map_short"], got["n_short"]) == (approx(0.025), 2)
    assert (got["map_middle"], got["n_middle"]) == (approx(1.0), 1)
    assert (got["map_long"], got["n_long"]) == (approx(0.6), 1)
    assert (run["apr_qvhighlights_val"]["n"], run["apr_qvhighlights_val"]["map"]) == (1, approx(0.6))
    assert (got["iou_best_short"], got["iou_best_middle"], got["iou_best_long"]) == approx((0, 1, 0.75))


def test_vue_tr(run: dict[str, Any]) -> None:
    """Plain set IoU 0.92, 1/6, failed.

    Widened to whole seconds the first is exact, and an exact one has an area of 0.995 (no IoU is over 1).
    """
    got = run["apr_vue_tr"]
    assert (got["score"], got["n"]) == (approx((0.92 + 1 / 6) / 3), 3)
    assert got["vue_iou"] == approx((0.995 + 0.165 + 0) / 3)
    assert got["vue_precision"] == approx((1 + 0.255) / 2)  # 2 of 8 seconds; the query without a span leaves this mean
    assert got["vue_recall"] == approx((1 + 0.335 + 0.005) / 3)  # 2 of 6 seconds; recall 0 reaches the threshold 0
    for label, plain, area in (
        ("ultra-short", 0.92, 0.995),
        ("phrase", 1 / 6, 0.165),
        ("vision+audio", 1 / 6, 0.165),
        ("audio", 0, 0),
    ):
        assert (got[f"iou_set_{label}"], got[f"vue_iou_{label}"], got[f"n_{label}"]) == (approx(plain), approx(area), 1)
    assert run["apr_vue_tr_v2"]["vue_iou"] == got["vue_iou"]
    for version in ("", "_v2"):
        for modality, plain in (("vision", 0.92), ("vision_audio", 1 / 6), ("audio", 0)):
            part = run[f"apr_vue_tr{version}_{modality}"]
            assert (part["n"], part["score"], part[f"n_{modality.replace('_', '+')}"]) == (1, approx(plain), 1)


def test_vue_tr_predictions_are_the_official_file(run: dict[str, Any]) -> None:
    """`prediction` of the logged samples, scored by the official definition as one file, equals results.json."""
    predictions = [sample["prediction"] for sample in run["samples"]["apr_vue_tr"]]
    assert predictions[1] == {
        "query_id": 1, "video_id": "coPfnSFOXj0", "duration": 30.0, "query": "storm that is heard before it is seen",
        "task": "temporal_retrieval",
        "answer": [[2.0, 4.0], [20.0, 26.0]],
    }  # fmt: skip
    assert predictions[2]["answer"] == []
    queries = [
        vue_tr.Query(
            row["query_id"],
            [tuple(span) for span in row["gt"]],
            row["duration_category"],
            row["query_format"],
            row["query_modality"],
        )
        for row in VUE
    ]
    cells = vue_tr.score(queries, {line["query_id"]: [tuple(span) for span in line["answer"]] for line in predictions})
    got = run["apr_vue_tr"]
    overall = cells["overall"]
    assert (got["vue_iou"], got["vue_precision"], got["vue_recall"], got["score"]) == approx(
        (overall.iou, overall.precision, overall.recall, overall.miou)
    )
    for label in ("ultra-short", "short", "ultra-long", "keyword", "sentence", "vision", "audio"):
        assert got[f"vue_iou_{label}"] == approx(cells[label].iou)


def test_apr_score_reads_the_logged_samples(
    run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The samples as lmms-eval itself writes them; for the vision task they answer one of three queries."""
    from lmms_eval.loggers.evaluation_tracker import EvaluationTracker

    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(VUE))
    tracker = EvaluationTracker(output_path=str(tmp_path))
    tracker.general_config_tracker.model_name_sanitized, tracker.date_id = "apr", "now"
    for task, answered in (("apr_vue_tr", 3), ("apr_vue_tr_vision", 1)):
        tracker.save_results_samples(task, copy.deepcopy(run["samples"][task]))
        (written,) = (tmp_path / "apr").glob(f"*_samples_{task}.jsonl")
        run_score("vue_tr", truth, written, as_json=True)
        overall = json.loads(capsys.readouterr().out)["cells"]["overall"]
        got = run[task]
        assert overall["answered"] == answered
        assert (overall["iou"], overall["precision"], overall["miou"]) == approx(
            (got["vue_iou"], got["vue_precision"], got["score"])
        )
        assert overall["iou_all"] == approx(got["vue_iou"] * answered / 3)


def test_the_model_is_asked_for_spans(run: dict[str, Any]) -> None:
    """Every question reaches the loop as grounding, without its prompt's words about the form, and with its video."""
    lines = [
        json.loads(line)
        for path in Path(run["trajectories"]).rglob("*.jsonl")
        for line in path.read_text("utf-8").splitlines()
    ]
    questions = [line["question"] for line in lines if "question" in line]
    assert len(questions) == sum(run[task]["n"] for task in TASKS)
    assert {question["kind"] for question in questions} == {"grounding"}
    assert {question["reader"] for question in questions} == {"task"}
    assert not any("Answer with" in question["text"] for question in questions)


def test_truths_score_as_lmms_eval_does(run: dict[str, Any]) -> None:
    check_truths(run, *TASKS)


def test_every_bucket_has_mean_count_and_standard_error(run: dict[str, Any]) -> None:
    known = sources()
    buckets = {task: counted(known[task], run[task]) for task in TASKS}
    assert (
        buckets["apr_charades_sta"],
        buckets["apr_longvale_all"],
        buckets["apr_qvhighlights"],
        buckets["apr_vue_tr"],
    ) == (3, 1, 3, 9)
    assert min(buckets.values()) >= 1


def test_results_name_the_version(run: dict[str, Any]) -> None:
    assert {run["raw"]["versions"][task] for task in TASKS} == {1.0}
    json.dumps(run["raw"]["results"], allow_nan=False)


def test_a_passive_model_is_shown_the_video_and_its_words_are_read(run: dict[str, Any]) -> None:
    """A chat model of lmms-eval that answers every question of a task with the same words, in the requested form."""
    from lmms_eval.api.model import lmms
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    replies = {
        "apr_charades_sta": "From 2.0 to 6.0 seconds.",
        "apr_qvhighlights": "From 20.0 to 40.0 seconds\nFrom 0 to 10 seconds",
        "apr_vue_tr": "From 2 to 4 seconds\nFrom 10.0 to 14.0 seconds",
    }
    sent: dict[str, list[Any]] = {}

    class Passive(lmms):
        is_simple = False

        def generate_until(self, requests: list[Any]) -> list[str]:
            for _, doc_to_messages, _, doc_id, task, split in (request.args for request in requests):
                sent.setdefault(task, []).append(doc_to_messages(self.task_dict[task][split][doc_id])[0]["content"])
            return [replies[request.args[4]] for request in requests]

        def loglikelihood(self, requests: list[Any]) -> list[Any]:
            raise NotImplementedError

        def generate_until_multi_round(self, requests: list[Any]) -> list[Any]:
            raise NotImplementedError

    manager = TaskManager("ERROR", include_path=str(TASKS_FOLDER), include_defaults=False, model_name="passive")
    raw = simple_evaluate(
        model=Passive(), tasks=list(replies), task_manager=manager, bootstrap_iters=0, verbosity="ERROR"
    )
    got = {
        task: {name.removesuffix(",none"): value for name, value in numbers.items()}
        for task, numbers in raw["results"].items()
    }
    assert got["apr_charades_sta"]["score"] == approx((1 + 0.4) / 5)  # 4 of the 10 seconds of "drinks water"
    assert (got["apr_qvhighlights"]["r1_best_0.5"], got["apr_qvhighlights"]["map"]) == approx((2 / 3, (1 + 0.1) / 3))
    assert got["apr_vue_tr"]["score"] == approx((2 / 14 + 1) / 3)
    assert {numbers["no_span"] for numbers in got.values()} == {0}
    video, text = sent["apr_charades_sta"][0]
    assert (video["type"], Path(video["url"]).name, Path(video["url"]).is_file()) == ("video", "AAA01.mp4", True)
    assert text["text"] == f'When in the video does this happen: "person opens a door"?\n{grounding.ONE}'
    assert sent["apr_vue_tr"][0][1]["text"].endswith(grounding.ALL)
    assert sent["apr_qvhighlights"][0][1]["text"].endswith(grounding.RANKED)


SPOILED = {
    "charades": (charades.SOURCE, [CHARADES, LENGTHS]),
    "activitynet": (activitynet.SOURCE, [ACTIVITYNET]),
    "tacos": (tacos.SOURCE, [TACOS]),
    "longvale": (longvale.ALL, [LONGVALE]),
    "qvhighlights": (qvhighlights.SOURCE, [QVHIGHLIGHTS]),
    "vue": (vue.ALL, [VUE]),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_row_that_cannot_be_read_costs_its_own_question(name: str, task_bench: TaskBench) -> None:
    check_spoiled(task_bench, *SPOILED[name])
