"""The interface between the loop and a policy: one method that turns a prompt into the next turn's text.

Policies are in `apr_plugin.policies` (one package for each way to run a model). This module defines the interface that
the loop uses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from apr_plugin.loop.budget import VISUAL_TOKEN, VisualToken
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
    """A moving clip, with its sound if the video has any."""

    frames: NDArray[np.uint8]
    """Shape (n, height, width, 3), RGB."""

    times_s: tuple[float, ...]
    """True presentation time of each frame, in seconds of the video."""

    fps: float
    """Frames per second at which the clip was sampled."""

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
        """The message's words, without media parts."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


@dataclass(frozen=True)
class Asked:
    """The episode and the turn that a prompt belongs to. A model does not read it."""

    episode: str
    """Name of the episode: the same in all of its prompts, and different for every other episode of the run."""

    turn: int
    """Number of the requested turn, counted from 1."""

    question: Question
    """What is asked."""

    durations_s: tuple[float, ...] = ()
    """Length of each of the question's videos, in seconds."""


@dataclass(frozen=True)
class Prompt:
    """Everything a policy sees for one turn."""

    messages: tuple[Message, ...]
    """System instructions, the question, then turns and their results; media only in the last user message."""

    final: bool = False
    """Whether this is the last generation of the episode, so that only an answer counts."""

    asked: Asked | None = None
    """Its episode and turn; `None` if the prompt belongs to no episode."""

    def newest_media(self) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.float32]]]:
        """The pictures, shape (height, width, 3), and waveforms of the last message, in order; a clip gives both."""
        pictures: list[NDArray[np.uint8]] = []
        sounds: list[NDArray[np.float32]] = []
        for part in self.messages[-1].parts:
            match part:
                case ImagePart():
                    pictures.append(part.image)
                case VideoPart():
                    pictures += list(part.frames)
                    sounds += [] if part.audio is None else [part.audio.waveform]
                case AudioPart():
                    sounds.append(part.waveform)
        return pictures, sounds

    @property
    def text(self) -> str:
        """The prompt as readable text, with media as `<image 224x224>`; used by golden files and `apr show`."""
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
    """With -1 every token is considered."""

    max_new_tokens: int = 4096
    """Longest turn, in tokens (the published value)."""

    seed: int = 0
    """Seed of this one generation; the episode derives it from the run's seed, the question and the turn."""

    stop: tuple[str, ...] = ()
    """Texts that end a turn, in addition to the model's own end; they are not part of the turn."""


MOST_TOKENS = 2**53
"""The largest count that is kept; JSON readers and averages do not represent larger whole numbers exactly."""


@dataclass(frozen=True)
class Usage:
    """The cost of one generation, in tokens.

    A count that the engine does not give, or that is impossible, is `None`, never an estimate.
    """

    prompt_tokens: int | None = None
    """The whole prompt, including media."""

    cached_tokens: int | None = None
    """Prompt tokens that came from a cache and were not computed again."""

    completion_tokens: int | None = None
    """Tokens written."""

    visual_tokens: int | None = None
    """Prompt tokens of pictures."""

    audio_tokens: int | None = None
    """Prompt tokens of sound."""

    def __post_init__(self) -> None:
        for name, count in vars(self).items():
            # A server or a file may give 400 digits, and sums and averages would fail.
            if count is not None and not 0 <= count <= MOST_TOKENS:
                object.__setattr__(self, name, None)


@dataclass(frozen=True)
class GenerationTimings:
    """How the seconds of one generation were spent. A time that the engine does not report separately is `None`."""

    queue_s: float | None = None
    """Time spent waiting for the engine: for a batch to fill, for a slot, for a retry."""

    prefill_s: float | None = None
    """Time from the start of the work to the first token."""

    decode_s: float | None = None
    """Time from the first token to the last."""


LogprobsOf = Literal["raw", "scaled", "truncated"]
"""The distribution to which log-probabilities belong.

`raw`: the model's own, before the temperature. `scaled`: divided by the temperature, over the whole vocabulary, before
`top_k` and `top_p`. `truncated`: what the token was drawn from, after `top_k` and `top_p` too, so that every other
token has probability 0. At temperature 0, where nothing is scaled, they are `raw`. In an engine of this process,
penalties and banned tokens come before all three; in a server, that depends on the server.
"""


@dataclass(frozen=True)
class Generation:
    """The result of a policy."""

    text: str
    """The turn as the model wrote it; untrusted."""

    usage: Usage = field(default_factory=Usage)
    """Tokens in and out."""

    finish_reason: str = "stop"
    """`stop`, or `length` (some servers: `max_tokens`) if the turn was cut off at `max_new_tokens`."""

    token_ids: tuple[int, ...] | None = None
    """The sampled tokens, if the engine gives them."""

    logprobs: tuple[float, ...] | None = None
    """Log-probability of each sampled token, if the engine gives them."""

    logprobs_of: LogprobsOf | None = None
    """The distribution to which they belong; `None` if there are none, or if the engine does not say."""

    prompt_token_ids: tuple[int, ...] | None = None
    """The prompt as the model read it, with one token for each position of media, if the engine gives it. It is large,
    and a replay gives it again, so it is not written to trajectories."""

    entropies: tuple[float, ...] | None = None
    """Entropy (nats) of the distribution from which each token was drawn (the unscaled one at temperature 0), if the
    engine gives it."""

    entropy_top_k: int | None = None
    """With `None`, entropies are over the whole vocabulary. Otherwise they are over the k likeliest tokens,
    renormalised, which in practice is a lower bound."""

    timings: GenerationTimings = field(default_factory=GenerationTimings)
    """How the time was spent."""

    remark: str = ""
    """Why the text is empty, if the engine tells: thought that was cut off, or a tool call. The policy reads it as the
    turn's error."""

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
    """Words, including the chat template and the brackets of placeholders."""

    visual: int = 0
    """Pictures."""

    audio: int = 0
    """Sound."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.text + self.visual + self.audio


class PolicyUnavailable(RuntimeError):
    """The policy could not be reached or has died. The question is not answered, and a resumed run asks it again."""


@runtime_checkable
class Policy(Protocol):
    """Produces the next turn from a prompt. One instance serves many episodes at once."""

    name: str
    """Name of the policy in results."""

    modalities: frozenset[Modality]
    """What the model can perceive. An action for anything else is not offered, and `clip` without `audio` is shown
    without its sound."""

    context_tokens: int | None
    """Most tokens of prompt and completion together, or `None` if there is no limit or it is not known."""

    async def count(self, prompt: Prompt) -> PromptSize | None:
        """Number of tokens of the prompt, counted without running the model; `None` if the policy can't tell."""
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
        """Release what the policy holds (a GPU, a connection)."""
        ...


class PolicyDefaults:
    """Defaults that suit most policies: every modality, no context limit, nothing to release."""

    modalities: frozenset[Modality] = EVERY_MODALITY
    context_tokens: int | None = None
    visual_token: VisualToken = VISUAL_TOKEN
    """What one visual token covers, by which the looks of an episode are counted against its budget."""

    async def count(self, prompt: Prompt) -> PromptSize | None:
        """Unknown."""
        return None

    def close(self) -> None:
        """Do nothing, because there is nothing to release."""


def visual_token_of(policy: Policy) -> VisualToken:
    """What one visual token of a policy covers; a policy need not tell it."""
    told = getattr(policy, "visual_token", VISUAL_TOKEN)
    return told if isinstance(told, VisualToken) else VISUAL_TOKEN
