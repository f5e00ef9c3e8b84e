"""A question, or a turn, as a row of a table: plain values by column name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from apr_plugin.loop.action import Answer
from apr_plugin.loop.imported import Figure
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.runs.meter import audio_s, tokens_spent
from apr_plugin.runs.scores import Score

KEY = ("task", "split", "doc_id", "repeat")
"""The columns that identify a question within a run."""

QUESTION = (
    *KEY, "bucket", "kind", "arm", "answer", "answer_valid", "target", "score", "stop_reason", "turns", "frames",
    "audio_s", "visual_tokens",
    "prompt_tokens", "completion_tokens", "duration_s", "seconds",
)  # fmt: skip
"""Columns of a question; `None` is unknown.

`score` is `Score.value`. After these come `metric.NAME`, one for each number of the tasks' scorers.
"""

TURN = (
    *KEY, "turn", "forced", "action", "video", "start_s", "end_s", "error", "confidence", "frames", "audio_s",
    "visual_tokens", "prompt_tokens",
    "cached_tokens", "completion_tokens", "model_s", "media_s", "finish_reason", "observation", "think",
)  # fmt: skip
"""Columns of a turn, counted from 1.

`action` is its type, and `error` is the code if it was refused; frames, sound and visual tokens are what it showed.
"""

WHOLE = ("frames", "visual_tokens", "prompt_tokens", "cached_tokens", "completion_tokens", "video")
"""Columns of whole numbers that may be unknown."""


def question_row(trajectory: Trajectory, score: Score | None) -> dict[str, Any]:
    """The row of a question, with the numbers of its task's scorer after the columns of `QUESTION`."""
    spent = tokens_spent(trajectory)
    values = (
        *trajectory.question.key,
        score.buckets[0] if score is not None and score.buckets else None,
        str(trajectory.question.kind),
        trajectory.arm,
        trajectory.answer,
        trajectory.answer_valid,
        None if score is None else score.target,
        None if score is None else score.value,
        str(trajectory.stop_reason),
        len(trajectory.turns),
        trajectory.frames if trajectory.has(Figure.FRAMES) else None,
        audio_s(trajectory) if trajectory.has(Figure.AUDIO) else None,
        trajectory.visual_tokens if trajectory.has(Figure.VISUAL_TOKENS) else None,
        None if spent is None else spent.prompt,
        None if spent is None else spent.completion,
        sum(trajectory.video_durations_s) if trajectory.has(Figure.DURATION) else None,
        trajectory.timings.total_s if trajectory.has(Figure.TOTAL_SECONDS) else None,
    )
    metrics = {} if score is None else {f"metric.{name}": value for name, value in score.metrics.items()}
    return dict(zip(QUESTION, values, strict=True)) | metrics


def turn_rows(trajectory: Trajectory) -> Iterator[dict[str, Any]]:
    """The rows of its turns, in order."""
    for number, turn in enumerate(trajectory.turns, 1):
        look = turn.action if turn.action is not None and not isinstance(turn.action, Answer) else None
        shown = turn.shown
        values = (
            *trajectory.question.key,
            number,
            turn.forced,
            None if turn.action is None else turn.action.type,
            None if look is None else look.video,
            None if look is None else look.start,
            None if look is None else look.end,
            None if turn.error is None else str(turn.error.code),
            turn.confidence,
            (0 if shown is None else len(shown.times_s)) if trajectory.has(Figure.FRAMES) else None,
            (0.0 if shown is None else shown.audio_s) if trajectory.has(Figure.AUDIO) else None,
            (0 if shown is None else shown.visual_tokens) if trajectory.has(Figure.VISUAL_TOKENS) else None,
            turn.usage.prompt_tokens,
            turn.usage.cached_tokens,
            turn.usage.completion_tokens,
            turn.model_s if trajectory.has(Figure.MODEL_SECONDS) else None,
            turn.media_s if trajectory.has(Figure.MEDIA_SECONDS) else None,
            turn.finish_reason,
            turn.observation,
            turn.think,
        )
        yield dict(zip(TURN, values, strict=True))
