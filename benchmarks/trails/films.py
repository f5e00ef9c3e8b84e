"""Trails: short films that can only be understood by looking several times, in an order that the film itself gives.

A film has six scenes of six seconds, each of one colour. A trail begins at the first scene. The colour of a scene says
which scene comes next on the trail (`POINTS_TO`), and the question asks for the colour of the third scene on it. So an
agent that begins without knowledge needs three looks, each of which depends on what the last one showed, and then an
answer: four turns. Who answers after fewer looks, or goes to another scene, is right by chance (one in five).

Films are written by the renderer of the needle benchmark as real H.264 files.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

from apr_plugin.tasks.needle.render import write_video
from apr_plugin.tasks.needle.world import Chapter, Difficulty, Role, Scene, World

COLOURS = ("red", "yellow", "green", "blue", "purple")
SCENES, SCENE_S = 6, 6
SIDE = 56
"""Pixels; such a frame is one visual token of the student."""

POINTS_TO = {colour: number for number, colour in enumerate(COLOURS, 1)}
"""From the colour of a scene to the number of the next scene on the trail, counted from 0."""

LOOKS = 3
"""Scenes of a trail."""

TEXT = "Follow the trail from the first scene. Which colour has the third scene on it?"


def colours_of(seed: int) -> tuple[str, ...]:
    """The colours of the scenes of a film; no scene of a trail is on it twice, and all answers are as likely."""
    rng = random.Random(f"trail:{seed}")
    while True:
        colours = tuple(rng.choice(COLOURS) for _ in range(SCENES))
        if len(set(trail(colours))) == LOOKS:
            return colours


def trail(colours: tuple[str, ...]) -> tuple[int, ...]:
    """The numbers of the scenes on the trail."""
    scenes = [0]
    while len(scenes) < LOOKS:
        scenes.append(POINTS_TO[colours[scenes[-1]]])
    return tuple(scenes)


def letter(colour: str) -> str:
    """The label of an answer."""
    return "ABCDE"[COLOURS.index(colour)]


def write_set(folder: Path, name: str, seeds: Iterable[int]) -> Path:
    """Write films and a file of questions about them, one for each film; what is there already stays.

    Args:
        folder: For the films and the file.
        name: Of the set.
        seeds: Of the films.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for seed in seeds:
        colours = colours_of(seed)
        film = folder / f"trail{seed}.mp4"
        if not film.is_file():
            write_video(_world(seed, colours), film, (SIDE, SIDE), fps=2.0, gop_s=1.0)
        lines.append(
            {
                "id": f"trail{seed}",
                "video": film.name,
                "question": TEXT,
                "kind": "mcq",
                "options": list(COLOURS),
                "answer": letter(colours[trail(colours)[-1]]),
                "duration_s": SCENES * SCENE_S,
                "source": "trails",
            }
        )
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def _world(seed: int, colours: tuple[str, ...]) -> World:
    chapters = tuple(
        Chapter(colour, start, start + SCENE_S, (Scene("plain", start, start + SCENE_S, Role.EMPTY, ()),))
        for start, colour in zip(range(0, SCENES * SCENE_S, SCENE_S), colours, strict=True)
    )
    return World(seed, SCENES * SCENE_S, Difficulty(), chapters)
