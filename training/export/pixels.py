"""Pictures as the student's processor scales them, before it normalises them.

A trainer that is given these pixels has nothing left to scale, so that it reads the values that the student reads here.
Otherwise it would scale with other code (`PIL` in ms-swift) and to other limits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_plugin.loop.policy import ImagePart, VideoPart
from apr_plugin.models.compat import whole_frames
from apr_plugin.models.prompt import in_groups
from apr_plugin.training.student import Student


def scaled_picture(student: Student, part: ImagePart) -> NDArray[np.uint8]:
    """A picture in the size in which the student reads it, shape (height, width, 3).

    Raises:
        ValueError: one side is more than 200 times the other.
    """
    height, width = part.image.shape[:2]
    if student.family.size(height, width, student.pixels) == (height, width):
        return part.image
    made = student.encoder.processor.image_processor(
        images=[part.image], size=_limits(student), input_data_format="channels_last", **_RAW
    )
    picture: NDArray[np.uint8] = _laid_out(made["pixel_values"], made["image_grid_thw"][0], student)[0]
    return picture


def scaled_clip(student: Student, part: VideoPart) -> NDArray[np.uint8]:
    """The frames of a clip in the size in which the student reads them, shape (n, height, width, 3).

    They fill whole groups (pairs): the last one is repeated where one is missing, as the processors do.

    Raises:
        ValueError: one side is more than 200 times the other.
    """
    frames, _ = in_groups(part, student.family.frames)
    height, width = frames.shape[1:3]
    if student.family.frame_size(height, width, student.pixels) == (height, width):
        return frames
    processor = student.encoder.processor.video_processor
    size = _limits(student, len(frames) if student.family.clip == "timed" else 1)
    made = processor(
        videos=[frames],
        size=size,
        do_sample_frames=False,
        input_data_format="channels_last",
        **whole_frames(processor),
        **_RAW,
    )
    return _laid_out(made["pixel_values_videos"], made["video_grid_thw"][0], student)


_RAW: dict[str, Any] = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
"""Leaves the values of pixels whole numbers from 0 to 255."""


def _limits(student: Student, frames: int = 1) -> dict[str, int]:
    side = student.family.factor
    return {
        "shortest_edge": (student.pixels.least or side * side) * frames,
        "longest_edge": (student.pixels.most or 1 << 40) * frames,
    }


def _laid_out(patches: Any, grid: Any, student: Student) -> NDArray[np.uint8]:
    """Frames, shape (n, height, width, 3), from the patches that a processor makes of them, shape (patches, values).

    The order of patches and of the values in one is that of Qwen2VLImageProcessor and the video processors: blocks of
    `merge` by `merge` patches, and in a patch channel, frame of the pair, row, column. A picture is a pair of equal
    frames.
    """
    groups, rows, columns = (int(number) for number in grid)
    patch, merge, together = student.family.patch, student.family.merge, student.family.frames
    shape = (groups, rows // merge, columns // merge, merge, merge, 3, together, patch, patch)
    frames = patches.reshape(shape).permute(0, 6, 1, 3, 7, 2, 4, 8, 5)
    values: NDArray[np.uint8] = frames.reshape(groups * together, rows * patch, columns * patch, 3).numpy()
    return values.astype(np.uint8)
