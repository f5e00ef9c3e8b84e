"""The six tasks with buckets in lmms-eval: local data sets, real small videos, numbers computed by hand.

In each set some questions are answered correctly, some wrongly, some not at all, and one has no video.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from task_testing import FAILS, POISONS, TASKS, TaskBench, check_spoiled, check_truths, counted

from apr_plugin.harnesses.readers import find_reader
from apr_plugin.tasks.common.lmms import docs
from apr_plugin.tasks.longvideobench import utils as longvideobench
from apr_plugin.tasks.lvbench import utils as lvbench
from apr_plugin.tasks.minerva import utils as minerva
from apr_plugin.tasks.mlvu import utils as mlvu
from apr_plugin.tasks.videomme import utils as videomme
from apr_plugin.tasks.vsibench import utils as vsibench

pytest.importorskip("lmms_eval")
pytestmark = pytest.mark.xdist_group("lmms_eval")

MODULES = (lvbench, videomme, longvideobench, mlvu, minerva, vsibench)
NAMES = ",".join(module.SOURCE.task for module in MODULES)
COLOURS = ["red", "green", "blue", "none of them"]


def _videomme(number: int, duration: str, video: str, answer: str) -> dict[str, Any]:
    return {
        "video_id": f"{number:03}", "duration": duration, "domain": "Knowledge", "sub_category": "Law", "url": "",
        "videoID": video,
        "question_id": f"{number:03}-1", "task_type": "Counting Problem", "question": f"What colour is mme{number}?",
        "options": [f"{label}. {colour}" for label, colour in zip("ABCD", COLOURS, strict=True)], "answer": answer,
    }  # fmt: skip


def _lvbench(uid: int, answer: str, *types: str) -> dict[str, Any]:
    options = "\n".join(f"({label}) {colour}" for label, colour in zip("ABCD", COLOURS, strict=True))
    return {
        "uid": uid,
        "question": f"What colour is lvb{uid}?\n{options}",
        "answer": answer,
        "question_type": list(types),
        "time_reference": "00:01",
    }


def _longvideobench(
    number: int, group: int, seconds: float, video: str, right: int, options: int = 4
) -> dict[str, Any]:
    texts = [*COLOURS, "all of them"][:options] + ["N/A"] * (5 - options)
    return {
        "video_id": video, "id": f"{video}_{number}", "video_path": f"{video}.mp4", "subtitle_path": "",
        "correct_choice": right,
        "question": f"What colour is long{number}?", "duration": seconds, "duration_group": group,
        "question_category": "S2E",
        "topic_category": "x", "starting_timestamp_for_subtitles": 0.0,
    } | {f"option{i}": text for i, text in enumerate(texts)}  # fmt: skip


def _mlvu(number: int, kind: str, video: str, seconds: float, answer: str, options: list[str]) -> dict[str, Any]:
    return {
        "video": f"{video}.mp4", "duration": seconds, "question": f"What colour is mlvu{number}?",
        "candidates": options, "answer": answer,
        "question_type": kind,
    }  # fmt: skip


def _minerva(number: int, video: str, right: int) -> dict[str, Any]:
    choices = {f"answer_choice_{i}": text for i, text in enumerate([*COLOURS, "all of them"])}
    return choices | {
        "key": f"k{number}", "video_id": video, "question": f"What colour is min{number}?",
        "answer": choices[f"answer_choice_{right}"],
        "answer_id": right, "reasoning": "At 0:01.", "question type": "Counting", "split": "Sports",
        "category": "Sports",
    }  # fmt: skip


def _vsibench(number: int, kind: str, scene: str, truth: str, options: list[str] | None = None) -> dict[str, Any]:
    row = {
        "id": number, "dataset": "scannet", "scene_name": scene, "question_type": kind,
        "question": f"How about vsi{number}?", "ground_truth": truth,
    }  # fmt: skip
    return row | ({"options": options} if options else {})


LEFT = ["A. left", "B. right"]

CONTENTS: dict[str, Any] = {
    "apr_videomme": [[_videomme(1, "short", "one", "A"), _videomme(2, "short", "one", "B"),
    _videomme(3, "long", "two", "C"),
                      _videomme(4, "long", "gone", "D")]],
    "apr_lvbench": [[
        {"key": "half-hour", "type": "tv", "qa": [_lvbench(1, "A", "entity recognition", "reasoning"),
        _lvbench(2, "B", "reasoning")]},
        {"key": "hour40", "type": "tv", "qa": [_lvbench(3, "C", "summarization"), _lvbench(4, "D", "summarization")]},
        {"key": "gone", "type": "tv", "qa": [_lvbench(5, "A", "temporal grounding")]},
    ]],
    "apr_longvideobench": [[
        _longvideobench(1, 15, 9.0, "nine", 4, options=5), _longvideobench(2, 60, 60.7, "minute", 1),
            _longvideobench(3, 60, 20.0, "minute", 1),
        _longvideobench(4, 3600, 1000.0, "gone", 0),
    ]],
    "apr_mlvu": [
        [_mlvu(1, "plotQA", "movie", 246, "red", COLOURS), _mlvu(2, "plotQA", "movie", 246, "green", COLOURS)],
        [_mlvu(3, "findNeedle", "needle_1", 467.98, "blue", COLOURS),
        _mlvu(4, "findNeedle", "needle_1", 467.98, "purple", COLOURS)],
        [_mlvu(5, "ego", "ego_1", 8000.0, "red", ["red", "green", "red", "blue"])],
        [], [], [_mlvu(6, "anomaly_reco", "surveil_1", 32550.13, "red", COLOURS)], [],
    ],
    "apr_minerva": [[_minerva(1, "https://www.youtube.com/watch?v=abc", 4), _minerva(2, "abc", 0),
    _minerva(3, "def", 1), _minerva(4, "gone", 1)]],
    "apr_vsibench": [[
        _vsibench(1, "object_counting", "scene1", "4"), _vsibench(2, "object_counting", "scene1", "4"),
        _vsibench(3, "room_size_estimation", "scene2", "20.0"),
        _vsibench(4, "object_rel_direction_easy", "scene2", "A", LEFT),
            _vsibench(5, "object_rel_direction_medium", "scene2", "A", LEFT),
        _vsibench(6, "object_rel_direction_hard", "scene2", "B", LEFT),
            _vsibench(7, "route_planning", "gone", "B", LEFT),
    ]],
}  # fmt: skip

VIDEOS: dict[str, dict[str, float]] = {
    "apr_videomme": {"data/one.mp4": 3, "data/two.mp4": 4},
    "apr_lvbench": {"all_videos/half-hour.mp4": 1801, "all_videos/hour40.mp4": 6000},
    "apr_longvideobench": {"nine.mp4": 9, "minute.mp4": 20},
    "apr_mlvu": {"1_plotQA/movie.mp4": 3, "2_needle/needle_1.mp4": 4, "ego_1.mp4": 4},
    "apr_minerva": {"abc.webm": 3, "def.mkv": 900},
    "apr_vsibench": {"scannet/scene1.mp4": 59, "scannet/scene2.mp4": 61},
}

ANSWERS = {
    "mme1": "A", "mme2": "A", "mme3": FAILS, "mme4": "D",
    "lvb1": "A", "lvb2": "C", "lvb3": "C", "lvb4": FAILS, "lvb5": "A",
    "long1": "E", "long2": "A", "long3": FAILS, "long4": "A",
    "mlvu1": "A", "mlvu2": "A", "mlvu3": "C", "mlvu4": "A", "mlvu5": "C", "mlvu6": "A",
    "min1": "E", "min2": FAILS, "min3": "B", "min4": "B",
    "vsi1": "4", "vsi2": "5", "vsi3": FAILS, "vsi4": "A", "vsi5": "B", "vsi6": "B", "vsi7": "B",
}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TaskBench]:
    with pytest.MonkeyPatch.context() as patch:
        made = TaskBench(tmp_path_factory.mktemp("buckets"), patch)
        for module in MODULES:
            made.place(module.SOURCE, CONTENTS[module.SOURCE.task], VIDEOS[module.SOURCE.task])
        yield made


@pytest.fixture(scope="module")
def results(bench: TaskBench) -> dict[str, Any]:
    return bench.run(NAMES, ANSWERS)


def _same(got: dict[str, Any], **wanted: float) -> None:
    assert {name: got.get(name) for name in wanted} == {name: pytest.approx(value) for name, value in wanted.items()}


def test_videomme(results: dict[str, Any]) -> None:
    got = results["apr_videomme"]
    _same(
        got,
        score=1 / 4,
        n=4,
        score_present=1 / 3,
        n_present=3,
        acc_short=1 / 2,
        n_short=2,
        acc_long=0,
        n_long=2,
        videomme_perception_score=25,
    )
    assert "acc_medium" not in got and "n_medium" not in got  # without a question there is no figure
    # sd 0.7071 / sqrt(2); sd 0.5 / sqrt(4).
    _same(got, acc_short_stderr=0.5, acc_short_stderr_clt=0.5, score_stderr=0.25)


def test_lvbench(results: dict[str, Any]) -> None:
    got = results["apr_lvbench"]
    _same(got, score=2 / 5, n=5, score_present=2 / 4, n_present=4, lvbench_score=2 / 5)
    _same(
        got,
        **{
            "acc_20-40min": 1 / 2,
            "n_20-40min": 2,
            "acc_100-120min": 1 / 2,
            "n_100-120min": 2,
            "acc_other": 0,
            "n_other": 1,
        },
    )
    _same(got, acc_ER=1, n_ER=1, acc_Rea=1 / 2, n_Rea=2, acc_Sum=1 / 2, n_Sum=2, acc_TG=0, n_TG=1)
    assert "acc_40-60min" not in got and "acc_KIR" not in got


def test_longvideobench(results: dict[str, Any]) -> None:
    got = results["apr_longvideobench"]
    _same(got, score=1 / 4, n=4, score_present=1 / 3, n_present=3)
    _same(got, **{"acc_8-15s": 1, "n_8-15s": 1, "acc_15-60s": 0, "n_15-60s": 2, "acc_900-3600s": 0, "n_900-3600s": 1})
    assert got["lvb_acc"] in (0.25, 0.5, 0.75)  # it guesses if there is no answer


def test_mlvu(results: dict[str, Any]) -> None:
    got = results["apr_mlvu"]
    _same(got, score=3 / 6, n=6, score_present=3 / 5, n_present=5)
    _same(got, **{"acc_0-5min": 1 / 2, "acc_5-10min": 1 / 2, "acc_over_120min": 1 / 2, "n_over_120min": 2})
    _same(got, acc_plotQA=1 / 2, acc_needle=1 / 2, acc_ego=1, acc_anomaly_reco=0, n_anomaly_reco=1)
    # lmms-eval's counts tasks not asked as 0.
    _same(got, m_avg=(1 / 2 + 1 / 2 + 1 + 0) / 4, mlvu_percetion_score=100 * (1 / 2 + 1 / 2 + 1 + 0) / 7)
    assert got["m_avg_se"] is None  # a task with one question has no spread


def test_minerva(results: dict[str, Any]) -> None:
    got = results["apr_minerva"]
    _same(got, score=2 / 4, n=4, score_present=2 / 3, n_present=3)
    _same(got, **{"acc_0-5min": 1 / 2, "n_0-5min": 2, "acc_15-30min": 1, "n_15-30min": 1, "acc_other": 0, "n_other": 1})
    assert got["minerva_acc"] in (50, 75, 100)  # it guesses if there is no answer


def test_vsibench(results: dict[str, Any]) -> None:
    got = results["apr_vsibench"]
    mra = 6 / 10  # 5 for 4 is off by 1/4, which is within 1 - t for t = .5, .55, .6, .65, .7, .75: 6 of 10 thresholds
    _same(
        got,
        mra_object_counting=(1 + mra) / 2,
        n_object_counting=2,
        mra_room_size_estimation=0,
        acc_object_rel_direction_easy=1,
    )
    _same(
        got,
        acc_object_rel_direction_medium=0,
        acc_object_rel_direction_hard=1,
        acc_route_planning=0,
        n_route_planning=1,
    )
    _same(got, score=(1 + mra + 0 + 1 + 0 + 1 + 0) / 7, n=7, n_present=6, score_present=(1 + mra + 0 + 1 + 0 + 1) / 6)
    _same(
        got,
        **{
            "score_0-60s": (1 + mra) / 2,
            "n_0-60s": 2,
            "score_60-120s": 2 / 4,
            "n_60-120s": 4,
            "score_other": 0,
            "n_other": 1,
        },
    )
    overall = ((1 + mra) / 2 + 0 + 2 / 3 + 0) / 4
    _same(got, overall=overall)
    assert got["vsibench_overall"] == pytest.approx(overall, abs=1e-6)  # lmms-eval's, if all that it needs was asked


def test_truths_score_as_lmms_eval_does(results: dict[str, Any]) -> None:
    check_truths(results, *NAMES.split(","))


def test_every_bucket_has_mean_count_and_standard_error(results: dict[str, Any]) -> None:
    assert {module.SOURCE.task: counted(module.SOURCE, results[module.SOURCE.task]) for module in MODULES} == {
        "apr_lvbench": 7, "apr_videomme": 2, "apr_longvideobench": 3, "apr_mlvu": 7, "apr_minerva": 3,
        "apr_vsibench": 9,
    }  # fmt: skip


def test_without_a_video_nothing_else_suffers(results: dict[str, Any]) -> None:
    for module in MODULES:
        logged = results["samples"][module.SOURCE.task]
        assert (
            logged[-1]["score"] == 0
            and "score_present" not in logged[-1]
            and logged[-1]["filtered_resps"] == ["(null)"]
        )


@pytest.mark.parametrize(("answers", "share"), [("right", 1.0), ("wrong", 0.0), ("fails", 0.0)])
def test_all_right_all_wrong_all_failed(bench: TaskBench, answers: str, share: float) -> None:
    """The official figures too, except those that guess."""
    right = {"mme1": "A", "mme2": "B", "mme3": "C", "lvb1": "A", "lvb2": "B", "lvb3": "C", "lvb4": "D", "long1": "E",
        "long2": "B", "long3": "B",
             "mlvu1": "A", "mlvu2": "B", "mlvu3": "C", "mlvu5": "C", "min1": "E", "min2": "A", "min3": "B", "vsi1": "4",
             "vsi2": "4", "vsi3": "20",
             "vsi4": "A", "vsi5": "A", "vsi6": "B"}  # fmt: skip
    other = {"A": "B", "B": "A", "C": "B", "D": "B", "E": "B", "4": "40", "20": "2"}
    told = {
        words: {"right": right.get(words, "A"), "wrong": other[right.get(words, "A")], "fails": FAILS}[answers]
        for words in ANSWERS
    }
    results = bench.run(NAMES, told, bootstrap_iters=0)
    hopeless = {"apr_mlvu": 4}  # its answer is not among its options
    for module in MODULES:
        task = module.SOURCE.task
        scores = [sample["score"] for sample in results["samples"][task] if "score_present" in sample]
        wanted = [share] * len(scores)
        if share and task in hopeless:
            wanted[hopeless[task] - 1] = 0.0
        assert scores == wanted, task
    if answers == "right":
        assert (
            results["apr_lvbench"]["lvbench_score"] == 4 / 5
            and results["apr_videomme"]["videomme_perception_score"] == 75
        )


GARBAGE = [
    "",
    "(null)",
    None,
    " \n",
    3.5,
    "\x00",
    "[" * 50_000,
    "(" * 50_000,
    "9" * 5000,
    "1e999",
    "nan",
    "inf",
    "is it? " * 5000,
    "\n" * 50_000,
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.SOURCE.task))
def test_garbage_scores_nothing_whatever_thread_asks(module: Any) -> None:
    """This includes official scorers, which lmms-eval calls in four threads, and five times if they raise."""
    source = module.SOURCE
    rows = list(source.rows_of(CONTENTS[source.task]))
    # 3.5 is near it.
    docs = [
        {**row, "apr_buckets": [source.buckets[0]], "apr_present": True}
        for row in rows
        if row.get("ground_truth") != "4"
    ]

    def one(job: tuple[dict[str, Any], list[Any]]) -> float:
        began = time.thread_time()
        score: float = module.process_results(*job)["score"]
        assert time.thread_time() - began < 2.0
        return score

    before = copy.deepcopy(docs)
    jobs = [(doc, results) for doc in docs for results in ([], *([reply] for reply in GARBAGE))]
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(one, jobs)) == {0.0}
    assert docs == before


def test_a_limit_leaves_buckets_out(bench: TaskBench) -> None:
    results = bench.run("apr_vsibench,apr_mlvu,apr_lvbench", ANSWERS, limit=1, bootstrap_iters=0)
    _same(results["apr_vsibench"], overall=1, n=1, mra_object_counting=1)
    assert results["apr_vsibench"]["vsibench_overall"] is None  # lmms-eval's own task ends with a KeyError here
    assert "acc_route_planning" not in results["apr_vsibench"]
    _same(results["apr_mlvu"], m_avg=1, n=1, n_present=1)
    assert "acc_ego" not in results["apr_mlvu"]
    json.dumps(results["raw"]["results"])  # nothing in it that results.json can't hold
    from lmms_eval.utils import make_table

    assert "vsibench_overall" in make_table(results["raw"])


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.SOURCE.task))
def test_the_yaml_names_every_metric(module: Any, bench: TaskBench) -> None:
    from lmms_eval.utils import load_yaml_config

    source = module.SOURCE
    config = load_yaml_config(str(TASKS / source.folder / f"{source.task}.yaml"))
    named = [metric["metric"] for metric in config["metric_list"]]
    assert named[: len(source.bucket_metrics)] == list(source.bucket_metrics)
    assert source.metric in named and config["metadata"]["n_official"] == source.n
    assert len(named) == len(set(named))


def test_a_part_of_a_benchmark_is_called_one(bench: TaskBench) -> None:
    from loguru import logger

    import apr_plugin.harnesses.lmms_eval.model  # noqa: F401 - lmms-eval resets the log when it is loaded

    said: list[str] = []
    sink = logger.add(said.append, format="{message}")
    try:
        assert len(docs(videomme.SOURCE)) == 4
    finally:
        logger.remove(sink)
    assert any("have 4 questions, the official split 2700" in line for line in said)
    assert any("1 of 4 questions lack their video" in line and "apr tasks check apr_videomme" in line for line in said)


def test_questions_are_read_column_by_column() -> None:
    readers = {module.SOURCE.task: find_reader(module.SOURCE.task)[0] for module in MODULES}
    assert readers == {
        "apr_lvbench": "lvbench", "apr_videomme": "videomme", "apr_longvideobench": "longvideobench",
        "apr_mlvu": "question_column",
        "apr_minerva": "answer_choices", "apr_vsibench": "vsibench",
    }  # fmt: skip
    assert find_reader("apr_unheard_of")[0] == find_reader("unheard_of")[0] == "prompt"


def test_prompts(results: dict[str, Any], bench: TaskBench) -> None:
    """The prompt is the official one, except that Video-MME's does not mention subtitles, which are not shown."""
    asked = {task: samples[0]["arguments"][0] for task, samples in results["samples"].items()}
    assert "subtitles" not in asked["apr_videomme"] and "based on the video." in asked["apr_videomme"]
    assert asked["apr_lvbench"].endswith("Answer the question with the option letter")
    assert "(A) red" in asked["apr_mlvu"] and "E. all of them" in asked["apr_longvideobench"]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.SOURCE.task))
def test_a_row_that_cannot_be_read_costs_its_own_question(module: Any, task_bench: TaskBench) -> None:
    task = module.SOURCE.task
    parquet = task in ("apr_videomme", "apr_longvideobench")  # these have typed columns
    check_spoiled(task_bench, module.SOURCE, CONTENTS[task], [None] if parquet else POISONS)
