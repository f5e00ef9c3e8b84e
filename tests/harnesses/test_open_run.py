"""`open_run` on the files of the real lmms-eval.

Two configurations in one folder, repeats, trajectories elsewhere, damaged files.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apr_plugin.errors import AprError, MissingExtra
from apr_plugin.loop.trajectory import StopReason
from apr_plugin.runs import Run, find_runs, open_run
from apr_plugin.runs.rows import QUESTION, TURN

pytest.importorskip("lmms_eval")
pytest.importorskip("pandas")

pytestmark = pytest.mark.xdist_group("lmms_commands")


@pytest.fixture(scope="module")
def made(bench: Any, run_apr: Callable[..., list[Any]], tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Three runs: `out`, `far` and `again`.

    `out`: three tasks, eight questions that can't be answered or are wrong, and two under a second configuration.
    `far`: its trajectories are in `runs`. `again`: each question was asked three times.
    """
    root = tmp_path_factory.mktemp("opened")
    script = bench.script("opened", bench.look(0, 2, 3), bench.answer("A"))
    passive = [
        "--model_args",
        f"policy=scripted,script={bench.script('opened_passive', bench.answer('A'))},arm=passive,passive_frames=4",
    ]
    agent = ["--model_args", f"policy=scripted,script={script}"]
    ours = ["eval", "--include_path", bench.tasks, "--log_samples"]
    *done, failed = run_apr(
        [*ours, "--tasks", "bench_mcq", "--limit", "2", *passive, "--output_path", root / "out"],
        [
            *ours,
            "--tasks",
            "bench_mcq",
            "--limit",
            "2",
            "--model_args",
            f"{agent[1]},trajectories={root / 'runs'}",
            "--output_path",
            root / "far",
        ],
        [*ours, "--tasks", "bench_mcq", "--limit", "2", "--repeats", "3", *agent, "--output_path", root / "again"],
        [*ours, "--tasks", "bench_mcq,bench_bad,videomme_bench", *agent, "--output_path", root / "out"],
    )
    assert [end.status for end in (*done, failed)] == [0, 0, 0, 3], [end.text for end in (*done, failed)]
    return SimpleNamespace(root=root, out=root / "out")


@pytest.fixture
def out(made: SimpleNamespace, tmp_path: Path) -> Path:
    """A copy of `out` that may be damaged."""
    return Path(shutil.copytree(made.out, tmp_path / "out"))


def _agent(folder: Path) -> Run:
    (found,) = [one for one in find_runs(folder) if "agent" in one.about]
    return open_run(folder, config=found.config_hash[:6])


