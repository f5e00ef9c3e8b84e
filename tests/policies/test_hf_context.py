"""Long looks and small contexts on a real model: the counts are what it reads, and no prompt is too long for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apr_testing import answer, look, turn

from apr_plugin.loop import Budget, Episode, EpisodeConfig, Generation, MediaRef, Prompt, Question, Sampling, StopReason
from apr_plugin.loop.policy import PromptSize

pytest.importorskip("torch")
LOOKS = [
    look(0, 5.9, 30),
    turn({"type": "get_clip", "start": 0, "end": 5}),
    turn({"type": "get_audio", "start": 0, "end": 4}),
    answer("a pot"),
]


class Following:
    """A policy that lets the model write two tokens on every prompt, then continues with a script.

    A random model would never look.
    """

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self.name = policy.name
        self.modalities = policy.modalities
        self.context_tokens = policy.context_tokens
        self.describe = policy.describe
        self.read: list[tuple[int, int]] = []

    async def count(self, prompt: Prompt) -> PromptSize | None:
        size: PromptSize | None = await self._policy.count(prompt)
        return size

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        size = await self.count(prompt)
        assert size is not None and size.total + sampling.max_new_tokens <= self.context_tokens
        wrote = await self._policy.generate(prompt, Sampling(max_new_tokens=2))
        self.read.append((size.total, wrote.usage.prompt_tokens))
        number = sum(message.role == "assistant" for message in prompt.messages)
        return Generation(answer("a pot") if prompt.final else LOOKS[min(number, len(LOOKS) - 1)], wrote.usage)


def test_every_prompt_fits_whatever_the_context(tiny: Callable[[str], Path], shared_videos: dict[str, Path]) -> None:
    from apr_plugin.policies import make_policy

    question = Question(text="what?", kind="free_form", videos=(MediaRef(path=str(shared_videos["sound"])),))  # type: ignore[arg-type]
    config = EpisodeConfig(budget=Budget(turns=5, clip_fps=8), sampling=Sampling(max_new_tokens=100))
    whole = make_policy("hf", pretrained=str(tiny("qwen2_5_omni")), device="cpu")
    try:
        first, shrunk = None, 0
        for room in (10**5, 700, 400, 250):
            following = Following(whole)
            following.context_tokens = room if first is None else first + room
            done = asyncio.run(Episode(question, following, config).run())  # type: ignore[arg-type]
            assert done.stop_reason in (StopReason.ANSWERED, StopReason.FORCED), done.stop_detail
            assert following.read and all(counted == read for counted, read in following.read)
            first = first or following.read[0][0]
            shrunk += any(shown.remark for shown in done.looks) or any(
                t.error and t.error.code == "NO_TOKENS_LEFT" for t in done.turns
            )
        assert shrunk >= 2
    finally:
        whole.close()
