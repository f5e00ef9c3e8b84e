"""`EpisodeConfig`: everything that decides an answer, except question and policy, and the hash that identifies it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from apr_plugin import __version__
from apr_plugin.loop.budget import Budget
from apr_plugin.loop.notebook import prompt_hash
from apr_plugin.loop.policy import Modality, Policy, Sampling
from apr_plugin.loop.profiles import WireName
from apr_plugin.loop.question import Question
from apr_plugin.loop.wires import Wire, wire_of
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
    wire: WireName = "apr"
    """The form of everything but the instructions, and which pictures a look has; a name in `WIRES`."""
    frame_references: bool | None = None
    """Whether shown frames have names that an action or an answer may give in place of times (`loop.references`);
    `None`: as the wire does. Not with strict parsing."""
    frame_times: bool | None = None
    """Whether the label of a frame with a name has its time too; `None`: as the wire does."""
    passive_form: Literal["default", "wire"] = "default"
    """How the prompt of an arm of one turn is written: `default` for models that know no wire; `wire` as a last turn of
    this configuration's wire, for a checkpoint that was trained to answer at once in it. Its instructions are then
    those of the wire, and its answer may name frames where the wire has references."""
    parsing: Literal["repair", "strict"] = "repair"
    """How turns and answers are read: `repair` repairs what it can; `strict` accepts what OmniAgent's environment
    accepts (docs/scoring.md), and a prompt that is too long ends the episode. It has no effect on the passive arm,
    whose one reply is always read the same way."""
    sampling: Sampling = Sampling()
    """How turns are sampled; its seed is replaced by one derived for each turn."""
    system_prompt: str | None = None
    """Custom instructions, used in place of the default ones; empty for none."""
    system_prompt_template: bool = False
    """Whether they are a template with the variables of the default instructions (`render_instructions`)."""
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    """Seed of the run."""
    profile: str = ""
    """Digest of the checkpoint's profile (`loop.profile_file`) from which the settings above were taken, where no
    argument said otherwise; empty if there was none. It does not decide an answer, so it is not in the hash."""

    @model_validator(mode="after")
    def _names_can_be_read(self) -> Self:
        if self.arm == "agent" and self.parsing == "strict" and self.form.references:
            raise ValueError("strict parsing reads no names of frames: use parsing=repair or frame_references=false")
        return self

    @property
    def form(self) -> Wire:
        """The wire, with or without references."""
        return wire_of(self.wire, self.frame_references, self.frame_times)

    @property
    def passive_wire(self) -> bool:
        """Whether prompts of one turn are written by the wire."""
        return self.passive_form == "wire"

    def words(self, modalities: frozenset[Modality]) -> str:
        """The hash of the prompts for a policy that perceives these (`prompt_hash`)."""
        return prompt_hash(self.system_prompt, modalities, self.form, self.system_prompt_template, self.passive_wire)

    def describe(self, policy: Policy) -> dict[str, Any]:
        """The configuration of a run as JSON values, including the policy's own."""
        described = {
            "name": policy.name,
            "modalities": sorted(policy.modalities),
            "context_tokens": policy.context_tokens,
        } | policy.describe()
        return self.describe_with(described, self.words(policy.modalities))

    def describe_with(self, policy: Mapping[str, Any], prompt_hash: str) -> dict[str, Any]:
        """The same from a policy's description and the hash of the prompts, as a card has them."""
        config = self.model_dump(
            mode="json", exclude={"system_prompt": True, "profile": True, "media": {"isolation", "root"}}
        )
        for key in ("frame_references", "frame_times"):  # left out, they don't change the hash of earlier runs
            if config[key] is None:
                del config[key]
        if not self.passive_wire:
            del config["passive_form"]
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
