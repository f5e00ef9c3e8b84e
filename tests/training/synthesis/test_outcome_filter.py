"""Filter one: what counts as a right answer, at its thresholds."""

from __future__ import annotations

from typing import Any

import pytest

from apr_plugin.errors import AprError
from apr_plugin.loop import Question, StopReason, Trajectory
from apr_plugin.scoring.truth import Truth
from apr_plugin.training.synthesis.outcome import OutcomeRules, judge_outcome


def _ended(kind: str, answer: str | None, **more: Any) -> Trajectory:
    asked = Question(text="what?", kind=kind)  # type: ignore[arg-type]
    given = {"answer": answer, "answer_valid": answer is not None, "stop_reason": StopReason.ANSWERED} | more
    return Trajectory(question=asked, **given)


@pytest.mark.parametrize(
    ("kind", "answer", "right", "verdict"),
    [
        ("mcq", "B", "B", "right"),
        ("mcq", "A", "B", "wrong"),
        ("free_form", "a  Red pot", "A red pot", "right"),
        ("free_form", "a pot", "a red pot", "wrong"),
        ("grounding", "[[0, 10]]", "[[0, 5]]", "right"),
        ("grounding", "[[0, 10.1]]", "[[0, 5]]", "low_iou"),
        ("grounding", "[[0, 5], [20, 25]]", "[[0, 10], [20, 30]]", "right"),
        ("number", "7.1", "10", "right"),
        ("number", "6.9", "10", "inaccurate"),
        ("number", "10", "10", "right"),
    ],
)
def test_thresholds(kind: str, answer: str, right: str, verdict: str) -> None:
    found = judge_outcome(_ended(kind, answer), Truth(right))
    assert (found.reason, found.right) == (verdict, verdict == "right") and found.score is not None
    assert bool(found.detail) != found.right


def test_an_exact_number_is_not_only_close() -> None:
    assert judge_outcome(_ended("number", "4"), Truth("5")).right, "close enough by relative accuracy"
    found = judge_outcome(_ended("number", "4"), Truth("5"), exact=True)
    assert (found.right, found.reason, found.score) == (False, "wrong", 0.0)
    assert judge_outcome(_ended("number", "5.0"), Truth("5"), exact=True).right


def test_no_answer_and_a_wrong_form_are_reasons_of_their_own() -> None:
    none = judge_outcome(_ended("mcq", None, stop_reason=StopReason.TURNS), Truth("B"))
    assert (none.reason, none.score) == ("no_answer", None) and "turns" in none.detail
    assert judge_outcome(_ended("mcq", "B", answer_valid=False), Truth("B")).reason == "wrong_form"


def test_several_right_answers_and_other_thresholds() -> None:
    assert judge_outcome(_ended("free_form", "anna"), Truth(("Ann", "Anna"))).right
    strict = OutcomeRules(iou=0.9, accuracy=0.9)
    assert not judge_outcome(_ended("grounding", "[[0, 10]]"), Truth("[[0, 8]]"), strict).right
    assert not judge_outcome(_ended("number", "7.5"), Truth("10"), strict).right
    for wrong in ({"iou": 0.0}, {"iou": 1.1}, {"accuracy": float("nan")}):
        with pytest.raises(AprError, match="it must be above 0 and at most 1"):
            OutcomeRules(**wrong)
