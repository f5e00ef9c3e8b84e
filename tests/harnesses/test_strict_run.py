"""`apr strict` on real runs of lmms-eval: the same turns with repair and with strict parsing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apr_testing import answer, look

from apr_plugin.harnesses.lmms_eval.samples import read_samples
from apr_plugin.loop.trajectory import Trajectory

pytest.importorskip("lmms_eval")

pytestmark = pytest.mark.xdist_group("lmms_commands")

TURNS = {
    "0": [look(0, 1), answer("A")],
    "1": [look(0, 1), answer("B.")],
    "2": [f"Sure! {look(0, 1)}", answer("C")],
    "3": [look(0, 1), answer("Z"), answer("D")],
    "4": [look(0, 1), answer("B")],
    "5": [f"```json\n{look(0, 1)}\n```", answer("A")],
}
"""Doc id -> turns; the right answers are A, B, C, D, A, B."""


def test_a_run_with_repair_and_one_that_is_strict(
    bench: Any, run_apr: Callable[..., list[Any]], tmp_path: Path
) -> None:
    def evaluated(name: str, script: Path, *more: str) -> list[Any]:
        given = ",".join([f"policy=scripted,script={script}", *more])
        tasks = ["--include_path", bench.tasks, "--tasks", "bench_mcq"]
        return ["eval", *tasks, "--output_path", tmp_path / name, "--log_samples", "--model_args", given]

    (first,) = run_apr(evaluated("first", bench.script("plain", *TURNS["0"])))
    assert first.status == 0, first.text
    (recorded,) = (tmp_path / "first" / "trajectories").rglob("bench_mcq.jsonl")
    lines = [
        _with_turns(trajectory, TURNS[trajectory.question.doc_id]).to_json()
        for trajectory in Trajectory.iterate(recorded)
    ]
    script = tmp_path / "script.jsonl"
    script.write_text("\n".join(lines))

    *ran, repaired, table, strict, alone, mixed, foreign = run_apr(
        evaluated("repair", script), evaluated("strict", script, "parsing=strict"),
        ["strict", tmp_path / "repair", "--json"], ["strict", tmp_path / "repair"],
        ["strict", tmp_path / "strict", "--json"],
        ["strict", tmp_path / "repair" / "trajectories", "--json"], ["strict", tmp_path],
        ["strict", tmp_path / "repair" / "trajectories", "--samples", tmp_path / "strict"],
    )  # fmt: skip
    assert [end.status for end in (*ran, repaired, table, strict, alone)] == [0] * 6, [
        end.err for end in (*ran, repaired, table, strict, alone)
    ]
    found = json.loads(repaired.out)
    assert (found["parsing"], found["counts"]) == ("repair", {"same": 2, "wrong": 2, "other": 0, "unknown": 2})
    endings = {question["doc_id"]: (question["ending"], question["turn"]) for question in found["questions"]}
    assert endings == {
        "0": ("same", None),
        "1": ("wrong", 2),
        "2": ("unknown", 1),
        "3": ("wrong", 2),
        "4": ("same", None),
        "5": ("unknown", 1),
    }
    bounds = found["scores"]["bench_mcq"]
    assert bounds == {
        "questions": 6,
        "harness": pytest.approx(4 / 6),
        "strict_least": pytest.approx(1 / 6),
        "strict_most": pytest.approx(3 / 6),
    }

    known = json.loads(strict.out)["scores"]["bench_mcq"]
    assert known["harness"] == known["strict_least"] == known["strict_most"] == pytest.approx(2 / 6)
    assert bounds["strict_least"] <= known["harness"] <= bounds["strict_most"]
    assert "0.1667" in table.out and "bench_mcq doc 2, turn 1: unknown: MALFORMED_JSON" in table.out.replace("\n", " ")
    assert json.loads(alone.out)["scores"] == {"bench_mcq": None}, "without samples only the counts"
    assert mixed.status == 1 and "configurations; give the folder of one" in mixed.err
    assert foreign.status == 1 and "samples of bench_mcq are of another run" in foreign.err


def _with_turns(trajectory: Trajectory, texts: list[str]) -> Trajectory:
    turns = tuple(trajectory.turns[0].model_copy(update={"text": text}) for text in texts)
    return trajectory.model_copy(update={"turns": turns})


@pytest.mark.parametrize(
    ("row", "score"),
    [
        ({"score": 0.5}, 0.5),
        ({"score": True, "other_score": 0.1}, 1.0),
        ({"videomme_perception_score": {"score": 1, "pred_answer": "B"}}, 1.0),
        ({"lvbench_score": 0}, 0.0),
        ({"a_score": 0, "b_score": 1}, None),
        ({"score": 62.5}, None),
        ({"score": float("nan")}, None),
        ({"acc": 1}, None),
    ],
)
def test_which_number_is_a_score(tmp_path: Path, row: dict[str, Any], score: float | None) -> None:
    for date, given in (("20260101", {"score": 0.25}), ("20260102", row)):
        (tmp_path / f"{date}_samples_x.jsonl").write_text(
            json.dumps({"doc_id": 3, "filtered_resps": ["B"]} | given) + "\n"
        )
    (sample,) = read_samples(tmp_path)["x"].values()
    assert (sample.value, sample.answered) == (score, True)
