"""What the loop needs of a policy: one method that turns a prompt into the next turn's text.

A policy lives in `apr_plugin.policies` (one file per way to run a model); this module only says what it looks like from the loop.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from apr_plugin.loop.question import Question

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class TextPart:
    """Words."""

    text: str


@dataclass(frozen=True)
class ImagePart:
    """One frame."""

    image: NDArray[np.uint8]
    """Shape (height, width, 3), RGB."""


@dataclass(frozen=True)
class AudioPart:
    """A stretch of sound."""

    waveform: NDArray[np.float32]
    """Shape (samples,), mono, in [-1, 1]."""

    sample_rate: int
    """Samples per second (16,000)."""


@dataclass(frozen=True)
class VideoPart:
    """A moving clip, with its sound where the video has any."""

    frames: NDArray[np.uint8]
    """Shape (n, height, width, 3), RGB."""

    times_s: tuple[float, ...]
    """True presentation time of each frame, in seconds of the video."""

    fps: float
    """Frames per second the clip was sampled at."""

    audio: AudioPart | None = None
    """The sound of the same window, or `None`."""


Part = TextPart | ImagePart | AudioPart | VideoPart


@dataclass(frozen=True)
class Message:
    """One message of a chat."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The message's words; media parts are left out."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


@dataclass(frozen=True)
class Asked:
    """Which episode a prompt belongs to, and which of its turns. It is no part of what a model reads."""

    episode: str
    """Names the episode; the same in all of its prompts, and in no other's of the run."""

    turn: int
    """Which turn is asked for, counted from 1."""

    question: Question
    """What is asked."""

    durations_s: tuple[float, ...] = ()
    """Length of each of the question's videos, in seconds."""


@dataclass(frozen=True)
class Prompt:
    """Everything a policy sees for one turn."""

    messages: tuple[Message, ...]
    """System instructions, the question, then turns and what they brought back; media only in the last user message."""

    final: bool = False
    """Whether this is the last generation of the episode, so that only an answer counts."""

    asked: Asked | None = None
    """Whose turn it is; `None` for a prompt that belongs to no episode."""

    @property
    def text(self) -> str:
        """The prompt as readable text, media written as `<image 224x224>`; used by golden files and `apr show`."""
        return "\n".join(f"<{m.role}>\n" + "".join(_show(p) for p in m.parts) + f"\n</{m.role}>" for m in self.messages)


def _show(part: Part) -> str:
    match part:
        case TextPart():
            return part.text
        case ImagePart():
            height, width = part.image.shape[:2]
            return f"<image {width}x{height}>"
        case AudioPart():
            return f"<audio {len(part.waveform) / part.sample_rate:.2f}s {part.sample_rate}Hz>"
        case VideoPart():
            n, height, width = part.frames.shape[:3]
            return f"<video {n}x{width}x{height} {'with' if part.audio is not None else 'without'} sound>"


@dataclass(frozen=True)
class Sampling:
    """How one generation is sampled."""

    temperature: float = 0.0
    """0 is greedy."""

    top_p: float = 1.0
    """Nucleus sampling mass."""

    top_k: int = -1
    """-1 considers every token."""

    max_new_tokens: int = 4096
    """Longest turn, in tokens (the published value)."""

    seed: int = 0
    """Seed of this one generation; the episode derives it from the run's seed, the question and the turn."""

    stop: tuple[str, ...] = ()
    """Texts that end a turn, and are left out of it, beside the model's own end."""


MOST_TOKENS = 2**53
"""The largest count that is kept; JSON readers and averages take no larger whole number exactly."""


@dataclass(frozen=True)
class Usage:
    """What one generation cost, in tokens. A count the engine does not give is `None`, never a guess; so is one that no generation can have."""

    prompt_tokens: int | None = None
    """The whole prompt, media included."""

    cached_tokens: int | None = None
    """Those of the prompt that came from a cache and were not computed again."""

    completion_tokens: int | None = None
    """Tokens written."""

    visual_tokens: int | None = None
    """Those of the prompt that stand for pictures."""

    audio_tokens: int | None = None
    """Those of the prompt that stand for sound."""

    def __post_init__(self) -> None:
        for name, count in vars(self).items():
            if count is not None and not 0 <= count <= MOST_TOKENS:  # 400 digits from a server, or in a file: sums and averages would fail
                object.__setattr__(self, name, None)


