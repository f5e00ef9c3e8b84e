"""`policy=altered`: a model of `policy=hf` whose prompts are changed before it reads them, for ablations.

- `keep_media=true`: every look stays in the prompt with its pictures, where the loop leaves a placeholder.
- `observation=false`: earlier turns lose what they noted; thoughts and actions stay.

The loop, its limits and its record are the same. Give the checkpoint's profile by `profile=FOLDER`.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import replace
from typing import Any

from apr_plugin import options
from apr_plugin.loop.policy import Generation, Message, Part, Prompt, PromptSize, Sampling, TextPart
from apr_plugin.policies.hf.policy import HfPolicy

EPISODES = 64
"""Episodes whose pictures are kept at the same time; more than run at once."""

_OBSERVATION = re.compile(r'"observation":\s*"(?:[^"\\]|\\.)*"')


class Altered:
    """See the module.

    Args:
        inner: The model.
        keep_media: Whether pictures stay.
        observation: Whether what was noted stays.
    """

    name = "altered"

    def __init__(self, inner: HfPolicy, *, keep_media: bool = False, observation: bool = True) -> None:
        self._inner = inner
        self._keep = keep_media
        self._observation = observation
        self._kept: OrderedDict[str, dict[int, tuple[Part, ...]]] = OrderedDict()
        self.modalities = inner.modalities
        self.visual_token = inner.visual_token
        self.context_tokens = inner.context_tokens

    @classmethod
    def from_pretrained(
        cls,
        pretrained: str,
        dtype: str = "auto",
        batch_size: int = 8,
        keep_media: bool | str = False,
        observation: bool | str = True,
    ) -> Altered:
        """Load a checkpoint; see `HfPolicy.from_pretrained`."""
        inner = HfPolicy.from_pretrained(pretrained, dtype=dtype, batch_size=batch_size)
        return cls(
            inner,
            keep_media=options.flag("keep_media", keep_media),
            observation=options.flag("observation", observation),
        )

    def changed(self, prompt: Prompt) -> Prompt:
        """The prompt as the model reads it."""
        kept = self._kept.get(prompt.asked.episode, {}) if prompt.asked is not None else {}
        last = len(prompt.messages) - 1
        messages = []
        for number, message in enumerate(prompt.messages):
            if self._keep and message.role == "user" and number < last and number in kept:
                message = Message("user", kept[number])
            elif not self._observation and message.role == "assistant":
                message = Message("assistant", (TextPart(_OBSERVATION.sub('"observation": ""', message.text)),))
            messages.append(message)
        return replace(prompt, messages=tuple(messages))

    async def count(self, prompt: Prompt) -> PromptSize | None:
        """Tokens of the changed prompt."""
        return await self._inner.count(self.changed(prompt))

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """Write the next turn from the changed prompt."""
        changed = self.changed(prompt)
        if self._keep and prompt.asked is not None:
            self._remember(prompt.asked.episode, prompt)
        return await self._inner.generate(changed, sampling)

    def _remember(self, episode: str, prompt: Prompt) -> None:
        parts = prompt.messages[-1].parts
        if all(isinstance(part, TextPart) for part in parts):
            return
        # The last part is the notice of the turns that are left.
        self._kept.setdefault(episode, {})[len(prompt.messages) - 1] = parts[:-1]
        self._kept.move_to_end(episode)
        while len(self._kept) > EPISODES:
            self._kept.popitem(last=False)

    def describe(self) -> dict[str, Any]:
        """The model's description, and what is changed."""
        return self._inner.describe() | {"keep_media": self._keep, "observation": self._observation}

    def close(self) -> None:
        """Free the model."""
        self._inner.close()
