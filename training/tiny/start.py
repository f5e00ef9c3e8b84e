"""The small agent before it has learned anything: a folder with random weights, its tokenizer, and its profile."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from apr_plugin.loop.wires.compact import fixed_strings
from apr_plugin.tasks.needle.palette import PITCHES
from apr_plugin.training.tiny import passive
from apr_plugin.training.tiny.agents import drawn, episode
from apr_plugin.training.tiny.model import Size, make_model
from apr_plugin.training.tiny.notes import FRAMES, MOST_FRAMES, NOTHING
from apr_plugin.training.tiny.pictures import LABELS, name_of
from apr_plugin.training.tiny.prompts import PROFILE, TURNS, WIRE
from apr_plugin.training.tiny.worlds import film, question_of

EPISODES = 40
"""Episodes from which the tokenizer learns its words."""

HEARD = (" chime", *(f" {pitch}" for pitch in PITCHES))
"""Names of sounds in notes."""

WORDS = (NOTHING, *HEARD, "listen", "heard", *(f" {count}" for count in sorted(set(FRAMES.values()))))
"""Fixed strings of the notes and of the teacher, beside those of the wire."""


def make_start(folder: str | Path, *, size: Size | None = None, seed: int = 0, one_turn: int | None = None) -> Path:
    """Write the small agent, or a passive rival of it, with random weights.

    Args:
        folder: The folder, which is made.
        size: Widths and depths.
        seed: Of the weights, and of the episodes for the tokenizer.
        one_turn: Frames that a passive rival is shown in its one turn; `None`: an agent.

    Returns:
        The folder.
    """
    names = fixed_strings(max(MOST_FRAMES, one_turn or 0))
    path = make_model(folder, texts(seed, one_turn), (*names, *WORDS), size=size, seed=seed)
    (PROFILE if one_turn is None else passive.profile(one_turn)).write(path)
    return path


def texts(seed: int, one_turn: int | None = None) -> Iterator[str]:
    """Captions, prompts and turns, as a student sees and writes them.

    Args:
        seed: Draws the episodes.
        one_turn: Frames of the one turn of a rival, which sees and writes that turn besides.
    """
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
        if one_turn is not None:
            times, labels = passive.uniform(seen, one_turn)
            yield passive.notebook(question_of(doc)[0], seen).passive_prompt([]).messages[-1].text
            yield WIRE.written(passive.turn_of(doc, times, labels))
