"""The display matrix: all eight orientations of a picture, every path that shows one, and the warning about other
angles."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from films import write_film
from hypothesis import given
from hypothesis import strategies as st

from apr_plugin.media import Video
from apr_plugin.media.orientation import Orientation, from_matrix

EIGHT = {
    "upright": (1, 0, 0, 1), "left-right": (-1, 0, 0, 1), "top-bottom": (1, 0, 0, -1), "half": (-1, 0, 0, -1),
    "clockwise": (0, 1, -1, 0), "counter": (0, -1, 1, 0), "transposed": (0, 1, 1, 0), "anti-transposed": (0, -1, -1, 0),
}  # fmt: skip


def _with_matrix(path: Path, a: float, b: float, c: float, d: float) -> Path:
    data = bytearray(write_film(path, frames=12).read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix begins after 40 bytes of the box
    data[at : at + 36] = struct.pack(
        ">9i", *(round(v * 65536) for v in (a, b)), 0, *(round(v * 65536) for v in (c, d)), 0, 0, 0, 1 << 30
    )
    path.write_bytes(data)
    return path


def _moved(image: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """Move each pixel to the place that the matrix gives."""
    height, width = image.shape[:2]
    y, x = np.mgrid[0:height, 0:width]
    to_x, to_y = a * x + c * y, b * x + d * y
    shown = np.empty((int(np.ptp(to_y)) + 1, int(np.ptp(to_x)) + 1, 3), np.uint8)
    shown[to_y - to_y.min(), to_x - to_x.min()] = image
    return shown


@pytest.mark.parametrize("name", EIGHT)
def test_every_way_to_lay_a_picture_down(tmp_path: Path, name: str) -> None:
    with Video.open(_with_matrix(tmp_path / "plain.mp4", 1, 0, 0, 1), isolation="never") as video:
        coded = video.frames([0.2]).images[0]
        assert not any("turned" in warning or "mirrored" in warning for warning in video.info.warnings)
    path = _with_matrix(tmp_path / "laid.mp4", *EIGHT[name])
    wanted = _moved(coded, *EIGHT[name])
    with Video.open(path, isolation="never") as video:
        assert video.size == (wanted.shape[1], wanted.shape[0])
        assert np.array_equal(video.frames([0.2]).images[0], wanted)
        assert np.array_equal(video.clip(0.2, 0.3, 24).frames.images[0], wanted)
        small = video.frames([0.2], max_pixels=2000).images[0]
        assert (small.shape[0] > small.shape[1]) == (wanted.shape[0] > wanted.shape[1])
        said = [warning for warning in video.info.warnings if "frames are" in warning]
        assert len(said) == (name != "upright") and all("upright" not in warning for warning in said)


@pytest.mark.parametrize("name", ["transposed"])
def test_a_worker_process_shows_the_same(tmp_path: Path, name: str) -> None:
    path = _with_matrix(tmp_path / "laid.mp4", *EIGHT[name])
    with Video.open(path, isolation="never") as here, Video.open(path, isolation="always") as there:
        assert here.info == there.info and there.info.mirrored
        assert np.array_equal(here.frames([0.2]).images, there.frames([0.2]).images)


def test_another_angle_is_rounded_and_said(tmp_path: Path) -> None:
    angle = math.radians(100)
    path = _with_matrix(tmp_path / "askew.mp4", math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle))
    with Video.open(path, isolation="never") as video:
        assert video.info.rotation == 270 and video.frames([0.2]).images.shape[1:3] == (160, 48)
        assert any(
            "turned by 270 degrees" in warning and "-10.0 degrees more" in warning for warning in video.info.warnings
        )


@given(st.sampled_from(sorted(EIGHT)), st.floats(-40, 40), st.floats(0.1, 8))
def test_the_nearest_of_the_eight_is_taken_whatever_the_scale(name: str, off_degrees: float, scale: float) -> None:
    a, b, c, d = EIGHT[name]
    exact = from_matrix((a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30))
    turn = math.radians(off_degrees)
    first = [scale * 65536 * (math.cos(turn) * x + math.sin(turn) * y) for x, y in ((a, b), (c, d))]
    second = [scale * 65536 * (-math.sin(turn) * x + math.cos(turn) * y) for x, y in ((a, b), (c, d))]
    near = from_matrix((round(first[0]), round(second[0]), 0, round(first[1]), round(second[1]), 0, 0, 0, 1 << 30))
    assert (near.turns, near.mirrored) == (exact.turns, exact.mirrored)
    assert abs(abs(near.off_degrees) - abs(off_degrees)) < 0.1


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=9, max_size=9))
def test_a_matrix_of_nonsense_is_some_orientation(numbers: list[int]) -> None:
    found = from_matrix(tuple(numbers))
    assert 0 <= found.turns <= 3 and abs(found.off_degrees) <= 45.001
    assert from_matrix((0,) * 9) == Orientation()
