"""A teacher explores questions about real videos: best of N, budgets of its own for each attempt, failures, cost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from apr_testing import Playback, answer, look

from apr_plugin.errors import AprError
from apr_plugin.loop import (
    Budget,
    Card,
    EpisodeConfig,
    MediaRef,
    Option,
    PolicyUnavailable,
    Question,
    StopReason,
    Trajectory,
    replay,
)
from apr_plugin.loop.policy import Generation, Policy, Prompt, Sampling, Usage
from apr_plugin.runs import TrajectoryStore
from apr_plugin.runs.meter import run_sync
from apr_plugin.scoring.truth import Truth
from apr_plugin.training.synthesis.budgets import BudgetRanges, drawn_budgets
from apr_plugin.training.synthesis.estimate import estimate
from apr_plugin.training.synthesis.questions import TrainingQuestion
from apr_plugin.training.synthesis.scripted import NeedleTeacher
from apr_plugin.training.synthesis.synthesize import Cost, Exploration, Explored, explore, left_to_do

BASE = EpisodeConfig(seed=5, budget=Budget(max_turns=9))


def _explore(
    questions: Sequence[TrainingQuestion], policy: Policy, folder: Path, attempts: int = 4, concurrency: int = 3
) -> tuple[list[Explored], list[Trajectory], Cost]:
    exploration = Exploration(policy, drawn_budgets(BASE, BudgetRanges()), attempts, concurrency=concurrency)
    done: list[Trajectory] = []
    cost = Cost()

    def attempted(_: Any, trajectory: Trajectory, __: Any, resumed: bool) -> None:
        done.append(trajectory)
        cost.add(trajectory, resumed)

    config = exploration.config
    with TrajectoryStore(folder, config.hash(policy), config.card(policy)) as store:
        found = run_sync(explore(questions, exploration, store, on_attempt=attempted))
    return found, done, cost


def _mcq(video: Path | str, right: str, doc_id: str = "0") -> TrainingQuestion:
    options = (Option(label="A", text="a"), Option(label="B", text="b"))
    asked = Question(text="Which?", kind="mcq", options=options, task="t", doc_id=doc_id)  # type: ignore[arg-type]
    return TrainingQuestion(asked.model_copy(update={"videos": (MediaRef(path=str(video)),)}), Truth(right))


def test_a_teacher_on_needle(needle_asked: list[TrainingQuestion], tmp_path: Path) -> None:
    teacher = NeedleTeacher(hasty=0.3, slips=0.2)
    found, done, cost = _explore(needle_asked, teacher, tmp_path)
    assert [one.key for one in found] == [one.key for one in needle_asked]
    attempts = Counter(trajectory.question.key[:3] for trajectory in done)
    assert {one.key: one.attempts for one in found} == attempts and cost.episodes == len(done) == sum(attempts.values())
    assert any(one.won and one.attempts == 1 for one in found) and any(one.won and one.attempts > 1 for one in found), (
        "some questions need several attempts, and a question stops at its first win"
    )
    assert all(one.won or one.attempts == 4 for one in found)
    assert any(turn.error for t in done for turn in t.turns if t.answer_valid), "wrong turns and recoveries are kept"
    budgets = [trajectory.budget for trajectory in done]
    assert all(
        b and 30 <= b.frames_per_look <= 60 and 30 <= b.clip_s <= 60 and 150 <= b.audio_s <= 300 for b in budgets
    )
    assert len({b.model_dump_json() for b in budgets if b}) > len(done) // 2, "each trajectory has its own"
    assert len({trajectory.seed for trajectory in done}) == len(done)

    (folder,) = tmp_path.iterdir()
    card = Card.read(folder)
    assert card.per_question is not None and card.per_question["parameters"]["audio_s"] == [150, 300]
    tried = next(trajectory for trajectory in done if len(trajectory.turns) > 3)
    for number, (prompt, _) in enumerate(replay(tried, card), 1):
        assert f"Step {number}/{tried.turns_allowed}." in prompt.text, "its prompts can be rebuilt"

    again, resumed, more = _explore(needle_asked, teacher, tmp_path)
    assert again == found and more.resumed == more.episodes == len(done)
    assert {t.to_json() for t in resumed} == {t.without_token_values().to_json() for t in done}


def test_more_attempts_continue_an_earlier_run(shared_videos: dict[str, Path], tmp_path: Path) -> None:
    policy = Playback([look(0, 2, 2), answer("A")])
    asked = [_mcq(shared_videos["silent"], "B"), _mcq(shared_videos["silent"], "A", "1")]
    found, done, _ = _explore(asked, policy, tmp_path, attempts=2)
    assert [(one.attempts, one.won) for one in found] == [(2, False), (1, True)] and len(done) == 3
    prompts = len(policy.prompts)
    found, done, cost = _explore(asked, policy, tmp_path, attempts=3)
    assert [(one.attempts, one.won) for one in found] == [(3, False), (1, True)]
    assert (cost.episodes, cost.resumed) == (4, 3) and len(policy.prompts) == prompts + 2


def test_failures_end_a_question_and_are_asked_again(shared_videos: dict[str, Path], tmp_path: Path) -> None:
    policy = Playback([look(0, 2, 2), PolicyUnavailable("the server is down")])
    gone = tmp_path / "gone.mp4"
    asked = [_mcq(shared_videos["silent"], "A"), _mcq(gone, "A", "1")]
    found, done, _ = _explore(asked, policy, tmp_path / "out")
    assert [(one.attempts, one.won, one.failed) for one in found] == [
        (0, False, StopReason.POLICY_UNAVAILABLE),
        (0, False, StopReason.MEDIA_UNREADABLE),
    ]
    assert len(done) == 2, "no further attempt at a question that can't be asked"
    policy.texts[1] = answer("A")
    found, _, cost = _explore(asked, policy, tmp_path / "out")
    assert [(one.won, one.failed) for one in found] == [(True, None), (False, StopReason.MEDIA_UNREADABLE)]
    assert cost.resumed == 0, "a failed attempt is made again"


def test_what_is_left_and_what_it_may_cost(shared_videos: dict[str, Path], tmp_path: Path) -> None:
    policy = Playback([look(0, 2, 2), answer("A")], usage=Usage(prompt_tokens=100, completion_tokens=20))
    exploration = Exploration(policy, drawn_budgets(BASE, BudgetRanges()), attempts=3)
    asked = [_mcq(shared_videos["silent"], "B", str(n)) for n in range(4)]
    asked.append(_mcq(shared_videos["silent"], "A", "won"))
    before = estimate(asked, exploration)
    assert (before.questions, before.least.attempts, before.most.attempts, before.measured) == (5, 5, 15, False)
    assert 0 < before.least.prompt_tokens < before.most.prompt_tokens
    assert before.most.completion_tokens == 15 * 9 * 250, "no duration is known: every turn that a budget may give"

    _explore(asked[-1:] + asked[:2], policy, tmp_path, attempts=2)
    config = exploration.config
    with TrajectoryStore(tmp_path, config.hash(policy), config.card(policy)) as store:
        left = left_to_do(asked, exploration, store)
        after = estimate(left.questions, exploration, left.done, left.attempts_done)
    assert [one.key[2] for one in left.questions] == ["0", "1", "2", "3"] and left.attempts_done == [2, 2, 0, 0]
    assert (left.done.episodes, left.done.prompt_tokens, left.done.completion_tokens) == (5, 1000, 200)
    assert after.measured and (after.least.attempts, after.most.attempts) == (4, 8)
    assert after.most.prompt_tokens == 8 * 200, "means of what is done"
    most = estimate(asked[:1] * 1500, exploration)
    assert most.most.attempts == 4500, "a sample is scaled up to all"


def test_a_duration_bounds_the_turns(tmp_path: Path) -> None:
    asked = _mcq("x.mp4", "A")
    short = TrainingQuestion(asked.question, asked.truth, duration_s=20.0)
    exploration = Exploration(Playback(["x"]), drawn_budgets(BASE, BudgetRanges()), attempts=1)
    assert estimate([short], exploration).most.completion_tokens == 5 * 250


def test_settings_that_make_no_training_data() -> None:
    policy = Playback(["x"])
    with pytest.raises(AprError, match="arm=passive: only trajectories of an agent"):
        Exploration(policy, drawn_budgets(EpisodeConfig(arm="passive"), BudgetRanges()))
    with pytest.raises(AprError, match="must be at least 1"):
        Exploration(policy, drawn_budgets(BASE, BudgetRanges()), attempts=0)


def test_questions_run_at_the_same_time(shared_videos: dict[str, Path], tmp_path: Path) -> None:
    """Two questions whose teacher answers only when both have asked."""
    import asyncio

    class Pair(Playback):
        waiting = 0

        async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
            if not any(message.role == "assistant" for message in prompt.messages):
                type(self).waiting += 1
                async with asyncio.timeout(20):
                    while type(self).waiting < 2:
                        await asyncio.sleep(0.01)
            return await super().generate(prompt, sampling)

    asked = [_mcq(shared_videos["silent"], "A", str(n)) for n in range(2)]
    found, _, _ = _explore(asked, Pair([look(0, 2, 2), answer("A")]), tmp_path, concurrency=2)
    assert [one.won for one in found] == [True, True]


def test_the_scripted_teacher_is_repeatable_and_checks_its_chances() -> None:
    with pytest.raises(AprError, match="hasty=2: it must be from 0 to 1"):
        NeedleTeacher(hasty=2)
    prompt = Prompt(())
    teacher = NeedleTeacher(hasty=0.5, slips=0.5)
    first = run_sync(teacher.generate(prompt, Sampling(seed=1))).text
    assert first == run_sync(teacher.generate(prompt, Sampling(seed=1))).text
    assert json.loads(first)["action"]["type"] and teacher.describe()["hasty"] == 0.5
