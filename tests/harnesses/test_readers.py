"""Readers with the tasks that they read for: the real YAML, its real prompt, its real scorer, the real columns.

No data set is loaded; the docs are invented, with the columns that the task's own code reads.
"""

# ruff: noqa: RUF001 - full-width and other signs that models write

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_plugin.harnesses.readers import find_reader, known_tasks, read, read_prompt, register_reader
from apr_plugin.harnesses.readers.choices import by_prefix
from apr_plugin.harnesses.readers.prompt import split_options
from apr_plugin.loop.question import QuestionKind
from apr_plugin.scoring.writing import write_longest_span, write_number
from apr_plugin.tasks.common.catalogue import sources

MCQ, GROUNDING, NUMBER, FREE = QuestionKind.MCQ, QuestionKind.GROUNDING, QuestionKind.NUMBER, QuestionKind.FREE_FORM
REPOSITORY = Path(__file__).parents[2]
SUBTITLE = "the red door opens"
QUESTION = "What colour is the car that stops first?"
TEXTS = ["A red one", "A blue one", "None of them", "Eve's"]
DOTTED = [f"{label}. {text}" for label, text in zip("ABCD", TEXTS, strict=True)]
ROUND = [f"({label}) {text}" for label, text in zip("ABCD", TEXTS, strict=True)]
KEYED = dict(zip("ABCD", TEXTS, strict=True))

VIDEOMME = {
    "videoID": "clip",
    "question_id": "001-1",
    "duration": "long",
    "domain": "Knowledge",
    "sub_category": "Law",
    "task_type": "Counting Problem",
    "question": QUESTION,
    "options": DOTTED,
    "answer": "B",
}
VIDEOMME_V2 = {
    "video_id": "clip",
    "question_id": "1",
    "group_type": "relevance",
    "group_structure": "[1]",
    "level": 1,
    "question": QUESTION,
    "options": "\n".join(f"{label}. thing {label.lower()}" for label in "ABCDEFGH"),
    "answer": "G",
}
WORLDSENSE = {
    "index": 1,
    "video_path": "clip.mp4",
    "subtitle_path": "clip.srt",
    "question": QUESTION,
    "candidates": DOTTED,
    "answer": "B",
    "task_type": "Event Recognition",
    "task_domain": "Music",
    "duration": "<1min",
    "audio_class": ["Speech"],
}
LVB = {
    "id": "x_0",
    "video_path": "clip.mp4",
    "subtitle_path": "clip.json",
    "duration": 3.0,
    "duration_group": 15,
    "question_category": "S2E",
    "starting_timestamp_for_subtitles": 0,
    "question": QUESTION,
    "option0": "A red one",
    "option1": "A blue one",
    "option2": "None of them",
    "option3": "N/A",
    "option4": "N/A",
    "correct_choice": 1,
}
CGBENCH = {
    "qid": 1,
    "video_uid": "clip",
    "duration": 700,
    "domain": "d",
    "sub_category": "s",
    "question": QUESTION,
    "choices": ["J. Smith", "K. Lee", *"cdefg"],
    "right_answer": "B",
}
VIDEO_MMMU = {
    "id": "dev_Art_1",
    "question_type": "multiple-choice",
    "question": QUESTION,
    "options": TEXTS,
    "answer": "B",
}
FIVE = {f"answer_choice_{index}": f"thing {index}" for index in range(5)}
EGOSCHEMA = {"video_idx": "v", "question": QUESTION, "option": [*DOTTED, "E. x"], "answer": "1"}
VSI = {"id": 1, "dataset": "scannet", "scene_name": "clip", "question": QUESTION}
TEMPCOMPASS = {"video_id": "clip", "dim": "action"}
SPAN = {"right": "[[24.296875, 30.4]]", "wrong": "[[1, 2]]"}
NEEDLE = {
    "kind": "glyph", "bucket": "1m", "question": QUESTION, "options": TEXTS, "answer": "B", "answer_spans": [],
    "video": "clip.mp4",
    "apr_present": True, "apr_buckets": ["1m"],
}  # fmt: skip


COLUMNS = [
    "question",
    "options",
    "option",
    "candidates",
    "choices",
    "kind",
    "question_type",
    "caption",
    "query",
    "Options",
    "answer_choice_0",
    "a0",
    "option0",
]


