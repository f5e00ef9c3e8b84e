"""The closed loop without files: a policy looks at drawn worlds by itself, and its notes and answers are compared.

Prompts, parser, names of frames and scores are the product's; only pictures and sounds are made where a reader would
decode them. So it is quick enough to be a gate between stages of training. Figures that are published are measured with
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

from apr_plugin.loop.action import Action, Answer, GetAudio, GetFrames
from apr_plugin.loop.parse import parse_turn
from apr_plugin.loop.percept import Percept
from apr_plugin.loop.policy import Policy, Sampling
from apr_plugin.loop.question import QuestionKind
from apr_plugin.loop.references import FrameNames, NamedLook
from apr_plugin.runs.meter import run_sync
from apr_plugin.scoring.answers import match_option
from apr_plugin.scoring.truth import score
from apr_plugin.tasks.needle.make import BUCKETS
from apr_plugin.tasks.needle.questions import LETTERS, Doc, ParsedQuestion, parse_question
from apr_plugin.training.student import Student
from apr_plugin.training.tiny.ears import waveform
from apr_plugin.training.tiny.listening import Event, events_of, judged
from apr_plugin.training.tiny.notes import KINDS, flag
from apr_plugin.training.tiny.pictures import picture
from apr_plugin.training.tiny.prompts import PROFILE, TURNS, notebook, percept, sound
from apr_plugin.training.tiny.worlds import GATES, Film, Label, film, question_of

_ENTRY = re.compile(r"#(\d+) (\w+)(?: (\w+))?(?: (\w+) (\w+))?([;+!-])")


SKILLS = ("colour", "pattern", "glyph_colour", "shape", "no_glyph", "flag")
"""Parts of a note."""

HEARD = ("heard", "placed")
"""Parts of a note of a sound, see `listening.judged`."""

NUMBERS = ("glyph", "when", "order", "sound", "count", "answered", "turns", *SKILLS, *HEARD)
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
        policy: Reads prompts with pictures and sounds.
        seen: The world.
        doc: The question.
    """
    question, truth = question_of(doc)
    asked = parse_question(question.text)
    notes, names = notebook(question, seen.meta), FrameNames(question.kind, durations_s=(seen.duration_s,))
    played = Played(doc["kind"])
    shown: Shown | None = None
    sampling = Sampling(temperature=0.0, max_new_tokens=PROFILE.sampling.max_new_tokens or 400)
    for number in range(1, TURNS + 1):
        text = (await policy.generate(notes.prompt(number, TURNS), sampling)).text
        played.turns = number
        read = parse_turn(text, names=names)
        if shown is not None and shown.heard is not None:
            for name, right in zip(HEARD, judged(read.observation, shown.heard), strict=True):
                played.skills[name].append(right)
        elif shown is not None:
            _compare(played.skills, asked, shown.labels, read.observation)
        if isinstance(read.action, Answer):
            played.ended = "answer"
            content: str | None = read.action.content
            if question.kind is QuestionKind.MCQ:
                content = match_option(content or "", list(zip(LETTERS, doc["options"], strict=False)))
            played.score = float(score(content, truth, str(question.kind)) or 0.0)
            break
        if not isinstance(read.action, GetFrames | GetAudio):
            played.ended = "invalid"
            break
        shown = look_at(seen, read.action, number)
        if shown is None:
            played.ended = "refused"
            break
        notes = notes.with_turn(text, shown.percept)
        names = names.with_look(NamedLook(shown.percept.kind, 0, shown.times_s))
    return played


@dataclass(frozen=True)
class Shown:
    """What came back of a look."""

    percept: Percept
    """With its pictures or its sound."""
    times_s: tuple[float, ...]
    """Those that have names: of frames, or of both ends of a sound."""
    labels: tuple[Label, ...] = ()
    """What its frames show."""
    heard: tuple[Event, ...] | None = None
    """What sounds in it, if it is a sound."""


def look_at(seen: Film, action: Action, number: int) -> Shown | None:
    """Look at a world, or listen to it; `None`: the environment would refuse it.

    Args:
        seen: The world.
        action: `get_frames` or `get_audio`.
        number: Number of the look, from 1.
    """
    assert isinstance(action, GetFrames | GetAudio)
    limits, start_s, end_s = PROFILE.limits, action.start, min(action.end, seen.duration_s)
    if not 0 <= start_s < end_s or action.end > seen.duration_s + 0.1:
        return None
    if isinstance(action, GetAudio):
        if not limits.min_audio_s <= end_s - start_s <= limits.audio_s:
            return None
        made = sound(start_s, end_s, waveform(seen.sounds, start_s, end_s), number)
        return Shown(made, (start_s, end_s), heard=events_of(seen.sounds, start_s, end_s))
    if not 1 <= action.num <= limits.frames_per_look:
        return None
    times, labels = seen.frames(start_s, action.end, action.num)
    images = np.stack([picture(label) for label in labels])
    return Shown(replace(percept(start_s, end_s, times, number), images=images), times, tuple(labels))


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


def games(seed: int, per_kind: int, buckets: Sequence[str], kinds: Sequence[str] = KINDS) -> list[tuple[Film, Doc]]:
    """Questions about worlds for gates: so many of each kind in each length, each of another world."""
    found = []
    for bucket in buckets:
        for number in range(per_kind):
            for kind in kinds:
                seen, docs = film(GATES.start + seed + number, bucket)
                draw = random.Random(f"gate:{seed}:{number}:{kind}")
                found.append((seen, draw.choice([doc for doc in docs if doc["kind"] == kind])))
    return found


def numbers_of(played: Sequence[Played]) -> dict[str, float]:
    """The means: `when` (IoU) and the other kinds (accuracy), `answered`, `turns`, and each part of the notes.

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
    *,
    student: Student,
    seed: int = 0,
    per_kind: int = 8,
    buckets: Sequence[str] = tuple(BUCKETS),
    batch: int = 32,
    kinds: Sequence[str] = KINDS,
) -> Callable[[Any], dict[str, float]]:
    """A measure: the model plays by itself (`numbers_of`).

    Args:
        student: The model that is trained.
        seed: Draws the worlds of gates.
        per_kind: Questions of each kind for each length of video.
        buckets: The lengths.
        batch: Turns that are written at the same time.
        kinds: Of the questions; by default those that need no ears.
    """
    from apr_plugin.models.checkpoint import Checkpoint
    from apr_plugin.policies.hf import HfPolicy

    asked = games(seed, per_kind, buckets, kinds)

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
