"""Small pictures and waveforms of exactly what was shown, read again from the videos by `apr_plugin.loop.replay`."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apr_plugin.errors import AprError, told
from apr_plugin.loop.card import Card
from apr_plugin.loop.policy import AudioPart, ImagePart, Prompt, VideoPart
from apr_plugin.loop.replay import replay
from apr_plugin.loop.trajectory import Shown, Trajectory
from apr_plugin.terminal import one_line

LONGER_SIDE = 160
"""Pixels of a thumbnail's longer side at most."""

QUALITY = 50
"""Of its WebP data."""

BINS = 160
"""Points of a waveform."""


@dataclass(frozen=True)
class Seen:
    """What one look showed."""

    thumbnails: list[str] = field(default_factory=list)
    """A small picture for each frame, as base64 of WebP data."""

    wave: list[int] | None = None
    """The loudest sample of each of `BINS` equal parts of the sound, from 0 to 100; `None` without sound."""


def read_again(
    trajectory: Trajectory, card: Card, *, find: Callable[[str], str | Path] | None = None
) -> tuple[Mapping[int, Seen], str]:
    """The pictures and the sound of every look that a turn saw.

    Args:
        trajectory: A finished episode.
        card: The card of its run.
        find: Gives a file's present path from the path that the question names.

    Returns:
        What was shown, by the look's number in `Trajectory.looks`, and what could not be read, in one sentence. A look
        that can't be shown exactly is left out.
    """
    found: dict[int, Seen] = {}
    waiting: list[tuple[int, Shown]] = list(enumerate(trajectory.first_shown))
    number = len(waiting)
    try:
        for prompt, turn in replay(trajectory, card, find=find):
            if waiting and _has_media(prompt):
                found |= _shown(prompt, waiting)
            waiting = []
            if turn.shown is not None:
                waiting, number = [(number, turn.shown)], number + 1
    except AprError as error:
        return found, one_line(str(error), 600)
    except Exception as error:  # noqa: BLE001 - a decoder's fault in one file must not end the report
        return found, one_line(told(error), 600)
    return found, ""


def _has_media(prompt: Prompt) -> bool:
    return any(isinstance(part, ImagePart | AudioPart | VideoPart) for part in prompt.messages[-1].parts)


def _shown(prompt: Prompt, looks: list[tuple[int, Shown]]) -> dict[int, Seen]:
    """The media of a prompt's last message, given to the looks that they are of, in order."""
    pictures, sounds = prompt.newest_media()
    wanted = sum(len(shown.times_s) for _, shown in looks), sum(shown.sound_file_s is not None for _, shown in looks)
    if (len(pictures), len(sounds)) != wanted:
        raise AprError(
            f"the prompt has {len(pictures)} pictures and {len(sounds)} sounds; the trajectory says {wanted[0]} and "
            f"{wanted[1]}"
        )
    frames, heard = iter(pictures), iter(sounds)
    return {
        number: Seen(
            [thumbnail(next(frames)) for _ in shown.times_s],
            None if shown.sound_file_s is None else waveform(next(heard)),
        )
        for number, shown in looks
    }


def thumbnail(image: NDArray[np.uint8]) -> str:
    """A frame of shape (height, width, 3), RGB, as base64 of a small WebP picture."""
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((LONGER_SIDE, LONGER_SIDE))
    data = io.BytesIO()
    picture.save(data, "WEBP", quality=QUALITY)
    return base64.b64encode(data.getvalue()).decode("ascii")


def waveform(samples: NDArray[np.float32]) -> list[int]:
    """The loudest sample of each of at most `BINS` equal parts, from 0 to 100."""
    if not len(samples):
        return []
    parts = np.array_split(np.abs(np.nan_to_num(samples)), min(BINS, len(samples)))
    return [min(100, round(float(part.max()) * 100)) for part in parts]
