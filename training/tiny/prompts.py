"""The prompts of made rows, by the loop's own notebook and wire: no second copy of the wire's text.

A small agent is asked as its profile says (`PROFILE`): compact wire, frames with names and without times, pictures of
one visual token, nine turns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from apr_plugin.loop.action import GetAudio, GetFrames
from apr_plugin.loop.budget import Budget
from apr_plugin.loop.notebook import Notebook
from apr_plugin.loop.percept import Percept
from apr_plugin.loop.profile_file import ProfileFile, SampledBy
from apr_plugin.loop.question import Question
from apr_plugin.loop.trajectory import Turn
from apr_plugin.loop.wires import VideoMeta, wire_of
from apr_plugin.media import SAMPLE_RATE
from apr_plugin.models.batch import Example
from apr_plugin.training.student import Student
from apr_plugin.training.tiny.ears import Ears
from apr_plugin.training.tiny.model import EDGE, LONGEST_S
from apr_plugin.training.tiny.pictures import Eyes
from apr_plugin.training.tiny.worlds import Label

TURNS = 9
"""Turns of an episode."""

PROFILE = ProfileFile(
    wire="compact",
    frame_references=True,
    frame_times=False,
    limits=Budget(turns=TURNS, frame_pixels=EDGE * EDGE, clip_pixels=EDGE * EDGE, audio_s=LONGEST_S - 1),
    sampling=SampledBy(temperature=0.0, max_new_tokens=400),
)
"""How the small agent is asked; its checkpoint carries it."""

WIRE = wire_of(PROFILE.wire, PROFILE.frame_references, PROFILE.frame_times)
"""Its wire."""

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
    """What came back of a turn that looked or listened; a sound's samples are put in later."""
    assert isinstance(turn.action, GetFrames | GetAudio)
    start_s, end_s = turn.action.start, turn.action.end
    if isinstance(turn.action, GetFrames):
        return percept(start_s, end_s, times_s, look)
    silence = np.broadcast_to(np.zeros((), np.float32), (round((end_s - start_s) * SAMPLE_RATE),))
    return sound(start_s, end_s, silence, look)


def sound(start_s: float, end_s: float, samples: NDArray[np.float32], look: int) -> Percept:
    """A look that was a sound.

    Args:
        start_s: Beginning of the window.
        end_s: Its end.
        samples: Shape (samples,), at `SAMPLE_RATE`.
        look: Number of the look in the episode, from 1.
    """
    return Percept("audio", 0, start_s, end_s, waveform=samples, look=look)


def row(student: Student, notes: Notebook, labels: Sequence[Label], target: str, eyes: Eyes, index: int) -> Example:
    """A row: the prompt after these notes, with pictures of these labels, and what is to be written.

    Args:
        student: The model that is trained.
        notes: The notes; the pictures of their newest look are in the prompt.
        labels: What the newest look shows.
        target: The words of the turn.
        eyes: Give the patches.
        index: The number of the row.
    """
    prompt = notes.prompt(len(notes) + 1, TURNS)
    encoded = eyes.fill(student.encoder.lay_out(prompt), labels, index)
    return Example(encoded, (*student.encoder.turn_ids(target), student.end))


def heard_row(
    student: Student, notes: Notebook, samples: NDArray[np.float32] | None, target: str, ears: Ears, index: int
) -> Example:
    """A row after a look that was a sound.

    Args:
        student: The model that is trained.
        notes: The notes; their newest look is a sound of so many samples.
        samples: The sound; `None`: the notes have forgotten it.
        target: The words of the turn.
        ears: Give the spectrum.
        index: The number of the row.
    """
    encoded = student.encoder.lay_out(notes.prompt(len(notes) + 1, TURNS))
    if samples is None:
        encoded.keys = encoded.ids.copy()
    else:
        encoded = ears.fill(encoded, samples, index)
    return Example(encoded, (*student.encoder.turn_ids(target), student.end))
