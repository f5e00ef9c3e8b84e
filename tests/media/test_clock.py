"""Clocks that start again inside a file, and containers whose times libav derives after a seek: every look and every
opening shows the same."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from apr_testing import chirp, number_of, picture
from films import SIZE, lag_ms, write_film
from hypothesis import given
from hypothesis import strategies as st

from apr_plugin.media import Video
from apr_plugin.media.clock import Stamp, offsets, runs_steadily
from apr_plugin.media.index import Cursor, read_index

TURN_S = 2**33 / 90_000
"""Time at which the 33-bit clock of MPEG overflows and starts again from 0."""


def write_piece(
    path: Path, first: int, count: int, clock_s: float = 0.0, codec: str = "libx264", container: str = "mpegts"
) -> bytes:
    """Pictures `first` to `first + count` at 24 per second with their sound, with a clock that begins at `clock_s`."""
    with av.open(
        str(path), "w", format=container, options={"mpegts_copyts": "1"} if container == "mpegts" else {}
    ) as out:
        film: Any = out.add_stream(codec, rate=24)
        film.width, film.height, film.pix_fmt = *SIZE, "yuv420p"
        if codec == "libx264":
            film.options = {
                "crf": "18",
                "preset": "ultrafast",
                "x264-params": "keyint=24:min-keyint=24:scenecut=0:bframes=3:b-adapt=0:log-level=none",
            }
        else:
            film.bit_rate, film.codec_context.gop_size, film.codec_context.max_b_frames = 4_000_000, 15, 2
        sound: Any = out.add_stream("mp2", rate=48_000, layout="mono")
        sound.bit_rate = 192_000
        packets = []
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(first + number, *SIZE), format="rgb24").reformat(
                format="yuv420p"
            )
            frame.pts, frame.time_base = number + round(clock_s * 24), Fraction(1, 24)
            packets += film.encode(frame)
        packets += film.encode(None)
        samples = (chirp(first / 24 + np.arange(count * 2000) / 48_000) * 32_000).astype(np.int16)
        for at in range(0, len(samples), 1152):
            block = av.AudioFrame.from_ndarray(samples[None, at : at + 1152], format="s16", layout="mono")
            block.sample_rate, block.pts, block.time_base = 48_000, at + round(clock_s * 24) * 2000, Fraction(1, 48_000)
            packets += sound.encode(block)
        packets += sound.encode(None)
        packets.sort(key=lambda packet: float((packet.dts or 0) * packet.time_base))
        out.mux(packets)
    return path.read_bytes()


def join(path: Path, *pieces: tuple[int, int, float], **how: str) -> Path:
    """Write pieces one after the other, in the way that recordings and downloaded segments are joined."""
    data = b"".join(write_piece(path.with_suffix(f".{number}"), *piece, **how) for number, piece in enumerate(pieces))
    path.write_bytes(data)
    return path


JOINED: dict[str, tuple[tuple[int, int, float], ...]] = {
    "starts again": ((0, 72, 0.0), (72, 72, 0.0)),
    "goes back a little": ((0, 72, 20.0), (72, 72, 21.0)),
    "many short pieces": tuple((24 * i, 24, 0.0) for i in range(6)),
    "jumps far ahead and back": ((0, 48, 5.0), (48, 48, 900.0), (96, 48, 60.0)),
    "turns over": ((0, 144, TURN_S - 3.0),),
    "turns over, then starts again": ((0, 72, TURN_S - 1.0), (72, 72, 0.0)),
}


@pytest.mark.parametrize("name", JOINED)
def test_pieces_follow_each_other_on_one_timeline(tmp_path: Path, name: str) -> None:
    path = join(tmp_path / "joined.ts", *JOINED[name])
    with Video.open(path, workers=2, isolation="never") as video:
        assert video.duration_s == pytest.approx(6.0, abs=0.05)
        assert any("clock starts again" in warning for warning in video.info.warnings) == (len(JOINED[name]) > 1)
        numbers = list(range(0, 143, 5)) + [
            number for piece in JOINED[name] for number in (piece[0], piece[0] + piece[1] - 2) if number < 143
        ]
        times = [(number + 0.5) / 24 for number in numbers]
        together = video.frames(times)
        assert not together.missing_s and [number_of(image) for image in together.images] == numbers
        for number, t in list(zip(numbers, times, strict=True))[::3]:
            assert number_of(video.frames([t]).images[0]) == number
        for start in (0.4, 2.2, 4.7):
            assert abs(lag_ms(video.audio(start, start + 0.6).samples, start)) <= 30, start


@pytest.mark.parametrize(("container", "codec"), [("vob", "mpeg2video"), ("mpeg", "mpeg1video")])
def test_pieces_of_a_program_stream(tmp_path: Path, container: str, codec: str) -> None:
    path = join(tmp_path / "joined.mpg", (0, 72, 0.0), (72, 72, 0.0), codec=codec, container=container)
    with Video.open(path, isolation="never") as video:
        numbers = list(range(0, 140, 3))
        assert [number_of(video.frames([(number + 0.5) / 24]).images[0]) for number in numbers] == numbers
        assert abs(lag_ms(video.audio(4.0, 5.0).samples, 4.0)) <= 30


_LOOK = """
import sys
from apr_testing import number_of
from apr_plugin.media import Video
times = [float(t) for t in sys.argv[2:]]
with Video.open(sys.argv[1], isolation="never") as video:
    alone = [number_of(video.frames([t]).images[0]) for t in times]
    print(alone, [number_of(i) for i in video.frames(times).images], video.info)