def test_a_whole_run(made: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        run = _agent(made.out)
    assert run.problems == [] and not caplog.records
    assert len(run) == 16 and set(run.keys) == set(run.scores) and run.without_score == run.without_trajectory == []
    assert run.folder == made.out / "trajectories" / run.config_hash and run.card["policy"]["name"] == "scripted"
    assert {t.config_hash for t in run} == {run.config_hash} and next(iter(run)).question.key == run.keys[0]
    assert [key[2] for key in run.failed] and len(run.failed) == 4

    table = run.frame().set_index(["task", "doc_id"]).sort_index()
    assert list(table.reset_index().columns[:2]) == ["task", "doc_id"] and set(QUESTION) <= {
        *table.columns,
        "task",
        "doc_id",
    }
    right = table.loc["bench_mcq"]["score"]
    assert right.to_dict() == {"0": 1, "1": 0, "2": 0, "3": 0, "4": 1, "5": 0}
    assert right.mean() == pytest.approx(run.metrics["bench_mcq"]["score,none"])
    first = table.loc["bench_mcq", "0"]
    assert (first.split, first["repeat"], first.kind, first.answer, first.target, first.stop_reason) == (
        "test",
        0,
        "mcq",
        "A",
        "A",
        "answered",
    )
    assert (
        (first.turns, first.frames, first.arm, first["metric.score"]) == (2, 3, "agent", 1)
        and first.visual_tokens > 0
        and first.seconds > 0
    )
    assert table.loc["videomme_bench"]["bucket"].tolist() == ["short", "short"] and first.isna().bucket
    assert table.loc["bench_bad", "1"].stop_reason == "media_unreadable" and table.loc["bench_bad", "1"].score == 0

    turns = run.turns()
    assert list(turns.columns) == list(TURN) and len(turns) == table.turns.sum()
    looks = turns[(turns.task == "bench_mcq") & (turns.turn == 1)]
    assert set(looks.action) == {"get_frames"} and set(looks.end_s) == {2.0} and set(looks.frames) == {3}


def test_which_run_is_meant(made: SimpleNamespace, tmp_path: Path) -> None:
    agent = _agent(made.out)
    (other,) = [one.config_hash for one in find_runs(made.out) if one.config_hash != agent.config_hash]
    for folder in (made.out, made.out / "trajectories"):
        with pytest.raises(AprError, match="holds 2 configurations; choose one") as error:
            open_run(folder)
        assert (
            other in str(error.value)
            and agent.config_hash in str(error.value)
            and "scripted, passive, 2 lines" in str(error.value)
        )
        passive = open_run(folder, config=other)
        assert {key[2]: score.value for key, score in passive.scores.items()} == {
            "0": 1,
            "1": 0,
        } and not passive.problems
        assert open_run(folder, latest=True).config_hash == agent.config_hash, "the second command was the agent's"
    with pytest.raises(AprError, match=f"no configuration begins with 'zz'; there are: .*{other}"):
        open_run(made.out, config="zz")
    by_its_folder = open_run(agent.folder)
    assert by_its_folder.scores == agent.scores and len(by_its_folder) == 16 and not by_its_folder.problems

    far = open_run(made.root / "far")
    assert far.folder.parent == made.root / "runs" and len(far.scores) == 2 and not far.problems
    assert open_run(made.root / "runs", results=made.root / "far").scores == far.scores
    assert [problem.partition(":")[0] for problem in open_run(made.root / "runs").problems] == ["no scores"]
    with pytest.raises(AprError, match=r"results=.*no such folder"):
        open_run(made.root / "runs", results=tmp_path / "gone")
    for empty, words in (
        (tmp_path, "it holds no trajectories of a run"),
        (tmp_path / "gone", "no such file or folder"),
    ):
        with pytest.raises(AprError, match=words):
            open_run(empty)


def test_of_three_answers_the_first_has_the_score(made: SimpleNamespace, tmp_path: Path) -> None:
    run = open_run(made.root / "again")
    assert sorted(key[2:] for key in run.keys) == [(doc, repeat) for doc in "01" for repeat in range(3)]
    assert {key[2:]: score.value for key, score in run.scores.items()} == {("0", 0): 1, ("1", 0): 0}
    (problem,) = run.problems
    assert problem.startswith(
        "4 questions without a score (of several answers to a question lmms-eval logs the score of the first): "
    )

    voted = Path(shutil.copytree(made.root / "again", tmp_path / "voted"))
    (results,) = voted.rglob("*_results.json")
    found = json.loads(results.read_text())
    found["configs"]["bench_mcq"]["filter_list"] = [{"name": "vote", "filter": [{"function": "majority_vote"}]}]
    results.write_text(json.dumps(found))
    run = open_run(voted)
    assert not run.scores and any(
        problem.startswith("2 questions with one score for several answers") for problem in run.problems
    )


def test_what_is_torn_damaged_or_missing_is_said(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = _agent(out)
    lines = (whole.folder / "bench_mcq.jsonl").read_bytes().splitlines(keepends=True)
    lines[1:2] = [b"{broken\n"]
    (whole.folder / "bench_mcq.jsonl").write_bytes(b"".join(lines)[:-20])
    (whole.folder / "bench_mcq.jsonl.damaged").write_bytes(b"{\n{\n")
    (whole.folder / "videomme_bench.jsonl").rename(whole.folder / "videomme_bench.rank1.jsonl")
    (whole.folder / "card.json").unlink()
    newest = whole.evaluations[0]
    newest.samples["bench_bad"].write_text(
        "not json\n" + "".join(newest.samples["bench_bad"].read_text().splitlines(keepends=True)[2:])[:-5]
    )
    newest.samples["videomme_bench"].unlink()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        run = open_run(whole.folder)
    said = "\n".join(run.problems)
    for words in (
        "bench_mcq.jsonl, line 2: not JSON", "bench_mcq.jsonl: its last line is incomplete",
        "bench_mcq.jsonl.damaged: 2 damaged lines",
        "videomme_bench.rank1.jsonl: the file of one rank", "the card (card.json or config.json) is missing",
        "bench_bad.jsonl, line 1: not a sample of lmms-eval (JSONDecodeError",
        "bench_bad.jsonl, line 7: its end is missing",
        "2 questions with a score and without a trajectory: bench_mcq doc", "5 questions without a score: ",
    ):  # fmt: skip
        assert words in said, said
    assert [record.getMessage() for record in caplog.records] == run.problems
    assert len(run) == 14 and len(run.scores) == 9 and len(run.without_trajectory) == 2 and len(run.without_score) == 5
    assert len(run.frame()) == 14 and run.frame().score.isna().sum() == 5 and run.card == {}


def test_a_score_of_another_answer_is_not_taken(out: Path) -> None:
    whole = _agent(out)
    samples = whole.evaluations[0].samples["bench_mcq"]
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    rows[0]["filtered_resps"] = "(null)"
    samples.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[3] | {"score": 0.5}]))
    run = _agent(out)
    assert ("bench_mcq", "test", "0", 0) not in run.scores and run.scores["bench_mcq", "test", "3", 0].value == 0.5
    assert any(
        "1 score of another answer than the trajectory's, left out: bench_mcq doc 0" in problem
        for problem in run.problems
    )
    assert any(
        "1 question in it more than once (bench_mcq doc 3); the last counts" in problem for problem in run.problems
    )


