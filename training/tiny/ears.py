"""Sounds of the needle world as a small model hears them, without files: the renderer's samples, disturbed anew.

The samples of a window are those that the renderer writes (`tasks.needle.render.audio_chunks`); its codec, AAC, changes
the spectrum so little that it is left out (`tests/training/tiny/test_made_sounds.py` measures it). The spectrum comes
from the student's own feature extractor. Nothing is kept: a window is hardly ever asked for again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from apr_plugin.loop.policy import AudioPart
from apr_plugin.media import SAMPLE_RATE
from apr_plugin.models.families import Placeholders
from apr_plugin.models.prompt import Encoded, Medium
from apr_plugin.tasks.needle.palette import chime, tone
from apr_plugin.tasks.needle.world import CHIME
from apr_plugin.training.student import Student
from apr_plugin.training.tiny.listening import Sound

QUIETEST, LOUDEST = 0.4, 1.5
"""Bounds of the gain; with the loudest, tones have the amplitude 0.6."""

HISS = (1e-6, 1e-3)
"""Bounds of the noise's standard deviation, where a tone's amplitude is 0.4."""


def waveform(sounds: Iterable[Sound], start_s: float, end_s: float) -> NDArray[np.float32]:
    """The samples of a window, shape (round((end_s - start_s) * 16000),), mono, digital silence between sounds.

    Args:
        sounds: Start and end of each in seconds, and its name.
        start_s: Beginning of the window.
        end_s: Its end.
    """
    samples = np.zeros(round((end_s - start_s) * SAMPLE_RATE), np.float32)
    origin = round(start_s * SAMPLE_RATE)
    for begin_s, stop_s, name in sounds:
        if stop_s <= start_s or begin_s >= end_s:
            continue
        whole = chime(SAMPLE_RATE) if name == CHIME else tone(name, stop_s - begin_s, SAMPLE_RATE)
        at = round(begin_s * SAMPLE_RATE) - origin
        here = whole[max(0, -at) : len(samples) - at]
        samples[max(0, at) : max(0, at) + len(here)] += here
    return samples


class Ears:
    """Gives the spectra of sounds, disturbed.

    Args:
        student: Its feature extractor makes the spectra.
        seed: Of the gain and of the hiss.
        noise: Share of the sounds with a hiss; 0: nothing is disturbed.
    """

    def __init__(self, student: Student, seed: int, noise: float = 0.5) -> None:
        self._student = student
        self._seed = seed
        self._noise = noise

    def fill(self, encoded: Encoded, samples: NDArray[np.float32], row: int) -> Encoded:
        """Put a spectrum into the sound of a prompt that was laid out.

        Args:
            encoded: The prompt (`PromptEncoder.lay_out`); its only medium is a sound of so many samples.
            samples: The sound.
            row: The number of the row; no other row has the same disturbance.
        """
        (medium,) = encoded.media
        medium.mel = self._student.encoder.spectrum(self._disturbed(samples, row))
        medium.key = -1 - row
        encoded.keys = encoded.ids.copy()
        encoded.keys[medium.start : medium.start + medium.runs[0].tokens] = medium.key
        return encoded

    def _disturbed(self, samples: NDArray[np.float32], row: int) -> NDArray[np.float32]:
        if not self._noise:
            return samples
        draw = np.random.default_rng((self._seed, row))
        gain = np.exp(draw.uniform(math.log(QUIETEST), math.log(LOUDEST)))
        made = samples * np.float32(gain)
        if draw.random() < self._noise:
            level = np.exp(draw.uniform(*np.log(HISS)))
            made += draw.standard_normal(len(samples), dtype=np.float32) * np.float32(level)
        return made


def alone(student: Student, samples: int) -> Encoded:
    """The prompt of one sound of so many samples and nothing else, laid out."""
    marks, tokens = student.family.marks, student.family.audio_tokens(samples)
    begin, heard, end = student.tokenizer.convert_tokens_to_ids([marks.audio_start, marks.audio, marks.audio_end])
    part = AudioPart(np.broadcast_to(np.zeros((), np.float32), (samples,)), SAMPLE_RATE)
    ids = np.asarray([begin, *[heard] * tokens, end], np.int64)
    return Encoded(ids, [Medium(part, (Placeholders("audio", tokens),), 1)])