"""


def test_every_opening_shows_the_same(tmp_path: Path) -> None:
    path = join(tmp_path / "joined.ts", (0, 72, 0.0), (72, 72, 0.0))
    times = [f"{(number + 0.5) / 24}" for number in (12, 60, 71, 72, 90, 140)]
    command = [sys.executable, "-c", _LOOK, str(path), *times]
    shown = {
        subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60, cwd=Path(__file__).parents[1]
        ).stdout
        for _ in range(2)
    }
    assert len(shown) == 1 and next(iter(shown)).startswith("[12, 60, 71, 72, 90, 140] [12, 60, 71, 72, 90, 140]")


GUESSED: dict[str, Callable[[Path], Path]] = {
    "mpeg1.mpg": lambda path: write_film(path, "mpeg1-b", frames=96, container="mpeg"),
    "mpeg2.vob": lambda path: write_film(path, "mpeg2-b", frames=96, container="vob"),
    "h264.vob": lambda path: write_film(path, "closed-pyramid", frames=96, container="vob"),
    "h264.asf": lambda path: write_film(path, "closed-pyramid", frames=96, container="asf"),
    "mpeg4.asf": lambda path: write_film(path, "mpeg4-b", frames=96, container="asf"),
    "h264.mxf": lambda path: write_film(path, "closed-pyramid", frames=96, container="mxf"),
}


@pytest.mark.parametrize("name", GUESSED)
def test_containers_whose_times_are_made_up_after_a_seek(tmp_path: Path, name: str) -> None:
    """Picture n is at (n + 0.5) / 24; each is read in its own look, and all in one look."""
    with Video.open(GUESSED[name](tmp_path / name), workers=2, isolation="never") as video:
        assert video.duration_s == pytest.approx(4.0, abs=0.01)
        numbers = [*range(94, 0, -7), *range(0, 95, 4)]
        assert [number_of(video.frames([(number + 0.5) / 24]).images[0]) for number in numbers] == numbers
        shown = video.frames([(number + 0.5) / 24 for number in numbers])
        assert [number_of(image) for image in shown.images] == numbers and not shown.missing_s
        assert shown.times_s == pytest.approx([number / 24 for number in numbers], abs=2e-3)


def test_where_seeking_leads_astray_the_file_is_read_from_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_film(tmp_path / "film.mpg", "mpeg1-b", frames=96, container="mpeg")
    go = Cursor._go
    monkeypatch.setattr(Cursor, "_go", lambda self, aim, back_s: go(self, aim // 2, back_s))  # always the wrong place
    with Video.open(path, isolation="never") as video:
        assert [number_of(video.frames([(number + 0.5) / 24]).images[0]) for number in (80, 10, 50)] == [80, 10, 50]


def test_the_index_is_the_same_after_a_seek_to_any_keyframe(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mpg", "mpeg1-b", frames=96, container="mpeg")
    with av.open(str(path)) as container:
        track = read_index(str(path), container, [container.streams.video[0]]).tracks[0]
    with av.open(str(path)) as container:
        cursor = Cursor(container, container.streams.video[0], track)
        for number in reversed(track.keys.tolist()):
            times = [packet.pts for packet in cursor.packets_from(number)]
            assert times == track.times[number:].tolist()


def test_a_steady_transport_stream_need_not_be_read_through(tmp_path: Path) -> None:
    write_piece(tmp_path / "steady.ts", 0, 96, 3.0)
    assert runs_steadily(str(tmp_path / "steady.ts"), 256)
    assert not runs_steadily(str(tmp_path / "steady.ts"), 300)  # the stream has no packets
    assert not runs_steadily(str(write_film(tmp_path / "film.mp4")), 256)
    assert not runs_steadily(str(join(tmp_path / "joined.ts", (0, 48, 0.0), (48, 48, 0.0))), 256)
    write_film(tmp_path / "plain.m2ts", options={"mpegts_m2ts_mode": "1"}, container="mpegts")
    assert runs_steadily(str(tmp_path / "plain.m2ts"), 0x1011) or runs_steadily(str(tmp_path / "plain.m2ts"), 256)


def _stamps(pieces: list[tuple[float, int]]) -> list[Stamp]:
    return [Stamp(0, start + number / 25, 1 / 25) for start, count in pieces for number in range(count)]


@given(st.lists(st.tuples(st.floats(0, 90_000), st.integers(6, 40)), min_size=1, max_size=6))
def test_time_never_goes_back_and_no_piece_is_stretched(pieces: list[tuple[float, int]]) -> None:
    stamps = _stamps(pieces)
    added, jumps = offsets(stamps, 0)
    times = [stamp.dts_s + more for stamp, more in zip(stamps, added, strict=True)]
    assert all(later - earlier > 0 for earlier, later in itertools.pairwise(times))
    assert all(later - earlier <= 10.041 for earlier, later in itertools.pairwise(times))
    assert len(jumps) < len(pieces)
    at = 0
    for _, count in pieces:
        assert times[at + count - 1] - times[at] == pytest.approx((count - 1) / 25, abs=1e-3)
        at += count


@given(
    st.integers(5, 60),
    st.one_of(st.floats(-1e5, 1e5), st.floats(95, 115)).filter(lambda wrong_s: not 100 < wrong_s < 103.2),
)
def test_one_wrong_stamp_moves_nothing_else(place: int, wrong_s: float) -> None:
    stamps = _stamps([(100.0, 80)])
    stamps[place] = Stamp(0, wrong_s, 1 / 25)
    added, jumps = offsets(stamps, 0)
    assert not jumps
    assert [more for number, more in enumerate(added) if number != place] == [0.0] * 79
