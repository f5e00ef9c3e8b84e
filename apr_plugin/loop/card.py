"""`Card`: what makes a run repeatable, together with its trajectories.

From both, the prompts can be rebuilt (`apr_plugin.loop.replay`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apr_plugin.errors import AprError
from apr_plugin.files import read_regular
from apr_plugin.loop.config import EpisodeConfig, hash_of, package_versions
from apr_plugin.loop.notebook import PASSIVE_INSTRUCTIONS, instructions_of
from apr_plugin.loop.policy import EVERY_MODALITY, Modality, Policy

SCHEMA = "apr.card"
VERSION = 1

IMPORTED = "apr.imported"
"""Schema of the card of a run that another program made (`runs.foreign.writing`)."""

CARD_FILE = "card.json"
"""Name of the file in a run's folder."""


class CardError(AprError):
    """A card can't be read; the message names the file and the fault."""


class Card(BaseModel):
    """One run's configuration, resolved: every default is written out."""

    model_config = ConfigDict(frozen=True)

    config_hash: str
    """Identifies the configuration; every trajectory of the run has it."""
    config: EpisodeConfig
    """Arm, budget, media, wire, parsing, sampling, seed, and the text of a custom system prompt. The budget in a
    trajectory's line takes precedence."""
    per_question: dict[str, Any] | None = None
    """Name and parameters of the function that gave each question its budget (`runs.config.ConfigPerQuestion`), if
    there was one."""
    policy: dict[str, Any] = Field(default_factory=dict)
    """The policy's description of itself: its name, modalities, context, model, revision."""
    prompt_hash: str = ""
    """Identifies the words and the layout of prompts."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """The prompt texts: `instructions` (a template, or the custom system prompt) and `passive`."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of the packages that decide pixels and answers."""

    @classmethod
    def of(cls, config: EpisodeConfig, policy: Policy) -> Self:
        """The card of a run that begins now."""
        described = config.describe(policy)
        return cls(
            config_hash=config.hash(policy),
            config=config,
            policy=described["policy"],
            prompt_hash=described["prompt_hash"],
            prompts={
                "instructions": instructions_of(config.system_prompt, config.form),
                "passive": instructions_of(config.system_prompt, config.form)
                if config.passive_wire
                else PASSIVE_INSTRUCTIONS,
            },
            versions=package_versions(),
        )

    def to_json(self) -> str:
        """The text of its file, without the settings of this machine (`root`, `isolation`)."""
        data = self.model_dump(mode="json", exclude={"config": {"media": {"root", "isolation"}}})
        return json.dumps({"schema": SCHEMA, "version": VERSION} | data, indent=2, sort_keys=True) + "\n"

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a card from its file, or from the folder of its run.

        Raises:
            CardError: there is no card, or it can't be read; for a run of an earlier release, the message says so.
        """
        file = Path(path)
        if file.is_dir():
            if not (file / CARD_FILE).exists() and (file / "config.json").exists():
                raise CardError(
                    f"{file}: an earlier release made this run; it has no {CARD_FILE}, so its prompts can't be rebuilt"
                )
            file = file / CARD_FILE
        try:
            data = json.loads(read_regular(file))
        except (OSError, ValueError, RecursionError) as error:
            raise CardError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
        if isinstance(data, dict) and data.get("schema") == IMPORTED:
            raise CardError(f"{file}: the run was made elsewhere and imported; its prompts can't be rebuilt")
        if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("version"), int):
            raise CardError(f"{file}: this is not an {SCHEMA} file")
        if data["version"] > VERSION:
            raise CardError(
                f"{file}: card version {data['version']} is newer than {VERSION}, which this release reads; "
                "upgrade apr-plugin"
            )
        try:
            return cls.model_validate({key: value for key, value in data.items() if key not in ("schema", "version")})
        except ValidationError as error:
            fault = error.errors(include_input=False, include_context=False, include_url=False)[0]
            raise CardError(f"{file}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from error

    @property
    def content_hash(self) -> str:
        """The hash of the configuration that the card describes: `config_hash`, unless the card was changed."""
        described = self.config.describe_with(self.policy, self.prompt_hash)
        return hash_of(described | ({} if self.per_question is None else {"per_question": self.per_question}))

    @property
    def modalities(self) -> frozenset[Modality]:
        """What the policy perceived."""
        return frozenset(name for name in EVERY_MODALITY if name in self.policy.get("modalities", ()))
