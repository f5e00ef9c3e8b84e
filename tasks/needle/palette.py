"""The elements of a needle video: backgrounds, patterns, glyphs, tones and the chime.

Only this module defines how each of them looks and sounds. The renderer draws with it; `perceive.py` compares what it
decoded with the same masks and colours. All pictures are uint8 RGB arrays of shape (h, w, 3), all sounds float32 mono
arrays in [-1, 1].

Layout of a frame (s = the shorter side): the background colour fills the frame; the pattern is near-black ink over it;
while an event is on, a light square patch of side 0.44 s is at the centre and carries the glyph. A frame without an
event has no patch.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Rgb = tuple[int, int, int]
Frame = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Sound = NDArray[np.float32]

BACKGROUNDS: dict[str, Rgb] = {
    "red": (205, 35, 40),
    "orange": (240, 135, 25),
    "yellow": (235, 220, 60),
    "green": (40, 150, 60),
    "cyan": (50, 200, 210),
    "blue": (40, 75, 210),
    "purple": (120, 45, 165),
    "pink": (245, 145, 195),
    "brown": (115, 75, 40),
    "gray": (135, 135, 135),
}
"""Chapter colours, far apart from each other (over 80 in RGB)."""

LOOKALIKES: dict[str, Rgb] = {
    "light red": (235, 115, 105),
    "dark red": (140, 20, 30),
    "light green": (130, 205, 115),
    "dark green": (20, 95, 40),
    "light blue": (100, 160, 245),
    "dark blue": (25, 45, 140),
    "light purple": (180, 130, 225),
    "dark purple": (105, 20, 110),
    "light yellow": (250, 240, 150),
    "dark yellow": (180, 150, 25),
}
"""Chapter colours of the look-alike option: two shades of each hue, which still differ by over 50 in RGB.

No name is shared with BACKGROUNDS.
"""

PATTERNS: tuple[str, ...] = ("plain", "striped", "dotted", "checkered", "framed", "crossed")
"""Scene patterns: nothing; horizontal stripes; a grid of dots; a checkerboard border; a solid border; one big X."""

GLYPH_SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross", "ring", "bar")
"""Glyph shapes; `cross` is an upright plus sign, `bar` a horizontal bar, `triangle` points up."""

GLYPH_COLOURS: dict[str, Rgb] = {
    "black": (0, 0, 0),
    "red": (215, 25, 30),
    "green": (0, 140, 55),
    "blue": (30, 70, 230),
    "pink": (240, 80, 185),
    "orange": (250, 150, 20),
}
"""Glyph colours, drawn on PATCH, so that no background or pattern touches them."""

INK: Rgb = (10, 10, 10)
"""Colour of every pattern and of the patch's outline."""

PATCH: Rgb = (240, 240, 240)
"""Fill of the square behind a glyph."""

PATCH_SIDE = 0.44
"""Side of the patch, outline included, as a fraction of the frame's shorter side."""

GLYPH_SIDE = 0.34
"""Side of the box that a glyph fills, as a fraction of the frame's shorter side."""

PITCHES: dict[str, float] = {"low": 330.0, "middle": 660.0, "high": 1320.0}
"""Pure sine tones, in Hz; a tone is named by its pitch."""

CHIME_PARTIALS_HZ: tuple[float, float] = (2093.0, 2637.0)
"""The two decaying partials of a chime, in Hz; both well above every tone."""

CHIME_S = 0.5
"""Length of a chime in seconds."""

FADE_S = 0.01
"""Fade at the edges of every sound, in seconds, so that it starts without a click."""

_OUTLINE = 0.015


@dataclass(frozen=True, order=True)
class Glyph:
    """A coloured shape, the visible part of an event."""

    colour: str
    """A key of GLYPH_COLOURS."""
    shape: str
    """One of GLYPH_SHAPES."""

    @property
    def name(self) -> str:
        """The name that questions use: "red triangle"."""
        return f"{self.colour} {self.shape}"

    @classmethod
    def parse(cls, name: str) -> "Glyph":
        """Parse a glyph's name; ValueError if the text is not one."""
        colour, _, shape = name.strip().lower().partition(" ")
        if colour not in GLYPH_COLOURS or shape not in GLYPH_SHAPES:
            raise ValueError(f"not a glyph: {name!r}")
        return cls(colour, shape)


ALL_GLYPHS: tuple[Glyph, ...] = tuple(Glyph(colour, shape) for colour in GLYPH_COLOURS for shape in GLYPH_SHAPES)
"""All 36 glyphs."""


def background_rgb(name: str) -> Rgb:
    """RGB of a chapter colour from BACKGROUNDS or LOOKALIKES."""
    colour = BACKGROUNDS.get(name) or LOOKALIKES.get(name)
    if colour is None:
        raise ValueError(f"unknown background {name!r}; known: {', '.join([*BACKGROUNDS, *LOOKALIKES])}")
    return colour


