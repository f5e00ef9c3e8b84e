"""VLMEvalKit's own video data sets with model `apr`, through its real code, on small local data of the same schema."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import vlmeval_data
from vlmeval_testing import Ended, Warm

from apr_plugin.compare.joined import arm_of_rows, arm_of_run, join
from apr_plugin.harnesses.vlmeval.video_sets import SETS
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.runs.opened import open_run
from apr_plugin.scoring.text import NO_ANSWER
from apr_plugin.tasks.needle.make import NeedleSpec, make_needle

pytestmark = pytest.mark.xdist_group("vlmeval")  # loading VLMEvalKit takes longer than all of these tests

PAGE = (Path(__file__).parents[2] / "docs" / "vlmeval.md").read_text("utf-8")

FIVE = (
    "Video-MME_agent",
    "LongVideoBench_agent",
    "MLVU_MCQ_agent",
    "CG-Bench_MCQ_Grounding_Mini_agent",
    "OMTGBench_agent",
)


@dataclass(frozen=True)
class Done:
    """What the commands of this module left."""

    folder: Path
    ended: Mapping[str, Ended]

    def samples(self, name: str, task: str) -> dict[int, dict[str, Any]]:
        """The newest samples of a task in a folder of the run, by doc id."""
        newest = sorted((self.folder / name).glob(f"*_samples_{task}.jsonl"))[-1]
        return {row["doc_id"]: row for row in map(json.loads, newest.read_text().splitlines())}

    def trajectories(self, name: str) -> list[Trajectory]:
        """Every line, each attempt included."""
        files = sorted((self.folder / name / "trajectories").rglob("*.jsonl"))
        return [trajectory for file in files for trajectory in Trajectory.iterate(file)]


@pytest.fixture(scope="module")
def done(vlmeval: Warm, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """All commands of this module, in one process of VLMEvalKit."""
    folder = tmp_path_factory.mktemp("sets")
    data = vlmeval_data.make(tmp_path_factory.mktemp("data"))
    needles = make_needle(
        tmp_path_factory.mktemp("needles"), NeedleSpec(buckets=("1m",), videos_per_bucket=1, questions_per_kind=1),
        progress=False,
    )  # fmt: skip
    knows = f"policy=knows,answers={data / 'answers.json'}"
    five: list[str | Path] = ["vlmeval", "--data", *FIVE, "--model_args", knows, "--work-dir", folder / "five"]
    subtitles = ["Video-MME_agent_subs", "LongVideoBench_agent_subs"]
    passive = ["--model_args", f"{knows},arm=passive,passive_frames=7", "--work-dir", folder / "api"]
    other = ["--model", vlmeval_data.SAYS_B, "--work-dir", folder / "other"]
    commands: dict[str, list[str | Path]] = {
        "five": five,
        "again": five,
        "api": ["vlmeval", "--data", *subtitles, *passive, "--api-mode"],
        "agent": [
            "vlmeval",
            "--data",
            "apr_needle_glyph",
            "--model_args",
            "policy=needle",
            "--work-dir",
            folder / "agent",
        ],
        "other": ["vlmeval", "--data", "apr_needle_glyph_8frame", *other],
        "limit": [
            "vlmeval",
            "--data",
            "MLVU_MCQ_agent",
            "--limit",
            "1",
            "--model_args",
            knows,
            "--work-dir",
            folder / "limit",
        ],
        "lost": ["vlmeval", "--data", FIVE[2], "--api-mode", "--model_args", knows, "--work-dir", folder / "lost"],
        "unknown": ["vlmeval", "--data", "Video-MMA_agent", "--model_args", knows, "--work-dir", folder / "x"],
        "no": ["vlmeval", "--data", "V2P-Bench_agent", "--model_args", knows, "--work-dir", folder / "x"],
        "plain": ["vlmeval", "--data", "CG-Bench_OpenEnded", "--model_args", knows, "--work-dir", folder / "x"],
        "oracle": ["vlmeval", "--data", FIVE[0], "--model_args", f"{knows},arm=oracle", "--work-dir", folder / "x"],
        "path": ["vlmeval", "--data", "MLVU_agent", "--model_args", knows, "--work-dir", folder / "MLVU"],
    }
    ended = vlmeval.run(
        *commands.values(),
        setup=Path(vlmeval_data.__file__),
        environment={"VLMEVAL_TEST_DATA": str(data), "APR_NEEDLE_DIR": str(needles)},
    )
    return Done(folder, dict(zip(commands, ended, strict=True)))


def test_five_data_sets_are_answered_and_scored(done: Done) -> None:
    """Right, wrong and not at all, by VLMEvalKit's own scorers; a question without an answer is never right."""
    assert done.ended["five"].status == 3, done.ended["five"].text
    for task, expected in {
        "Video-MME": ["B", "C", NO_ANSWER, NO_ANSWER],
        "LongVideoBench": ["B", "C", NO_ANSWER, NO_ANSWER],
        "MLVU_MCQ": ["B", "C", NO_ANSWER],
        "CG-Bench_MCQ_Grounding_Mini": ["B", "C", NO_ANSWER, "B", "C", NO_ANSWER],
    }.items():
        rows = done.samples("five", task)
        assert [rows[at]["answer"] for at in range(len(expected))] == expected, task
        assert [rows[at]["score"] for at in range(len(expected))] == [float(answer == "B") for answer in expected], task
    rows = done.samples("five", "CG-Bench_MCQ_Grounding_Mini")
    for at in (6, 7, 8):  # the evidence, asked for as fractions of the duration
        assert rows[at]["score"] == pytest.approx(1.0) and '"result"' in rows[at]["answer"]
    assert done.samples("five", "OMTGBench")[0]["score"] == 1.0
    assert done.samples("five", "Video-MME")[0]["bucket"] == "short"
    assert rows[0]["bucket"] == "0-10min"


