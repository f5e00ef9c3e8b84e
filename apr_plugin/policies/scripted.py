"""A policy that plays back turns from a file: for tests, for replaying a trajectory, and for trying a prompt by hand."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from apr_plugin.errors import AprError
from apr_plugin.loop.policy import Generation, Prompt, Sampling
from apr_plugin.loop.trajectory import Trajectory


class ScriptedPolicy:
    """Writes the turns it was given, in order; after the last one it repeats the last.

    Args:
        script: A JSON Lines file. Either each line is one turn (a string, or an object in the wire format), played for every question; or it is
            a trajectory file, and each question is answered with the turns recorded for the same question text and options.
    """

    name = "scripted"

    def __init__(self, script: str) -> None:
        path = Path(script).expanduser()
        try:
            text = path.read_text("utf-8")
        except OSError as error:
            raise AprError(f"policy scripted: cannot read script {path}: {error.strerror}") from error
        self._digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._turns: list[str] = []
        self._recorded: dict[str, list[str]] = {}
        for number, line in enumerate(filter(str.strip, text.splitlines()), 1):
            try:
                value = json.loads(line)
            except ValueError as error:
                raise AprError(f"policy scripted: {path}, line {number}: not JSON ({error})") from error
            if isinstance(value, dict) and "schema" in value:
                recorded = Trajectory.from_json(line, f"{path}, line {number}")
                self._recorded[recorded.question.text] = [turn.text for turn in recorded.turns]
            else:
                self._turns.append(value if isinstance(value, str) else json.dumps(value))
        if not self._turns and not self._recorded:
            raise AprError(f"policy scripted: {path} holds no turns")

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """The next turn of the script."""
        user = next(message for message in prompt.messages if message.role == "user")
        turns = self._turns
        for asked, recorded in self._recorded.items():
            if f"Question: {asked}" in user.text:
                turns = recorded
        number = sum(message.role == "assistant" for message in prompt.messages)
        return Generation(turns[min(number, len(turns) - 1)] if turns else "")

    def describe(self) -> dict[str, Any]:
        """What decides the answers."""
        return {"script": self._digest}

    def close(self) -> None:
        """Nothing is held."""