@dataclass(frozen=True)
class Case:
    task: str
    doc: Mapping[str, Any]
    kind: QuestionKind = MCQ
    right: str = "B"
    wrong: str = "A"
    gold: tuple[str, ...] = ("answer",)
    """Columns that a reader must not read."""
    metric: str | None = None
    """The metric to compare, if the first of the YAML is not usable."""
    score: Callable[[Any], float] | None = None
    """Score from the metric's record, if the task's own aggregation needs the whole data set, a network or a judge."""
    shows: str = ""
    """What must be in the question's text, from the prompt."""
    stub: tuple[str, str] | None = None
    """A module that the task's code imports but this test never uses, and a name in it."""


def _same(key: str, gold: str) -> Callable[[Any], float]:
    return lambda record: float(record[key] == record[gold])


CASES = [
    Case("videomme", VIDEOMME),
    Case("videomme_w_subtitle", VIDEOMME, shows=SUBTITLE),
    Case("videomme_long", VIDEOMME, shows=SUBTITLE),
    Case("videomme_long", {**VIDEOMME, "videoID": "no subtitles of this one"}, shows=QUESTION),
    Case("videomme_video_only_abcd", VIDEOMME, score=float),
    Case("videomme_revert_oe_mcq", VIDEOMME, FREE, right="A blue one.", wrong="A green one", score=float),
    Case("videomme_v2", VIDEOMME_V2, right="G", wrong="A", metric="videomme_v2_overall_acc"),
    Case("videomme_v2_w_subtitle", VIDEOMME_V2, right="G", wrong="A", metric="videomme_v2_overall_acc", shows=SUBTITLE),
    Case("videomme_v2_reasoning", VIDEOMME_V2, right="G", wrong="A", metric="videomme_v2_overall_acc"),
    Case("lvbench", {"question": QUESTION, "options": TEXTS, "answer": "B", "video_path": "x"}),
    Case("lvbench", {"question": QUESTION + "\n" + "\n".join(ROUND), "answer": "B", "video_path": "x"}),
    *(
        Case(
            task,
            LVB,
            gold=("correct_choice",),
            shows=SUBTITLE if task.endswith("_i") else "",
            stub=("decord", "VideoReader cpu"),
        )
        for task in ("longvideobench_val_v", "longvideobench_val_i")
    ),
    Case(
        "longvideobench_test_v",
        LVB,
        gold=("correct_choice",),
        score=lambda r: float(r["x_0"] == "B"),
        stub=("decord", "VideoReader cpu"),
    ),
    *(
        Case(
            task,
            {"video_name": "x", "task_type": "plotQA", "question": QUESTION + "\n" + "\n".join(ROUND), "answer": "B"},
        )
        for task in ("mlvu_dev", "mlvu_test")
    ),
    Case(
        "minerva",
        {"key": "k", "video_id": "v", "question": QUESTION, **FIVE, "answer": "thing 1", "answer_id": 1},
        gold=("answer", "answer_id"),
    ),
    *(
        Case(
            task,
            {**VSI, "question_type": "route_planning", "options": DOTTED, "ground_truth": "B"},
            gold=("ground_truth",),
            score=lambda doc: doc["accuracy"],
        )
        for task in ("vsibench", "vsibench_debiased", "vsibench_pruned")
    ),
    *(
        Case(
            "vsibench",
            {**VSI, "question_type": question_type, "options": None, "ground_truth": right.lstrip("+")},
            NUMBER,
            right=right,
            wrong="20",
            gold=("ground_truth",),
            score=lambda doc: doc["MRA:.5:.95:.05"],
        )
        for question_type, right in (
            ("object_counting", "3"),
            ("room_size_estimation", "2.5"),
            ("object_abs_distance", ".5"),
        )
    ),
    Case("worldsense", WORLDSENSE),
    Case("worldsense", {**WORLDSENSE, "candidates": DOTTED[:3]}),
    Case("worldsense_w_subtitle", WORLDSENSE, shows=SUBTITLE),
    *(
        Case(
            task,
            {
                "video ID": "v",
                "Question Type": "SR",
                "Question": QUESTION,
                "Options": {**KEYED, "E": None},
                "Answer": "B",
            },
            gold=("Answer",),
        )
        for task in ("video_holmes", "video_holmes_reasoning", "video_holmes_test")
    ),
    Case(
        "temporal_grounding_charades",
        {"video": "x", "caption": "person goes to bed.", "timestamp": [24.296875, 30.4]},
        GROUNDING,
        **SPAN,
        gold=("timestamp",),
    ),
    *(
        Case(
            task,
            {"video_path": "x", "query": "a man starts to sing", "span": "[[24.3, 30.4]]"},
            GROUNDING,
            **SPAN,
            gold=("span",),
        )
        for task in ("timelens_charades", "timelens_activitynet", "timelens_qvhighlights")
    ),
    Case(
        "extremewhenbench",
        {
            "qid": 1,
            "video_id": "v",
            "source_corpus": "MLVU",
            "question": "When do 2 - 3 men sing?",
            "video_duration_s": 4000,
            "correct_interval": [24.3, 30.4],
        },
        GROUNDING,
        **SPAN,
        gold=("correct_interval",),
    ),
    *(
        Case(
            task,
            {
                "id": "1",
                "video_path": "a/Art/x.mp4",
                "question_type": "multiple-choice",
                "question": QUESTION,
                "choices": {**KEYED, "E": ""},
                "answer": "B",
            },
        )
        for task in ("mmvu_val", "mmvu_val_cot")
    ),
    Case(
        "mmvu_val",
        {
            "id": "1",
            "video_path": "a/Art/x.mp4",
            "question_type": "open-ended",
            "question": QUESTION,
            "choices": dict.fromkeys("ABCDE", ""),
            "answer": "12.5",
        },
        FREE,
        right="12.5",
        wrong="unknown",
    ),
    Case("egoschema_subset", EGOSCHEMA, metric="score"),
    Case("egoschema", EGOSCHEMA, score=lambda submitted: float(submitted["v"] == 1)),
    *(
        Case(
            f"mvbench_{task}",
            {"video": "x", "question": QUESTION, "candidates": TEXTS, "answer": TEXTS[1], "start": 0.0, "end": 2.0},
        )
        for task in ("action_antonym", "episodic_reasoning", "action_sequence")
    ),
    Case("tvbench_action_count", {"video": "x", "question": QUESTION, "candidates": TEXTS, "answer": TEXTS[1]}),
    Case(
        "nextqa_mc_test", {"video": 1, "question": QUESTION, "answer": 1, **{f"a{i}": f"thing {i}" for i in range(5)}}
    ),
    Case(
        "tempcompass_multi_choice",
        {**TEMPCOMPASS, "question": QUESTION + "\n" + "\n".join(DOTTED), "answer": "B. A blue one"},
    ),
    Case("tempcompass_yes_no", {**TEMPCOMPASS, "question": "Does it stop?", "answer": "no"}),
    *(
        Case(
            "tempcompass_caption_matching",
            {
                **TEMPCOMPASS,
                "question": f"Which fits?\n{head} {one}: It stops.\n{head} {two}: It goes: fast.",
                "answer": f"{head} {two}: It goes: fast.",
            },
            right=two,
            wrong=one,
        )
        for head, one, two in (("Sentence", "A", "B"), ("Option", "1", "2"), ("Caption", "A", "B"))
    ),
    Case(
        "perceptiontest_val_mc",
        {"video_name": "v", "question_id": 1, "question": QUESTION, "options": TEXTS[:3], "answer_id": "1"},
        gold=("answer_id",),
    ),
    Case(
        "perceptiontest_test_mc",
        {"video_name": "v", "question_id": 1, "question": QUESTION, "options": TEXTS[:3]},
        score=lambda r: float(r["pred_id"] == 1),
    ),
    *(
        Case(task, VIDEO_MMMU, shows="end of the video" if "adapt" in task else "last frame of the video")
        for task in ("video_mmmu_adaptation", "video_mmmu_perception", "video_mmmu_comprehension")
    ),
    Case(
        "video_mmmu_adaptation",
        {**VIDEO_MMMU, "question_type": "open", "answer": "12.5"},
        FREE,
        right="12.5",
        wrong="7",
        shows="end of the video",
    ),
    Case(
        "cinepile",
        {
            "question": QUESTION,
            "choices": [*TEXTS, "x"],
            "subtitles": SUBTITLE,
            "answer_key": TEXTS[1],
            "answer_key_position": 1,
            "question_category": "Temporal",
            "hard_split": "True",
        },
        gold=("answer_key", "answer_key_position"),
        score=lambda record: record["correct"],
        shows=SUBTITLE,
    ),
    Case("neptune_full_v", {"key": "k", "question": QUESTION, **FIVE, "answer_id": 1}, gold=("answer_id",)),
    Case(
        "perceptioncomp",
        {"key": "k", "video_id": "v", "question": QUESTION, **FIVE, "answer_id": 1, "category": "c", "difficulty": 1},
        gold=("answer_id",),
    ),
    Case(
        "tomato",
        {
            "id": 1,
            "question": QUESTION,
            "options": TEXTS,
            "answer": 1,
            "reason_type": "count",
            "demonstration_type": "human",
        },
        score=lambda record: record["score"],
    ),
    *(
        Case(
            task,
            {
                "id": 1,
                "type": "qa",
                "length": 60,
                "video": "v",
                "input": f"{QUESTION}\n" + "\n".join(DOTTED),
                "answer": "B",
            },
            score=_same("pred_answer", "answer"),
        )
        for task in ("timescope", "longtimescope")
    ),
    Case("cgbench", CGBENCH, gold=("right_answer", "clue_intervals")),
    Case("cgbench_subtitles", CGBENCH, gold=("right_answer",), shows=SUBTITLE),
    Case(
        "videoevalpro_mcq",
        {"question": QUESTION, "options": DOTTED, "answer": "B", "qa_type": "Local Perception"},
        score=lambda r: float(r["correct"]),
    ),
    Case(
        "lsdbench",
        {"video_id": "v", "question": QUESTION, "options": KEYED, "correct_answer": "B"},
        gold=("correct_answer",),
        score=_same("pred_answer", "answer"),
    ),
    Case(
        "mmou_test_mini",
        {
            "question_id": 1,
            "video_id": "v",
            "question": QUESTION,
            "options": json.dumps(KEYED),
            "correct_option_letter": "B",
        },
        gold=("correct_option_letter",),
        score=lambda record: record["score"],
    ),
    Case(
        "scivideobench",
        {
            "video_id": "v",
            "question_type": "q",
            "video_duration": 90.0,
            "question": QUESTION,
            "options": KEYED,
            "answer": "B",
        },
        score=_same("pred_answer", "answer"),
    ),
    Case(
        "motionbench_full",
        {
            "question": QUESTION,
            "options": [{"label": k, "text": v} for k, v in KEYED.items()],
            "answer": "B",
            "question_type": "q",
        },
    ),
    *(
        Case(
            task,
            {
                "question_idx": 1,
                "video": "v",
                "question": QUESTION,
                "options": [ROUND[0], ROUND[1], "(D) Eve's"],
                "correctAnswer": "(D)",
                "abilityType_L2": "Emotion Recognition",
                "abilityType_L3": "x",
                "videoType": "TV",
            },
            right="D",
            gold=("correctAnswer",),
        )
        for task in ("mmr_v", "mmr_v_cot")
    ),
    Case(
        "egoplan2",
        {"sample_id": 1, "formatted_question": f"{QUESTION}\n" + "\n".join(DOTTED), "ground_truth": "B"},
        gold=("ground_truth",),
    ),
    Case(
        "temporalbench_short_qa",
        {"idx": 1, "question": f"{QUESTION}\n" + "\n".join(DOTTED), "GT": "B", "video_name": "v", "dataset": "d"},
        gold=("GT",),
        score=lambda record: float(record["pred"][0].lower() == record["item"]["GT"].lower()),
    ),
]

