"""Filter one: is the answer right? A pure function of a trajectory and its truth."""

from __future__ import annotations

from dataclasses import dataclass

from apr_plugin.errors import AprError
from apr_plugin.loop.question import QuestionKind
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.scoring.truth import Rules, Truth, score


@dataclass(frozen=True)
class OutcomeRules:
    """What counts as right.

    An option is right or wrong. A free text must be equal except for case and blanks. The thresholds are those of the
    paper (arXiv 2606.19341).
    """

    iou: float = 0.5
    """Least IoU of the time spans, as sets of seconds."""

    accuracy: float = 0.5
    """Least mean relative accuracy of a number, unless its question asks for the exact one."""

    def __post_init__(self) -> None:
        for name, value in (("iou", self.iou), ("accuracy", self.accuracy)):
            if not 0 < value <= 1:
                raise AprError(f"{name}={value:g}: it must be above 0 and at most 1")


@dataclass(frozen=True)
class Outcome:
    """What filter one says of a trajectory."""

    right: bool
    reason: str
    """`right`, or why not: `no_answer`, `wrong_form`, `wrong`, `low_iou`, `inaccurate`."""
    score: float | None
    """In [0, 1]; `None` without an answer in the right form."""
    detail: str = ""
    """The same in words."""


def judge_outcome(
    trajectory: Trajectory, truth: Truth, rules: OutcomeRules | None = None, *, exact: bool = False
) -> Outcome:
    """Whether the answer of a trajectory is right.

    Args:
        trajectory: A finished episode.
        truth: The right answer.
        rules: The thresholds.
        exact: Whether a number must be equal (a count), not only close.
    """
    rules = rules or OutcomeRules()
    if trajectory.answer is None:
        return Outcome(False, "no_answer", None, f"it ended without an answer ({trajectory.stop_reason})")
    if not trajectory.answer_valid:
        return Outcome(False, "wrong_form", None, "its answer has not the form that the question asks for")
    kind = trajectory.question.kind
    value = score(
        trajectory.answer,
        truth,
        str(kind),
        Rules(number="exact" if exact else "relative", text="normalised"),
    )
    assert value is not None
    if kind is QuestionKind.GROUNDING:
        right, why, words = value >= rules.iou, "low_iou", f"IoU {value:.2f}, at least {rules.iou:g} is needed"
    elif kind is QuestionKind.NUMBER and not exact:
        right, why = value >= rules.accuracy, "inaccurate"
        words = f"relative accuracy {value:.2f}, at least {rules.accuracy:g} is needed"
    else:
        right, why, words = value == 1.0, "wrong", "the answer is wrong"
    return Outcome(right, "right" if right else why, value, "" if right else words)
