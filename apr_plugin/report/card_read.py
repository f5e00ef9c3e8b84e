"""Reads a `card.yaml` that somebody else may have written, says what does not fit in it, and compares two of them.

A card is untrusted. It is parsed as plain YAML (no tags, no anchors), checked against `RunCard`, and nothing of it is
ever executed; `arguments` makes options of `apr eval` from it, which are checked one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from apr_plugin.errors import AprError, require
from apr_plugin.files import read_regular
from apr_plugin.report.card_files import SCHEMA, VERSION, content_digest
from apr_plugin.report.cleaning import LEFT_OUT
from apr_plugin.runs.arguments import parse_model_args
from apr_plugin.terminal import one_line, quoted

LONGEST = 64 * 2**20
"""Bytes of a card at most."""

TRUSTED = ("base_url", "api_key_env", "extra_body", "engine_args", "system_prompt", "script", "trajectories")
"""Arguments by which the author of a card can send videos or a key to a server, read a file, or change an engine."""

EXACT = "exact_matching"
"""VLMEvalKit's name of scoring without a judge."""

_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_SEED = re.compile(r"[0-9None,]{1,80}")
_DEEPEST = 40
_FIRST = 5
"""Questions with another answer that are named."""


class CardCommand(BaseModel):
    """What was asked of a harness, checked so that each value can be one word of a command line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    harness: Literal["lmms-eval", "vlmeval"] = "lmms-eval"
    """Which harness was asked."""
    tasks: list[str] = Field(min_length=1, max_length=1000)
    """Names of tasks, or of VLMEvalKit's data sets."""
    model_args: str = Field(max_length=20_000)
    """The `key=value` list."""
    limit: float | None = Field(default=None, allow_inf_nan=False)
    """Questions of each task at most, or below 1 a share of them."""
    offset: int = Field(default=0, ge=0, le=2**53)
    """The first question."""
    repeats: int = Field(default=1, ge=1, le=10_000)
    """How often each question was asked."""
    seed: str | int | None = None
    """Seeds of lmms-eval."""
    judge: str | None = None
    """The judge of VLMEvalKit that was named for all data sets."""
    other_options: list[str] = Field(default_factory=list, max_length=200)
    """Names of further options of VLMEvalKit, which a card does not have."""
    own_tasks: bool = False
    """Whether a task folder was included; which one, the card does not say."""

    @field_validator("tasks")
    @classmethod
    def _names(cls, tasks: list[str]) -> list[str]:
        for task in tasks:
            if not _TASK.fullmatch(task):
                raise ValueError(f"{quoted(task, 60)} is no name of a task")
        return tasks

    @field_validator("model_args")
    @classmethod
    def _pairs(cls, text: str) -> str:
        if text.startswith("-") or any(ord(char) < 32 for char in text):
            raise ValueError("model_args must be a list of key=value")
        try:
            parse_model_args(text)
        except AprError as error:
            raise ValueError(str(error)) from None
        return text

    @field_validator("judge")
    @classmethod
    def _name(cls, judge: str | None) -> str | None:
        if judge is not None and not _TASK.fullmatch(judge):
            raise ValueError(f"{quoted(judge, 60)} is no name of a judge")
        return judge

    @field_validator("seed")
    @classmethod
    def _numbers(cls, seed: str | int | None) -> str | int | None:
        if isinstance(seed, str) and not _SEED.fullmatch(seed):
            raise ValueError("seed must be numbers with commas")
        return seed

    @property
    def doubtful(self) -> list[str]:
        """The arguments of `TRUSTED` that it has, and a judge that may be on a server."""
        judge = [] if self.judge in (None, EXACT) else ["judge"]
        return sorted([*(parse_model_args(self.model_args).keys() & set(TRUSTED)), *judge])

    @property
    def command(self) -> str:
        """The command of `apr` that runs it."""
        return "vlmeval" if self.harness == "vlmeval" else "eval"

    def arguments(self, out: Path, include_path: Path | None = None) -> list[str]:
        """The words after `apr eval`, or `apr vlmeval`.

        Args:
            out: The new output folder.
            include_path: The folder of tasks of one's own.
        """
        if self.harness == "vlmeval":
            words = ["--data", *self.tasks, f"--model_args={self.model_args}", f"--work-dir={out}"]
            words += [f"--limit={self.limit:g}"] if self.limit is not None else []
            return words + ([f"--judge={self.judge}"] if self.judge is not None else [])
        words = [
            "--tasks",
            ",".join(self.tasks),
            f"--model_args={self.model_args}",
            f"--output_path={out}",
            "--log_samples",
        ]
        if self.limit is not None:
            words.append(f"--limit={self.limit:g}")
        if self.offset:
            words.append(f"--offset={self.offset}")
        if self.repeats != 1:
            words.append(f"--repeats={self.repeats}")
        if self.seed is not None:
            words.append(f"--seed={self.seed}")
        if include_path is not None:
            words.append(f"--include_path={include_path}")
        return words