def test_results_that_do_not_say_of_which_run_they_are(out: Path) -> None:
    """Results of releases before `apr_run`: with one configuration there is no doubt, with two there is."""
    for path in out.rglob("*_results.json"):
        found = json.loads(path.read_text())
        del found["config"]["resolved_cli_args"]["apr_run"]
        path.write_text(json.dumps(found))
    run = _agent(out)
    assert not run.scores and any(
        "don't say which configuration they are of, left out" in problem for problem in run.problems
    )
    (other,) = [one for one in find_runs(out) if one.config_hash != run.config_hash]
    shutil.rmtree(other.folder)
    alone = open_run(out)
    assert len(alone.scores) == 16 and not alone.problems

    newest = max(out.rglob("*_results.json"))
    foreign = json.loads(newest.read_text())
    foreign["config"]["model"] = "qwen2_5_vl"
    (newest.parent / "20990101_000000_results.json").write_text(json.dumps(foreign))
    samples = alone.evaluations[0].samples["bench_mcq"].read_text().replace('"score": 0.0', '"score": 1.0')
    (newest.parent / "20990101_000000_samples_bench_mcq.jsonl").write_text(samples)
    beside = open_run(out)
    assert "1.0" in samples and beside.scores == alone.scores and not beside.problems, (
        "what another model scored is not ours"
    )

    newest.write_text("{")
    assert any("cannot read these results" in problem for problem in open_run(out).problems)


def test_a_run_that_ended_before_its_first_question_and_a_single_file(out: Path, tmp_path: Path) -> None:
    run = _agent(out)
    file = tmp_path / "asked.jsonl"
    for trajectory in list(run)[:3]:
        trajectory.write(file)
    one = open_run(file)
    assert (
        [t.question.key for t in one] == run.keys[:3] and one.config_hash == run.config_hash and one.folder == tmp_path
    )
    empty = tmp_path / "runs" / ("0" * 16)
    empty.mkdir(parents=True)
    shutil.copy(run.folder / "card.json", empty)
    begun = open_run(tmp_path / "runs")
    assert len(begun) == 0 and begun.card == run.card and list(begun.frame().columns) == list(QUESTION)


def test_a_failed_question_that_was_asked_again(out: Path) -> None:
    run = _agent(out)
    key = run.failed[0]
    failed = run[key]
    file = run.folder / f"{key[0]}.jsonl"
    failed.model_copy(update={"stop_reason": StopReason.ANSWERED, "answer": "B", "answer_valid": True}).write(file)
    failed.model_copy(update={"stop_reason": StopReason.CANCELLED}).write(file)
    again = _agent(out)
    assert len(again) == 16 and again[key].answer == "B" and key not in again.failed and key not in again.scores, (
        "its score is that of no answer"
    )
    file.write_text("")
    with pytest.raises(AprError, match="it has changed since the run was opened"):
        _ = again[key]


def test_without_pandas_one_line_says_what_to_install(made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    run, find_spec = _agent(made.out), importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "pandas" else find_spec(name, *more)
    )
    with pytest.raises(MissingExtra, match=r"pandas is not installed; add it with: pip install 'apr-plugin\[report\]'"):
        run.frame()
    assert len(list(run.rows())) == 16
