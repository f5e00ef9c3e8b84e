"""Recognizes the elements of `palette.py` in pixels and samples: what a needle frame shows and what is heard.

A frame is compared, pixel by pixel, with what `draw_frame` would have drawn at the frame's own size. A waveform is
projected on the five frequencies that tones and chimes use. Both work after scaling and lossy coding, because thousands
of pixels or samples are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .palette import (
    ALL_GLYPHS,
    BACKGROUNDS,
    CHIME_PARTIALS_HZ,
    CHIME_S,
    INK,
    LOOKALIKES,
    PATCH,
    PATTERNS,
    PITCHES,
    Glyph,
    draw_frame,
    patch_mask,
    pattern_mask,
)

Floats = NDArray[np.float32]
SoundName = Literal["low", "middle", "high", "chime"]

GOOD_FIT = 0.8
"""A frame that agrees less than this with its best description is not a needle frame."""

_WORK_PX = 80  # about how many pixels of the shorter side are compared; larger frames are read with a stride
_CLOSE = 70.0  # RGB distance under which a pixel counts as the colour it should be
_BLOCK_S = 0.02
_TONE_AMPLITUDE = 0.08
_CHIME_AMPLITUDE = 0.06
_TONE_MIN_S = 0.1
_CHIME_GAP_S = 0.16  # onsets closer than this are one chime

_COLOURS = {**BACKGROUNDS, **LOOKALIKES}
_COLOUR_NAMES = tuple(_COLOURS)
_COLOUR_RGB = np.array(list(_COLOURS.values()), dtype=np.float32)
_INK = np.array(INK, dtype=np.float32)
_PATCH = np.array(PATCH, dtype=np.float32)


@dataclass(frozen=True)
class FrameReading:
    """What one frame shows."""

    background: str
    """The chapter's colour, a key of BACKGROUNDS or LOOKALIKES."""

    pattern: str
    """The scene's pattern, one of PATTERNS."""

    glyph: Glyph | None
    """The event's glyph, or `None` if no patch is shown."""

    fit: float
    """Share of pixels around the centre that have the colour this reading predicts.

    Under GOOD_FIT the frame is of some other video.
    """


@dataclass(frozen=True)
class Heard:
    """One sound."""

    sound: SoundName
    """A pitch of PITCHES, or `chime`."""

    time_s: float
    """Its centre, in seconds from the waveform's beginning."""

    start_s: float
    """Its start, in seconds."""

    end_s: float
    """Its end, in seconds."""


@dataclass(frozen=True)
class _Templates:
    """Everything that depends on the frame's size; n pixels are around the patch and m pixels inside it."""

    stride: int
    around: NDArray[np.intp]  # (n,) flat indices of the strided frame
    inside: NDArray[np.intp]  # (m,)
    patterns: Floats  # (6, n), +1 where there is ink, -1 elsewhere
    glyphs: Floats  # (36, 3 m)
    glyph_norms: Floats  # (36,)