UNLISTED = {
    "videomme_video_only_abcd",
    "tempcompass_yes_no",
    "tempcompass_caption_matching",
    "tomato",
    "mmr_v",
    "mmr_v_cot",
}
"""Tasks whose prompt alone does not give the options: it has none, no labels, a Python dict, or a skipped letter."""


@cache
def _yaml_files() -> dict[str, Path]:
    """Task name -> YAML, for every task that the installed lmms-eval ships."""
    spec = importlib.util.find_spec("lmms_eval")
    if spec is None or not spec.submodule_search_locations:
        return {}
    named = re.compile(r"^task:[ \t]*[\"']?([\w+.-]+)[\"']?[ \t]*$", re.MULTILINE)
    found = {}
    for path in (Path(spec.submodule_search_locations[0]) / "tasks").rglob("*.yaml"):
        if match := named.search(path.read_text(encoding="utf-8")):
            found[match[1]] = path
    return found


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An `HF_HOME` with one three-second video and its subtitles in every place where a task looks for them."""
    cv2 = pytest.importorskip("cv2")
    numpy = pytest.importorskip("numpy")
    home = tmp_path_factory.mktemp("hub")
    video = home / "clip.mp4"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 64))
    for shade in range(30):
        writer.write(numpy.full((64, 64, 3), shade * 8, numpy.uint8))
    writer.release()
    srt = f"1\n00:00:00,000 --> 00:00:02,500\n{SUBTITLE}\n"
    files = {
        "videomme/subtitle/clip.srt": srt.replace(SUBTITLE, f'<font color="white" size=".72c">{SUBTITLE}</font>'),
        "WorldSense/clip.srt": srt,
        "cg_videos_720p/clip.srt": srt,
        "datasets/longvideobench/subtitles/clip.json": json.dumps([{"timestamp": [0.5, 2.5], "text": SUBTITLE}]),
        "videomme_v2/subtitle/clip.jsonl": json.dumps({"text": SUBTITLE, "start_time": 0.0, "end_time": 2.0}),
    }
    for name, text in files.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for folder in ("videomme/data", "WorldSense", "cg_videos_720p"):
        (home / folder).mkdir(parents=True, exist_ok=True)
        (home / folder / "clip.mp4").write_bytes(video.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(home))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.delenv("OPENAI_API_KEY", raising=False)
        yield home


@dataclass(frozen=True)
class Task:
    """A task, loaded as lmms-eval does it."""

    config: dict[str, Any]

    def prompt(self, doc: Mapping[str, Any]) -> str:
        doc_to_text, kwargs = self.config["doc_to_text"], self.config.get("lmms_eval_specific_kwargs") or {}
        if isinstance(doc_to_text, str):
            return str(doc[doc_to_text])
        takes_kwargs = "lmms_eval_specific_kwargs" in inspect.signature(doc_to_text).parameters
        kwargs = copy.deepcopy(kwargs.get("default", kwargs))
        return str(
            doc_to_text(copy.deepcopy(dict(doc)), kwargs) if takes_kwargs else doc_to_text(copy.deepcopy(dict(doc)))
        )

    def score(self, case: Case, answer: str) -> float:
        records = self.config["process_results"](copy.deepcopy(dict(case.doc)), [answer])
        metrics = {metric["metric"]: metric.get("aggregation", "mean") for metric in self.config["metric_list"]}
        name = case.metric or next(iter(metrics))
        if case.score is not None:
            return case.score(records[name])
        aggregate = metrics[name]
        if isinstance(aggregate, str):
            return float(records[name])
        with_args = "args" in inspect.signature(aggregate).parameters
        return float(aggregate([records[name]], None) if with_args else aggregate([records[name]]))


@pytest.fixture(scope="module")
def load(hub: Path) -> Iterator[Callable[[Case], Task]]:
    lmms_utils = pytest.importorskip("lmms_eval.utils")
    loaded: dict[str, Task] = {}
    with pytest.MonkeyPatch.context() as patch:

        def load_task(case: Case) -> Task:
            if case.stub and case.stub[0] not in sys.modules and importlib.util.find_spec(case.stub[0]) is None:
                module = types.ModuleType(case.stub[0])
                for name in case.stub[1].split():
                    setattr(module, name, None)
                patch.setitem(sys.modules, case.stub[0], module)
            if case.task not in loaded:
                loaded[case.task] = Task(lmms_utils.load_yaml_config(str(_yaml_files()[case.task])))
            return loaded[case.task]

        yield load_task


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.task)
def test_the_real_scorer_reads_what_goes_back(case: Case, load: Callable[[Case], Task]) -> None:
    task = load(case)
    prompt = task.prompt(case.doc)
    name, reading = read(case.task, case.doc, prompt)

    assert name == find_reader(case.task)[0] != "prompt"
    assert reading.kind is case.kind
    assert task.score(case, reading.write(case.right)) > task.score(case, reading.write(case.wrong))
    assert case.shows in reading.text
    for phrase in (
        "option's letter",
        "only the letter",
        "subtitles available",
        "<image>",
        "best option",
        "\nA. ",
        "(A)",
    ):
        assert phrase.lower() not in reading.text.lower()
    if case.kind is MCQ:
        labels = [option.label for option in reading.options]
        assert {case.right, case.wrong} <= set(labels) and len(set(labels)) == len(labels)

    if case.kind is MCQ and case.task not in UNLISTED:
        from_prompt = [(option.label, option.text) for option in read_prompt({}, prompt).options]
        assert from_prompt[: len(reading.options)] == [(option.label, option.text) for option in reading.options]

    unlabelled = {key: value for key, value in case.doc.items() if key not in case.gold}
    blind = read(case.task, unlabelled, prompt)[1]
    assert (blind.text, blind.options, blind.kind, blind.answer_hint) == (
        reading.text,
        reading.options,
        reading.kind,
        reading.answer_hint,
    )


@pytest.mark.parametrize("case", [case for case in CASES if case.kind is MCQ], ids=lambda case: case.task)
def test_every_label_names_its_own_option(case: Case) -> None:
    """The options' words come from the doc unchanged, and the right label belongs to the right words."""
    _, reading = read(case.task, case.doc, f"{case.doc.get('input', '')}{case.doc.get('formatted_question', '')}")
    by_label = {option.label: option.text for option in reading.options}
    assert all(by_label.values())
    if case.doc.get("options") in (DOTTED, TEXTS, KEYED) or case.doc.get("candidates") == DOTTED:
        shown = "(not shown)" if case.task == "videomme_video_only_abcd" else None
        assert by_label == {label: shown or text for label, text in KEYED.items()}


