"""Daily-Omni, OmniVideoBench and WorldSense in lmms-eval: a few rows, and numbers computed by hand."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from apr_testing import make_video_file
from task_testing import FAILS, TASKS, Knows, TaskBench, check_spoiled, check_truths, counted

from apr_plugin.loop.policy import AudioPart, Generation, Prompt, Sampling
from apr_plugin.policies import POLICIES
from apr_plugin.tasks.common.choices import ask, bucket_name, without_labels
from apr_plugin.tasks.dailyomni import utils as dailyomni
from apr_plugin.tasks.gameplayqa import utils as gameplayqa
from apr_plugin.tasks.omnivideobench import utils as omnivideobench
from apr_plugin.tasks.worldsense import utils as worldsense

pytestmark = pytest.mark.xdist_group("lmms_eval")

GAMEPLAY_COLUMNS = (
    *(f"video_{number}_file_name" for number in range(1, 6)),
    *(f"distractor_{number}{end}" for number in (1, 2, 3) for end in ("", "_type")),
    "instance_id", "game_name", "video_indices", "question_code", "task_name", "question_level", "question",
    "answer_start", "answer_end",
)  # fmt: skip
COLOURS = ["red", "green", "blue", "none of them"]


def _daily(question: str, answer: str, video: str, kind: str, length: str, **more: str) -> dict[str, Any]:
    choice = [f"{letter}. {text}" for letter, text in zip("ABCD", COLOURS, strict=True)]
    own = {"Question": question, "Choice": choice, "Answer": answer, "video_id": video, "Type": kind}
    return {**own, "video_category": "Education", "video_duration": length, **more}


DAILY = [
    _daily(
        "What is daily one?",
        "A",
        "aa",
        "Event Sequence",
        "30s",
        content_parent_category="Lifestyle",
        content_fine_category="Skin",
    ),
    _daily("What is daily two?", "B", "aa", "AV Event Alignment", "30s", Explaination="so"),
    _daily("What is daily three?", "C", "bb", "Event Sequence", "60s"),
    _daily("What is daily four?", "D", "bb", "Comparative", "60s"),
    _daily("What is daily five?", "A", "gone", "Comparative", "60s"),
]
DAILY_SAYS = {"daily one": "A", "daily two": "C", "daily three": "C", "daily four": FAILS, "daily five": "A"}


def _asked(question: str, kind: str, sound: str, options: list[str], letter: str) -> dict[str, Any]:
    own = {
        "question": question,
        "question_type": kind,
        "audio_type": sound,
        "reasoning_steps": [],
        "options": options,
        "correct_option": letter,
    }
    return {**own, "answer": "not read"}


BENCH = [
    {
        "video": "video_1",
        "video_type": "Vlog",
        "duration": "00:59",
        "questions": [
            _asked("What is bench one?", "counting", "Speech", ["A.0", "B.1", "C.2", "D.3"], "C"),
            _asked(
                "What is bench two?",
                "background&music understanding",
                "Music",
                ["A red", "B green", "C blue", "D grey"],
                "D",
            ),
        ],
    },
    {
        "video": "video_2",
        "video_type": "News",
        "duration": "01:00",
        "questions": [_asked("What is bench three?", "counting", "Sound", ["A: x", "B: y"], "A")],
    },
    {
        "video": "video_3",
        "video_type": "Ego",
        "duration": "32:35",
        # Labelled so in the data.
        "questions": [_asked("What is bench four?", "ego reasoning", "Speech", ["A. a", "B. b", "A. c", "B. d"], "D")],
    },
]
BENCH_SAYS = {"bench one": "C", "bench two": "A", "bench three": FAILS, "bench four": "D"}


def _sense(question: str, options: list[str], answer: str) -> dict[str, Any]:
    kept = {"task_domain": "Recognition", "task_type": "Event Recognition", "question": question, "answer": answer}
    return {**kept, "candidates": [f"{letter}. {text}" for letter, text in zip("ABCD", options, strict=False)]}


def _video(duration: str, *asked: dict[str, Any]) -> dict[str, Any]:
    facts = {
        "duration": duration,
        "domain": "Music",
        "sub_category": "Piano",
        "audio_class": ["Speech", "Music"],
        "video_caption": "A piano.",
    }
    return facts | {f"task{number}": question for number, question in enumerate(asked)}


SENSE = {
    "one": _video("<1min", _sense("What is sense one?", COLOURS, "B"), _sense("What is sense two?", COLOURS[:3], "A")),
    "two": _video(">8min", _sense("What is sense three?", COLOURS, "D"), _sense("What is sense four?", COLOURS, "A")),
}
SENSE_SAYS = {"sense one": "B", "sense two": FAILS, "sense three": "A", "sense four": "A"}


def test_numbers(task_bench: TaskBench) -> None:
    """Right, wrong and failing answers of the three tasks, in one run.

    The failing ones would be right if a scorer guessed A for them.
    """
    task_bench.place(dailyomni.SOURCE, [DAILY], {"Videos/aa/aa_video.mp4": 3, "Videos/bb/bb_video.mp4": 4})
    task_bench.place(omnivideobench.SOURCE, [BENCH], {"video_1.mp4": 3, "video_2.mp4": 4, "video_3.mp4": 3})
    task_bench.place(worldsense.SOURCE, [SENSE], {"one.mp4": 3, "two.mp4": 4})
    results = task_bench.run(
        "apr_dailyomni,apr_omnivideobench,apr_worldsense", DAILY_SAYS | BENCH_SAYS | SENSE_SAYS, bootstrap_iters=0
    )

    check_truths(results, "apr_dailyomni", "apr_omnivideobench", "apr_worldsense")
    daily = results["apr_dailyomni"]
    assert (daily["score"], daily["n"], daily["score_present"], daily["n_present"]) == (0.4, 5, 0.5, 4)
    assert (daily["acc_30s"], daily["n_30s"], daily["acc_60s"], daily["n_60s"]) == (0.5, 2, pytest.approx(1 / 3), 3)
    assert (daily["acc_event_sequence"], daily["n_event_sequence"]) == (1, 2)
    assert (daily["acc_av_event_alignment"], daily["acc_comparative"], daily["n_comparative"]) == (0, 0, 2)
    assert "acc_reasoning" not in daily
    assert daily["acc_30s_stderr_clt"] == pytest.approx(0.5)

    bench = results["apr_omnivideobench"]
    assert (bench["score"], bench["n"]) == (0.5, 4)
    assert (bench["acc_0-1min"], bench["n_0-1min"], bench["acc_1-5min"], bench["n_1-5min"]) == (0.5, 2, 0, 1)
    assert (bench["acc_over_10min"], bench["n_over_10min"]) == (1, 1)
    assert (bench["acc_counting"], bench["acc_background_music_understanding"], bench["acc_ego_reasoning"]) == (
        0.5,
        0,
        1,
    )
    assert (bench["acc_speech"], bench["n_speech"], bench["acc_sound"], bench["acc_music"]) == (1, 2, 0, 0)

    assert [
        counted(module.SOURCE, results[module.SOURCE.task]) for module in (dailyomni, omnivideobench, worldsense)
    ] == [5, 9, 2]
    sense = results["apr_worldsense"]
    assert (sense["score"], sense["n"], sense["worldsense_score"]) == (0.5, 4, 50)
    assert (sense["acc_under_1min"], sense["n_under_1min"], sense["acc_over_8min"], sense["n_over_8min"]) == (
        0.5,
        2,
        0.5,
        2,
    )
    assert [sample["doc"]["index"] for sample in results["samples"]["apr_worldsense"]] == [0, 1, 2, 3]
    readers = {
        json.loads(line)["question"]["reader"]
        for path in task_bench.root.rglob("*.jsonl")
        for line in path.read_text().splitlines()
        if '"reader"' in line
    }
    assert readers == {"task", "worldsense"}


class Listens(Knows):
    """A policy that answers what the file says if a look returns the video's sound, otherwise none of them."""

    name = "listens"

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        last = [message for message in prompt.messages if message.role == "user"][-1]
        heard = [part.waveform for part in last.parts if isinstance(part, AudioPart)]
        action: dict[str, Any] = {"type": "get_audio", "start": 0, "end": 2}
        if "duration_seconds" not in last.text:
            right = next(answer for words, answer in self.answers.items() if words in prompt.messages[1].text)
            action = {"type": "answer", "content": right if heard and abs(heard[0]).max() > 0.1 else "D"}
        return Generation(json.dumps({"observation": "heard", "think": "so", "confidence": 0.9, "action": action}))


