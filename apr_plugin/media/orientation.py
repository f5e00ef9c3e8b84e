"""How a decoded picture is turned and mirrored before it is shown: the display matrix of the file, one of eight ways to lay a picture down.

A matrix may ask for any angle. Quarter turns and mirrors are done exactly; another angle is rounded to the nearest of
those, and said.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from numpy.typing import NDArray

_STRAIGHT_DEGREES = 1.0  # an angle no further than this from a quarter turn is one (ffmpeg's rule)


@dataclass(frozen=True)
class Orientation:
    """Turn first, then mirror."""

    turns: int = 0
    """Quarter turns counter-clockwise, 0 to 3."""
    mirrored: bool = False
    """Whether left and right change places after that."""
    off_degrees: float = 0.0
    """What the file asks for beyond that, in degrees counter-clockwise: not done."""

    @property
    def sideways(self) -> bool:
        """Whether width and height change places."""
        return self.turns % 2 == 1

    @property
    def warning(self) -> str | None:
        """What is done about it, in a sentence; `None` where the picture is shown as coded."""
        if self.mirrored and self.turns == 2:
            done = ["mirrored top to bottom"]
        else:
            done = [f"turned by {self.turns * 90} degrees counter-clockwise"] if self.turns else []
            done += ["mirrored left to right"] if self.mirrored else []
        text = " and ".join(done)
        if abs(self.off_degrees) > _STRAIGHT_DEGREES:
            rest = f"the file asks for {self.off_degrees:+.1f} degrees more (counter-clockwise), which is not done"
            return f"frames are {text}; {rest}" if done else f"frames are shown as coded; {rest}"
        return f"frames are {text}, as the file asks" if done else None

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The picture as shown; shape (height, width, 3) becomes (width, height, 3) where it lies sideways."""
        if not self.turns and not self.mirrored:
            return image
        turned = np.rot90(image, self.turns)
        return np.ascontiguousarray(turned[:, ::-1] if self.mirrored else turned)


def orientation_of(frame: VideoFrame) -> Orientation:
    """What the display matrix of a frame asks for; upright where it has none, or one that makes no sense."""
    parts: Any = frame.side_data
    part = parts.get(Type.DISPLAYMATRIX)
    data = bytes(part) if part is not None else b""
    return from_matrix(struct.unpack("=9i", data)) if len(data) == 36 else Orientation()


def from_matrix(matrix: tuple[int, ...]) -> Orientation:
    """What a display matrix asks for.

    Args:
        matrix: Nine numbers as libav keeps them: a point (x, y) of the coded picture, y downward, is shown at
            (x * m[0] + y * m[3], x * m[1] + y * m[4]), moved back into view.
    """
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    mirrored = a * d - b * c < 0
    if mirrored:  # take the mirror off the end: what is left only turns
        a, c = -a, -c
    if math.hypot(a + d, b - c) == 0:
        return Orientation()
    degrees = math.degrees(math.atan2(c - b, a + d))  # of the turn nearest to it, whatever it stretches
    turns = round(degrees / 90)
    return Orientation(turns % 4, mirrored, degrees - turns * 90)
