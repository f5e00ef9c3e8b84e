"""Dummy media, so that every forward of every process runs the same modules.

Where weights are sharded over processes (FSDP, ZeRO-3), a process that runs a tower waits for the others to hand over
their parts of it. If another one has a row without pictures, all wait for ever. So each batch gets the kinds of media
that it lacks, as small as they can be, after the last target (`Example.dummy`): they change neither loss nor gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from apr_plugin.loop.policy import AudioPart, ImagePart, Message, Part, Prompt, VideoPart
from apr_plugin.media import SAMPLE_RATE
from apr_plugin.models.batch import Example
from apr_plugin.models.prompt import Encoded
from apr_plugin.training.student import Student

EDGE = 56
"""Height and width of a dummy picture: at least one token of every family."""

KINDS = ("picture", "clip", "sound")
"""Kinds of media that go through a tower one after the other."""


class Dummies:
    """Adds what a batch lacks.

    Args:
        student: Encodes the dummies; one that does not hear gets no sound.
    """

    def __init__(self, student: Student) -> None:
        self._student = student
        self._made: dict[tuple[str, ...], Encoded] = {}

    def complete(self, examples: Sequence[Example]) -> list[Example]:
        """The same examples; the last one has a dummy of each kind of medium that none of them has."""
        has = {kind for example in examples for medium in example.encoded.media for kind in _kinds(medium.part)}
        lacks = tuple(kind for kind in KINDS if kind not in has and (kind != "sound" or self._student.family.hears))
        if not lacks:
            return list(examples)
        if lacks not in self._made:
            parts = tuple(_part(kind) for kind in lacks)
            self._made[lacks] = self._student.encoder.encode(Prompt((Message("user", parts),)))
        return [*examples[:-1], replace(examples[-1], dummy=self._made[lacks])]


def _kinds(part: Part) -> set[str]:
    match part:
        case ImagePart():
            return {"picture"}
        case AudioPart():
            return {"sound"}
        case VideoPart(audio=audio):
            return {"clip"} if audio is None else {"clip", "sound"}
    return set()


def _part(kind: str) -> Part:
    if kind == "picture":
        return ImagePart(np.zeros((EDGE, EDGE, 3), np.uint8))
    if kind == "sound":
        return AudioPart(np.zeros(SAMPLE_RATE // 2, np.float32), SAMPLE_RATE)
    return VideoPart(np.zeros((2, EDGE, EDGE, 3), np.uint8), (0.0, 0.5), 2.0)