@lru_cache(maxsize=64)
def pattern_mask(pattern: str, size: tuple[int, int]) -> Mask:
    """The pixels of a frame in which a pattern has ink, before any patch covers it.

    Args:
        pattern: one of PATTERNS.
        size: (width, height) in pixels.

    Returns:
        Read-only bool array of shape (h, w); under 40 % of it is True.
    """
    width, height = size
    short = min(size)
    x, y = _pixel_centres(size)  # in units of the shorter side
    span_x, span_y = width / short, height / short
    edge = np.minimum(np.minimum(x, span_x - x), np.minimum(y, span_y - y))
    if pattern == "plain":
        mask = np.zeros((height, width), dtype=np.bool_)
    elif pattern == "striped":
        mask = np.broadcast_to((y * 8) % 1.0 < 0.35, (height, width))
    elif pattern == "dotted":
        cells_x, cells_y = x * round(8 * span_x) / span_x, y * round(8 * span_y) / span_y
        mask = (cells_x % 1.0 - 0.5) ** 2 + (cells_y % 1.0 - 0.5) ** 2 < 0.3**2
    elif pattern == "checkered":
        cells_x, cells_y = x * 2 * round(6 * span_x) / span_x, y * 2 * round(6 * span_y) / span_y
        mask = (edge < 2 / 12) & ((np.floor(cells_x) + np.floor(cells_y)) % 2 == 0)
    elif pattern == "framed":
        mask = edge < 0.09
    elif pattern == "crossed":
        mask = (np.abs(x / span_x - y / span_y) < 0.075) | (np.abs(x / span_x + y / span_y - 1) < 0.075)
    else:
        raise ValueError(f"unknown pattern {pattern!r}; known: {', '.join(PATTERNS)}")
    return _frozen(mask)


@lru_cache(maxsize=64)
def glyph_mask(shape: str, size: tuple[int, int]) -> Mask:
    """The pixels of a frame in which a glyph of this shape has its colour.

    Args:
        shape: one of GLYPH_SHAPES.
        size: (width, height) of the frame in pixels.

    Returns:
        Read-only bool array of shape (h, w).
    """
    x, y = _pixel_centres(size)
    half = GLYPH_SIDE / 2
    u = (x - size[0] / min(size) / 2) / half  # the glyph's box is [-1, 1] x [-1, 1], y downwards
    v = (y - size[1] / min(size) / 2) / half
    box = (np.abs(u) <= 1) & (np.abs(v) <= 1)
    if shape == "circle":
        mask = u**2 + v**2 <= 1
    elif shape == "square":
        mask = (np.abs(u) <= 0.85) & (np.abs(v) <= 0.85)
    elif shape == "triangle":
        mask = box & (np.abs(u) <= (v + 1) / 2)
    elif shape == "cross":
        mask = box & ((np.abs(u) <= 0.3) | (np.abs(v) <= 0.3))
    elif shape == "ring":
        mask = (u**2 + v**2 <= 1) & (u**2 + v**2 >= 0.55**2)
    elif shape == "bar":
        mask = box & (np.abs(v) <= 0.32)
    else:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(GLYPH_SHAPES)}")
    return _frozen(mask)


@lru_cache(maxsize=8)
def patch_mask(size: tuple[int, int]) -> Mask:
    """The pixels of the patch behind a glyph, outline included: read-only bool array of shape (h, w)."""
    return _centred_square(size, PATCH_SIDE)


def draw_frame(background: str, pattern: str, glyph: Glyph | None, size: tuple[int, int]) -> Frame:
    """Draw one frame.

    Args:
        background: a key of BACKGROUNDS or LOOKALIKES.
        pattern: one of PATTERNS.
        glyph: the glyph at the centre, None for no event.
        size: (width, height) in pixels; readable from 112 pixels up.

    Returns:
        RGB picture, uint8, shape (h, w, 3).
    """
    width, height = size
    frame = np.empty((height, width, 3), dtype=np.uint8)
    frame[:] = background_rgb(background)
    frame[pattern_mask(pattern, size)] = INK
    if glyph is not None:
        frame[patch_mask(size)] = INK
        frame[_centred_square(size, PATCH_SIDE - 2 * _OUTLINE)] = PATCH
        frame[glyph_mask(glyph.shape, size)] = GLYPH_COLOURS[glyph.colour]
    return frame


def tone(pitch: str, seconds: float, sample_rate: int) -> Sound:
    """A pure sine tone of the named pitch.

    Args:
        pitch: a key of PITCHES.
        seconds: length in seconds.
        sample_rate: samples per second.

    Returns:
        float32 samples of shape (round(seconds * sample_rate),), peak 0.4.
    """
    time = _times(seconds, sample_rate)
    return _faded(0.4 * np.sin(2 * np.pi * PITCHES[pitch] * time), sample_rate)


def chime(sample_rate: int) -> Sound:
    """One chime: two high partials that ring out.

    Args:
        sample_rate: samples per second, at least 6000 so that both partials exist.

    Returns:
        float32 samples of shape (round(CHIME_S * sample_rate),), peak under 0.6.
    """
    time = _times(CHIME_S, sample_rate)
    partials = [np.sin(2 * np.pi * hertz * time) for hertz in CHIME_PARTIALS_HZ]
    return _faded(0.3 * np.exp(-6.0 * time) * (partials[0] + partials[1]), sample_rate)


def _times(seconds: float, sample_rate: int) -> NDArray[np.float64]:
    return np.arange(round(seconds * sample_rate), dtype=np.float64) / sample_rate


def _faded(samples: NDArray[np.float64], sample_rate: int) -> Sound:
    ramp = min(round(FADE_S * sample_rate), len(samples) // 2)
    if ramp:
        slope = np.arange(ramp) / ramp
        samples[:ramp] *= slope
        samples[-ramp:] *= slope[::-1]
    return samples.astype(np.float32)


def _pixel_centres(size: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixel centres in units of the shorter side: x of shape (1, w), y of shape (h, 1)."""
    width, height = size
    return (np.arange(width)[None, :] + 0.5) / min(size), (np.arange(height)[:, None] + 0.5) / min(size)


def _centred_square(size: tuple[int, int], side: float) -> Mask:
    x, y = _pixel_centres(size)
    return _frozen(
        (np.abs(x - size[0] / min(size) / 2) <= side / 2) & (np.abs(y - size[1] / min(size) / 2) <= side / 2)
    )


def _frozen(mask: Mask) -> Mask:
    mask = np.ascontiguousarray(mask)
    mask.flags.writeable = False
    return mask
