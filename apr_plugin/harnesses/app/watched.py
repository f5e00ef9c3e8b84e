"""`Watched`: a policy whose prompts are seen before it answers, and small pictures of what a prompt shows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from apr_plugin.loop.policy import Generation, Policy, Prompt, PromptSize, Sampling
from apr_plugin.loop.trajectory import Shown

MOST_THUMBNAILS = 12
"""Of one look, evenly chosen; each update of the page contains all of them."""


class Watched:
    """A policy that tells a watcher of each prompt just before it answers. One for each episode.

    Args:
        policy: The policy that answers, shared by all episodes.
        watch: Called with each prompt.
    """

    def __init__(self, policy: Policy, watch: Callable[[Prompt], Awaitable[None]]) -> None:
        self._policy = policy
        self._watch = watch
        self.name = policy.name
        self.modalities = policy.modalities
        self.context_tokens = policy.context_tokens

    async def count(self, prompt: Prompt) -> PromptSize | None:
        """Count as the policy does."""
        return await self._policy.count(prompt)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """Tell the watcher, then generate the policy's turn."""
        await self._watch(prompt)
        return await self._policy.generate(prompt, sampling)

    def describe(self) -> dict[str, Any]:
        """Describe the policy itself, because watching does not change any answer."""
        return self._policy.describe()

    def close(self) -> None:
        """Do nothing: the policy is shared."""


def chosen(shown: Shown, count: int) -> Sequence[int]:
    """Which of a look's frames are shown small: their numbers, evenly over all, first and last included.

    Args:
        shown: The look.
        count: How many pictures the prompt has; a look whose frames are others has none.
    """
    if count != len(shown.times_s) or not count:
        return ()
    if count <= MOST_THUMBNAILS:
        return range(count)
    return [round(number * (count - 1) / (MOST_THUMBNAILS - 1)) for number in range(MOST_THUMBNAILS)]
