"""Colours are those that libav's own `scale` filter makes of the same frame, within 4 levels, for every matrix, range
and depth, scaled or not."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from apr_plugin.media import Video
from apr_plugin.media.colour import Converter, full_range, matrix_of

SIZE = (64, 48)
SIZES = [SIZE, (40, 30), (128, 96)]
MATRICES = {"unnamed": 2, "bt709": 1, "fcc": 4, "bt470bg": 5, "smpte170m": 6, "smpte240m": 7, "bt2020nc": 9}
"""x264's names, and libav's numbers."""


def _picture() -> np.ndarray[Any, Any]:
    """Patches of many colours beside gradients; RGB."""
    patches = np.kron(np.random.default_rng(3).integers(0, 256, (6, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    slopes = np.zeros((48, 32, 3), np.uint8)
    slopes[..., 0], slopes[..., 1], slopes[..., 2] = (
        np.linspace(0, 255, 32)[None],
        np.linspace(0, 255, 48)[:, None],
        128,
    )
    return np.concatenate([patches, slopes], axis=1)


def _frame(pixel_format: str, matrix: int, full: int) -> av.VideoFrame:
    # Libswscale reads these formats, but does not write them.
    if pixel_format == "pal8" or pixel_format.startswith("bayer"):
        frame = av.VideoFrame(*SIZE, pixel_format)
        patches = np.kron(np.random.default_rng(3).integers(0, 256, (6, 8)), np.ones((8, 8))).astype(
            f"<u{frame.planes[0].line_size // SIZE[0]}"
        )
        frame.planes[0].update((patches if patches.itemsize == 1 else patches * 257).tobytes())
        if pixel_format == "pal8":
            frame.planes[1].update(np.random.default_rng(4).integers(0, 256, 1024).astype(np.uint8).tobytes())
    else:
        frame = av.VideoFrame.from_ndarray(_picture(), format="rgb24").reformat(format=pixel_format)
    frame.colorspace, frame.color_range = matrix, full
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    return frame


def by_libav(frame: av.VideoFrame, size: tuple[int, int] = SIZE) -> np.ndarray[Any, Any]:
    """RGB of a size by the filters of libav, in one thread, because its slices leave seams in Bayer pictures."""
    graph: Any = av.filter.Graph()
    about = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/25"
    chain = [graph.add("buffer", f"{about}:colorspace={int(frame.colorspace)}:range={int(frame.color_range)}")]
    chain += [
        graph.add("scale", f"{size[0]}:{size[1]}:flags=bilinear:threads=1"),
        graph.add("format", "pix_fmts=rgb24"),
        graph.add("buffersink"),
    ]
    for one, other in itertools.pairwise(chain):
        one.link_to(other)
    graph.configure()
    graph.push(frame)
    return np.asarray(graph.pull().to_ndarray(), np.uint8)


def _furthest(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> int:
    return int(np.abs(one.astype(int) - other).max())


YUV = [
    "yuv420p",
    "yuvj420p",
    "yuvj444p",
    "yuv422p",
    "yuv444p",
    "yuva420p",
    "yuyv422",
    "nv12",
    "nv21",
    "p010le",
    "yuv420p10le",
    "yuv444p12le",
]
RGB = [
    "gbrp",
    "rgb24",
    "bgra",
    "rgb0",
    "rgb565le",
    "gbrp10le",
    "gbrap12le",
    "gbrp16le",
    "gbrpf32le",
    "rgb48le",
    "rgba64be",
    "x2rgb10le",
    "xyz12le",
]
GRAY = [
    "gray",
    "gray9le",
    "gray10le",
    "gray12le",
    "gray14le",
    "gray16le",
    "gray16be",
    "grayf32le",
    "ya8",
    "ya16le",
    "monob",
]


@pytest.mark.parametrize("pixel_format", YUV)
@pytest.mark.parametrize("full", [0, 1, 2])
def test_each_matrix_and_range_as_libav_converts_it(pixel_format: str, full: int) -> None:
    for matrix, size in itertools.product(MATRICES.values(), SIZES):
        frame = _frame(pixel_format, matrix, full)
        assert _furthest(Converter(*size)(frame), by_libav(frame, size)) <= 4, (matrix, size)


@pytest.mark.parametrize("pixel_format", [*RGB, *GRAY, "pal8", "bayer_rggb8", "bayer_bggr16le"])
@pytest.mark.parametrize("full", [0, 1, 2])
def test_rgb_and_gray_are_taken_as_they_are(pixel_format: str, full: int) -> None:
    """This holds whatever matrix the frame names. libav up to 7.1 applies a matrix to RGB that names one, so the
    expected result comes from a frame that names none."""
    for matrix, size in itertools.product((0, *MATRICES.values()), SIZES):
        wanted = by_libav(_frame(pixel_format, 2, 0), size)
        assert _furthest(Converter(*size)(_frame(pixel_format, matrix, full)), wanted) <= 4, (matrix, size)


@pytest.mark.parametrize("pixel_format", ["bgr4", "rgb4"])
def test_a_format_that_libswscale_cannot_read_is_an_error(pixel_format: str) -> None:
    """Up to PyAV 16 it is a crash if source and destination are equal."""
    with pytest.raises(av.FFmpegError):
        Converter(*SIZE)(av.VideoFrame(*SIZE, pixel_format))


FILES = [
    ("ffv1", name)
    for name in ("gray", "gray10le", "gray16le", "ya8", "bgra", "gbrp10le", "gbrp16le", "rgb48le", "yuv420p10le")
]
FILES += [("png", name) for name in ("gray16be", "ya16be", "rgb48be", "rgba")] + [
    ("qtrle", name) for name in ("rgb24", "argb")
]
FILES += [("mjpeg", "yuvj420p"), ("libx264", "gray10le"), ("libx264rgb", "bgr24"), ("rawvideo", "nv12")]


@pytest.mark.parametrize("full", [1, 2])
@pytest.mark.parametrize(("codec", "pixel_format"), FILES)
def test_a_file_of_each_format_as_libav_shows_it(tmp_path: Path, codec: str, pixel_format: str, full: int) -> None:
    path = tmp_path / ("some.mov" if codec in ("png", "qtrle") else "some.mkv")
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = *SIZE, pixel_format
        stream.codec_context.color_range = full
        if codec == "rawvideo":
            stream.codec_context.codec_tag = "NV12"
        for number in range(3):
            frame = _frame(pixel_format, 2, full)
            frame.pts, frame.time_base = number, Fraction(1, 10)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with av.open(str(path)) as container:
        first = next(container.decode(video=0))
        wanted = by_libav(first, (32, 24))
    with Video.open(path, isolation="never") as video:
        image = video.frames([0.0], max_pixels=32 * 24).images[0]
    assert image.shape == (24, 32, 3)
    assert _furthest(image, wanted) <= 4


@pytest.mark.parametrize("matrix", [0, 8, 10, 14, 17])
def test_a_matrix_that_libswscale_does_not_know_is_no_error(matrix: int) -> None:
    image = Converter(*SIZE)(_frame("yuv420p", matrix, 1))
    assert _furthest(image, by_libav(_frame("yuv420p", 9 if matrix == 10 else 5, 1))) <= 4


def test_one_converter_takes_frames_of_many_kinds_in_turn() -> None:
    """The scaler is kept from frame to frame; values of one frame must not stay for the next."""
    convert = Converter(*SIZE)
    kinds = [
        ("yuv420p", 1, 1),
        ("yuv420p", 5, 1),
        ("yuv420p", 5, 2),
        ("yuv420p10le", 9, 1),
        ("yuv420p", 2, 0),
        ("yuv420p", 1, 1),
    ]
    for kind in kinds:
        assert np.array_equal(convert(_frame(*kind)), Converter(*SIZE)(_frame(*kind))), kind


@pytest.mark.parametrize("full", ["off", "on"])
@pytest.mark.parametrize("matrix", [name for name in MATRICES if name != "unnamed"])
def test_a_file_is_shown_in_the_colours_it_names(tmp_path: Path, matrix: str, full: str) -> None:
    colours = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (128, 128, 128), (200, 120, 40))
    kr, kb = {
        "bt709": (0.2126, 0.0722),
        "fcc": (0.3, 0.11),
        "smpte240m": (0.212, 0.087),
        "bt2020nc": (0.2627, 0.0593),
    }.get(matrix, (0.299, 0.114))
    path = tmp_path / "colours.mp4"
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16 * len(colours), 32, "yuv420p"
        stream.options = {
            "crf": "1",
            "preset": "ultrafast",
            "x264-params": f"colormatrix={matrix}:fullrange={full}:log-level=none",
        }
        rows: list[np.ndarray[Any, Any]] = []
        for r, g, b in colours:  # by the equations of the standards
            y = kr * r + (1 - kr - kb) * g + kb * b
            u, v = (b - y) / 2 / (1 - kb), (r - y) / 2 / (1 - kr)
            rows.append(
                np.array(
                    [y, u + 128, v + 128]
                    if full == "on"
                    else [16 + y * 219 / 255, 128 + u * 224 / 255, 128 + v * 224 / 255]
                )
            )
        luma = np.repeat(np.array([row[0] for row in rows]), 16)[None].repeat(32, 0)
        chroma = [
            np.repeat(np.array([row[plane] for row in rows]), 8)[None].repeat(16, 0).reshape(-1, 16 * len(colours))
            for plane in (1, 2)
        ]
        frame = av.VideoFrame.from_ndarray(
            np.clip(np.round(np.concatenate([luma, *chroma])), 0, 255).astype(np.uint8), format="yuv420p"
        )
        for number in range(3):
            frame.pts, frame.time_base = number, Fraction(1, 10)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with av.open(str(path)) as container:
        first = next(container.decode(video=0))
        assert int(first.colorspace) == MATRICES[matrix] and full_range(first) == (full == "on")
        assert matrix_of(first) == {6: 5}.get(MATRICES[matrix], MATRICES[matrix])
    with Video.open(path, isolation="never") as video:
        image = video.frames([0.1]).images[0]
    for place, colour in enumerate(colours):
        assert _furthest(image[16, 16 * place + 8], np.array(colour)) <= 4, (
            matrix,
            full,
            colour,
            image[16, 16 * place + 8],
        )
