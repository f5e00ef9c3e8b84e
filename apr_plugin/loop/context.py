"""`Context`: no prompt is longer than the policy's context, and nothing is cut silently.

The policy counts a prompt before it is sent. A look that would not fit is shown with fewer pixels, then with fewer
pictures (a new `LookPlan` is made; nothing is decoded for it). Sound can't be made smaller; it is refused, and the
error names the limit. If the words alone no longer fit, the answer is asked for without the first notes. None of this
is done for a policy that can't count its prompts, or that has no limit.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from apr_plugin.loop.budget import LEAST_FRAME_PIXELS
from apr_plugin.loop.feedback import ActionError, ErrorCode
from apr_plugin.loop.notebook import Notebook
from apr_plugin.loop.percept import Percept
from apr_plugin.loop.plan import LookPlan
from apr_plugin.loop.policy import ImagePart, Prompt, PromptSize
from apr_plugin.media import fit

LEAST_COMPLETION = 256
"""Fewest tokens that are kept free for the turn; a turn in the wire format with a short note takes about that many."""

LEAST_SHARE = 8
"""One part in so many of the context is kept free for the turn, if `max_new_tokens` is that large."""

WELL_FILLED = 0.25
"""A look that had to be made smaller is not made larger again if the tokens left free are at most this share of its
pictures' tokens."""

Count = Callable[[Prompt], Awaitable[PromptSize | None]]
"""Returns the tokens of a prompt, or `None` if the policy can't tell."""