@dataclass(frozen=True)
class GenerationTimings:
    """Where the seconds of one generation went. What the engine does not tell apart is `None`."""

    queue_s: float | None = None
    """Waiting for the engine: a batch to fill, a slot, a retry."""

    prefill_s: float | None = None
    """From the start of the work to the first token."""

    decode_s: float | None = None
    """From the first token to the last."""


LogprobsOf = Literal["raw", "scaled", "truncated"]
"""Which distribution log-probabilities are of.

`raw`: the model's own, before the temperature. `scaled`: divided by the temperature, over the whole vocabulary, before `top_k` and `top_p`.
`truncated`: what the token was drawn from, after `top_k` and `top_p` too, so that every other token has probability 0. At temperature 0, where
nothing is scaled, they are `raw`. Penalties and banned tokens come before all three in an engine of this process; what a server does is its own
affair.
"""


@dataclass(frozen=True)
class Generation:
    """What a policy returns."""

    text: str
    """The turn as the model wrote it; untrusted."""

    usage: Usage = field(default_factory=Usage)
    """Tokens in and out."""

    finish_reason: str = "stop"
    """`stop`, or `length` (some servers: `max_tokens`) where the turn was cut off at `max_new_tokens`."""

    token_ids: tuple[int, ...] | None = None
    """The sampled tokens, where the engine gives them."""

    logprobs: tuple[float, ...] | None = None
    """Log-probability of each sampled token, where the engine gives them."""

    logprobs_of: LogprobsOf | None = None
    """Which distribution they are of; `None` without them, and where the engine does not say."""

    prompt_token_ids: tuple[int, ...] | None = None
    """The prompt as the model read it, one token for each place that media takes, where the engine gives it. It is large, and a replay gives it
    again, so it is not written into trajectories."""

    entropies: tuple[float, ...] | None = None
    """Entropy (nats) of the distribution each token was drawn from (the unscaled one at temperature 0), where the engine gives it."""

    entropy_top_k: int | None = None
    """`None`: entropies are over the whole vocabulary. Else they are over the k likeliest tokens, renormalised: a lower bound in practice."""

    timings: GenerationTimings = field(default_factory=GenerationTimings)
    """Where the time went."""

    remark: str = ""
    """What an empty text stands for, where the engine tells: thought that was cut off, a call of a tool. The policy reads it as the turn's error."""

    @property
    def cut(self) -> bool:
        """Whether the turn was cut off at its length limit."""
        return self.finish_reason.casefold() in ("length", "max_tokens")


Modality = Literal["frames", "audio", "clip"]

EVERY_MODALITY: frozenset[Modality] = frozenset(("frames", "audio", "clip"))


@dataclass(frozen=True)
class PromptSize:
    """Tokens of a prompt before it is sent, by the rules of the policy's model family."""

    text: int
    """Words, chat template and placeholders' brackets included."""

    visual: int = 0
    """Pictures."""

    audio: int = 0
    """Sound."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.text + self.visual + self.audio


class PolicyUnavailable(RuntimeError):
    """The policy could not be reached or has died: the question is not answered, and a resumed run asks it again."""


@runtime_checkable
class Policy(Protocol):
    """Produces the next turn from a prompt. One instance serves many episodes at once."""

    name: str
    """What results call it."""

    modalities: frozenset[Modality]
    """What the model can perceive; an action for anything else is not offered, and `clip` without `audio` is shown without its sound."""

    context_tokens: int | None
    """Most tokens of prompt and completion together, or `None` where nothing limits them or nobody knows."""

    async def count(self, prompt: Prompt) -> PromptSize | None:
        """Tokens the prompt will take, counted without running the model; `None` where the policy can't tell."""
        ...

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """Write the next turn.

        Raises:
            PolicyUnavailable: the engine cannot be reached; the episode ends as `policy_unavailable`.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Everything that decides the answers (model, revision, settings), as JSON values; part of the config hash."""
        ...

    def close(self) -> None:
        """Give back what the policy holds (a GPU, a connection)."""
        ...


class PolicyDefaults:
    """What most policies say of themselves: every modality, no limit of context, nothing held."""

    modalities: frozenset[Modality] = EVERY_MODALITY
    context_tokens: int | None = None

    async def count(self, prompt: Prompt) -> PromptSize | None:
        """Unknown."""
        return None

    def close(self) -> None:
        """Nothing is held."""