class CardTask(BaseModel):
    """One task of a card."""

    version: JsonValue = None
    hash: str | None = None
    n: int | None = None
    scores: dict[str, float]


class RunCard(BaseModel):
    """The parts of a card that running it again and comparing need; the rest is in `content`."""

    config_hash: str
    prompt_hash: str | None = None
    versions: dict[str, str]
    environment: dict[str, JsonValue]
    questions: dict[str, JsonValue]
    data: dict[str, JsonValue]
    commands: list[CardCommand]
    tasks: dict[str, CardTask]
    answers: dict[str, dict[str, str | None]]
    content: dict[str, JsonValue]
    """Everything in the file."""
    edited: bool
    """Whether its content has another digest than the file says."""


def read_card(path: Path) -> RunCard:
    """Read and check a card.

    Raises:
        AprError: it can't be read, is no card, is of a newer version, or has a value that it may not have.
        MissingExtra: pyyaml is not installed.
    """
    require("yaml", "report")
    try:
        text = read_regular(path)
    except (OSError, ValueError) as error:
        raise AprError(f"{path}: cannot read this card: {getattr(error, 'strerror', None) or error}") from error
    if len(text) > LONGEST:
        raise AprError(f"{path}: {len(text)} bytes; a card has at most {LONGEST}")
    data = _plain_yaml(text, path)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("version"), int):
        raise AprError(f"{path}: this is no {SCHEMA} file; give the card.yaml that was written for a run")
    if data["version"] > VERSION:
        raise AprError(
            f"{path}: card version {data['version']} is newer than {VERSION}, which this release reads; "
            "upgrade apr-plugin"
        )
    try:
        edited = content_digest(data) != data.get("content_digest")
        return RunCard.model_validate({**data, "content": data, "edited": edited})
    except ValidationError as error:
        fault = error.errors(include_input=False, include_context=False, include_url=False)[0]
        raise AprError(f"{path}: {one_line('.'.join(map(str, fault['loc'])), 200)}: {fault['msg']}") from error
    except (TypeError, ValueError, RecursionError) as error:  # keys that are no text, or a date
        raise AprError(f"{path}: it holds a value that a card does not have: {one_line(str(error), 200)}") from error


def _plain_yaml(text: bytes, path: Path) -> Any:
    """The content of a YAML file without tags and anchors: with them a small file can become a very large value."""
    import yaml  # type: ignore[import-untyped]

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=loader):
            if getattr(event, "anchor", None) is not None:
                raise AprError(f"{path}: it has YAML anchors, which a card does not have")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise AprError(
                    f"{path}: it has more than {_DEEPEST} lists within each other, which a card does not have"
                )
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise AprError(f"{path}: cannot read this YAML: {one_line(str(error), 300)}") from error


