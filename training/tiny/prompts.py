"""The prompts of made rows, by the loop's own notebook and wire: no second copy of the wire's text.

A small agent is asked as its profile says (`PROFILE`): compact wire, frames with names and without times, pictures of
one visual token, nine turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from apr_plugin.loop.action import GetFrames
from apr_plugin.loop.budget import Budget
from apr_plugin.loop.notebook import Notebook
from apr_plugin.loop.percept import Percept
from apr_plugin.loop.profile_file import ProfileFile, SampledBy
from apr_plugin.loop.question import Question
from apr_plugin.loop.trajectory import Turn
from apr_plugin.loop.wires import VideoMeta, wire_of
from apr_plugin.models.batch import Example
from apr_plugin.models.prompt import Encoded
from apr_plugin.training.student import Student
from apr_plugin.training.tiny.model import EDGE
from apr_plugin.training.tiny.pictures import Eyes
from apr_plugin.training.tiny.worlds import Label

TURNS = 9
"""Turns of an episode."""

PROFILE = ProfileFile(
    wire="compact",
    frame_references=True,
    frame_times=False,
    limits=Budget(turns=TURNS, frame_pixels=EDGE * EDGE, clip_pixels=EDGE * EDGE),
    sampling=SampledBy(temperature=0.0, max_new_tokens=400),
)
"""How the small agent is asked; its checkpoint carries it."""

WIRE = wire_of(PROFILE.wire, PROFILE.frame_references, PROFILE.frame_times)
"""Its wire."""

KEPT = 10_000
"""Rows that are kept without their pictures, at most."""

PERCEIVES = frozenset({"frames", "audio", "clip"})
"""What the student perceives."""


def notebook(question: Question, meta: VideoMeta) -> Notebook:
    """The empty notes of an episode."""
    return Notebook(question, [meta], PROFILE.limits, PROFILE.instructions, PERCEIVES, WIRE)  # type: ignore[arg-type]


def percept(start_s: float, end_s: float, times_s: Sequence[float], look: int) -> Percept:
    """A look with frames whose pictures are put in later.

    Args:
        start_s: Beginning of the window.
        end_s: Its end.
        times_s: Time of each frame.
        look: Number of the look in the episode, from 1.
    """
    images = np.broadcast_to(np.zeros((), np.uint8), (len(times_s), EDGE, EDGE, 3))
    times = tuple(times_s)
    return Percept("frames", 0, start_s, end_s, images=images, times_s=times, asked_s=times, look=look)


def percept_of(turn: Turn, times_s: Sequence[float], look: int) -> Percept:
    """What came back of a turn that looked."""
    assert isinstance(turn.action, GetFrames)
    return percept(turn.action.start, turn.action.end, times_s, look)


@dataclass(frozen=True)
class Laid:
    """A row without its pictures."""

    encoded: Encoded
    """Its prompt, laid out."""
    labels: Sequence[Label]
    """What its pictures show."""
    target: tuple[int, ...]
    """What is to be written."""


def laid(student: Student, notes: Notebook, labels: Sequence[Label], target: str) -> Laid:
    """A row: the prompt after these notes, and what is to be written.

    Args:
        student: The model that is trained.
        notes: The notes; the pictures of their newest look are in the prompt.
        labels: What the newest look shows.
        target: The words of the turn.
    """
    prompt = notes.prompt(len(notes) + 1, TURNS)
    return Laid(student.encoder.lay_out(prompt), labels, (*student.encoder.turn_ids(target), student.end))


def notes_only(student: Student, made: Laid, words: str, noted: str) -> Laid:
    """The same row, whose target ends where the thought begins.

    Args:
        student: The model that is trained.
        made: The row.
        words: Its target's words.
        noted: The notes in them.
    """
    cut = words.index(noted) + len(noted)
    return replace(made, target=made.target[: len(student.encoder.turn_ids(words[:cut])) + 1])


class Rows:
    """Makes rows by their number (`training.sft.mixes.RowMaker`): first their length, then their pictures.

    Args:
        lay: Lays out the row of a number.
        eyes: Give the patches.
    """

    def __init__(self, lay: Callable[[int], Laid], eyes: Eyes) -> None:
        self._lay = lay
        self._eyes = eyes
        self._kept: dict[int, Laid] = {}

    def __call__(self, index: int) -> Example:
        """The row of this number."""
        made = self._kept.pop(index, None) or self._lay(index)
        return Example(self._eyes.fill(made.encoded, made.labels, index), made.target)

    def tokens(self, index: int) -> int:
        """Its length; what was laid out is kept until the row is made."""
        if index not in self._kept:
            if len(self._kept) >= KEPT:
                self._kept.clear()
            self._kept[index] = self._lay(index)
        made = self._kept[index]
        return len(made.encoded.ids) + len(made.target)
