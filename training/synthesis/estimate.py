"""What a synthesis run will cost, before it begins: a range from its settings, or from the attempts that are done.

The least: every question is won at its first attempt, in `LEAST_TURNS` turns. The most: every question takes all its
attempts, every attempt all its turns, and every look all that its budget allows. The truth is between them, often far
from the most; after some questions, run the same command with `--estimate` again: it then uses their means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from apr_plugin.loop.budget import PATCH_PIXELS, Budget, frame_pairs
from apr_plugin.loop.notebook import render_instructions
from apr_plugin.loop.question import Question, QuestionKind
from apr_plugin.training.synthesis.questions import TrainingQuestion
from apr_plugin.training.synthesis.synthesize import Cost, Exploration

TURN_TOKENS = 250
"""Tokens that a teacher is assumed to write in a turn: a note, a thought and an action. It is an assumption."""

CHARS_PER_TOKEN = 4
"""Characters of English text for each token, about."""

LEAST_TURNS = 2
"""One look and the answer."""

SAMPLE = 500
"""Questions from which the sum over all is extrapolated."""

AUDIO_TOKENS_PER_S = 25
"""Tokens of a second of sound in Qwen2.5-Omni."""


@dataclass(frozen=True)
class Spend:
    """Attempts, and tokens over all of their turns."""

    attempts: float
    prompt_tokens: float
    """Every turn reads its whole prompt, media included; caches are not counted."""
    completion_tokens: float


@dataclass(frozen=True)
class Estimate:
    """What is still to be done."""

    questions: int
    """Questions that are not finished."""
    least: Spend
    most: Spend
    measured: bool
    """Whether tokens are the means of attempts that are done, in place of what budgets allow."""


def estimate(
    questions: Sequence[TrainingQuestion],
    exploration: Exploration,
    done: Cost | None = None,
    attempts_done: Sequence[int] = (),
) -> Estimate:
    """Estimate the cost of the questions that are left.

    Args:
        questions: Those that are not finished.
        exploration: The run's settings.
        done: What attempts of this run cost so far, if there are any.
        attempts_done: For each question, the number of attempts that are on disk.
    """
    before = attempts_done or [0] * len(questions)
    left = [max(0, exploration.attempts - made) for made in before]
    if done is not None and done.counted:
        prompt, completion = done.prompt_tokens / done.counted, done.completion_tokens / done.counted
        fewest, all_left = len(questions), sum(left)
        return Estimate(
            len(questions),
            Spend(fewest, fewest * prompt, fewest * completion),
            Spend(all_left, all_left * prompt, all_left * completion),
            measured=True,
        )
    step = max(1, len(questions) // SAMPLE)
    chosen = list(zip(questions, before, strict=True))[::step]
    sums = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    for asked, made in chosen:
        for number in range(made, exploration.attempts):
            question = asked.attempt(number)
            budget = exploration.config.for_question(question).budget
            turns = budget.max_turns if asked.duration_s is None else budget.turns_for(asked.duration_s)
            for total, wanted in ((sums[0], LEAST_TURNS), (sums[1], turns)):
                if total is sums[1] or number == made:
                    prompt, completion = _attempt(question, budget, min(wanted, turns))
                    total[0] += 1
                    total[1] += prompt
                    total[2] += completion
    scale = len(questions) / len(chosen) if chosen else 0.0
    least, most = (Spend(*(value * scale for value in total)) for total in sums)
    return Estimate(len(questions), least, most, measured=False)


def _attempt(question: Question, budget: Budget, turns: int) -> tuple[float, float]:
    """Prompt and completion tokens of one attempt that takes this many turns, each look as large as allowed."""
    base = (_instructions_chars(len(question.videos)) + len(question.text)) / CHARS_PER_TOKEN
    history = TURN_TOKENS * turns * (turns - 1) / 2
    return turns * base + history + (turns - 1) * _look_tokens(budget), turns * TURN_TOKENS


@cache
def _instructions_chars(videos: int) -> int:
    return len(render_instructions(Question(text="", kind=QuestionKind.FREE_FORM), videos, Budget()))


def _look_tokens(budget: Budget) -> float:
    """Tokens of the largest look."""
    frames = budget.frames_per_look * (budget.frame_pixels // PATCH_PIXELS)
    pairs = frame_pairs(int(budget.clip_s * budget.clip_fps))
    clip = pairs * (budget.clip_pixels // PATCH_PIXELS)
    visual = max(frames, clip)
    if budget.visual_tokens_per_look is not None:
        visual, clip = min(visual, budget.visual_tokens_per_look), min(clip, budget.visual_tokens_per_look)
    return max(visual, clip + budget.clip_s * AUDIO_TOKENS_PER_S, budget.audio_s * AUDIO_TOKENS_PER_S)
