"""A policy that answers without looking: the chance level of a benchmark, and a quick check of a task's setup."""

from __future__ import annotations

import json
import random
from typing import Any, Literal

from apr_plugin import options
from apr_plugin.loop.policy import Asked, Generation, PolicyDefaults, PolicyUnavailable, Prompt, Sampling
from apr_plugin.loop.question import QuestionKind


class GuessPolicy(PolicyDefaults):
    """A policy that guesses from the question alone: an option, a number from 1 to 6, or a tenth of the video.

    Args:
        how: `random` (seeded by the episode) or `first` (always the first option, 1, or the first tenth).
    """

    name = "guess"

    def __init__(self, how: Literal["random", "first"] = "random") -> None:
        self.how = options.one_of("how", how, ("random", "first"))

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """Look at one frame, because an answer before any look is refused, then guess."""
        asked = prompt.asked
        if asked is None:
            raise PolicyUnavailable(
                "the policy guess answers the questions of an episode, and this prompt does not belong to one"
            )
        first = not prompt.final and asked.turn == 1
        action: dict[str, Any] = (
            {"type": "get_frames", "start": 0.0, "end": 0.0, "num": 1}
            if first
            else {"type": "answer", "content": self._guess(asked, sampling)}
        )
        turn = {
            "observation": "Nothing was looked at.",
            "think": "A guess needs no evidence.",
            "confidence": 0.0,
            "action": action,
        }
        return Generation(json.dumps(turn))

    def _guess(self, asked: Asked, sampling: Sampling) -> str:
        rng = random.Random(sampling.seed) if self.how == "random" else None
        question = asked.question
        if question.options:
            labels = [option.label for option in question.options]
            return rng.choice(labels) if rng else labels[0]
        if question.kind is QuestionKind.GROUNDING:
            duration = asked.durations_s[0] if asked.durations_s else 10.0
            start = (rng.randrange(10) if rng else 0) * duration / 10
            return json.dumps([[round(start, 2), round(start + duration / 10, 2)]])
        return str(rng.randint(1, 6) if rng else 1)

    def describe(self) -> dict[str, Any]:
        """The settings that decide the answers."""
        return {"how": self.how}