def test_vlmevalkits_own_figures_count_the_unanswered(done: Done) -> None:
    """Video-MME with its own rating: one right answer of four."""
    rating = json.loads(next((done.folder / "five").rglob("*Video-MME_agent_rating.json")).read_text())
    assert rating["overall"]["overall"] == "0.250"
    assert re.search(r"Video-MME_agent +50\.00% \(2/4\)", done.ended["five"].text)
    (results, *_) = sorted((done.folder / "five").glob("*_results.json"))
    assert json.loads(results.read_text())["results"]["Video-MME"]["overall|overall,none"] == 0.25


def test_what_could_not_be_answered_is_said_with_its_reason(done: Done) -> None:
    text = done.ended["five"].text
    assert "Video-MME doc 3: media_unreadable" in text and "SyntaxError" in text
    reasons = {(t.question.task, t.question.doc_id): t.stop_detail for t in done.trajectories("five")}
    assert "the test wants it to fail" in reasons["MLVU_MCQ", "2"]
    assert "missing.mp4" in reasons["LongVideoBench", "3"]
    assert "Traceback" not in text
    assert "7 questions could not be answered" in text


def test_the_same_command_asks_only_what_failed(done: Done) -> None:
    """VLMEvalKit's own run would take every earlier answer, the missing ones included."""
    assert done.ended["again"].status == 3
    lines = done.trajectories("five")
    assert len(lines) == len({t.question.key for t in lines}) == 21
    run = open_run(done.folder / "five")
    assert not run.problems and len(run.evaluations) == 2 and len(run.failed) == 7
    assert {score.evaluation for score in run.scores.values()} == {run.evaluations[0].time}


def test_subtitles_are_shown_at_the_times_of_the_frames(done: Done) -> None:
    """In API mode, where VLMEvalKit builds messages in a process of its own; a broken row does not stop it."""
    assert done.ended["api"].status == 3, done.ended["api"].text
    shown = {
        (t.question.task, t.question.doc_id): [look.remark for look in t.first_shown] for t in done.trajectories("api")
    }
    both = '(Subtitles: 0.50s-1.50s "the first words"; 4.00s-5.00s "the last words")'
    assert shown["Video-MME_subs", "0"] == [both]
    assert shown["Video-MME_subs", "2"] == [""]  # it has no file of subtitles
    assert shown["LongVideoBench_subs", "1"] == ['(Subtitles: 0.50s-1.50s "the first words")']
    assert done.samples("api", "Video-MME_subs")[0]["score"] == 1.0


def test_another_model_answers_our_tasks_from_frames(done: Done) -> None:
    """Its rows are an arm beside a run of the agent."""
    assert done.ended["other"].status == 0, done.ended["other"].text
    (file,) = (done.folder / "other").glob("*_samples_apr_needle_glyph.jsonl")
    arm = arm_of_rows("says B", file)
    assert set(arm.outcomes) == {("apr_needle_glyph", "test", "0", 0)}
    comparison = join([arm_of_run("agent", open_run(done.folder / "agent")), arm])
    assert len(comparison.common) == 1 and comparison.arms[0].outcome(comparison.keys[0]).right


def test_limit_asks_the_first_questions(done: Done) -> None:
    assert done.ended["limit"].status == 0, done.ended["limit"].text
    assert list(done.samples("limit", "MLVU_MCQ")) == [0]


def test_the_api_mode_ends_when_an_answer_was_lost(done: Done) -> None:
    """VLMEvalKit's own would wait for ever."""
    ended = done.ended["lost"]
    assert ended.status == 1 and "1 of its questions were lost in VLMEvalKit" in ended.text, ended.text
    assert len(done.trajectories("lost")) == 3


