"""How a decoded picture is turned and mirrored before it is shown: the display matrix of the file.

There are eight ways to turn and mirror a picture by quarter turns, and these are done exactly. A matrix may ask for any
angle; another angle is rounded to the nearest of these, and a warning says so.
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

_STRAIGHT_DEGREES = 1.0  # an angle within this of a quarter turn counts as one (ffmpeg's rule)


@dataclass(frozen=True)
class Orientation:
    """A rotation, then a reflection."""

    turns: int = 0
    """Quarter turns counter-clockwise, 0 to 3."""
    mirrored: bool = False
    """Whether the picture is mirrored left to right after the rotation."""
    off_degrees: float = 0.0
    """The rest of the rotation that the file asks for, in degrees counter-clockwise; it is not done."""

    @property
    def sideways(self) -> bool:
        """Whether width and height are swapped."""
        return self.turns % 2 == 1

    @property
    def warning(self) -> str | None:
        """What is done about it, in a sentence; `None` if the picture is shown as coded."""
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
        """The picture as shown; shape (height, width, 3) becomes (width, height, 3) if it is sideways."""
        if not self.turns and not self.mirrored:
            return image
        turned = np.rot90(image, self.turns)
        return np.ascontiguousarray(turned[:, ::-1] if self.mirrored else turned)


def orientation_of(frame: VideoFrame) -> Orientation:
    """The orientation in the display matrix of a frame; upright if there is no matrix, or an invalid one."""
    parts: Any = frame.side_data
    part = parts.get(Type.DISPLAYMATRIX)
    data = bytes(part) if part is not None else b""
    return from_matrix(struct.unpack("=9i", data)) if len(data) == 36 else Orientation()


def from_matrix(matrix: tuple[int, ...]) -> Orientation:
    """The orientation that a display matrix asks for.

    Args:
        matrix: Nine numbers in libav's order: a point (x, y) of the coded picture, y downward, is shown at (x * m[0] +
            y * m[3], x * m[1] + y * m[4]), moved back into view.
    """
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    mirrored = a * d - b * c < 0
    if mirrored:  # remove the reflection at the end, so that only a rotation is left
        a, c = -a, -c
    if math.hypot(a + d, b - c) == 0:
        return Orientation()
    degrees = math.degrees(math.atan2(c - b, a + d))  # angle of the nearest rotation, whatever the matrix stretches
    turns = round(degrees / 90)
    return Orientation(turns % 4, mirrored, degrees - turns * 90)
