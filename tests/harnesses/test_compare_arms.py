"""The arms of a comparison through the real lmms-eval: run once, continued, matched, and other models beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmms_eval")
pytest.importorskip("statsmodels")

from apr_plugin.compare.joined import Arm, join
from apr_plugin.compare.running import (
    MANIFEST,
    ArmFailed,
    Plan,
    file_name,
    open_comparison,
    read_plan,
    run_arms,
)
from apr_plugin.compare.specs import read_specs
from apr_plugin.compare.summary import summarise
from apr_plugin.errors import AprError
from apr_plugin.runs.arguments import split_arguments

pytestmark = pytest.mark.xdist_group("lmms_commands")


class Harness:
    """Runs `apr eval` in a warm process and counts how often."""

    def __init__(self, bench: Any, run_apr: Callable[..., list[Any]], out: Path) -> None:
        self.bench, self.run_apr, self.out, self.commands, self.said = bench, run_apr, out, 0, list[str]()

    def evaluate(self, arguments: Sequence[str], log: Path) -> int:
        self.commands += 1
        (ended,) = self.run_apr(["eval", *arguments])
        log.write_text(ended.text)
        return int(ended.status)

    def arms(self, agents: list[str], against: list[str], tasks: str = "bench_mcq", **more: Any) -> list[Arm]:
        plan = Plan(tasks, self.out, include_path=str(self.bench.tasks), **more)
        return run_arms(read_specs(agents, against), plan, self.evaluate, self.said.append)


@pytest.fixture
def harness(bench: Any, run_apr: Callable[..., list[Any]], tmp_path: Path) -> Harness:
    return Harness(bench, run_apr, tmp_path / "out")


def test_arms_are_run_once_and_matched(harness: Harness, bench: Any) -> None:
    script = bench.script("compared", bench.look(0, 2, 3), bench.answer("A"))
    agent = f"policy=scripted,script={script}"
    arms = harness.arms([agent], ["passive:matched", "blind", "lmms:dummy,response=A"], limit=2)
    assert [(arm.name, arm.kind, len(arm.outcomes)) for arm in arms] == [
        ("agent", "agent", 2), ("passive matched", "passive", 2), ("blind", "blind", 2), ("dummy", "lmms", 2),
    ]  # fmt: skip
    assert split_arguments(arms[1].about["model_args"])["passive_frames"] == "3" and harness.commands == 4
    tokens = [sum(outcome.row["visual_tokens"] for outcome in arm.outcomes.values()) for arm in arms[:3]]
    assert tokens[0] == tokens[1] > 0 == tokens[2]
    comparison = join(arms)
    assert len(comparison.common) == 2 and not comparison.notes
    summary = summarise(comparison)
    assert [arm["cost"] is None for arm in summary["arms"]] == [False, False, False, True]

    again = harness.arms([agent], ["passive:matched", "blind", "lmms:dummy,response=A"], limit=2)
    assert (
        harness.commands == 4
        and [arm.outcomes == old.outcomes for arm, old in zip(again, arms, strict=True)] == [True] * 4
    )
    assert sum("finished before" in said for said in harness.said) == 4
    opened = open_comparison(harness.out, read_plan(harness.out).specs)  # type: ignore[union-attr]
    assert [arm.notes for arm in opened] == [arm.notes for arm in arms] and "passive matched: 3 frames" in opened[
        1
    ].notes
    harness.arms([agent], [], limit=2, data={"file": [1, 2]}, title="T")  # the task's file is another now
    assert harness.commands == 5
    plan = read_plan(harness.out)
    assert plan is not None and [spec.name for spec in plan.specs] == ["agent"] and plan.title == "T"
    assert [arm.outcomes for arm in open_comparison(harness.out, plan.specs)] == [arms[0].outcomes]


def test_failures_are_counted_and_asked_again(harness: Harness, bench: Any) -> None:
    agent = f"policy=scripted,script={bench.script('compared_bad', bench.answer('A'))}"
    failed = "lmms:dummy,response=[LMMS_EVAL_REQUEST_FAILED after 3],label=failing"
    arms = harness.arms([agent], [failed], "bench_bad")
    assert not (harness.out / "agent" / MANIFEST).exists() and (harness.out / "failing" / MANIFEST).exists()
    ours, theirs = ({outcome.status for outcome in arm.outcomes.values()} for arm in arms)
    assert ours == {"scored", "failed"} and theirs == {"failed"}
    summary = summarise(join(arms))
    assert summary["arms"][1]["failed"] == summary["n"] and summary["arms"][1]["accuracy"]["value"] == 0
    assert summary["common"] == 0 and summary["arms"][0]["common_score"] is None
    harness.arms([agent], [failed], "bench_bad")
    assert harness.commands == 3  # only the arm with unanswered questions


def test_an_arm_that_fails_keeps_those_before_it(harness: Harness, bench: Any) -> None:
    agent = f"policy=scripted,script={bench.script('compared_ok', bench.answer('A'))}"
    with pytest.raises(ArmFailed, match="ended with status") as raised:
        harness.arms([agent], ["lmms:no_such_model"], limit=1)
    assert raised.value.status in (1, 2) and (harness.out / "agent" / MANIFEST).exists()
    plan = read_plan(harness.out)
    assert plan is not None
    specs = plan.specs
    (arm,) = open_comparison(harness.out, specs)
    assert arm.name == "agent" and "no_such_model is left out" in " ".join(arm.notes)
    with pytest.raises(AprError, match="no arm of this comparison has answers"):
        open_comparison(harness.out, specs[1:])
    with pytest.raises(AprError, match="share the folder"):
        harness.arms([agent + ",label=a b", agent + ",label=a?b"], [])
    with pytest.raises(AprError, match="can't be called plots"):
        harness.arms([agent + ",label=plots"], [])
    fine = {"name": "a", "kind": "agent"}
    for edited in (
        {"arms": [{"no": 1}]}, {"arms": [{**fine, "name": 5}]}, [], {"arms": [fine], "sweep": {"setting": "turns"}},
    ):  # fmt: skip
        (harness.out / "compare.json").write_text(json.dumps(edited))
        with pytest.raises(AprError, match="cannot read it"):
            read_plan(harness.out)


def test_names_of_folders() -> None:
    names = ["../..", "a b", "x" * 400, "x" * 401, "…", "…" * 200, "ä" * 200, "\ud800"]
    made = [file_name(name) for name in names]
    assert len(set(made)) == len(names) and made[1] == "a-b"
    assert all(0 < len(name.encode()) <= 100 and "/" not in name and name.strip(".-") == name for name in made)
    assert ArmFailed("killed", -9).status == 1