def test_dailyomni_is_heard_through_its_video(task_bench: TaskBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The video file has the sound; the sound file beside it, with the same sound, is not shown as a second video."""
    folder = task_bench.place(dailyomni.SOURCE, [DAILY[:1]]) / "Videos" / "aa"
    folder.mkdir(parents=True)
    make_video_file(folder / "aa_video.mp4", frames=30, sound_s=3.0)
    make_video_file(folder / "aa_audio.wav", codec=None, sound_s=3.0, audio_codec="pcm_s16le", audio_rate=16_000)
    (doc,) = dailyomni.SOURCE.documents()
    assert [Path(path).name for path in doc["apr_videos"]] == ["aa_video.mp4"]
    monkeypatch.setitem(POLICIES, "knows", f"{__name__}:Listens")
    assert task_bench.run("apr_dailyomni", {"daily one": "A"}, bootstrap_iters=0)["apr_dailyomni"]["score"] == 1


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("B", 1),
        ("b. green", 1),
        (" B", 1),
        ("Because it rains", 1),
        ("The answer is B", 0),
        ("A or B", 0),
        ("", 0),
        ("(null)", 0),
        (None, 0),
    ],
)
def test_dailyomni_compares_the_first_letter(reply: str | None, right: float) -> None:
    doc = {**DAILY[1], "apr_buckets": ["30s"], "apr_present": True}
    assert dailyomni.process_results(doc, [reply])["score"] == right
    assert dailyomni.process_results(doc, [])["score"] == 0


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("B", 1), ("(b)", 1), ("B. green", 1), (" B.\n", 1), ("\\boxed{B}", 1), ("So it is /box{B}.", 1), ("**B**", 1),
        ("The answer is B", 0), ("B: green", 0), ("green", 0), ("Because it rains", 0), ("", 0), ("(null)", 0),
        (None, 0),
    ],
)  # fmt: skip
def test_omnivideobench_compares_what_is_left_of_the_reply(reply: str | None, right: float) -> None:
    doc = {"correct_option": "B", "apr_buckets": ["counting"], "apr_present": True}
    assert omnivideobench.process_results(doc, [reply])["score"] == right


def test_worldsense_takes_nothing_for_nothing() -> None:
    """The official scorer takes A for a reply that it can't read, and a capital inside a word for an answer.

    Without an answer there is nothing to read.
    """
    doc = {**next(iter(worldsense._rows([SENSE]))), "answer": "A", "apr_buckets": ["under_1min"], "apr_present": False}
    for reply, right in [("A", 1), ("I can not tell", 1), ("(null)", 0), ("", 0), (None, 0), ("Certainly", 0)]:
        numbers = worldsense.process_results(doc, [reply])
        assert (numbers["score"], numbers["worldsense_score"]["score"], numbers["acc_under_1min"]) == (
            right,
            right,
            right,
        ), reply
        assert "score_present" not in numbers


@pytest.mark.parametrize(
    "module", [dailyomni, omnivideobench, worldsense, gameplayqa], ids=lambda module: str(module.SOURCE.task)
)
def test_the_yaml_names_every_metric(module: Any) -> None:
    pytest.importorskip("lmms_eval")
    from lmms_eval.utils import load_yaml_config

    source = module.SOURCE
    config = load_yaml_config(str(TASKS / source.folder / f"{source.task}.yaml"))
    named = [metric["metric"] for metric in config["metric_list"]]
    kinds = [f"{head}_{kind}" for kind in gameplayqa.KINDS for head in ("error", "n_error", "picked", "n_picked")]
    more = {
        "apr_worldsense": ["worldsense_score"],
        "apr_gameplayqa": ["no_answer", *kinds, "picked_other", "n_picked_other"],
    }
    assert sorted(named) == sorted([*source.bucket_metrics, *more.get(source.task, [])])
    assert all(
        metric["higher_is_better"] is not metric["metric"].startswith(("error_", "picked_", "no_answer"))
        for metric in config["metric_list"]
    )
    assert config["metadata"]["n_official"] == source.n


@pytest.mark.parametrize(
    "reply", ["[" * 50_000, "A" * 50_000, "\x00", "\\boxed{" * 5000, " " * 10_000, "9" * 5000, "Video 3", 3.5, ["B"]]
)
def test_any_reply_has_a_score_whatever_thread_asks(reply: Any) -> None:
    """lmms-eval scores in four threads; the numbers don't depend on it."""
    shared = {"apr_buckets": [], "apr_present": True}
    (played,) = gameplayqa.rows(
        [
            [
                dict.fromkeys(GAMEPLAY_COLUMNS, "")
                | {"id": "q", "video_start": "0", "video_end": "1", "correct_option": "Video 3"}
            ]
        ]
    )
    docs = [
        (dailyomni, DAILY[0]),
        (omnivideobench, {"correct_option": "B"}),
        (worldsense, next(iter(worldsense._rows([SENSE])))),
        (gameplayqa, played),
    ]
    with ThreadPoolExecutor(4) as pool:
        for module, doc in docs:
            scored = list(
                pool.map(lambda _, module=module, doc=doc: module.process_results({**doc, **shared}, [reply]), range(8))
            )
            assert scored == scored[:1] * 8 and 0 <= scored[0]["score"] <= 1
    assert scored[0]["score"] == (reply == "Video 3")


def test_official_labels_become_names() -> None:
    assert bucket_name("background&music understanding") == "background_music_understanding"
    assert bucket_name("AV Event Alignment") == "av_event_alignment"
    assert without_labels(["A.0", "B 1", "C: x", "D. J. Smith"]) == ["0", "1", "x", "J. Smith"]
    assert without_labels(["A man", "plays"]) == ["A man", "plays"]
    assert ask({"question": "Why?", "options": ["so", "not so"]}).splitlines()[:3] == ["Why?", "A. so", "B. not so"]


@pytest.mark.parametrize("source", [dailyomni.SOURCE, omnivideobench.SOURCE])
def test_labels_that_the_data_does_not_have_are_an_error(source: Any, task_bench: TaskBench) -> None:
    from apr_plugin.errors import AprError

    rows: Any = (
        [_daily("Q?", "A", "aa", "Singing", "30s")]
        if source is dailyomni.SOURCE
        else [{**BENCH[0], "duration": "an hour"}]
    )
    task_bench.place(source, [rows])
    with pytest.raises(AprError, match=r"does not know|README"):
        source.documents()


@pytest.mark.parametrize(
    ("module", "content"),
    [(dailyomni, DAILY), (omnivideobench, BENCH), (worldsense, SENSE)],
    ids=["daily", "bench", "sense"],
)
def test_a_row_that_cannot_be_read_costs_its_own_question(module: Any, content: Any, task_bench: TaskBench) -> None:
    check_spoiled(task_bench, module.SOURCE, [content])


def test_an_unreadable_row_in_a_run(task_bench: TaskBench) -> None:
    """The question is in the denominator, the trajectory says why, and the others are answered."""
    daily = [*DAILY, {**DAILY[0], "Question": 10**30}, {**DAILY[0], "Choice": 3}]
    task_bench.place(dailyomni.SOURCE, [daily], {"Videos/aa/aa_video.mp4": 3, "Videos/bb/bb_video.mp4": 4})
    results = task_bench.run("apr_dailyomni", DAILY_SAYS, bootstrap_iters=0)
    assert (results["apr_dailyomni"]["score"], results["apr_dailyomni"]["n"]) == (pytest.approx(2 / 7), 7)
    lines = [
        json.loads(line)
        for path in task_bench.root.rglob("*.jsonl")
        for line in path.read_text().splitlines()
        if '"stop_detail"' in line
    ]
    stops = {line["question"]["doc_id"]: (line["stop_reason"], line["stop_detail"]) for line in lines}
    assert len(stops) == 7 and stops["5"][0] == stops["6"][0] == "media_unreadable"
    assert "at most 64 are allowed" in stops["5"][1] and "can't be read" in stops["6"][1]