@pytest.mark.parametrize(
    ("name", "status", "told"),
    [
        ("unknown", 2, "did you mean 'Video-MME_agent'"),
        ("no", 1, "can't answer it: its questions are about a mark in a picture"),
        ("plain", 2, "it is called CG-Bench_OpenEnded_agent"),
        ("oracle", 2, "arm=oracle: Video-MME_agent does not say where the evidence is"),
        ("path", 2, "VLMEvalKit would replace 'MLVU' in this path"),
    ],
)
def test_wrong_data_is_one_message(done: Done, name: str, status: int, told: str) -> None:
    ended = done.ended[name]
    assert (ended.status, "Traceback" in ended.text) == (status, False), ended.text
    assert told in " ".join(ended.text.split())


@pytest.fixture(scope="module")
def scorers(
    vlmeval: Warm, tmp_path_factory: pytest.TempPathFactory, shared_videos: Mapping[str, Path]
) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("scorers") / "scores.json"
    vlmeval.run(
        setup=Path(__file__).with_name("vlmeval_scorers.py"),
        environment={"VLMEVAL_TEST_OUT": str(out), "VLMEVAL_TEST_FILM": str(shared_videos["sound"])},
    )
    found: dict[str, Any] = json.loads(out.read_text())
    return found


FAILING = {
    "VideoTT": "ZeroDivisionError",  # VLMEvalKit divides by the count of each capability, and here only one occurs
    "CGAVCounting": "unexpected keyword argument 'category'",
    "CGAVCounting events": "unexpected keyword argument 'category'",
}
"""Where VLMEvalKit's own evaluation fails (0.0.20, and upstream at e8e78f05)."""


def test_their_own_scorers_read_what_comes_back(scorers: dict[str, Any]) -> None:
    """A right answer is right, a wrong one wrong, and no answer is not an answer, in each data set without a judge."""
    assert len(scorers) > 15
    for name, found in scorers.items():
        assert "error" not in found, (name, found.get("error"))
        assert FAILING.get(name, "") in found["problem"] and bool(found["problem"]) == (name in FAILING), name
        scores = [float(next(iter(found["scores"].get(str(at), {"": -1}).values()))) for at in range(4)]
        scores = [own if own is not None else score for own, score in zip(found["own"], scores, strict=True)]
        if not name.startswith("CGAVCounting"):
            assert scores == [1.0, 0.0, 0.0, 1.0], (name, found)


def test_their_rows_are_read_column_by_column(scorers: dict[str, Any]) -> None:
    for name, found in scorers.items():
        kind = name.partition(" ")[0]
        assert found["reader"] == (kind if SETS[kind].read.__name__ != "read_prompt" else "prompt"), name
        assert found["videos"] and all(Path(path).is_file() for path in found["videos"]), name
        assert re.search(r"bells?\b", found["text"]) and "letter" not in found["text"].lower(), (name, found["text"])
        if found["kind"] == "mcq" and found["options"][1][1] != "no":
            assert [text for _, text in found["options"]] == ["red", "green", "blue", "black"], name


def test_every_video_class_is_known() -> None:
    """Of the VLMEvalKit that is installed, without importing it."""
    spec = importlib.util.find_spec("vlmeval")
    if spec is None or spec.origin is None:
        pytest.skip("VLMEvalKit is not installed: pip install 'apr-plugin[vlmeval]'")
    source = (Path(spec.origin).parent / "dataset" / "__init__.py").read_text("utf-8")
    listed = re.findall(r"^VIDEO_DATASET \+?= \[(.*?)\]", source, re.MULTILINE | re.DOTALL)
    classes = set(re.findall(r"\w+", " ".join(listed)))
    assert len(classes) > 40 and classes <= set(SETS)


def test_the_page_has_the_table() -> None:
    """`docs/vlmeval.md` says of every class what the program does."""
    for name, known in SETS.items():
        assert table_line(name) in PAGE.splitlines(), (name, known.title)


def table_line(name: str) -> str:
    """The line of the page for a class."""
    known = SETS[name]
    works = {"works": "works", "note": "works, with a note", "no": "can't"}[known.state]
    return f"| {known.title} | `{name}` | {works} | {known.note} | {known.checked} |".replace("|  |", "| |")


def test_what_the_table_says_was_checked_is_checked_here(scorers: dict[str, Any]) -> None:
    assert {name for name, known in SETS.items() if known.checked == "end to end"} == {
        "VideoMME", "LongVideoBench", "MLVU_MCQ", "CGBench_MCQ_Grounding_Mini", "OMTGBench",
    }  # fmt: skip
    checked = {name for name, known in SETS.items() if known.checked == "prompt and scorer"}
    assert checked == {name.partition(" ")[0] for name in scorers}
