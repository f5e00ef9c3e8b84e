"""The closed loop without files: a policy looks at drawn worlds by itself, and its notes and answers are compared.

Prompts, parser, names of frames and scores are the product's; only the pictures are drawn where a reader would decode
them. So it is quick enough to be a gate between stages of training. Figures that are published are measured with
`apr eval` on real files.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from apr_plugin.loop.action import Answer, GetFrames
from apr_plugin.loop.parse import parse_turn
from apr_plugin.loop.policy import Policy, Sampling
from apr_plugin.loop.question import QuestionKind
from apr_plugin.loop.references import FrameNames, NamedLook
from apr_plugin.runs.meter import run_sync
from apr_plugin.scoring.answers import match_option
from apr_plugin.scoring.truth import score
from apr_plugin.tasks.needle.make import BUCKETS
from apr_plugin.tasks.needle.questions import LETTERS, Doc, ParsedQuestion, parse_question
from apr_plugin.training.student import Student
from apr_plugin.training.tiny.notes import KINDS, flag
from apr_plugin.training.tiny.pictures import picture
from apr_plugin.training.tiny.prompts import PROFILE, TURNS, notebook, percept
from apr_plugin.training.tiny.worlds import GATES, Film, Label, film, question_of

_ENTRY = re.compile(r"#(\d+) (\w+)(?: (\w+))?(?: (\w+) (\w+))?([;+!-])")


SKILLS = ("colour", "pattern", "glyph_colour", "shape", "no_glyph", "flag")
"""Parts of a note."""

NUMBERS = ("glyph", "when", "order", "answered", "turns", *SKILLS)
"""What is measured."""


@dataclass
class Played:
    """One episode."""

    kind: str
    """The kind of its question."""
    score: float = 0.0
    """Of its answer, 0 to 1."""
    turns: int = 0
    """How many were written."""
    ended: str = "turns"
    """`answer`, `invalid` (no action could be read), `refused` (a window that can't be looked at) or `turns`."""
    skills: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    """Which parts of its notes were right."""


async def play(policy: Policy, seen: Film, doc: Doc) -> Played:
    """Let a policy answer a question about a drawn world.

    Args:
        policy: Reads prompts with pictures.
        seen: The world.
        doc: The question; its kind is one of `notes.KINDS`.
    """
    question, truth = question_of(doc)
    asked = parse_question(question.text)
    notes, names = notebook(question, seen.meta), FrameNames(question.kind, durations_s=(seen.duration_s,))
    played = Played(doc["kind"])
    labels: Sequence[Label] | None = None
    sampling = Sampling(temperature=0.0, max_new_tokens=PROFILE.sampling.max_new_tokens or 400)
    for number in range(1, TURNS + 1):
        text = (await policy.generate(notes.prompt(number, TURNS), sampling)).text
        played.turns = number
        read = parse_turn(text, names=names)
        if labels is not None:
            _compare(played.skills, asked, labels, read.observation)
        if isinstance(read.action, Answer):
            played.ended = "answer"
            content: str | None = read.action.content
            if question.kind is QuestionKind.MCQ:
                content = match_option(content or "", list(zip(LETTERS, doc["options"], strict=False)))
            played.score = float(score(content, truth, str(question.kind)) or 0.0)
            break
        if not isinstance(read.action, GetFrames):
            played.ended = "invalid"
            break
        look = read.action
        if not 0 <= look.start < look.end <= seen.duration_s + 0.1 or not 1 <= look.num <= 60:
            played.ended = "refused"
            break
        times, labels = seen.frames(look.start, look.end, look.num)
        images = np.stack([picture(label) for label in labels])
        shown = replace(percept(look.start, min(look.end, seen.duration_s), times, number), images=images)
        notes = notes.with_turn(text, shown)
        names = names.with_look(NamedLook("frames", 0, times))
    return played


def _compare(skills: dict[str, list[bool]], asked: ParsedQuestion, labels: Sequence[Label], note: str) -> None:
    """Compare a note with what was shown, frame by frame; a frame without an entry is wrong in everything."""
    found = entries(note)
    for number, label in enumerate(labels, 1):
        colour, pattern, one, other, mark = found.get(number, (None,) * 5)
        skills["colour"].append(colour == label[0])
        skills["flag"].append(mark == flag(asked, label))
        if label[0] != asked.colour:
            continue
        skills["pattern"].append(pattern == label[1])
        if label[2] is None:
            skills["no_glyph"].append(number in found and one is None)
        else:
            skills["glyph_colour"].append(one == label[2].colour)
            skills["shape"].append(other == label[2].shape)


def entries(note: str) -> dict[int, tuple[str | None, ...]]:
    """The entries of a note by the number of their frame: colour, pattern, glyph's colour, glyph's shape, flag."""
    return {int(match[1]): match.groups()[1:] for match in _ENTRY.finditer(note)}


def games(seed: int, per_kind: int, buckets: Sequence[str]) -> list[tuple[Film, Doc]]:
    """Questions about worlds for gates: so many of each kind in each length, each of another world."""
    found = []
    for bucket in buckets:
        for number in range(per_kind):
            for kind in KINDS:
                seen, docs = film(GATES.start + seed + number, bucket)
                draw = random.Random(f"gate:{seed}:{number}:{kind}")
                found.append((seen, draw.choice([doc for doc in docs if doc["kind"] == kind])))
    return found


def numbers_of(played: Sequence[Played]) -> dict[str, float]:
    """The means: `glyph` and `order` (accuracy), `when` (IoU), `answered`, `turns`, and each part of the notes.

    What never happened, as a note of a policy whose first turn can't be read, is 0.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for one in played:
        found[one.kind].append(one.score)
        found["answered"].append(float(one.ended == "answer"))
        found["turns"].append(float(one.turns))
        for name, right in one.skills.items():
            found[name] += map(float, right)
    return {name: float(np.mean(found[name])) if name in found else 0.0 for name in sorted({*NUMBERS, *found})}


def measure(
    *, student: Student, seed: int = 0, per_kind: int = 8, buckets: Sequence[str] = tuple(BUCKETS), batch: int = 32
) -> Callable[[Any], dict[str, float]]:
    """A measure: the model plays by itself (`numbers_of`).

    Args:
        student: The model that is trained.
        seed: Draws the worlds of gates.
        per_kind: Questions of each kind for each length of video.
        buckets: The lengths.
        batch: Turns that are written at the same time.
    """
    from apr_plugin.models.checkpoint import Checkpoint
    from apr_plugin.policies.hf import HfPolicy

    asked = games(seed, per_kind, buckets)

    def run(model: Any) -> dict[str, float]:
        policy = HfPolicy(
            Checkpoint.around(model, student.encoder.processor),
            batch_size=batch,
            context_tokens=student.context_tokens,
        )
        try:
            return numbers_of(run_sync(_all(policy, asked)))
        finally:
            policy.close()

    return run


async def _all(policy: Policy, asked: Sequence[tuple[Film, Doc]]) -> list[Played]:
    return list(await asyncio.gather(*(play(policy, seen, doc) for seen, doc in asked)))
