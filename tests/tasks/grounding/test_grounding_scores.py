"""One reply to a grounding task: the prompt, the reading of usual replies, and the metrics, also in threads."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from apr_plugin.harnesses.readers import read
from apr_plugin.scoring.writing import write_longest_first
from apr_plugin.tasks.activitynet_captions import utils as activitynet
from apr_plugin.tasks.charades_sta import utils as charades
from apr_plugin.tasks.common import Source, doc_to_visual, grounding
from apr_plugin.tasks.longvale import utils as longvale
from apr_plugin.tasks.qvhighlights import utils as qvhighlights
from apr_plugin.tasks.tacos import utils as tacos
from apr_plugin.tasks.vue_tr import utils as vue

Score = Callable[[Any, list[Any]], dict[str, Any]]

CASES: dict[str, tuple[Source, Score]] = {
    "apr_charades_sta": (charades.SOURCE, charades.process_results),
    "apr_activitynet_captions": (activitynet.SOURCE, activitynet.process_results),
    "apr_activitynet_captions_val": (activitynet.VAL, activitynet.process_results),
    "apr_tacos": (tacos.SOURCE, tacos.process_results),
    "apr_longvale": (longvale.SOURCE, longvale.process_results),
    "apr_longvale_all": (longvale.ALL, longvale.process_all),
    "apr_qvhighlights": (qvhighlights.SOURCE, qvhighlights.process_results),
    "apr_qvhighlights_val": (qvhighlights.VAL, qvhighlights.process_results),
    **{
        source.task: (source, vue.process_results)
        for source in (
            vue.ALL, vue.VISION, vue.VISION_AUDIO, vue.AUDIO, vue.ALL_V2, vue.VISION_V2, vue.VISION_AUDIO_V2,
                vue.AUDIO_V2,
        )
    },
}  # fmt: skip

GARBAGE = ["", "(null)", "[[900, 810], [0, 100]]", "[[1e999, 2]]", "[[NaN, 3]]", "[" * 50_000, "\x00", "9" * 5000,
    "no idea", None, ["[[1, 2]]"], 3.5,
           "[[-5, -1]]", "[[3, 3]]", "1 to 2, " * 5000, "[[0, 1e308], [0, 1e308]]"]  # fmt: skip


def doc(source: Source, spans: list[list[float]] | None = None) -> dict[str, Any]:
    """A document as `Source.documents` makes it."""
    columns = {"query_id": 3, "video_id": "v", "duration": 60.0, "task": "temporal_retrieval"}
    row = grounding.row('When is "{}"?', " A dog barks. ", spans or [[10, 20]], **columns)
    return row | {
        "apr_videos": ["/data/v.mp4"],
        "apr_seconds": 60.0,
        "apr_buckets": [source.buckets[0]],
        "apr_present": True,
    }


@pytest.mark.parametrize("task", CASES)
def test_usual_replies_are_read(task: str) -> None:
    source, score = CASES[task]
    for reply in (
        "From 10 to 20 seconds",
        "From 10.0 to 20.0 seconds.",
        "The event happens in the 10.0 - 20.0 seconds.",
        "[[10, 20]]",
        "0:10 - 0:20",
    ):
        got = score(doc(source), [reply])
        assert (got["score"], got["no_span"]) == (1.0, 0.0), reply
    assert score(doc(source), ["From 10 to 15 seconds"])["score"] == 0.5


@pytest.mark.parametrize("task", CASES)
def test_every_number_is_in_bounds_whatever_is_replied(task: str) -> None:
    source, score = CASES[task]
    for reply in GARBAGE:
        got = score(doc(source), [reply])
        got.pop("prediction", None)
        for name, value in got.items():
            assert value == 1 if name.partition("_")[0] == "n" else 0.0 <= value <= 1.0, (reply, name, value)
        json.dumps(score(doc(source), [reply]), allow_nan=False)
    assert score(doc(source), [])["score"] == 0
    assert score(doc(source), ["[[900, 810], [0, 100]]"])["score"] <= 0.1  # the published scorer gives 1.00


@pytest.mark.parametrize("task", CASES)
def test_the_yaml_lists_every_metric_and_no_other(task: str) -> None:
    source, score = CASES[task]
    given = set(source.bucket_metrics)
    for bucket in source.buckets:  # a true span of a length that counts in the bucket, if buckets are lengths
        end = {"short": 15, "middle": 30, "long": 50}.get(bucket, 20)
        given |= set(score(doc(source, [[10, end]]) | {"apr_buckets": [bucket]}, ["[[10, 20]]"]))
    assert _metrics(task) == sorted(given - {"prediction"})


def _metrics(task: str) -> list[str]:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    (path,) = Path(grounding.__file__).parents[1].rglob(f"{task}.yaml")
    config = yaml.load(path.read_text("utf-8"), Loader)
    if "include" in config:
        config = yaml.load((path.parent / config["include"]).read_text("utf-8"), Loader) | config
    assert config["task"] == task and config["metadata"]["n_official"] == CASES[task][0].n
    names = [metric["metric"] for metric in config["metric_list"]]
    assert len(names) == len(set(names))
    return sorted(names)


def test_threads_return_what_one_thread_does() -> None:
    replies = ["From 10 to 15 seconds", "[[0, 5], [12, 20]]", "nothing", "[[10, 20], [30, 40]]"] * 10
    jobs = [(source, score, reply) for source, score in CASES.values() for reply in replies]

    def one(job: tuple[Source, Score, str]) -> dict[str, Any]:
        source, score, reply = job
        return score(doc(source), [reply])

    alone = [one(job) for job in jobs]
    with ThreadPoolExecutor(max_workers=4) as pool:
        assert list(pool.map(one, jobs)) == alone


def test_how_a_model_is_asked() -> None:
    asked = doc(charades.SOURCE)
    assert grounding.ask_one(asked) == (
        'When is "A dog barks"?\n'
        'Answer with its start and end in seconds from the beginning of the video, in the form "From 12.3 to '
        '20.0 seconds", and nothing else.'
    )
    assert "one per line, and nothing else" in grounding.ask_all(asked)
    assert "the most certain first" in grounding.ask_ranked(asked)
    assert doc_to_visual(asked) == ["/data/v.mp4"]
    assert json.loads(grounding.doc_to_target(asked)) == [[10, 20]]


@pytest.mark.parametrize("task", CASES)
def test_the_reader_sees_the_question_alone_and_its_answer_scores(task: str) -> None:
    source, score = CASES[task]
    asked = {name: value for name, value in doc(source).items() if name != "spans"}  # no reader needs the true spans
    name, reading = read(task, asked, "the prompt")
    assert name == "task"
    assert (str(reading.kind), reading.text) == ("grounding", 'When is "A dog barks"?')
    assert score(doc(source), [reading.write("[[1, 3], [10, 20]]")])["score"] == pytest.approx(
        10 / 12 if "set" in source.prefix else 1.0
    )


@pytest.mark.parametrize(
    ("answer", "written"),
    [
        ("[[0, 5], [20, 40], [50, 70]]", [[20, 40], [50, 70], [0, 5]]),
        ("[[3.25, 7.5]]", [[3.25, 7.5]]),
        ("[[7, 3]]", "[[7, 3]]"),
        ("from 3 to 5", "from 3 to 5"),
        ("[]", "[]"),
    ],
)
def test_the_longest_span_goes_back_first(answer: str, written: Any) -> None:
    assert write_longest_first(answer) == (
        written if isinstance(written, str) else json.dumps([[float(a), float(b)] for a, b in written])
    )


def test_a_text_that_is_not_as_it_should_be_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from apr_plugin.errors import AprError

    monkeypatch.setenv("APR_DATA", str(tmp_path))
    home = tmp_path / "longvale"
    home.mkdir()
    (home / "longvale-annotations-eval.json").write_text(
        json.dumps({"v": {"duration": 3, "timestamps": [[0, 1]], "sentences": []}})
    )
    with pytest.raises(AprError, match=r"LongVALE: .*longvale-annotations-eval\.json is not as its README says"):
        longvale.SOURCE.rows()


@pytest.mark.parametrize(
    "write",
    [json.dumps, lambda spans: "\n".join(f"From {start} to {end} seconds" for start, end in spans)],
    ids=["json", "words"],
)
def test_every_span_of_a_long_answer_counts(write: Callable[[list[list[float]]], str]) -> None:
    spans = [[2.0 * index, 2.0 * index + 1.0] for index in range(2_000)]
    scored = vue.process_results(doc(vue.ALL, [[0, 4_000]]), [write(spans)])
    assert (
        scored["score"] == pytest.approx(0.5)
        and scored["precision_set"] == 1.0
        and scored["prediction"]["answer"] == spans
    )


@pytest.mark.parametrize("task", ["apr_charades_sta", "apr_qvhighlights", "apr_vue_tr"])
def test_an_answer_of_a_hundred_thousand_spans_is_cheap(task: str) -> None:
    source, score = CASES[task]
    reply = json.dumps([[index, index + 0.5] for index in range(100_000)])
    began = time.process_time()
    score(doc(source, [[0, 100_000]]), [reply])
    assert time.process_time() - began < 10.0  # one to two seconds here