class Context:
    """The tokens of one policy's context.

    Args:
        tokens: Most tokens of prompt and completion together; `None` for no limit.
        max_new_tokens: Longest turn, if there is room.
        count: Counts a prompt's tokens.
        prompt_tokens: Most tokens of the prompt alone; `None` if only the context limits it.
    """

    def __init__(self, tokens: int | None, max_new_tokens: int, count: Count, prompt_tokens: int | None = None) -> None:
        self.tokens = tokens
        self.prompt_tokens = prompt_tokens
        self._max_new_tokens = max_new_tokens
        self._count = count
        self.reserve = 0 if tokens is None else min(max_new_tokens, max(LEAST_COMPLETION, tokens // LEAST_SHARE))
        """Tokens that a prompt leaves free for the turn."""

    @property
    def full(self) -> str:
        """The text for the model and for readers when nothing more fits."""
        return f"{self._limit[0].upper()}{self._limit[1:]} is full."

    @property
    def _limit(self) -> str:
        """The limit that is reached first, in words."""
        if self.prompt_tokens is None or (self.tokens is not None and self.tokens - self.reserve < self.prompt_tokens):
            return f"the model's context of {self.tokens} tokens"
        return f"the prompt's limit of {self.prompt_tokens} tokens"

    async def over(self, prompt: Prompt) -> tuple[int, PromptSize] | None:
        """Tokens by which the prompt is too long (negative: free), and its size; `None` if that is unknown."""
        rooms = ([] if self.tokens is None else [self.tokens - self.reserve]) + (
            [] if self.prompt_tokens is None else [self.prompt_tokens]
        )
        if not rooms:
            return None
        size = await self._count(prompt)
        return None if size is None else (size.total - min(rooms), size)

    async def completion(self, prompt: Prompt) -> int | None:
        """Most tokens of the turn: `max_new_tokens` or the rest of the context; `None` if the prompt is too long."""
        measured = await self.over(prompt)
        if measured is None:
            return self._max_new_tokens
        over, size = measured
        return (
            None
            if over > 0
            else self._max_new_tokens
            if self.tokens is None
            else min(self._max_new_tokens, self.tokens - size.total)
        )

    async def fit(
        self,
        plans: Sequence[LookPlan],
        again: Callable[[int], Sequence[LookPlan]],
        prompt: Callable[[list[Percept]], Prompt],
    ) -> Sequence[LookPlan] | ActionError:
        """The largest version of a look for which the prompt has room.

        Args:
            plans: The look as the budget allows it.
            again: Plans the look under a limit of visual tokens (by the policy's rule, `VisualToken`).
            prompt: Makes the prompt that shows it.

        Returns:
            The plans, or the reason why even the smallest version does not fit.
        """
        best: Sequence[LookPlan] | None = None
        low, high, limit = 0, 0, 0  # a limit that fits, one that does not, and that of `plans`
        while (measured := await self.over(prompt([p.blank() for p in plans]))) is not None:
            over, size = measured
            tokens = sum(p.visual_tokens for p in plans)
            if over <= 0:
                best, low = plans, limit
                if not high or -over <= WELL_FILLED * size.visual:
                    break
            elif not tokens or (best is None and limit and tokens >= high):
                return self._too_much(plans, over, size)
            else:
                high = min(tokens, limit or tokens)
            if best is None:
                # The policy's exact count, in units of the looks' own.
                theirs = size.visual / tokens if size.visual else 1.0
                limit = max(1, min(int(high * 0.95), tokens - math.ceil(over / theirs)))
            elif high - low > max(1, high // 20):
                limit = (low + high) // 2  # the words became fewer too, so more fits than estimated
            else:
                break
            plans = again(limit)
        return plans if best is None else best

    async def check(
        self, percept: Percept, plan: LookPlan, prompt: Callable[[list[Percept]], Prompt]
    ) -> ActionError | None:
        """Why a percept does not fit although its plan did: a damaged file can add words."""
        blank = plan.blank()
        if percept.remark == blank.remark and _shape(percept) == _shape(blank):
            return None
        measured = await self.over(prompt([percept]))
        return self._too_much([plan], measured[0], measured[1]) if measured is not None and measured[0] > 0 else None

    async def fit_pictures(
        self, pictures: Sequence[ImagePart], prompt: Callable[[Sequence[ImagePart]], Prompt]
    ) -> int | None:
        """Most pixels of each picture with which the prompt fits.

        The result is `None` if the pictures fit unchanged, and 0 if even small ones do not fit.
        """
        pixels: int | None = None
        while (measured := await self.over(prompt(pictures))) is not None and measured[0] > 0:
            over, size = measured
            share = (size.visual - over) / size.visual if size.visual else 0.0
            pixels = int(max((p.image.shape[0] * p.image.shape[1] for p in pictures), default=0) * min(0.9, share))
            if pixels < LEAST_FRAME_PIXELS:
                return 0
            sizes = [fit(p.image.shape[1], p.image.shape[0], pixels) for p in pictures]
            pictures = [
                ImagePart(np.broadcast_to(np.zeros((), np.uint8), (height, width, 3))) for width, height in sizes
            ]
        return pixels

    async def forced(self, notebook: Notebook, why: str) -> tuple[Prompt, int] | None:
        """The last call for an answer with as many notes as fit, and the number of turns left out.

        The result is `None` if nothing fits.
        """

        async def fits(left_out: int) -> bool:
            return await self.completion(notebook.forced_prompt(why, left_out)) is not None

        low, high = 0, len(notebook)
        if await fits(low):
            high = low
        elif not await fits(high):
            return None
        while low < high:  # the fewest turns: a prompt with fewer left out is never shorter
            middle = (low + high) // 2
            low, high = (low, middle) if await fits(middle) else (middle + 1, high)
        return notebook.forced_prompt(why, low), low

    def _too_much(self, plans: Sequence[LookPlan], over: int, size: PromptSize) -> ActionError:
        limit = f"what is left of {self._limit}"
        seconds = sum(p.end_s - p.start_s for p in plans if p.sound)
        most = math.floor(10 * seconds * (size.audio - over) / size.audio) / 10 if size.audio else 0.0
        if most > 0:
            message = (
                f"{seconds:.1f}s of sound take {size.audio} tokens and do not fit into {limit}; ask for at most "
                f"{most:.1f}s, or answer."
            )
        else:
            message = f"not even the smallest form of this look fits into {limit}; answer now, from your notes."
        return ActionError(ErrorCode.NO_TOKENS_LEFT, message)


def _shape(percept: Percept) -> tuple[object, ...]:
    return (
        None if percept.images is None else percept.images.shape,
        None if percept.waveform is None else percept.waveform.shape,
        len(percept.times_s),
    )
