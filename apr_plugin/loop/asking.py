"""`Asking`: the calls of the policy in one episode. A failure of the engine ends one question, not the run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar, get_args

from apr_plugin.errors import told
from apr_plugin.loop.context import Context
from apr_plugin.loop.policy import (
    Generation,
    GenerationTimings,
    LogprobsOf,
    Policy,
    PolicyUnavailable,
    Prompt,
    PromptSize,
    Sampling,
    Usage,
)
from apr_plugin.loop.text import printable

_Out = TypeVar("_Out")


class WallClock(Exception):
    """The episode's wall-clock limit was reached."""


class ContextFull(Exception):
    """The prompt leaves no room for a turn in the policy's context."""


class Asking:
    """Asks the policy within the limits of the episode.

    Args:
        policy: The policy that answers.
        sampling: How turns are sampled.
        seed: Seed of the episode; the seed of each generation is derived from it.
        seconds_left: Returns the seconds left until the wall-clock limit, or `None`.
        prompt_tokens: Most tokens of one prompt, in addition to the policy's own limit.
    """

    def __init__(
        self,
        policy: Policy,
        sampling: Sampling,
        seed: int,
        seconds_left: Callable[[], float | None],
        prompt_tokens: int | None = None,
    ) -> None:
        self.policy = policy
        self._sampling = sampling
        self._seed = seed
        self._seconds_left = seconds_left
        self.tokens = 0
        """Prompt and completion tokens of all turns so far, as the policy counts them."""
        self.context = Context(policy.context_tokens, sampling.max_new_tokens, self.count, prompt_tokens)

    async def generate(self, prompt: Prompt, number: int) -> tuple[Generation, float]:
        """The turn with this number, and the seconds it took.

        Raises:
            ContextFull: the prompt is too long; nothing was sent.
            WallClock: the limit was reached; a running generation was stopped.
            PolicyUnavailable: the policy raised, or did not return a generation.
        """
        began = time.perf_counter()
        most = await self.context.completion(prompt)
        if most is None:
            raise ContextFull
        sampling = replace(self._sampling, seed=(self._seed + number) % 2**32, max_new_tokens=most)

        async def generated() -> Generation:
            return _plain(await self.policy.generate(prompt, sampling))

        generation = await self._guarded(generated)
        self.tokens += (generation.usage.prompt_tokens or 0) + (generation.usage.completion_tokens or 0)
        return generation, time.perf_counter() - began

    async def count(self, prompt: Prompt) -> PromptSize | None:
        """Number of tokens of the prompt, if the policy can tell; it raises the same errors as `generate`."""

        async def counted() -> PromptSize | None:
            size = await self.policy.count(prompt)
            if size is not None and not isinstance(size, PromptSize):
                raise TypeError(f"it counted {size!r:.100} instead of a PromptSize")
            return size

        return await self._guarded(counted)

    async def _guarded(self, call: Callable[[], Awaitable[_Out]]) -> _Out:
        left = self._seconds_left()
        if left is not None and left <= 0:  # no timeout stops a policy that never yields to the event loop
            raise WallClock
        clock = asyncio.timeout(left)
        try:
            async with clock:
                return await call()
        except (
            Exception,
            asyncio.CancelledError,
            SystemExit,
        ) as error:
            # Some engines call sys.exit; the run would end as if it were complete.
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # the task was stopped from outside, whatever the engine raised
                raise asyncio.CancelledError from error
            if clock.expired():
                raise WallClock from error
            if isinstance(error, PolicyUnavailable):
                raise
            raise PolicyUnavailable(f"the policy {self.policy.name} failed: {told(error)}") from error


def _plain(generation: object) -> Generation:
    """The engine's result, with only values that any file and any later prompt can contain.

    Raises:
        TypeError: it is not a `Generation`, or has no text.
    """
    if not isinstance(generation, Generation) or not isinstance(generation.text, str):
        raise TypeError(f"it returned {generation!r:.100} instead of a Generation with text")
    usage, timings = generation.usage, generation.timings
    logprobs, entropies, top_k = generation.logprobs, generation.entropies, generation.entropy_top_k
    return replace(
        generation,
        text=printable(generation.text),
        usage=Usage(**{key: None if n is None else int(n) for key, n in vars(usage).items()}),
        finish_reason=str(generation.finish_reason),
        remark=printable(str(generation.remark)),
        token_ids=None if generation.token_ids is None else tuple(map(int, generation.token_ids)),
        logprobs=None if logprobs is None else tuple(map(float, logprobs)),
        logprobs_of=generation.logprobs_of if generation.logprobs_of in get_args(LogprobsOf) else None,
        entropies=None if entropies is None else tuple(map(float, entropies)),
        entropy_top_k=None if top_k is None else int(top_k),
        timings=GenerationTimings(
            **{key: None if s is None else round(float(s), 6) for key, s in vars(timings).items()}
        ),
    )
