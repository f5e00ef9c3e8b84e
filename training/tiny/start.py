"""The small agent before it has learned anything: a folder with random weights, its tokenizer, and its profile."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from apr_plugin.loop.wires.compact import fixed_strings
from apr_plugin.tasks.needle.palette import PITCHES
from apr_plugin.training.tiny.agents import drawn, episode
from apr_plugin.training.tiny.model import Size, make_model
from apr_plugin.training.tiny.notes import FRAMES, MOST_FRAMES, NOTHING
from apr_plugin.training.tiny.pictures import LABELS, name_of
from apr_plugin.training.tiny.prompts import PROFILE, TURNS, WIRE
from apr_plugin.training.tiny.worlds import film

EPISODES = 40
"""Episodes from which the tokenizer learns its words."""

HEARD = (" chime", *(f" {pitch}" for pitch in PITCHES))
"""Names of sounds in notes."""

WORDS = (NOTHING, *HEARD, "listen", "heard", *(f" {count}" for count in sorted(set(FRAMES.values()))))
"""Fixed strings of the notes and of the teacher, beside those of the wire."""


def make_start(folder: str | Path, *, size: Size | None = None, seed: int = 0) -> Path:
    """Write the small agent with random weights.

    Args:
        folder: The folder, which is made.
        size: Widths and depths.
        seed: Of the weights, and of the episodes for the tokenizer.

    Returns:
        The folder.
    """
    path = make_model(folder, texts(seed), (*fixed_strings(MOST_FRAMES), *WORDS), size=size, seed=seed)
    PROFILE.write(path)
    return path


def texts(seed: int) -> Iterator[str]:
    """Captions, prompts and turns, as a student sees and writes them."""
    yield from (f" {name_of(label)}" for label in LABELS)
    draw = random.Random(f"texts:{seed}")
    for _ in range(EPISODES):
        seen, doc = drawn(draw, 1_000_000)
        # Questions of every kind, whether or not the teacher can answer them.
        yield from (other["question"] for other in film(seen.world.seed, doc["bucket"])[1])
        for step in episode(seen, doc):
            prompt = step.notes.prompt(len(step.notes) + 1, TURNS)
            yield from (message.text for message in prompt.messages)
            yield WIRE.written(step.turn)
