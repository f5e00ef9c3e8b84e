"""Single looks at worlds of gates: what a model notes of them by itself, and how often its first judgements are right.

A second judgement of the same thing can be copied from the first one's entry, and hides whether a model sees. So each
part of a note counts only the first time that its frame's colour, pattern, glyph or whole label is in the look.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from apr_plugin.loop.policy import Policy, Prompt, Sampling
from apr_plugin.runs.meter import run_sync
from apr_plugin.tasks.needle.make import BUCKETS
from apr_plugin.tasks.needle.questions import ParsedQuestion
from apr_plugin.training.student import Student
from apr_plugin.training.tiny.agents import asked_of
from apr_plugin.training.tiny.notes import FRAMES, KINDS, Move, flag, turn_of
from apr_plugin.training.tiny.pictures import picture
from apr_plugin.training.tiny.playing import SKILLS, entries
from apr_plugin.training.tiny.prompts import TURNS, WIRE, notebook, percept
from apr_plugin.training.tiny.worlds import GATES, Label, film, question_of

SEEDS = 1_000_000
"""Where the worlds of looks begin within those of gates; before them are those of whole episodes."""

LONGEST = 12
"""Most tokens of an entry."""


@dataclass(frozen=True)
class Look:
    """A prompt with one look, and what the look shows."""

    asked: ParsedQuestion
    labels: tuple[Label, ...]
    prompt: Prompt


def looks(seed: int, count: int, least: int, most: int) -> list[Look]:
    """Looks at worlds of gates, of a few frames each: at what is asked for, near it, and anywhere.

    Args:
        seed: Draws worlds, questions and times.
        count: How many.
        least: Fewest frames.
        most: Most frames.
    """
    return [
        _look(random.Random(f"looks:{seed}:{n}"), GATES.start + SEEDS + seed + n, least, most) for n in range(count)
    ]


def _look(draw: random.Random, number: int, least: int, most: int) -> Look:
    seen, docs = film(number, draw.choice(tuple(BUCKETS)))
    doc = draw.choice([doc for doc in docs if doc["kind"] in KINDS])
    question, _ = question_of(doc)
    asked = asked_of(doc)
    last = seen.duration_s - 0.1
    times = sorted({_time(draw, doc["spans"][0], last) for _ in range(draw.randint(least, most))})
    labels = [seen.at(time_s) for time_s in times]
    first = turn_of(asked, None, (0.0, seen.duration_s), Move("overview", num=FRAMES["overview"]))
    images = np.stack([picture(label) for label in labels])
    shown = replace(percept(times[0], min(times[-1] + 0.1, seen.duration_s), times, 1), images=images)
    notes = notebook(question, seen.meta).with_turn(WIRE.written(first), shown)
    return Look(asked, tuple(labels), notes.prompt(2, TURNS))


def _time(draw: random.Random, event: Sequence[float], last: float) -> float:
    where = draw.random()
    if where < 0.3:
        time_s = draw.uniform(event[0], event[1])
    elif where < 0.7:
        time_s = draw.gauss(event[0], last / 10)
    else:
        time_s = draw.uniform(0, last)
    return round(min(max(time_s, 0.0), last), 1)


def judged(asked: ParsedQuestion, labels: Sequence[Label], note: str) -> dict[str, list[bool]]:
    """Which first judgements of a note are right.

    Args:
        asked: The question.
        labels: What the look shows.
        note: What was written of it, as far as it was read.
    """
    written = entries(note)
    found: dict[str, list[bool]] = defaultdict(list)
    before: set[tuple[str, Hashable]] = set()

    def first(name: str, what: Hashable, right: bool) -> None:
        if (name, what) not in before:
            before.add((name, what))
            found[name].append(right)

    for number, label in enumerate(labels, 1):
        colour, pattern, one, other, mark = written.get(number, (None,) * 5)
        mine = label[0] == asked.colour
        first("colour", label[0], colour == label[0])
        first("flag", label if mine else label[0], mark == flag(asked, label))
        if not mine:
            continue
        first("pattern", label[:2], pattern == label[1])
        if label[2] is None:
            first("no_glyph", label[:2], number in written and one is None)
        else:
            first("glyph_colour", label[2].colour, one == label[2].colour)
            first("shape", label[2].shape, other == label[2].shape)
    return found


def measure(
    *, student: Student, seed: int = 0, count: int = 160, least: int = 1, most: int = 4, batch: int = 40
) -> Callable[[Any], dict[str, float]]:
    """A measure: the share of first judgements that are right, in notes that the model writes greedily by itself.

    Args:
        student: The model that is trained.
        seed: Draws the looks.
        count: How many looks.
        least: Fewest frames of a look.
        most: Most frames.
        batch: Looks that are written about at the same time.

    Returns:
        From a model, `colour`, `flag`, and of frames in the chapter that is asked for `pattern`, `glyph_colour`,
        `shape` and `no_glyph`; `first` is the mean over all of these judgements.
    """
    from apr_plugin.models.checkpoint import Checkpoint
    from apr_plugin.policies.hf import HfPolicy

    asked = looks(seed, count, least, most)
    sampling = Sampling(temperature=0.0, max_new_tokens=LONGEST * most + 8)

    def run(model: Any) -> dict[str, float]:
        checkpoint = Checkpoint.around(model, student.encoder.processor)
        policy = HfPolicy(checkpoint, batch_size=batch, context_tokens=student.context_tokens)
        try:
            texts = run_sync(_written(policy, asked, sampling))
        finally:
            policy.close()
        found: dict[str, list[bool]] = defaultdict(list)
        for look, text in zip(asked, texts, strict=True):
            for name, right in judged(look.asked, look.labels, text.partition('"think"')[0]).items():
                found[name] += right
        every = [one for right in found.values() for one in right]
        return {name: float(np.mean(found[name])) if found[name] else 0.0 for name in SKILLS} | {
            "first": float(np.mean(every))
        }

    return run


async def _written(policy: Policy, asked: Sequence[Look], sampling: Sampling) -> list[str]:
    return [turn.text for turn in await asyncio.gather(*(policy.generate(look.prompt, sampling) for look in asked))]
