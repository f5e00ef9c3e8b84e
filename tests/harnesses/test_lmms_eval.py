"""Model `apr` inside the real lmms-eval: its evaluator, its tasks, its scorers, on real video files."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from apr_testing import turn

from apr_plugin.errors import AprError
from apr_plugin.loop.policy import Generation, PolicyDefaults, PolicyUnavailable, Prompt, Sampling, Usage
from apr_plugin.loop.trajectory import StopReason, Trajectory
from apr_plugin.policies import POLICIES

pytest.importorskip("lmms_eval")
pytestmark = pytest.mark.xdist_group("lmms_eval")  # loading lmms-eval takes longer than any of these tests


class Obedient(PolicyDefaults):
    """A policy that looks once, then answers with the letter in the question; later questions end sooner.

    It counts its tokens.
    """

    name = "obedient"
    asked: list[str] = []  # noqa: RUF012 - shared on purpose, so that a test sees what a run asked

    def __init__(self, refuse: str = "") -> None:
        self.refuse = refuse

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        user = next(message for message in prompt.messages if message.role == "user")
        found = re.search(r"Question: (Say (\w).*)", user.text)
        assert found is not None
        first = not prompt.final and not any(message.role == "assistant" for message in prompt.messages)
        if first:
            Obedient.asked.append(found[1])
            number = re.search(r"number (\d+)", found[1])
            await asyncio.sleep(0.2 / (1 + int(number[1])) if number else 0)
        if self.refuse and self.refuse in found[1]:
            raise PolicyUnavailable("it does not want to")
        alone = "duration_seconds" not in user.text
        action = (
            {"type": "get_frames", "start": 0, "end": 2, "num": 3}
            if first and not alone
            else {"type": "answer", "content": found[2]}
        )
        return Generation(
            json.dumps({"observation": "o", "think": "t", "confidence": 0.5, "action": action}), Usage(100, 0, 10)
        )

    def describe(self) -> dict[str, Any]:
        return {"refuse": self.refuse}


Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def evaluate(bench: Any) -> Iterator[Evaluate]:
    """`evaluate("task,task", "policy=…", **more)`: lmms-eval's own `simple_evaluate`.

    The answers are in "answers", as `{task: [text, …]}`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(bench.hub))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setitem(POLICIES, "obedient", f"{__name__}:Obedient")
        from lmms_eval.evaluator import simple_evaluate
        from lmms_eval.tasks import TaskManager
        from task_list import keep_task_list

        keep_task_list()
        manager = TaskManager("ERROR", include_path=str(bench.tasks), model_name="apr")

        def run(tasks: str, model_args: str, **more: Any) -> dict[str, Any]:
            Obedient.asked.clear()
            results: dict[str, Any] = simple_evaluate(
                model="apr",
                model_args=model_args,
                tasks=tasks.split(","),
                task_manager=manager,
                log_samples=True,
                verbosity="ERROR",
                **more,
            )
            results["answers"] = {
                task: [sample["filtered_resps"][0] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
                for task, samples in results["samples"].items()
            }
            return results

        yield run


def _saved(folder: Path) -> list[Trajectory]:
    return [trajectory for path in sorted(folder.rglob("*.jsonl")) for trajectory in Trajectory.iterate(path)]


def test_the_entry_point_is_found() -> None:
    from lmms_eval.models import list_available_models

    assert "apr" in list_available_models()


def test_answers_trajectories_and_costs(evaluate: Evaluate, tmp_path: Path) -> None:
    """Six questions that end out of order come back in order, with their costs.

    One of them has no media, and one has a picture.
    """
    results = evaluate("bench_mcq,bench_text,bench_image", f"policy=obedient,concurrency=6,trajectories={tmp_path}")

    assert results["answers"] == {"bench_mcq": list("ABCDAB"), "bench_text": ["B"], "bench_image": ["C"]}
    assert all(results["results"][task]["score,none"] == 1 for task in results["answers"])
    cost = results["throughput"]
    assert cost["avg_turns_per_question"] == pytest.approx(14 / 8)
    assert cost["avg_frames_per_question"] == pytest.approx(18 / 8)
    assert (
        cost["avg_visual_tokens_per_question"] > 0
        and cost["avg_seconds_per_question"] > 0
        and cost["avg_stop_answered"] == 8
    )
    assert results["usage"]["total"]["input_tokens"] == 1400 and results["usage"]["total"]["output_tokens"] == 140

    saved = _saved(tmp_path)
    mcq = {t.question.doc_id: t for t in saved if t.question.task == "bench_mcq"}
    assert sorted(mcq) == list("012345") and len(saved) == 8
    assert list(mcq) != sorted(mcq), "the questions were to finish out of order"
    assert {t.question.reader for t in saved} == {"prompt"}
    assert mcq["1"].question.text == "Say B, number 1." and [o.label for o in mcq["1"].question.options] == list("ABCD")
    (text,) = [t for t in saved if t.question.task == "bench_text"]
    assert text.arm == "passive" and len(text.turns) == 1 and "no video" in text.stop_detail
    (image,) = [t for t in saved if t.question.task == "bench_image"]
    (shown,) = image.first_shown
    assert shown.kind == "images" and (shown.width, shown.height) == (60, 40)

    again = evaluate("bench_mcq,bench_text,bench_image", f"policy=obedient,concurrency=2,trajectories={tmp_path}")
    assert Obedient.asked == [] and again["answers"] == results["answers"] and len(_saved(tmp_path)) == 8
    assert again["throughput"]["avg_turns_per_question"] == cost["avg_turns_per_question"]

    evaluate("bench_mcq", f"policy=obedient,max_turns=3,trajectories={tmp_path}", limit=2)
    assert len(Obedient.asked) == 2 and len(list(tmp_path.iterdir())) == 2, (
        "another configuration has files of its own and reuses nothing"
    )
    evaluate("bench_mcq", f"policy=obedient,resume=never,trajectories={tmp_path}", limit=2)
    assert len(Obedient.asked) == 2 and len(list(tmp_path.rglob("*.old"))) == 3


def test_an_answer_in_a_wrong_form_does_not_reach_the_scorer_of_a_strict_run(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    """The bench's first question asks for A.

    "A." is right for a scorer that searches for a letter, but wrong in the official environment.
    """
    from apr_plugin.scoring.text import NO_ANSWER

    turns = [turn({"type": "get_frames", "start": 0, "end": 1, "num": 2}), turn({"type": "answer", "content": "A."})]
    (tmp_path / "script").write_text("\n".join(turns))
    (tmp_path / "answer").write_text(turns[1])
    given = f"policy=scripted,script={tmp_path / 'script'},trajectories={tmp_path / 'runs'}"
    assert evaluate("bench_mcq", given, limit=1)["answers"]["bench_mcq"] == ["A"]
    strict = evaluate("bench_mcq", f"{given},parsing=strict", limit=1)
    assert strict["answers"]["bench_mcq"] == [NO_ANSWER] and strict["results"]["bench_mcq"]["score,none"] == 0
    assert {(t.stop_reason, t.answer, t.answer_valid) for t in _saved(tmp_path / "runs")} == {
        (StopReason.ANSWERED, "A", True),
        (StopReason.ANSWERED, "A.", False),
    }
    passive = evaluate(
        "bench_mcq",
        f"policy=scripted,script={tmp_path / 'answer'},arm=passive,parsing=strict,trajectories={tmp_path}",
        limit=1,
    )
    assert passive["answers"]["bench_mcq"] == ["A"], "parsing has no say in the passive arm"


def test_repeats_are_questions_of_their_own(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate("bench_mcq", f"policy=obedient,trajectories={tmp_path}", limit=2, repeats=3)
    keys = {t.question.key for t in _saved(tmp_path)}
    assert keys == {("bench_mcq", "test", doc, repeat) for doc in "01" for repeat in range(3)}
    assert len({t.seed for t in _saved(tmp_path)}) == 6


def test_what_could_not_be_answered_is_counted_and_asked_again(evaluate: Evaluate, tmp_path: Path) -> None:
    from apr_plugin.harnesses.lmms_eval.ending import FAILURES
    from apr_plugin.scoring.text import NO_ANSWER

    FAILURES.clear()
    results = evaluate("bench_mcq", f"policy=obedient,refuse=number 1,trajectories={tmp_path}")
    assert results["answers"]["bench_mcq"] == ["A", NO_ANSWER, *"CDAB"]
    assert results["results"]["bench_mcq"]["score,none"] == pytest.approx(5 / 6)
    assert [line.split(": ")[:2] for line in FAILURES] == [["bench_mcq doc 1", "policy_unavailable"]]
    assert results["throughput"]["avg_stop_policy_unavailable"] == 1

    evaluate("bench_mcq", f"policy=obedient,refuse=number 1,trajectories={tmp_path}")
    assert Obedient.asked == ["Say B, number 1."]


def test_the_cache_of_lmms_eval_does_not_keep_a_failure(evaluate: Evaluate, tmp_path: Path) -> None:
    """`--use_cache` stores every text; a failed question would stay failed, and the next run would not report it."""
    for asked in (["Say A, number 0.", "Say B, number 1."], ["Say B, number 1."]):
        model_args = f"policy=obedient,refuse=number 1,concurrency=1,trajectories={tmp_path / 't'}"
        results = evaluate("bench_mcq", model_args, limit=2, use_cache=str(tmp_path / "cache"))
        assert Obedient.asked == asked
        assert results["throughput"]["avg_stop_policy_unavailable"] == 1


def test_a_task_that_exits_for_a_missing_video_loses_that_question_only(
    evaluate: Evaluate, bench: Any, tmp_path: Path
) -> None:
    results = evaluate("bench_strict", f"policy=obedient,trajectories={tmp_path}")
    assert results["answers"]["bench_strict"][1] == "A"
    (failed,) = [t for t in _saved(tmp_path) if t.stop_reason.failed]
    assert failed.stop_reason is StopReason.MEDIA_UNREADABLE and str(bench.videos["missing"]) in failed.stop_detail


def test_the_token_budget_stops_the_run(evaluate: Evaluate, bench: Any, tmp_path: Path) -> None:
    """`--max_tokens` counts during the run: of six questions with 220 tokens each, three fit into 600."""
    evaluate("bench_mcq", f"policy=obedient,concurrency=1,trajectories={tmp_path}", max_tokens=600)
    stops = [t.stop_reason for t in _saved(tmp_path)]
    assert stops == [StopReason.ANSWERED] * 3 + [StopReason.POLICY_UNAVAILABLE] * 3
    assert "--max_tokens" in _saved(tmp_path)[-1].stop_detail
    evaluate("bench_mcq", f"policy=obedient,concurrency=1,trajectories={tmp_path}")
    assert len(Obedient.asked) == 3


@pytest.mark.parametrize(
    ("task", "metric", "right", "wrong"),
    [
        ("videomme_bench", "videomme_perception_score,none", "B", "C"),
        ("timelens_bench", "timelens_mIOU,none", "[[1.0, 3.0]]", "[[4.0, 5.0]]"),
    ],
)
def test_a_built_in_task_is_read_by_its_reader_and_scored_by_its_scorer(
    evaluate: Evaluate, bench: Any, tmp_path: Path, task: str, metric: str, right: str, wrong: str
) -> None:
    scores = []
    for name, content in (("right", right), ("wrong", wrong)):
        script = bench.script(f"{task}_{name}", bench.look(0, 5, 4), bench.answer(content))
        scores.append(
            evaluate(task, f"policy=scripted,script={script},trajectories={tmp_path}")["results"][task][metric]
        )
    assert scores == [100, 0]
    assert {t.question.reader for t in _saved(tmp_path)} == {task.removesuffix("_bench")}
    assert {t.stop_reason for t in _saved(tmp_path)} == {StopReason.ANSWERED}


def test_padding_clones_are_not_asked(evaluate: Evaluate, tmp_path: Path) -> None:
    """lmms-eval pads the ranks to equal length with clones of a request."""
    from lmms_eval.api.instance import Instance
    from lmms_eval.evaluator import _clone_padding_request

    from apr_plugin.harnesses.lmms_eval.model import ActivePerception

    model = ActivePerception(policy="obedient", trajectories=str(tmp_path))
    model.task_dict = {"bench_text": {"test": [{"question": "Say B"}]}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "Say B\nA. x\nB. y"}]}]
    request = Instance(
        request_type="generate_until",
        arguments=("Say B", lambda doc: messages, {}, 0, "bench_text", "test"),
        idx=0,
        metadata={"task": "bench_text", "doc_id": 0, "repeats": 1, "split": "test"},
    )
    answers = model.generate_until([request, _clone_padding_request(request)])
    assert len(answers) == 2 and answers[0].text == "B" and len(_saved(tmp_path)) == 1


