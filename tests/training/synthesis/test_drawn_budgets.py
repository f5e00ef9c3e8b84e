"""Budgets of a synthesis run: drawn within their ranges, once for each attempt, and named by the run's hash."""

from __future__ import annotations

import pytest
from apr_testing import Playback

from apr_plugin.errors import AprError
from apr_plugin.loop import Budget, EpisodeConfig, Question
from apr_plugin.training.synthesis.budgets import BudgetRanges, drawn_budgets, read_range

BASE = EpisodeConfig(seed=3, budget=Budget(max_turns=9, frame_pixels=50_000))


def _asked(doc_id: str, repeat: int = 0) -> Question:
    return Question(text="what?", kind="free_form", task="t", doc_id=doc_id, repeat=repeat)  # type: ignore[arg-type]


def test_every_value_of_a_range_is_drawn_and_none_outside() -> None:
    config = drawn_budgets(BASE, BudgetRanges((30, 33), (30, 32), (150, 151)))
    budgets = [config.for_question(_asked(str(n), n % 3)).budget for n in range(300)]
    assert {budget.frames_per_look for budget in budgets} == {30, 31, 32, 33}
    assert {budget.clip_s for budget in budgets} == {30.0, 31.0, 32.0}
    assert {budget.audio_s for budget in budgets} == {150.0, 151.0}
    assert {(budget.max_turns, budget.frame_pixels) for budget in budgets} == {(9, 50_000)}, "the rest is the base's"


def test_attempts_of_one_question_differ_and_are_repeatable() -> None:
    config = drawn_budgets(BASE, BudgetRanges())
    drawn = [config.for_question(_asked("q", repeat)).budget for repeat in range(8)]
    assert len({budget.model_dump_json() for budget in drawn}) > 4
    assert drawn == [
        drawn_budgets(BASE, BudgetRanges()).for_question(_asked("q", repeat)).budget for repeat in range(8)
    ]


def test_the_hash_names_the_distribution() -> None:
    policy = Playback(["x"])
    configs = [
        drawn_budgets(BASE, BudgetRanges()),
        drawn_budgets(BASE, BudgetRanges(frames=(30, 59))),
        drawn_budgets(BASE, BudgetRanges(clip_s=(60, 60))),
        drawn_budgets(BASE.model_copy(update={"seed": 4}), BudgetRanges()),
    ]
    assert len({config.hash(policy) for config in configs}) == 4
    assert configs[0].card(policy).per_question == {
        "name": "look_budgets/1",
        "parameters": {"frames_per_look": [30, 60], "clip_s": [30, 60], "audio_s": [150, 300]},
    }


@pytest.mark.parametrize(
    ("text", "expected"), [("30-60", (30, 60)), (" 30 - 60 ", (30, 60)), ("45", (45, 45)), ("1-1", (1, 1))]
)
def test_a_range_is_read(text: str, expected: tuple[int, int]) -> None:
    assert read_range("--frames", text) == expected


@pytest.mark.parametrize("text", ["", "-", "30-", "a-b", "30.5", "-3-4", "1-2-3", "9" * 12])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(AprError, match=r"--frames=.*: write a range"):
        read_range("--frames", text)


def test_ranges_that_no_budget_has() -> None:
    with pytest.raises(AprError, match="frames=60-30: the first number must not be above the second"):
        BudgetRanges(frames=(60, 30))
    with pytest.raises(AprError, match="frames=0-30: both must be a whole number from 1"):
        BudgetRanges(frames=(0, 30))
    with pytest.raises(AprError, match="must not be below min_audio_s=20"):
        drawn_budgets(EpisodeConfig(budget=Budget(min_audio_s=20)), BudgetRanges(audio_s=(10, 30)))
