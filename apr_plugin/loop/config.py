"""`EpisodeConfig`: everything that decides an answer, except question and policy, and the hash that identifies it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from apr_plugin import __version__
from apr_plugin.loop.budget import Budget
from apr_plugin.loop.notebook import prompt_hash
from apr_plugin.loop.policy import Policy, Sampling
from apr_plugin.loop.question import Question
from apr_plugin.media import MediaSettings


class EpisodeConfig(BaseModel):
    """Everything that decides an answer, except the question and the policy."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    arm: Literal["agent", "passive", "blind", "single_frame", "shuffled", "oracle"] = "agent"
    """How the question is answered; a name in `apr_plugin.loop.arms.ARMS`."""
    passive_frames: int = Field(default=32, ge=0, le=100_000)
    """Number of frames of the arms `passive`, `shuffled` and `oracle`; with 0 the passive arm asks blind."""
    budget: Budget = Budget()
    """Limits of the episode."""
    media: MediaSettings = MediaSettings()
    """How files are read: exact frames or keyframes, and which decoder."""
    wire: Literal["apr", "omniagent"] = "apr"
    """The form of everything but the instructions, and which pictures a look has; a name in `WIRES`."""
    parsing: Literal["repair", "strict"] = "repair"
    """How turns and answers are read: `repair` repairs what it can; `strict` accepts what OmniAgent's environment
    accepts (docs/scoring.md), and a prompt that is too long ends the episode. It has no effect on the passive arm,
    whose one reply is always read the same way."""
    sampling: Sampling = Sampling()
    """How turns are sampled; its seed is replaced by one derived for each turn."""
    system_prompt: str | None = None
    """Custom instructions, used in place of the default ones."""
    system_prompt_template: bool = False
    """Whether they are a template with the variables of the default instructions (`render_instructions`)."""
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    """Seed of the run."""

    def describe(self, policy: Policy) -> dict[str, Any]:
        """The configuration of a run as JSON values, including the policy's own."""
        described = {
            "name": policy.name,
            "modalities": sorted(policy.modalities),
            "context_tokens": policy.context_tokens,
        } | policy.describe()
        words = prompt_hash(self.system_prompt, policy.modalities, self.wire, self.system_prompt_template)
        return self.describe_with(described, words)

    def describe_with(self, policy: Mapping[str, Any], prompt_hash: str) -> dict[str, Any]:
        """The same from a policy's description and the hash of the prompts, as a card has them."""
        config = self.model_dump(mode="json", exclude={"system_prompt": True, "media": {"isolation", "root"}})
        return config | {"policy": dict(policy), "prompt_hash": prompt_hash}

    def hash(self, policy: Policy) -> str:
        """16 hex digits that identify the configuration; trajectories of different configurations are never mixed."""
        return hash_of(self.describe(policy))

    def for_question(self, question: Question) -> EpisodeConfig:
        """The configuration of one question: always this one. (`runs.config` has one that depends on the question.)."""
        return self

    def seed_for(self, question: Question) -> int:
        """The question's own seed, derived from the run's seed and the question's key.

        So the order of questions does not matter.
        """
        text = json.dumps([self.seed, *question.key])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def hash_of(described: dict[str, Any]) -> str:
    """16 hex digits that identify a configuration, from the result of its `describe`."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


@cache
def package_versions() -> dict[str, str]:
    """Versions of the installed packages that decide the pixels and the answers."""
    found = {"apr-plugin": __version__}
    for name in ("av", "numpy", "lmms-eval", "torch", "transformers", "vllm"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
