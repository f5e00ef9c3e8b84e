"""From records of all processes to rewards, chosen groups, advantages and rows."""

from __future__ import annotations

import math
from typing import Any

import pytest
from apr_testing import answer, look

from apr_plugin.errors import AprError
from apr_plugin.loop import Prompt, Question, StopReason, Trajectory
from apr_plugin.loop.parse import parse_turn
from apr_plugin.loop.policy import Generation
from apr_plugin.loop.record import turn_of
from apr_plugin.scoring.truth import Truth
from apr_plugin.training.grpo.across import OneProcess
from apr_plugin.training.grpo.credit import CreditSettings
from apr_plugin.training.grpo.groups import Fate, GroupSettings
from apr_plugin.training.grpo.rewards import RewardSettings
from apr_plugin.training.grpo.rollouts import Investigation, SampledTurn
from apr_plugin.training.grpo.rows import TurnRow, judge, padding_row, record_of, rows_of, together, trained_tokens
from apr_plugin.training.grpo.watching import rollout_metrics
from apr_plugin.training.synthesis.questions import TrainingQuestion

ASKED = Question(text="?", kind="free_form", task="t", doc_id="q")
TRAINING = TrainingQuestion(ASKED, Truth("yes"))


def sampled(entropy: float, tokens: int = 3, **more: Any) -> SampledTurn:
    given = {"token_ids": (5,) * tokens, "logprobs": (-1.0,) * tokens, "entropies": (entropy,) * tokens}
    return SampledTurn(Prompt(()), Generation("x", prompt_token_ids=(1, 2), **(given | more)))


def investigation(said: str | None, means: list[float], stop: str = "answered", **more: Any) -> Investigation:
    """An episode with this answer, of which each turn has this entropy."""
    texts = [*[look(0, 1)] * (len(means) - 1), answer(said or "")]
    turns = [turn_of(parse_turn(text), Generation(text), None, model_s=0, media_s=0) for text in texts]
    done = Trajectory(
        question=ASKED, turns=tuple(turns), answer=said, answer_valid=said is not None, stop_reason=StopReason(stop)
    )
    return Investigation(done, {at: sampled(value, **more) for at, value in enumerate(means, 1)})


def judged(*groups: list[Investigation], wanted: int | None = None, **settings: Any) -> Any:
    records = [
        record_of(one, TRAINING, number, RewardSettings()) for number, group in enumerate(groups) for one in group
    ]
    return judge(records, RewardSettings(), GroupSettings(**settings), wanted=wanted, step=7)


RIGHT, WRONG = investigation("yes", [0.5, 1.5]), investigation("no", [1.0])
BROKEN = investigation(None, [1.0], stop="media_unreadable")
SILENT = Investigation(RIGHT.trajectory, {})


def test_every_turn_of_a_kept_trajectory_is_a_row_with_its_share() -> None:
    group = [RIGHT, WRONG]
    found = judged(group, [WRONG, WRONG])
    assert found.kept == (True, True, False, False) and found.chosen.fates[1] is Fate.ALL_ZERO
    made = rows_of([*group, WRONG, WRONG], found, 0, CreditSettings(), OneProcess(), step=7)
    assert [row.where for row in made.rows] == [f"t/q, trajectory {t}, turn {k}" for t, k in ((0, 1), (0, 2), (1, 1))]
    up, down = found.advantages[:2]
    assert up == -down > 0 and found.advantages[2:] == (0, 0)
    assert [row.advantage for row in made.rows] == pytest.approx([0.5 * up, 1.5 * up, down])
    assert made.credit.metrics["mean"] == pytest.approx(1) and made.skipped == 0
    second = rows_of([WRONG], found, 1, CreditSettings(rule="none"), OneProcess(), step=7)
    assert [row.advantage for row in second.rows] == [down], "a process that holds only the second trajectory"
    assert rows_of([], found, 4, CreditSettings(), OneProcess(), step=7).rows == ()


def test_broken_and_silent_trajectories() -> None:
    """They are in no baseline; a group with one is dropped, or goes on without it."""
    for lost in (BROKEN, SILENT):
        assert judged([RIGHT, WRONG, lost]).kept == (False,) * 3
        found = judged([RIGHT, WRONG, lost], broken="leave_out")
        assert found.kept == (True, True, False) and found.advantages[2] == 0
        assert found.advantages[:2] == judged([RIGHT, WRONG]).advantages
    with pytest.raises(AprError, match=r"step 7: all 2 trajectories failed; the first, of t/q: media_unreadable"):
        judged([BROKEN, BROKEN])


def test_more_groups_than_are_wanted() -> None:
    wide, narrow = [RIGHT, WRONG], [RIGHT, RIGHT, RIGHT, WRONG]
    found = judged(narrow, wide, wanted=1)
    assert found.kept == (False,) * 4 + (True, True) and found.chosen.fates[0] is Fate.SURPLUS
    metrics = rollout_metrics(found)
    assert metrics["groups/kept"] == metrics["groups/surplus"] == 0.5
    assert metrics["reward"] == metrics["right"] == pytest.approx(4 / 6) == metrics["reward_of/free_form"]
    assert metrics["turns"] == pytest.approx(10 / 6) and metrics["stop/answered"] == 1
    assert metrics["entropy/turn_01"] == pytest.approx((4 * 0.5 + 2 * 1.0) / 6) and metrics["entropy/turn_02"] == 1.5
    assert rollout_metrics(judged([RIGHT, BROKEN]))["stop/media_unreadable"] == 0.5


def test_tokens_without_their_numbers_are_an_error() -> None:
    for more, said in (
        ({"logprobs": None}, "3 tokens and 0 log-probabilities"),
        ({"entropies": (1.0,)}, "3 tokens and 1 entropies"),
        ({"entropy_top_k": 20}, "over the likeliest 20 tokens"),
        ({"entropies": (1.0, math.nan, 1.0)}, "the entropy of its token 2 is NaN"),
    ):
        bad = investigation("yes", [1.0], **more)
        found = judged([bad, WRONG])
        with pytest.raises(AprError, match=said):
            rows_of([bad, WRONG], found, 0, CreditSettings(), OneProcess(), step=0)


def test_packs() -> None:
    rows = [TurnRow(Prompt(()), (1,) * n, (2,)) for n in (9, 3, 4, 29, 8)]
    assert [[row.tokens for row in pack] for pack in together(rows, None)] == [[30], [10], [9], [5], [4]]
    assert [[row.tokens for row in pack] for pack in together(rows, 20)] == [[30], [10, 9], [5, 4]]
    assert together([], 20) == []
    padding = padding_row(3)
    assert not padding.trained and padding.target == (3,) and trained_tokens([*rows, padding]) == 5
