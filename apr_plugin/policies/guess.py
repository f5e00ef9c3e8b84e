"""A policy that answers without looking: the chance level of a benchmark, and a quick check that a task is wired up."""

from __future__ import annotations

import json
import random
import re
from typing import Any, Literal

from apr_plugin.loop.policy import Generation, PolicyDefaults, Prompt, Sampling, TextPart

_OPTION = re.compile(r"^(\S{1,8})\. ", re.MULTILINE)
_SPANS = re.compile(r"\banswer (?:is every matching time span|must be time spans)|action\.content to a JSON array of timestamp pairs")
"""How spans are asked for by our instructions, by a refused answer and by the omniagent wire; `[[` alone may stand in anybody's instructions."""
_DURATION = re.compile(r"duration_seconds: ([\d.]+)")


class GuessPolicy(PolicyDefaults):
    """Guesses from the question alone: an option, a number from 1 to 6, or a tenth of the video.

    Args:
        how: `random` (seeded by the episode) or `first` (always the first option, 1, or the first tenth).
    """

    name = "guess"

    def __init__(self, how: Literal["random", "first"] = "random") -> None:
        if how not in ("random", "first"):
            raise ValueError(f"how must be 'random' or 'first', not {how!r}")
        self.how = how

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """Look at one frame, since an answer before any look is refused, then guess."""
        user = next(message for message in prompt.messages if message.role == "user")
        asked = "".join(part.text for part in user.parts if isinstance(part, TextPart))
        first = not prompt.final and not any(message.role == "assistant" for message in prompt.messages)
        action: dict[str, Any] = (
            {"type": "get_frames", "start": 0.0, "end": 0.0, "num": 1}
            if first
            else {"type": "answer", "content": self._guess(asked, prompt, sampling)}
        )
        turn = {"observation": "Nothing was looked at.", "think": "A guess needs no evidence.", "confidence": 0.0, "action": action}
        return Generation(json.dumps(turn))

    def _guess(self, asked: str, prompt: Prompt, sampling: Sampling) -> str:
        rng = random.Random(sampling.seed) if self.how == "random" else None
        _, _, listed = asked.partition("\nOptions:\n")
        if labels := _OPTION.findall(listed):
            return str(rng.choice(labels) if rng else labels[0])
        if any(_SPANS.search(message.text) for message in prompt.messages if message.role != "assistant"):
            duration = float(found[1]) if (found := _DURATION.search(asked)) else 10.0
            start = (rng.randrange(10) if rng else 0) * duration / 10
            return json.dumps([[round(start, 2), round(start + duration / 10, 2)]])
        return str(rng.randint(1, 6) if rng else 1)

    def describe(self) -> dict[str, Any]:
        """What decides the answers."""
        return {"how": self.how}