def check_runnable(card: RunCard, path: Path, *, trust: bool, include_path: Path | None) -> None:
    """See that its commands can be run here.

    Raises:
        AprError: it has none, a secret was left out, or it needs a folder or a permission that was not given.
    """
    if not card.commands:
        raise AprError(f"{path}: it names no command: no results of a harness that name it were beside the run")
    for command in card.commands:
        if LEFT_OUT in command.model_args:
            raise AprError(f"{path}: a secret was left out of its model_args: {one_line(command.model_args, 300)}")
        if command.own_tasks and include_path is None:
            raise AprError(
                f"{path}: its run used a task folder of its own, which the card does not name; give the folder with "
                "--include-path DIR (its Python code is run)"
            )
        if command.doubtful and not trust:
            raise AprError(
                f"{path}: its command has {', '.join(command.doubtful)}, which can send videos, answers or a key to a "
                f"server that the author of the card chose. Look at it ({one_line(command.model_args, 300)}) and "
                "add --trust"
            )


def differences(old: RunCard, new: RunCard) -> Iterator[str]:
    """What differs between two runs, one sentence each; scores come last."""
    for name, told in (
        ("config_hash", "configuration"),
        ("prompt_hash", "prompts"),
    ):
        ours, theirs = getattr(old, name), getattr(new, name)
        yield f"{told}: the same ({ours})" if ours == theirs else f"{told}: {ours} -> {theirs}"
    if old.data.get("questions_sha256") != new.data.get("questions_sha256"):
        yield f"questions: others were asked ({old.data.get('questions')} -> {new.data.get('questions')})"
    if old.data.get("videos_sha256") != new.data.get("videos_sha256"):
        yield f"videos: other files ({old.data.get('videos')} -> {new.data.get('videos')})"
    yield from _changed("release of", old.versions, new.versions)
    yield from _changed("", {"python": old.environment.get("python")}, {"python": new.environment.get("python")})
    yield from _changed(
        "hardware", _mapping(old.environment.get("hardware")), _mapping(new.environment.get("hardware"))
    )
    packages = list(_changed("", _mapping(old.environment.get("packages")), _mapping(new.environment.get("packages"))))
    if packages:
        more = " …" if len(packages) > _FIRST else ""
        yield f"{len(packages)} installed packages differ: {'; '.join(packages[:_FIRST])}{more}"
    yield from _changed(
        "questions", *({k: v for k, v in card.questions.items() if k != "by_task"} for card in (old, new))
    )
    yield from _answers(old, new)
    yield from scores(old, new)


def scores(old: RunCard, new: RunCard) -> Iterator[str]:
    """Each score that differs, or is in one of them only."""
    for task in sorted(old.tasks.keys() | new.tasks.keys()):
        ours, theirs = (card.tasks[task] if task in card.tasks else CardTask(scores={}) for card in (old, new))
        if ours.n != theirs.n:
            yield f"{task}: n {ours.n} -> {theirs.n}"
        yield from _changed(f"{task}:", ours.scores, theirs.scores)


def _answers(old: RunCard, new: RunCard) -> Iterator[str]:
    flat = [{(task, key): one for task, by in card.answers.items() for key, one in by.items()} for card in (old, new)]
    changed = [key for key in flat[0] if key in flat[1] and flat[0][key] != flat[1][key]]
    if not changed:
        yield f"answers: the same to all {len(flat[0].keys() & flat[1].keys())} questions that both have"
        return
    told = "; ".join(
        f"{task} {key}: {quoted(flat[0][task, key], 60)} -> {quoted(flat[1][task, key], 60)}"
        for task, key in changed[:_FIRST]
    )
    yield f"answers: {len(changed)} changed: {told}{' …' if len(changed) > _FIRST else ''}"


def _changed(head: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in [*old, *(name for name in new if name not in old)]:
        ours, theirs = old.get(name), new.get(name)
        if ours != theirs:
            yield f"{head} {name}: {_told(ours)} -> {_told(theirs)}".strip()


def _told(value: Any) -> str:
    return "none" if value is None else one_line(str(value), 120)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