def test_pictures_are_read_when_their_question_is_asked() -> None:
    """The pictures of a whole task do not fit into memory."""
    from PIL import Image

    from apr_plugin.harnesses.lmms_eval.model import _messages

    class Docs(list[Any]):
        read = 0

        def __getitem__(self, doc_id: Any) -> Any:
            Docs.read += 1
            return super().__getitem__(doc_id)

    def to_messages(doc: Any) -> Any:
        if doc is None:
            raise SystemExit("the picture is missing")
        return [{"role": "user", "content": [{"type": "image", "url": doc}, {"type": "text", "text": "what?"}]}]

    docs = Docs([Image.new("RGB", (60, 40))])
    text, videos, pictures = _messages("", to_messages, docs, 0, None)
    assert (text, videos, Docs.read) == ("what?", (), 1) and pictures is not None
    assert [p.image.shape for p in (*pictures(None), *pictures(600))] == [(40, 60, 3), (20, 30, 3)] and Docs.read == 3
    docs[0] = None
    with pytest.raises(RuntimeError, match="the picture is missing"):
        pictures(None)


@pytest.mark.parametrize("method", ["loglikelihood", "generate_until_multi_round"])
def test_other_kinds_of_request_are_refused_in_words(evaluate: Evaluate, tmp_path: Path, method: str) -> None:
    from apr_plugin.harnesses.lmms_eval.model import ActivePerception

    with pytest.raises(AprError, match=f"asks for {method}"):
        getattr(ActivePerception(policy="guess", trajectories=str(tmp_path)), method)([])