@lru_cache(maxsize=8)
def _templates(size: tuple[int, int]) -> _Templates:
    stride = max(1, round(min(size) / _WORK_PX))
    cut = np.s_[stride // 2 :: stride, stride // 2 :: stride]
    patch = patch_mask(size)[cut]
    inside = np.flatnonzero(patch)
    around = np.flatnonzero(~patch)
    patterns = np.stack([pattern_mask(pattern, size)[cut].reshape(-1)[around] for pattern in PATTERNS])
    glyphs = np.stack(
        [draw_frame("gray", "plain", glyph, size)[cut].reshape(-1, 3)[inside].reshape(-1) for glyph in ALL_GLYPHS]
    ).astype(np.float32)
    return _Templates(
        stride, around, inside, np.where(patterns, 1, -1).astype(np.float32), glyphs, (glyphs**2).sum(axis=1)
    )


def read_frame(image: NDArray[np.uint8]) -> FrameReading:
    """Read one frame.

    Args:
        image: RGB, shape (height, width, 3), 96 pixels or more on the shorter side.
    """
    height, width = image.shape[:2]
    known = _templates((width, height))
    pixels = image[known.stride // 2 :: known.stride, known.stride // 2 :: known.stride].reshape(-1, 3)
    around = pixels[known.around].astype(np.float32)
    # Ink covers well under half of the frame, so the median is background even if the pattern is dense.
    colour = np.median(around[::5], axis=0)
    along = (around - _INK) @ (colour - _INK) / max(float(((colour - _INK) ** 2).sum()), 1.0)
    pattern = int((known.patterns @ np.where(along < 0.5, 1, -1).astype(np.float32)).argmax())
    # Chroma bleeds from the ink at small sizes: the brighter half of the pixels without ink is clean.
    free = known.patterns[pattern] < 0
    clean = free & (along >= np.median(along[free][::5]))
    nearest = int(((_COLOUR_RGB - np.median(around[clean][::5], axis=0)) ** 2).sum(axis=1).argmin())
    expected = np.where(known.patterns[pattern][:, None] > 0, _INK, _COLOUR_RGB[nearest])
    fit = float((((around - expected) ** 2).sum(axis=1) < _CLOSE**2).mean())
    return FrameReading(
        _COLOUR_NAMES[nearest], PATTERNS[pattern], _read_glyph(pixels[known.inside].astype(np.float32), known), fit
    )


def _read_glyph(inside: Floats, known: _Templates) -> Glyph | None:
    light = (((inside - _PATCH) ** 2).sum(axis=1) < 60.0**2).mean()
    if light < 0.25:  # the largest glyph leaves over two fifths of the patch uncovered
        return None
    flat = inside.reshape(-1)
    distances = known.glyph_norms - 2 * (known.glyphs @ flat)
    best = int(distances.argmin())
    close = ((inside - known.glyphs[best].reshape(-1, 3)) ** 2).sum(axis=1) < (1.5 * _CLOSE) ** 2
    return ALL_GLYPHS[best] if close.mean() > 0.6 else None


def hear(waveform: NDArray[np.float32], sample_rate: int) -> list[Heard]:
    """Find every tone and chime of a waveform, in order of time.

    Args:
        waveform: mono samples, shape (samples,).
        sample_rate: samples per second; chimes need 6,000 or more.
    """
    size = max(1, round(_BLOCK_S * sample_rate))
    blocks = len(waveform) // size
    if blocks == 0:
        return []
    frequencies = [*PITCHES.values(), *CHIME_PARTIALS_HZ]
    cut = np.asarray(waveform[: blocks * size], dtype=np.float32).reshape(blocks, size)
    spectrum = cut @ _projection(size, sample_rate, tuple(frequencies))
    amplitudes = np.hypot(spectrum[:, : len(frequencies)], spectrum[:, len(frequencies) :])
    power = np.maximum(np.einsum("ij,ij->i", cut, cut) / size, 1e-12)
    heard: list[Heard] = []
    names: list[SoundName] = ["low", "middle", "high"]
    for i, name in enumerate(names):
        level = amplitudes[:, i]
        loud = (level > _TONE_AMPLITUDE) & (level**2 / 2 > 0.3 * power)
        heard += [_heard(name, start, end) for start, end in _runs(loud) if end - start >= _TONE_MIN_S]
    if sample_rate >= 2.2 * max(CHIME_PARTIALS_HZ):
        ring = np.minimum(amplitudes[:, -2], amplitudes[:, -1])
        heard += [_heard("chime", start, start + CHIME_S) for start in _onsets(ring)]
    return sorted(heard, key=lambda sound: sound.start_s)


@lru_cache(maxsize=8)
def _projection(size: int, sample_rate: int, frequencies: tuple[float, ...]) -> Floats:
    """Hann-windowed cosines, then sines, shape (size, 2 x frequencies), scaled so that a unit sine gives 1."""
    window = np.hanning(size + 2)[1:-1]
    phase = 2 * np.pi * np.arange(size)[:, None] * np.array(frequencies)[None, :] / sample_rate
    waves: Floats = (2 / window.sum() * window[:, None] * np.hstack([np.cos(phase), np.sin(phase)])).astype(np.float32)
    return waves


def _runs(loud: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """(start, end) in seconds of each run of loud blocks; one quiet block inside a run is bridged."""
    bridged = loud.copy()
    bridged[1:-1] |= loud[:-2] & loud[2:]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], bridged, [False]]).astype(np.int8)))
    return [(float(start) * _BLOCK_S, float(end) * _BLOCK_S) for start, end in edges.reshape(-1, 2)]


def _onsets(ring: Floats) -> list[float]:
    """The times at which a decaying sound starts: the level rises well above the lowest of the three blocks before."""
    before = np.minimum.reduce(
        [np.concatenate([np.zeros(lag, dtype=ring.dtype), ring[:-lag]])[: len(ring)] for lag in (1, 2, 3)]
    )
    struck = np.flatnonzero((ring > _CHIME_AMPLITUDE) & (ring > 2 * before + 0.02))
    starts: list[float] = []
    for block in struck:
        if not starts or block * _BLOCK_S - starts[-1] > _CHIME_GAP_S:
            starts.append(float(block) * _BLOCK_S)
    return starts


def _heard(name: SoundName, start: float, end: float) -> Heard:
    return Heard(name, (start + end) / 2, start, end)
