"""A policy that plays back turns from a file: for tests, for replaying a trajectory, and for trying a prompt by hand."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

from apr_plugin.errors import AprError
from apr_plugin.files import read_regular
from apr_plugin.loop.policy import Generation, PolicyDefaults, PolicyUnavailable, Prompt, Sampling
from apr_plugin.loop.trajectory import Trajectory

_LENGTH = re.compile(r"^- duration_seconds: (\S+)$", re.MULTILINE)


class ScriptedPolicy(PolicyDefaults):
    """Writes the turns it was given, in order; after the last one it repeats the last.

    Args:
        script: A JSON Lines file. Either each line is one turn (a string, or an object in the wire format), played for every question; or it is
            a trajectory file, and each question is answered with the turns recorded for the same question, options and lengths of the videos.
    """

    name = "scripted"

    def __init__(self, script: str) -> None:
        path = Path(script).expanduser()
        try:
            text = read_regular(path).decode("utf-8")
        except (OSError, ValueError) as error:
            raise AprError(f"policy scripted: cannot read script {path}: {getattr(error, 'strerror', None) or error}") from error
        self._digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._turns: list[str] = []
        self._recorded: dict[tuple[str, ...], list[str]] = {}
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                raise AprError(f"policy scripted: {path}, line {number}: not JSON ({error})") from error
            if isinstance(value, dict) and "schema" in value:
                recorded = Trajectory.from_json(line, f"{path}, line {number}")
                self._recorded[_asked(recorded)] = [turn.text for turn in recorded.turns]
            else:
                self._turns.append(value if isinstance(value, str) else json.dumps(value))
        if not self._turns and not self._recorded:
            raise AprError(f"policy scripted: {path} holds no turns")

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """The next turn of the script."""
        user = next(message for message in prompt.messages if message.role == "user")
        turns = self._turns
        lengths = tuple(_LENGTH.findall(user.text.partition("Question: ")[0] or user.text))
        longest = ""  # a question without options also begins the same question with options
        for (asked, *recorded_lengths), recorded in self._recorded.items():
            if len(asked) > len(longest) and f"{asked}\n" in f"{user.text}\n" and tuple(recorded_lengths) == lengths:
                longest, turns = asked, recorded
        if not turns:
            raise PolicyUnavailable("the script holds no turns for this question")
        number = sum(message.role == "assistant" for message in prompt.messages)
        return Generation(turns[min(number, len(turns) - 1)])

    def describe(self) -> dict[str, Any]:
        """What decides the answers."""
        return {"script": self._digest}


def _asked(recorded: Trajectory) -> tuple[str, ...]:
    """How the notebook writes a question, then the length of each of its videos."""
    question = recorded.question
    lines = [f"Question: {question.text}"]
    if question.options:
        lines += ["Options:", *(f"{option.label}. {option.text}" for option in question.options)]
    return ("\n".join(lines), *(f"{math.floor(seconds * 100) / 100:.2f}" for seconds in recorded.video_durations_s))
