"""The scripted teacher of trails: it perceives without a fault, and often does the wrong thing.

At each of the two turns where the trail goes on it follows the trail, goes to the scene that comes next in the film
(`wander`), or answers at once with the colour that it sees (`hasty`). Wandering is more frequent than following, so a
student that imitates it perfectly does the wrong thing when it takes its likeliest token, and earns a reward now and
then when it samples. Imitation can't correct that; a reward can.
"""

from __future__ import annotations

import json
import random
from typing import Any

from apr_plugin.loop import Generation, Prompt
from apr_plugin.loop.policy import EVERY_MODALITY, PolicyDefaults, Sampling

from .films import LOOKS, POINTS_TO, SCENE_S, SCENES, colours_of, letter

FOLLOW, WANDER = 0.40, 0.45
"""How often; the rest is hasty."""


class TrailTeacher(PolicyDefaults):
    """Plays films whose names end in their seed; what it does is drawn from the seed of each turn."""

    name = "trail_teacher"
    modalities = EVERY_MODALITY - {"audio"}

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """The next turn."""
        assert prompt.asked is not None
        said = [
            json.loads("".join(part.text for part in message.parts))
            for message in prompt.messages
            if message.role == "assistant"
        ]
        colours = colours_of(int(prompt.asked.question.doc_id.removeprefix("trail")))
        return Generation(turn(said, colours, random.Random(f"teacher:{sampling.seed}")))

    def describe(self) -> dict[str, Any]:
        """What decides its turns."""
        return {"follow": FOLLOW, "wander": WANDER}


def turn(said: list[dict[str, Any]], colours: tuple[str, ...], chance: random.Random) -> str:
    """The teacher's turn after these turns."""
    if not said:
        return written("none", "begin", look(0))
    here = int(said[-1]["action"]["start"]) // SCENE_S
    colour, draw = colours[here], chance.random()
    if len(said) == LOOKS or draw >= FOLLOW + WANDER:
        return written(colour, "answer", {"type": "answer", "content": letter(colour)})
    there = POINTS_TO[colour] if draw < FOLLOW else here + 1
    if there == here or there >= SCENES:  # the same scene again would be refused
        there = 1 if here != 1 else 2
    return written(colour, "go on", look(there))


def look(scene: int) -> dict[str, Any]:
    """One frame of a scene."""
    start, end = float(scene * SCENE_S), float((scene + 1) * SCENE_S)
    return {"type": "get_frames", "start": start, "end": end, "num": 1}


def written(observation: str, think: str, action: dict[str, Any]) -> str:
    """A turn."""
    return json.dumps({"observation": observation, "think": think, "confidence": 0.5, "action": action})
