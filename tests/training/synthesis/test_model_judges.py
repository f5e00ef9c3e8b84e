"""The same audit with judges that are models: a server of the chat protocol, and a small random model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from chat_server import ChatServer, one_tls_context  # noqa: F401 - a fixture

from apr_plugin.loop import Trajectory
from apr_plugin.loop.policy import Policy, Sampling
from apr_plugin.policies import make_policy
from apr_plugin.runs import run_episodes
from apr_plugin.runs.meter import run_sync
from apr_plugin.tasks.needle.policy import NeedlePolicy
from apr_plugin.training.synthesis.audit import Judge, Tally, Verdicts, audit, judge_audit, open_verdicts, rated_turns
from apr_plugin.training.synthesis.questions import TrainingQuestion


@pytest.fixture(scope="module")
def explored(needle_asked: list[TrainingQuestion]) -> list[Trajectory]:
    return run_sync(run_episodes([one.question for one in needle_asked[:3]], NeedlePolicy()))


def _audit(explored: list[Trajectory], policy: Policy, folder: Path, tokens: int = 64) -> tuple[Verdicts, Tally]:
    judge = Judge(policy, Sampling(max_new_tokens=tokens))
    verdicts = open_verdicts(folder, judge)
    return verdicts, run_sync(audit([partial(_same, one) for one in explored], judge, verdicts))


def _same(trajectory: Trajectory) -> Trajectory:
    return trajectory


def test_a_served_judge(explored: list[Trajectory], tmp_path: Path) -> None:
    pytest.importorskip("openai")
    turns = sum(len(rated_turns(one)) for one in explored)
    with ChatServer(['```json\n{"rating": 4, "reason": "the notes say it"}\n```']) as server:
        policy = make_policy("openai", base_url=server.url)
        verdicts, tally = _audit(explored, policy, tmp_path)
        policy.close()
    assert (tally.asked, tally.nonsense, tally.unreachable) == (turns, 0, 0)
    assert tally.prompt_tokens > 0 and tally.completion_tokens > 0, "its cost is known"
    for one in explored:
        known = verdicts.of(one)
        assert judge_audit(one, known).ratings == (4,) * len(rated_turns(one))
        assert {verdict.reason for verdict in known.values()} == {"the notes say it"}


def test_a_small_random_model_passes_nothing(
    explored: list[Trajectory], tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    policy = make_policy("hf", pretrained=str(tiny("qwen2_5_vl")), device="cpu")
    verdicts, tally = _audit(explored[:1], policy, tmp_path, 12)
    policy.close()
    assert tally.asked == tally.nonsense == len(rated_turns(explored[0])) > 0 and tally.unreachable == 0
    found = judge_audit(explored[0], verdicts.of(explored[0]), threshold=1)
    assert (found.passed, found.reason) == (False, "nonsense_verdict")
    assert all(verdict.text for verdict in verdicts.of(explored[0]).values()), "what it wrote is kept"
