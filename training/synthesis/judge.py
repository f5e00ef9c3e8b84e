"""A judge: a policy that reads a text about a trajectory and replies with one JSON object; and what it said, on disk.

The step audit (`audit`) and the choice of a pivotal turn (`training.fork_judging`) share it. A judge never sees the
truth. Everything that an agent wrote stands in its prompt as JSON strings, so that it can't end its own part.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import jinja2

from apr_plugin import interrupt
from apr_plugin.errors import AprError, told
from apr_plugin.loop.action import Answer, describe
from apr_plugin.loop.config import hash_of
from apr_plugin.loop.files import append_line, cut_torn_tail
from apr_plugin.loop.policy import Generation, Message, Policy, Prompt, Sampling, TextPart
from apr_plugin.loop.trajectory import Trajectory, Turn
from apr_plugin.runs.runner import run_workers

JUDGE = "judge.json"
"""The file in a judge's folder that says what it is."""

GIVE_UP = 10
"""Failures of the judge in a row after which no more is asked in this run."""

SYSTEM = "You are a careful reviewer. You reply with one JSON object and nothing else."

AUDIT_PROMPT = "judge.jinja"
"""The prompt of the step audit."""


@cache
def _source(template: str) -> str:
    return resources.files("apr_plugin.training.synthesis").joinpath(template).read_text("utf-8")


@cache
def _template(name: str) -> jinja2.Template:
    return jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False).from_string(_source(name))


def prompt_of(template: str, **values: Any) -> Prompt:
    """A judge's prompt, as text alone.

    Args:
        template: The name of a file beside this one.
        values: What the template names.
    """
    text = _template(template).render(**values).strip()
    return Prompt((Message("system", (TextPart(SYSTEM),)), Message("user", (TextPart(text),))), final=True)


def as_json(value: Any) -> str:
    """A value as it stands in a prompt."""
    return json.dumps(value, ensure_ascii=False)


def asked_of(trajectory: Trajectory) -> dict[str, Any]:
    """The question, as a judge reads it."""
    question = trajectory.question
    asked: dict[str, Any] = {"text": question.text, "kind": str(question.kind)}
    if question.options:
        asked["options"] = {option.label: option.text for option in question.options}
    if question.answer_hint:
        asked["hint"] = question.answer_hint
    return asked


def videos_of(trajectory: Trajectory) -> list[dict[str, Any]]:
    """What the agent knew of the videos before its first look."""
    return [
        {"duration_s": round(film.duration_s, 2), "fps": film.fps, "has_audio": film.has_audio}
        for film in trajectory.videos
    ]


def note_of(number: int, turn: Turn) -> dict[str, Any]:
    """What stays of a turn in the notes: what it saw, what it did, what came back."""
    note: dict[str, Any] = {"turn": number, "observation": turn.observation}
    note["action"] = None if turn.action is None else describe(turn.action)
    if turn.error is not None:
        note["refused"] = str(turn.error.code)
    elif isinstance(turn.action, Answer):
        note["answered"] = True
    return note


@dataclass
class Tally:
    """What a judge did."""

    asked: int = 0
    """Replies in this run."""
    known: int = 0
    """Replies of an earlier run."""
    nonsense: int = 0
    """Replies that say nothing usable, of this run and earlier ones."""
    unreachable: int = 0
    """Failures; the next run asks again."""
    why: str = ""
    """The first reason for that."""
    in_a_row: int = 0
    """Failures since the last reply."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Judge:
    """A judge and how it is asked."""

    policy: Policy
    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=1024))
    """How its replies are sampled; each gets a seed of its own."""
    template: str = AUDIT_PROMPT
    """Its prompt."""

    def describe(self) -> dict[str, Any]:
        """All that decides its replies, as JSON values."""
        sampling = {
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "top_k": self.sampling.top_k,
            "max_new_tokens": self.sampling.max_new_tokens,
            "seed": self.sampling.seed,
        }
        words = hashlib.sha256((SYSTEM + _source(self.template)).encode()).hexdigest()[:16]
        return {"policy": {"name": self.policy.name} | self.policy.describe(), "sampling": sampling, "prompt": words}

    @property
    def hash(self) -> str:
        """16 hex digits that identify policy, sampling and prompt."""
        return hash_of(self.describe())

    def seed(self, trajectory: Trajectory, number: int) -> int:
        """The seed of one reply: about a turn, counted from 1, or with 0 about the whole trajectory."""
        text = json.dumps([self.sampling.seed, *trajectory.question.key, trajectory.config_hash, number])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")

    async def reply(self, prompt: Prompt, trajectory: Trajectory, number: int, tally: Tally) -> Generation | None:
        """Ask once; `None` if the judge can't be reached, which the tally counts."""
        sampling = Sampling(**(vars(self.sampling) | {"seed": self.seed(trajectory, number)}))
        try:
            reply = await self.policy.generate(prompt, sampling)
        except Exception as error:  # noqa: BLE001 - a judge is any policy; one failure must not end the run
            tally.unreachable += 1
            tally.in_a_row += 1
            tally.why = tally.why or told(error)
            return None
        tally.asked += 1
        tally.in_a_row = 0
        tally.prompt_tokens += reply.usage.prompt_tokens or 0
        tally.completion_tokens += reply.usage.completion_tokens or 0
        return reply


async def for_each(
    trajectories: Sequence[Callable[[], Trajectory]],
    rate: Callable[[Trajectory], Awaitable[None]],
    tally: Tally,
    concurrency: int,
) -> None:
    """Rate each trajectory, some at once, until all are rated, a Ctrl-C arrives, or the judge is given up.

    Args:
        trajectories: Functions that read them, so that not all are in memory.
        rate: Rates one.
        tally: Tells when to give up.
        concurrency: Trajectories at once.
    """
    waiting = iter(trajectories)

    async def work() -> None:
        for read in waiting:
            if interrupt.asked():
                raise asyncio.CancelledError
            if tally.in_a_row >= GIVE_UP:
                return
            await rate(read())
            await asyncio.sleep(0)

    await run_workers(work, min(concurrency, len(trajectories)))


class Recorded(Protocol):
    """Something that a judge said, as a line of a file."""

    def to_json(self) -> str:
        """The line."""
        ...


_R = TypeVar("_R", bound=Recorded)


class Records(Generic[_R]):
    """What one judge said so far, read from its file and appended to it.

    Args:
        file: The file; it need not exist.
        read: Gives its records and adds a sentence for each line that can't be read.
        about: What a record is about; a later record about the same replaces an earlier one.
    """

    def __init__(
        self, file: Path, read: Callable[[Path, list[str]], Iterator[_R]], about: Callable[[_R], Hashable]
    ) -> None:
        self.file = file
        self.problems: list[str] = []
        self._about = about
        if file.exists():
            cut_torn_tail(file)
        self._known = {about(record): record for record in read(file, self.problems)}

    def get(self, about: Hashable) -> _R | None:
        """The record about something."""
        return self._known.get(about)

    def add(self, record: _R) -> None:
        """Append a record and wait until it is on disk.

        Raises:
            TrajectoryError: it can't be written.
        """
        append_line(self.file, record.to_json())
        self._known[self._about(record)] = record


def folder_of(above: Path, judge: Judge) -> Path:
    """The folder of a judge, made if it is missing, with a file that says what the judge is.

    Raises:
        AprError: it can't be written.
    """
    folder = above / judge.hash
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JUDGE).write_text(json.dumps(judge.describe(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise AprError(f"{folder}: cannot write there: {error.strerror or error}") from error
    return folder
