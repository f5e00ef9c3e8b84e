"""A policy that plays back turns from a file.

It is for tests, for replaying a trajectory, and for trying a prompt by hand.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apr_plugin.errors import AprError
from apr_plugin.files import read_regular
from apr_plugin.loop.policy import Generation, PolicyDefaults, PolicyUnavailable, Prompt, Sampling
from apr_plugin.loop.question import Question
from apr_plugin.loop.trajectory import Trajectory


class ScriptedPolicy(PolicyDefaults):
    """A policy that writes the turns of a script, in order, and then repeats the last one.

    Args:
        script: A JSON Lines file. Either each line is one turn (a string, or an object in the wire format), used for
            every question; or it is a trajectory file, and each question is answered with the turns recorded for the
            same question, options and lengths of the videos.
    """

    name = "scripted"

    def __init__(self, script: str) -> None:
        path = Path(script).expanduser()
        try:
            text = read_regular(path).decode("utf-8")
        except (OSError, ValueError) as error:
            raise AprError(
                f"policy scripted: cannot read script {path}: {getattr(error, 'strerror', None) or error}"
            ) from error
        self._digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._turns: list[str] = []
        self._recorded: dict[tuple[object, ...], list[str]] = {}
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                raise AprError(f"policy scripted: {path}, line {number}: not JSON ({error})") from error
            if isinstance(value, dict) and "schema" in value:
                recorded = Trajectory.from_json(line, f"{path}, line {number}")
                self._recorded[_what_is_asked(recorded.question, recorded.video_durations_s)] = [
                    turn.text for turn in recorded.turns
                ]
            else:
                self._turns.append(value if isinstance(value, str) else json.dumps(value))
        if not self._turns and not self._recorded:
            raise AprError(f"policy scripted: {path} has no turns")

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """Return the next turn of the script."""
        asked, turns = prompt.asked, self._turns
        if asked is not None:
            turns = self._recorded.get(_what_is_asked(asked.question, asked.durations_s), turns)
        if not turns:
            raise PolicyUnavailable("the script has no turns for this question")
        number = (
            asked.turn - 1 if asked is not None else sum(message.role == "assistant" for message in prompt.messages)
        )
        return Generation(turns[min(number, len(turns) - 1)])

    def describe(self) -> dict[str, Any]:
        """The settings that decide the answers."""
        return {"script": self._digest}


def _what_is_asked(question: Question, durations_s: Sequence[float]) -> tuple[object, ...]:
    """What two equal questions have in common: text, options, and the length of each video to two decimals."""
    options = tuple((option.label, option.text) for option in question.options)
    return (question.text, options, tuple(math.floor(seconds * 100) for seconds in durations_s))
