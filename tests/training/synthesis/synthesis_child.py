"""A synthesis run or an audit that kills itself at a chosen moment, as `tests/runs/resume_child.py` does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "runs"))

import json

from resume_child import _forked, _kill_at

from apr_plugin.loop import Budget, EpisodeConfig
from apr_plugin.runs import TrajectoryStore
from apr_plugin.runs.meter import run_sync
from apr_plugin.training.synthesis.audit import Judge, audit, open_verdicts
from apr_plugin.training.synthesis.budgets import BudgetRanges, drawn_budgets
from apr_plugin.training.synthesis.folder import places, read_at
from apr_plugin.training.synthesis.questions import read_questions
from apr_plugin.training.synthesis.scripted import NeedleJudge, NeedleTeacher
from apr_plugin.training.synthesis.synthesize import Exploration, explore


def run(folder: str, questions: str, work: str, kill: dict[str, Any] | None = None) -> None:
    if kill is not None:
        _kill_at(**kill)
    out = Path(folder)
    if work == "audit":
        judge = Judge(NeedleJudge())
        verdicts = open_verdicts(out / "audit", judge)
        reads = [lambda place=place: next(t for _, t in read_at([place])) for place in places(out)]
        tally = run_sync(audit(reads, judge, verdicts, concurrency=3))
        print(tally.asked, file=sys.stderr)
        return
    policy = NeedleTeacher(hasty=0.3, slips=0.2)
    config = drawn_budgets(EpisodeConfig(budget=Budget(max_turns=9), seed=3), BudgetRanges())
    with TrajectoryStore(out / "trajectories", config.hash(policy), config.card(policy)) as store:
        asked = read_questions(questions)
        found = run_sync(explore(asked, Exploration(policy, config, concurrency=3), store))
    assert len(found) == len(asked)


if __name__ == "__main__":
    for order in sys.stdin:
        print(_forked(lambda: run(**json.loads(order))), flush=True)  # noqa: B023 - used before the next round
