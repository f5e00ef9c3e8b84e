"""The passive rival of the small agent: one turn, in which it is shown frames of the whole video and answers.

Frames are the middles of equal parts, as the arm `passive` shows them (`Environment.plan_uniform`), in the agent's wire
with names (`passive_form=wire`), so that a rival need not copy times either. It hears nothing, as that arm gives no
sound. With `notes=True` it writes what each frame shows, with the agent's own flags, then one thought, then the answer:
the same supervision for each frame as the agent has, and the fairer rival. With `notes=False` it answers at once.

Where no frame shows what is asked for, the target is still the right answer: what can be guessed may be learned.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from apr_plugin.loop.action import Answer
from apr_plugin.loop.answer import canonical_answer
from apr_plugin.loop.notebook import Notebook
from apr_plugin.loop.percept import Percept
from apr_plugin.loop.policy import EVERY_MODALITY, Policy, Sampling
from apr_plugin.loop.profile_file import ProfileFile, SampledBy
from apr_plugin.loop.question import Question
from apr_plugin.loop.references import FrameNames, Named, NamedLook
from apr_plugin.loop.reply import read_answer
from apr_plugin.loop.trajectory import Turn
from apr_plugin.runs.meter import run_sync
from apr_plugin.scoring.intervals import hull_iou
from apr_plugin.scoring.truth import score
from apr_plugin.tasks.needle.make import BUCKETS
from apr_plugin.tasks.needle.questions import LETTERS, Doc, ParsedQuestion, parse_question
from apr_plugin.tasks.needle.world import TICKS_PER_S
from apr_plugin.training.student import Student
from apr_plugin.training.tiny.agents import drawn
from apr_plugin.training.tiny.looking import judged
from apr_plugin.training.tiny.notes import NOTHING, SURE, flag, observe
from apr_plugin.training.tiny.pictures import NOISE, Eyes, picture
from apr_plugin.training.tiny.playing import Played, games, numbers_of
from apr_plugin.training.tiny.prompts import PROFILE, WIRE, Laid, Rows, percept
from apr_plugin.training.tiny.worlds import Film, Label, question_of

FRAMES = 64
"""Frames that are shown, where a recipe does not say it."""

TOKENS_OF_A_NOTE = 8
"""Most tokens of the note of a frame."""

LEVELS = {"found": "!", "scene": "+!", "chapter": "-+!"}
"""The words of thoughts, and the flags on which they rest, the best first."""


def profile(frames: int) -> ProfileFile:
    """How a rival that is shown so many frames is asked; its checkpoint carries it."""
    return PROFILE.model_copy(
        update={
            "passive_form": "wire",
            "sampling": SampledBy(temperature=0.0, max_new_tokens=TOKENS_OF_A_NOTE * frames + 80),
        }
    )


def uniform(seen: Film, frames: int) -> tuple[tuple[float, ...], list[Label]]:
    """Times and labels of the middle frames of so many equal parts."""
    asked = [seen.duration_s * (n + 0.5) / frames for n in range(frames)]
    times = tuple(tick / TICKS_PER_S for tick in sorted({int((time_s + 1e-6) * TICKS_PER_S) for time_s in asked}))
    return times, [seen.at(time_s) for time_s in times]


def notebook(question: Question, seen: Film) -> Notebook:
    """The empty notes from which its prompt is made."""
    return Notebook(
        question, [seen.meta], PROFILE.limits, PROFILE.instructions, EVERY_MODALITY, WIRE, passive_wire=True
    )


def look(seen: Film, times_s: Sequence[float]) -> Percept:
    """What is shown, with pictures that are put in later."""
    return percept(0.0, seen.duration_s, times_s, 0)


def span_names(span: Sequence[float], times_s: Sequence[float], duration_s: float) -> tuple[str, str]:
    """The names of the two frames, or ends of the video, whose times overlap a span best (IoU)."""
    edges = [("#0.1", 0.0), *((f"#{n}", time_s) for n, time_s in enumerate(times_s, 1)), ("#0.2", duration_s)]
    near = []
    for edge in span:
        after = next((n for n, (_, time_s) in enumerate(edges) if time_s >= edge), len(edges) - 1)
        near.append((max(0, after - 1), after))
    pairs = [(first, last) for first in near[0] for last in near[1] if first < last]
    first, last = max(pairs, key=lambda pair: hull_iou((edges[pair[0]][1], edges[pair[1]][1]), (span[0], span[1])))
    return edges[first][0], edges[last][0]


def turn_of(doc: Doc, times_s: Sequence[float], labels: Sequence[Label], *, notes: bool = True) -> Turn:
    """The one turn of the teacher.

    Args:
        doc: The question; of one of `notes.KINDS`.
        times_s: The times of the frames that are shown.
        labels: What they show.
        notes: Whether the frames are described and a thought is written before the answer.
    """
    asked = parse_question(doc["question"])
    word, hits = _best(asked, labels)
    think = f"{word} {asked.colour} {asked.pattern}" + (f"#{hits[0]}" if hits else "")
    named: Named | None = None
    if doc["options"]:
        action = Answer(content=doc["options"][LETTERS.index(doc["answer"])])
        glyph = labels[hits[0] - 1][2] if word == "found" else None
        think += f" {glyph.name}" if glyph is not None else ""
    elif not doc["answer_spans"]:  # a number
        action = Answer(content=doc["answer"])
    else:
        first, last = span_names(doc["answer_spans"][0], times_s, doc["duration_s"])
        think += (f"#{hits[-1]}" if hits else "") + f":{first}{last}"
        action, named = Answer(content=str(doc["answer_spans"])), Named(content=f"[[{first},{last}]]")
    return Turn(
        text="",
        observation=observe(asked, labels) if notes else NOTHING,
        think=think if notes else NOTHING,
        confidence=SURE[word],
        action=action,
        named=named,
    )


def _best(asked: ParsedQuestion, labels: Sequence[Label]) -> tuple[str, list[int]]:
    """The first word of the thought, and the numbers of the frames on which it rests."""
    flags = [flag(asked, label) for label in labels]
    for word, counts in LEVELS.items():
        if hits := [number for number, mark in enumerate(flags, 1) if mark in counts]:
            return word, hits
    return "overview", []


def maker(
    *,
    student: Student,
    seed: int,
    frames: int = FRAMES,
    least: int | None = None,
    notes: bool = True,
    worlds: int = 1_000_000,
    noise: float = NOISE,
) -> Rows:
    """A maker of rows of one turn (`training.sft.mixes.RowMaker`).

    Args:
        student: The model that is trained.
        seed: Draws worlds, questions, and the disturbance of pictures.
        frames: Frames that are shown.
        least: Fewest frames, if their number is drawn for each row; it is `frames` otherwise.
        notes: See `turn_of`.
        worlds: See `agents.maker`.
        noise: See `Eyes`.
    """

    def lay(index: int) -> Laid:
        draw = random.Random(f"passive:{seed}:{index}")
        seen, doc = drawn(draw, worlds)
        times, labels = uniform(seen, frames if least is None else draw.randint(least, frames))
        question, _ = question_of(doc)
        prompt = notebook(question, seen).passive_prompt([look(seen, times)])
        words = WIRE.written(turn_of(doc, times, labels, notes=notes))
        return Laid(student.encoder.lay_out(prompt), labels, (*student.encoder.turn_ids(words), student.end))

    return Rows(lay, Eyes(student, seed, noise))


async def answer(policy: Policy, seen: Film, doc: Doc, frames: int) -> Played:
    """Let a policy answer a question about a drawn world at once."""
    question, truth = question_of(doc)
    times, labels = uniform(seen, frames)
    shown = replace(look(seen, times), images=np.stack([picture(label) for label in labels]))
    prompt = notebook(question, seen).passive_prompt([shown])
    sampling = Sampling(temperature=0.0, max_new_tokens=profile(frames).sampling.max_new_tokens or 0)
    generation = await policy.generate(prompt, sampling)
    names = FrameNames(question.kind, (NamedLook("frames", 0, times),), (seen.duration_s,))
    reply = read_answer(generation, question, names)
    played = Played(doc["kind"], turns=1, ended="invalid", skills=defaultdict(list))
    for name, right in judged(parse_question(question.text), labels, reply.parsed.observation).items():
        played.skills[name] += right
    content = canonical_answer(question, reply.content, seen.duration_s) if reply.content else None
    if isinstance(content, str) and reply.fault is None:
        played.ended, played.score = "answer", float(score(content, truth, str(question.kind)) or 0.0)
    return played


def measure(
    *,
    student: Student,
    frames: int = FRAMES,
    seed: int = 0,
    per_kind: int = 8,
    buckets: Sequence[str] = tuple(BUCKETS),
    batch: int = 16,
) -> Callable[[Any], dict[str, float]]:
    """A measure: the model answers by itself about worlds of gates (`playing.numbers_of`).

    Args:
        student: The model that is trained.
        frames: Frames that it is shown.
        seed: Draws the worlds.
        per_kind: Questions of each kind for each length of video.
        buckets: The lengths.
        batch: Answers that are written at the same time.

    Returns:
        From a model, `numbers_of`; parts of notes count when they are judged first (`looking.judged`).
    """
    from apr_plugin.models.checkpoint import Checkpoint
    from apr_plugin.policies.hf import HfPolicy

    asked = games(seed, per_kind, buckets)

    async def every(policy: Policy) -> list[Played]:
        return list(await asyncio.gather(*(answer(policy, seen, doc, frames) for seen, doc in asked)))

    def run(model: Any) -> dict[str, float]:
        policy = HfPolicy(
            Checkpoint.around(model, student.encoder.processor),
            batch_size=batch,
            context_tokens=student.context_tokens,
        )
        try:
            return numbers_of(run_sync(every(policy)))
        finally:
            policy.close()

    return run