def test_numbered_options_of_videomme(hub: Path) -> None:
    """The task itself can't be loaded from lmms-eval 0.7.3 (its YAML names missing functions), but its scorer can."""
    utils = pytest.importorskip("lmms_eval.tasks.videomme.number_option.utils")
    doc = {**VIDEOMME, "options": [f"{number}. {text}" for number, text in enumerate(TEXTS, 1)], "answer": "2"}
    _, reading = read("videomme_number_option", doc, utils.videomme_doc_to_text_number(doc))
    assert [(option.label, option.text) for option in reading.options] == list(zip("1234", TEXTS, strict=True))
    records = [
        utils.videomme_process_results_number(doc, [reading.write(label)])["videomme_perception_score"]
        for label in "21"
    ]
    assert [record["pred_answer"] == record["answer"] for record in records] == [True, False]


@pytest.mark.parametrize(
    ("doc", "kind", "right", "wrong"),
    [
        (NEEDLE, MCQ, "B", "A"),
        ({**NEEDLE, "kind": "order", "options": TEXTS[:2]}, MCQ, "B", "A"),
        (
            {**NEEDLE, "kind": "when", "options": [], "answer_spans": [[3.2, 7.9]]},
            GROUNDING,
            "[[3.2, 7.9]]",
            "[[20, 30]]",
        ),
        ({**NEEDLE, "kind": "count", "options": [], "answer": "3"}, NUMBER, "3", "4"),
    ],
)
def test_needle_tasks(doc: dict[str, Any], kind: QuestionKind, right: str, wrong: str) -> None:
    utils = pytest.importorskip("apr_plugin.tasks.needle.utils")
    name, reading = read(f"apr_needle_{doc['kind']}", doc, utils.doc_to_text(doc))
    assert (name, reading.kind) == ("task", kind)
    assert utils.process_results(doc, [reading.write(right)])["score"] == 1
    assert utils.process_results(doc, [reading.write(wrong)])["score"] == 0


