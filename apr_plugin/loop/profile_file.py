"""`apr_profile.json`: the profile that a checkpoint carries, in its folder.

It says in which form the model was trained: wire, instructions, limits, sizes of pictures, sampling. It is data: values
of known types in known ranges, and text. Instructions may be a template, which is rendered in a sandbox like the
checkpoint's own chat template.

    {"schema": "apr.profile", "version": 1, "wire": "compact", "instructions": null,
     "limits": {"max_turns": 9, "frame_pixels": 3136}, "sampling": {"max_new_tokens": 512}}

Everything except `schema` and `version` may be left out and then has the default of the wire or of this package.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self

import jinja2
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from apr_plugin.errors import AprError
from apr_plugin.files import read_regular
from apr_plugin.loop.budget import Budget
from apr_plugin.loop.notebook import render_instructions
from apr_plugin.loop.profiles import Profile, WireName
from apr_plugin.loop.question import Question, QuestionKind
from apr_plugin.loop.wires import wire_of

PROFILE_FILE = "apr_profile.json"
"""Its name in a checkpoint's folder."""

SCHEMA = "apr.profile"
VERSION = 1
LONGEST = 1_000_000
"""Most bytes of the file."""


class ProfileError(AprError):
    """A profile can't be read; the message names the file, the field and what is wrong."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class SampledBy(_Part):
    """How turns are sampled; what is left out is as the wire says."""

    temperature: float | None = Field(default=None, ge=0, le=100)
    """0 is greedy."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Nucleus sampling mass."""
    top_k: int | None = Field(default=None, ge=-1, le=10_000_000)
    """With -1 every token is considered."""
    max_new_tokens: int | None = Field(default=None, ge=1, le=2**20)
    """Longest turn."""
    stop: tuple[str, ...] | None = Field(default=None, max_length=16)
    """Texts that end a turn."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.top_k == 0:
            raise ValueError("top_k must be -1 or at least 1")
        return self


class ProfileFile(_Part):
    """The content of the file, without `schema` and `version`."""

    wire: WireName = "apr"
    """The form of prompts (docs/wires.md)."""
    frame_references: bool | None = None
    """Whether shown frames have names; `None`: as the wire does."""
    frame_times: bool | None = None
    """Whether the label of a frame with a name has its time; `None`: as the wire does."""
    passive_form: Literal["default", "wire"] = "default"
    """How the prompt of an arm of one turn is written; `wire`: the checkpoint was trained to answer at once in its
    wire."""
    parsing: Literal["repair", "strict"] = "repair"
    """How turns are read."""
    instructions: str | None = None
    """Instructions in place of the default ones; empty for none."""
    instructions_template: bool = False
    """Whether they are a template."""
    limits: Budget = Budget()
    """Limits of an episode, and the sizes of pictures (`frame_pixels`, `clip_pixels`)."""
    sampling: SampledBy = SampledBy()
    """How turns are sampled."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        wire = wire_of(self.wire, self.frame_references, self.frame_times)
        if wire.references and self.parsing == "strict":
            raise ValueError("parsing: strict parsing reads no names of frames, which this wire has")
        if self.instructions_template:
            try:
                asked = Question(text="", kind=QuestionKind.FREE_FORM)
                render_instructions(asked, 1, Budget(), source=self.instructions or "")
            except (jinja2.TemplateError, RecursionError, OverflowError, TypeError, ValueError) as error:
                raise ValueError(f"instructions: not a template that can be rendered: {error}") from error
        return self

    @property
    def digest(self) -> str:
        """16 hex digits that identify the values, however they are laid out in the file."""
        return hashlib.sha256(json.dumps(self._values(), sort_keys=True).encode()).hexdigest()[:16]

    def _values(self) -> dict[str, Any]:
        values = self.model_dump(mode="json")
        if self.passive_form == "default":  # so that earlier profiles keep their digest, and earlier releases read them
            del values["passive_form"]
        return values

    def profile(self) -> Profile:
        """The profile that it describes."""
        sampling = {name: value for name, value in self.sampling if value is not None}
        return Profile(
            budget=self.limits,
            wire=self.wire,
            parsing=self.parsing,
            frame_references=self.frame_references,
            frame_times=self.frame_times,
            passive_form=self.passive_form,
            instructions=self.instructions,
            instructions_template=self.instructions_template,
            sampling=tuple(sampling.items()),
            digest=self.digest,
        )

    def to_json(self) -> str:
        """The text of the file."""
        data = self._values() | {"sampling": self.sampling.model_dump(mode="json", exclude_none=True)}
        return json.dumps({"schema": SCHEMA, "version": VERSION} | data, indent=2, ensure_ascii=False) + "\n"

    def write(self, folder: Path) -> Path:
        """Write it into a checkpoint's folder; a file that is there is replaced as a whole.

        Raises:
            OSError: it can't be written.
        """
        path = folder / PROFILE_FILE
        part = path.with_name(PROFILE_FILE + ".part")
        part.write_text(self.to_json(), encoding="utf-8")
        part.replace(path)
        return path

    def __str__(self) -> str:
        """Its main values, for people."""
        form = (
            f"wire={self.wire}"
            + "".join(
                f", {name}={str(value).lower()}"
                for name, value in (("frame_references", self.frame_references), ("frame_times", self.frame_times))
                if value is not None
            )
            + (", passive_form=wire" if self.passive_form == "wire" else "")
        )
        told = "default" if self.instructions is None else "its own" if self.instructions else "none"
        return (
            f"{form}, parsing={self.parsing}, instructions: {told}, frame_pixels={self.limits.frame_pixels}, "
            f"digest {self.digest}"
        )


def read_profile(path: str | Path) -> ProfileFile:
    """Read a profile from its file, or from the folder that holds it.

    Raises:
        ProfileError: there is none, or it can't be read; the message names the file and the field.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / PROFILE_FILE
    try:
        text = read_regular(file)
    except OSError as error:
        raise ProfileError(f"{file}: cannot read the profile: {error.strerror or error}") from error
    if len(text) > LONGEST:
        raise ProfileError(f"{file}: {len(text):,} bytes; a profile has at most {LONGEST:,}")
    try:
        data: Any = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{file}: the profile is not JSON: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ProfileError(f'{file}: this is no profile: it must be a JSON object with "schema": "{SCHEMA}"')
    version = data.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ProfileError(f"{file}: the profile has no version: write {VERSION}")
    if version > VERSION:
        raise ProfileError(
            f"{file}: profile version {version} is newer than {VERSION}, which this release reads; upgrade apr-plugin"
        )
    values = {key: value for key, value in data.items() if key not in ("schema", "version")}
    try:
        return ProfileFile.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise ProfileError(f"{file}: {f'{where}: ' if where else ''}{_told(fault)}") from error


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _told(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return "there is no such setting"
    given = json.dumps(fault["input"])
    words = str(fault["msg"]).removeprefix("Value error, ")
    return words if len(given) > 60 else f"{words}, not {given}"
