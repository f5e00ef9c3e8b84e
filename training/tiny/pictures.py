"""Frames of the needle world as a small model reads them, without files: drawn once, disturbed anew.

A frame is drawn in the size of a made video, goes through the colour format of its file (YUV 4:2:0), and is scaled
down as the reader of videos does. Its patches come from the student's own image processor, once for each label; what
is added to them differs from row to row.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_plugin.models.prompt import Encoded
from apr_plugin.tasks.needle.palette import ALL_GLYPHS, BACKGROUNDS, PATTERNS, draw_frame
from apr_plugin.training.student import Student
from apr_plugin.training.tiny.model import EDGE
from apr_plugin.training.tiny.worlds import Label

DRAWN = (224, 224)
"""Size of a made video's frames in pixels."""

NOISE = 0.03
"""Default disturbance (`Eyes`). Frames of real files differ from drawn ones by less than 0.005 on average."""

SHARED = 64
"""Rows with neighbouring numbers see the same disturbance of a label, so that a forward sees an equal picture once."""

LABELS: tuple[Label, ...] = tuple(
    (background, pattern, glyph) for background in BACKGROUNDS for pattern in PATTERNS for glyph in (None, *ALL_GLYPHS)
)
"""Everything that a frame can show."""


@lru_cache(maxsize=len(LABELS))
def picture(label: Label) -> NDArray[np.uint8]:
    """A frame, shape (EDGE, EDGE, 3)."""
    import av

    drawn = av.VideoFrame.from_ndarray(draw_frame(*label, DRAWN), format="rgb24").reformat(format="yuv420p")
    scaled = np.asarray(drawn.reformat(width=EDGE, height=EDGE, format="rgb24").to_ndarray(), np.uint8)
    scaled.flags.writeable = False
    return scaled


def name_of(label: Label) -> str:
    """A label in words: `red striped green circle`."""
    background, pattern, glyph = label
    return f"{background} {pattern}" + (f" {glyph.name}" if glyph is not None else "")


def held_out(label: Label) -> bool:
    """Whether a label is one of the tenth that captions are never trained on, only measured."""
    return zlib.crc32(name_of(label).encode()) % 10 == 0


class Eyes:
    """Gives the patches of labels, disturbed.

    Args:
        student: Its image processor makes the patches.
        seed: Of what is added.
        noise: Standard deviation of each value, where black is -1 and white 1; brightness and contrast vary by half of
            it and two thirds of it.
    """

    def __init__(self, student: Student, seed: int, noise: float = NOISE) -> None:
        self._student = student
        self._seed = seed
        self._noise = noise
        self._plain: dict[Label, NDArray[np.float32]] = {}
        self._grid: Any = None
        self._disturbed = lru_cache(maxsize=4096)(self._made)

    def fill(self, encoded: Encoded, labels: Sequence[Label], row: int, *, alone: bool = False) -> Encoded:
        """Put patches into the pictures of a prompt that was laid out.

        Args:
            encoded: The prompt (`PromptEncoder.lay_out`); all of its media are pictures.
            labels: What each shows.
            row: The number of the row.
            alone: Whether no other row sees the same disturbance.
        """
        encoded.keys = encoded.ids.copy()
        variant = -1 - row if alone else row // SHARED
        for medium, label in zip(encoded.media, labels, strict=True):
            medium.pixels, medium.key = self._made(label, variant) if alone else self._disturbed(label, variant)
            medium.grid = self._grid
            encoded.keys[medium.start] = medium.key
        return encoded

    def _made(self, label: Label, variant: int) -> tuple[Any, int]:
        import torch

        patches = self._patches(label)
        place = _PLACES[label]
        draw = np.random.default_rng((self._seed, abs(variant), int(variant < 0), place))
        contrast, bright = draw.standard_normal(2, dtype=np.float32) * np.float32(self._noise)
        # Both pictures of a token of two frames are the same one.
        shape = (len(patches), 3, 1, patches.shape[1] // 6)
        added = draw.standard_normal(shape, dtype=np.float32) * np.float32(self._noise)
        values = patches.reshape(len(patches), 3, 2, -1) * (1 + contrast * 2 / 3) + (bright / 2 + added)
        return torch.from_numpy(values.reshape(patches.shape)), -1 - (abs(variant) * 2 + (variant < 0)) * 4096 - place

    def _patches(self, label: Label) -> NDArray[np.float32]:
        if label not in self._plain:
            encoder = self._student.encoder
            made = encoder.processor.image_processor(
                images=[picture(label).copy()],
                size={"shortest_edge": EDGE * EDGE, "longest_edge": EDGE * EDGE},
                input_data_format="channels_last",
                return_tensors="pt",
            )
            self._plain[label] = made["pixel_values"].numpy()
            self._grid = made["image_grid_thw"][0]
        return self._plain[label]


_PLACES = {label: place for place, label in enumerate(LABELS)}