# --- the registry ---


def test_exact_beats_wildcard_and_the_longer_wildcard_the_shorter() -> None:
    assert find_reader("videomme_long_w_subtitle")[0] == "videomme"
    assert find_reader("videomme_v2_reasoning")[0] == "videomme_v2"
    assert find_reader("videomme_number_option")[0] == "videomme_number"
    assert find_reader("ocrbench") == ("prompt", read_prompt)


def test_a_pattern_is_registered_once() -> None:
    with pytest.raises(ValueError, match="already has the reader"):
        register_reader("minerva*")(read_prompt)


def test_every_pattern_is_a_task_of_lmms_eval() -> None:
    tasks = _yaml_files()
    if not tasks:
        pytest.skip("lmms-eval is not installed")
    unknown = [pattern for pattern, _ in known_tasks() if not any(fnmatchcase(task, pattern) for task in tasks)]
    assert unknown == []


def test_the_table_in_the_docs_is_the_registry() -> None:
    page = (REPOSITORY / "docs" / "readers.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    documented = sorted((pattern, row[2].strip(" `")) for row in rows for pattern in re.findall(r"`([^`]+)`", row[1]))
    assert documented == known_tasks()


# --- falling back ---


def test_a_missing_column_is_named_and_the_prompt_is_read() -> None:
    prompt = QUESTION + "\n" + "\n".join(DOTTED) + "\nAnswer with the option's letter from the given choices directly."
    name, reading = read("videomme", {"question": QUESTION}, prompt)
    assert name == "prompt (videomme reader: no column 'options')"
    assert (reading.text, [option.text for option in reading.options]) == (QUESTION, TEXTS)


@settings(max_examples=60, deadline=None)
@given(
    task=st.sampled_from([*(pattern.replace("*", "x") for pattern, _ in known_tasks()), *sources()]),
    doc=st.dictionaries(
        st.sampled_from(COLUMNS),
        st.none()
        | st.text(max_size=8)
        | st.integers()
        | st.lists(st.text(max_size=3) | st.none(), max_size=3)
        | st.just({"A": None}),
    ),
    prompt=st.text(max_size=60),
    answer=st.text(max_size=20)
    | st.sampled_from(["[[1, 2]]", "[[NaN, 1]]", "[[[[", "1e999999", "[[1]]", "[" * 5000, "[[1e400, 2]]"]),
)
def test_reading_and_writing_never_raise(task: str, doc: dict[str, Any], prompt: str, answer: str) -> None:
    name, reading = read(task, doc, prompt)
    assert name and isinstance(reading.write(answer), str)


# --- answers ---


@pytest.mark.parametrize(
    ("answer", "written"),
    [
        ("[[3.2, 7.9]]", "The event happens in the 3.2 - 7.9 seconds."),
        ("[[1, 2], [10, 30.5], [40, 41]]", "The event happens in the 10 - 30.5 seconds."),
        ("[[1, 3], [5, 7]]", "The event happens in the 1 - 3 seconds."),
        ("[[0.00001, 2]]", "The event happens in the 0 - 2 seconds."),
        ("[[100, 200]]", "The event happens in the 100 - 200 seconds."),
        ("[[7, 3]]", "[[7, 3]]"),
        ("[]", "[]"),
        ("from 3 to 5", "from 3 to 5"),
    ],
)
def test_one_span_goes_back(answer: str, written: str) -> None:
    assert write_longest_span(answer) == written


@pytest.mark.parametrize(
    ("answer", "written"),
    [("3", "3"), ("2.5", "2.5"), (".5", "0.5"), ("1e-05", "0.00001"), ("nan", "nan"), ("three", "three")],
)
def test_numbers_go_back_in_plain_decimals(answer: str, written: str) -> None:
    assert write_number(answer) == written


# --- the prompt reader ---

WORDS = st.text(
    alphabet=st.characters(codec="utf-8", exclude_characters="\n\r<", exclude_categories=("Cs", "Cc")),
    min_size=1,
    max_size=30,
).filter(str.strip)
PLAIN = st.text(alphabet="abcxyz 0123456789", min_size=1, max_size=20).filter(str.strip)
POST = st.sampled_from(
    [
        "",
        "\nAnswer with the option's letter from the given choices directly.",
        "\nOnly give the best option.\nBest option: (",
        "\nThe best answer is:",
        "\nAnswer with only the option letter (A, B, C, or D).",
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    options=st.lists(WORDS, min_size=2, max_size=9),
    style=st.sampled_from(["{}. {}", "({}) {}", "{}) {}", "{}: {}", "- {}) {}"]),
    post=POST,
)
def test_options_on_their_own_lines_round_trip(options: list[str], style: str, post: str) -> None:
    listed = "\n".join(style.format(label, text) for label, text in zip("ABCDEFGHI", options, strict=False))
    reading = read_prompt({}, f"Which one?\nOptions:\n{listed}{post}")
    assert [option.text for option in reading.options] == [text.strip() for text in options]
    assert "".join(option.label for option in reading.options) == "ABCDEFGHI"[: len(options)]
    assert reading.text == "Which one?" and reading.kind is MCQ


@settings(max_examples=80, deadline=None)
@given(
    options=st.lists(PLAIN, min_size=2, max_size=6), style=st.sampled_from(["({}) {}", "{}) {}", "{}. {}"]), post=POST
)
def test_options_within_a_line_round_trip(options: list[str], style: str, post: str) -> None:
    listed = ", ".join(style.format(label, text) for label, text in zip("ABCDEF", options, strict=False))
    reading = read_prompt({}, f"Which one? {listed}{post}")
    assert [option.text for option in reading.options] == [text.strip() for text in options]
    assert reading.text == "Which one?"


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="AB.():\n xé<>", max_size=300) | st.text(max_size=300))
def test_any_prompt_is_read(prompt: str) -> None:
    reading = read_prompt({}, prompt)
    assert len(reading.options) != 1
    if not reading.options:
        assert reading.kind is FREE and reading.write("any") == "any"


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("Pick.\n(A) one (B) both (A) and more (C) none (D) x", ["one", "both (A) and more", "none", "x"]),
        ("A: hi\nB: hello\nA: bye\nB: see you\nWhat do they say?", []),
        ("A: hi\nB: hello\nWho is first?\nA. Tom\nB. Jim\nThe best answer is:", ["Tom", "Jim"]),
        ("Is it vitamin A. or vitamin B. that is named?", []),
        ("Which?\nB. two\nC. three", []),
        ("Which?\nA. one\nstill one\nB. two", ["one\nstill one", "two"]),
        ("Which?\nA.one\nB.two", ["one", "two"]),
    ],
)
def test_what_is_a_list_of_options(prompt: str, texts: list[str]) -> None:
    assert [option.text for option in read_prompt({}, prompt).options] == texts


