"""Counts the tokens of a prompt before it is sent to a server.

vLLM counts text at `/tokenize`. The cost of a picture, a clip or a sound depends only on its size. So the server is
asked once for each size, with a blank medium between the text of a look; no picture is sent twice. For any other server
the count is estimated by Qwen2.5's rules, on the high side. Such an estimate can refuse a look that would have fitted,
but can't overflow a context of that family.
"""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from apr_plugin.loop.budget import frame_pairs, visual_tokens
from apr_plugin.loop.policy import AudioPart, ImagePart, Message, Part, Prompt, PromptSize, TextPart, VideoPart
from apr_plugin.loop.wires.apr import frame_label
from apr_plugin.policies.openai.media import MediaForm, chat_messages, shown_parts

AUDIO_TOKENS_PER_S = 25
"""Milliseconds of sound for one token of Qwen2.5-Omni."""
BRACKETS = 2
"""Tokens that open and close one picture or sound."""
PER_MESSAGE = 8
"""Most tokens that a chat template writes around a message, in the families we know."""

_PIECE = re.compile(r"[A-Za-z]+|[^A-Za-z\s]|\s+")

Tokenize = Callable[[list[dict[str, Any]], Mapping[str, Any]], Awaitable[int]]
"""A call to the server: from messages, and what else decides the prompt, to the number of tokens."""


@dataclass(frozen=True)
class Cost:
    """The cost of one part of a prompt, in tokens."""

    visual: int = 0
    audio: int = 0


class Counter:
    """Counts prompts with the help of a vLLM server.

    Args:
        tokenize: Asks the server.
        settings: How media is written.
        extra: Gives the fields of the request that a clip needs, from its part.
    """

    def __init__(self, tokenize: Tokenize, settings: MediaForm, extra: Callable[[Part], Mapping[str, Any]]) -> None:
        self._tokenize = tokenize
        self._settings = settings
        self._extra = extra
        self._costs: dict[tuple[Any, ...], Cost] = {}
        self._words_alone = 0

    async def count(self, prompt: Prompt) -> PromptSize:
        """The number of tokens by the server's own rules, at most one too many for each picture or sound.

        It raises what `tokenize` raises.
        """
        shown = [Message(message.role, tuple(shown_parts(message, self._settings))) for message in prompt.messages]
        media = [part for message in shown for part in message.parts if not isinstance(part, TextPart)]
        words = Prompt(
            tuple(
                Message(message.role, tuple(part for part in message.parts if isinstance(part, TextPart)))
                for message in shown
            )
        )
        text = await self._tokenize(chat_messages(words, self._settings), {})
        costs = [await self._cost(part) for part in media]
        cuts = len(media)  # text on both sides of a picture may have been counted as one token
        return PromptSize(text + cuts, sum(cost.visual for cost in costs), sum(cost.audio for cost in costs))

    async def _cost(self, part: Part) -> Cost:
        blank, key = blank_like(part)
        if key not in self._costs:
            total = await self._between_words(blank)
            if isinstance(blank, VideoPart) and blank.audio is not None:
                seen = (await self._cost(VideoPart(blank.frames, blank.times_s, blank.fps))).visual
                self._costs[key] = Cost(visual=seen, audio=max(0, total - seen))
            else:
                self._costs[key] = Cost(audio=total) if isinstance(blank, AudioPart) else Cost(visual=total)
        return self._costs[key]

    async def _between_words(self, part: Part) -> int:
        """The number of tokens that a part adds between text like that around it in a look."""
        before, after = TextPart(frame_label(1.0)), TextPart(frame_label(2.0))
        with_it, without = (Prompt((Message("user", parts),)) for parts in ((before, part, after), (before, after)))
        if not self._words_alone:
            self._words_alone = await self._tokenize(chat_messages(without, self._settings), {})
        return max(
            1, await self._tokenize(chat_messages(with_it, self._settings), self._extra(part)) - self._words_alone
        )


def blank_like(part: Part) -> tuple[Part, tuple[Any, ...]]:
    """A part of the same size that shows nothing, and the size; sound is rounded up to a tenth of a second."""
    match part:
        case ImagePart():
            return ImagePart(np.zeros(part.image.shape, np.uint8)), ("image", *part.image.shape)
        case AudioPart():
            tenths = math.ceil(len(part.waveform) / part.sample_rate * 10)
            return AudioPart(np.zeros(tenths * part.sample_rate // 10, np.float32), part.sample_rate), ("audio", tenths)
        case VideoPart():
            sound, key = blank_like(part.audio) if part.audio is not None else (None, ())
            assert sound is None or isinstance(sound, AudioPart)
            return VideoPart(np.zeros(part.frames.shape, np.uint8), part.times_s, part.fps, sound), (
                "video",
                *part.frames.shape,
                part.fps,
                *key,
            )
        case TextPart():
            return part, ("text",)


def estimate(prompt: Prompt, settings: MediaForm) -> PromptSize:
    """Estimate the tokens by Qwen2.5's rules.

    One token is a 28-pixel square, or half of one in a clip sent as video; a second of sound is 25 tokens.
    """
    text = visual = audio = 0
    for message in prompt.messages:
        text += PER_MESSAGE
        for part in shown_parts(message, settings):
            match part:
                case TextPart():
                    text += text_tokens(part.text)
                case ImagePart():
                    visual += BRACKETS + visual_tokens(part.image.shape[1], part.image.shape[0])
                case AudioPart():
                    audio += BRACKETS + _sound(part)
                case VideoPart():
                    n, height, width = part.frames.shape[:3]
                    visual += BRACKETS + frame_pairs(n) * visual_tokens(width, height)
                    audio += _sound(part.audio) + BRACKETS if part.audio is not None else 0
    return PromptSize(text, visual, audio)


def _sound(part: AudioPart) -> int:
    return math.ceil(len(part.waveform) / part.sample_rate * AUDIO_TOKENS_PER_S)


def text_tokens(text: str) -> int:
    """The number of tokens of a text, estimated on the high side.

    Four letters of a word, or one other character, make one token (Qwen has a token for every digit).
    """
    return sum(
        -(-len(piece) // 4) if piece.isascii() and piece.isalpha() else _other(piece) for piece in _PIECE.findall(text)
    )


def _other(piece: str) -> int:
    if piece.isspace():
        return piece.count("\n") + (1 if len(piece.replace("\n", "")) > 1 else 0)
    return 1 if piece.isascii() else max(1, len(piece.encode("utf-8", "replace")) - 1)