FORMS = [
    "{}. {}",
    "{}) {}",
    "({}) {}",
    "{}: {}",
    "[{}] {}",
    "**{}.** {}",
    "**{}** {}",
    "**({})** {}",
    "**{}**: {}",
    "__{}.__ {}",
    "- **{}.** {}",
    "* {}. {}",
    "{}、{}",
    "{}．{}",
    "（{}）{}",
    "{}：{}",
    "{}）{}",
    "【{}】{}",
    "Option {}: {}",
    "选项{}：{}",
    "{} . {}",
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("labels", ["AB", "ABCDEFGH", "ABD", "ACDG"])
def test_no_option_falls_away_however_its_label_is_written(form: str, labels: str) -> None:
    listed = "\n".join(form.format(label, f"thing {label.lower()}") for label in labels)
    reading = read_prompt(
        {}, f"What is it?\n{listed}\nAnswer with the option's letter from the given choices directly."
    )
    assert [(option.label, option.text) for option in reading.options] == [
        (label, f"thing {label.lower()}") for label in labels
    ]
    assert reading.kind is MCQ and reading.text == "What is it?"
    assert [option.label for option in by_prefix(listed.split("\n"))] == list(labels) or form.startswith(
        ("Option", "选项")
    )


@pytest.mark.parametrize(
    ("prompt", "labels"),
    [
        ("什么颜色？\nＡ．红\nＢ．蓝", "AB"),
        ("什么颜色？A、红 B、蓝 C、绿", "ABC"),
        ("什么颜色？A.红B.蓝C.绿", "ABC"),
        ("维生素A、维生素B、哪个好？", ""),
        ("What? [A] red [B] blue", "AB"),
        ("What? (A) red (B) blue (D) green", "ABD"),
        ("What?\nA. red\nB) blue\n(C) green", "ABC"),
        ("Earlier:\nA. p\nB. q\nC. r\nNow?\nA. x\nB. y\nD. z", "ABD"),
        ("I. Intro\nV. Out", ""),
        ("A man walks.\nBoth leave.", ""),
    ],
)  # fmt: skip
def test_labels_of_a_list(prompt: str, labels: str) -> None:
    assert "".join(option.label for option in read_prompt({}, prompt).options) == labels


@pytest.mark.parametrize(
    "unit",
    [
        "(A) ",
        "A. ",
        "A: x\n",
        "\n",
        " ",
        "(A)(",
        "question:",
        "answer the question with the option",
        "select the best ",
        "<image>\n",
        "- ",
        "**A.** ",
        "[A] ",
        "A、",
        "**",
        "A. x\nD. y\n",
    ],
)
@pytest.mark.timeout(5)
def test_a_long_prompt_is_read_in_linear_time(unit: str) -> None:
    read_prompt({}, (unit * (100_000 // len(unit))) + "\nA. one\nB. two")
    read(
        "videomme",
        {"question": QUESTION, "options": DOTTED},
        unit * (100_000 // len(unit)) + f"\n{QUESTION}\n" + "\n".join(DOTTED),
    )


def test_text_after_the_options_is_kept() -> None:
    split = split_options("Which?\nA. one\nB. two\nThe image is at the end.")
    assert split.tail.strip() == "The image is at the end."
    assert (
        read_prompt({}, "Which?\nA. one\nB. two\nThe image is at the end.").text == "Which?\n\nThe image is at the end."
    )
