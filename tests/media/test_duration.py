"""How long a film lasts: as long as there are pictures, whatever one field of the file says. Sound may be longer, and
can be heard."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from apr_testing import number_of
from films import lag_ms, write_film, write_sound

from apr_plugin.media import MediaDecodeError, Video, WindowError
from apr_plugin.media.duration import is_cut_short


def _tagged(path: Path, says: str) -> Path:
    """A Matroska file with another length in the tag of its track."""
    data = write_film(path).read_bytes()
    assert data.count(b"00:00:04.000000000") == 1
    path.write_bytes(data.replace(b"00:00:04.000000000", says.encode()))
    return path


@pytest.mark.parametrize(
    "says",
    ["00:10:00.000000000", "00:00:02.000000000", "00:00:05.500000000", "00:00:03.900000000", "99:00:00.000000000"],
)
def test_a_stale_tag_is_not_believed(tmp_path: Path, says: str) -> None:
    with Video.open(_tagged(tmp_path / "stale.mkv", says), isolation="never") as video:
        assert video.duration_s == pytest.approx(4.0, abs=0.002)
        assert [number_of(image) for image in video.frames([0.0, video.duration_s / 2, video.duration_s]).images] == [
            0,
            48,
            95,
        ]
        assert any("DURATION tag says" in warning for warning in video.info.warnings)
        with pytest.raises(WindowError, match=r"lasts 4\.000s"):
            video.frames([4.5])


def test_a_tag_that_is_right_is_kept(tmp_path: Path) -> None:
    with Video.open(write_film(tmp_path / "right.mkv"), isolation="never") as video:
        assert video.duration_s == 4.0 and video.info.duration_from == "DURATION tag" and not video.info.warnings


@pytest.mark.parametrize("factor", [0.25, 0.5, 0.9, 2.0, 4.0])
def test_headers_that_all_lie(tmp_path: Path, factor: float) -> None:
    path = write_film(tmp_path / "lie.mp4")
    data = bytearray(path.read_bytes())
    for box, at in ((b"mvhd", 16), (b"mdhd", 16), (b"tkhd", 20)):
        place = data.index(box) + 4 + at
        data[place : place + 4] = struct.pack(">I", int(struct.unpack(">I", data[place : place + 4])[0] * factor))
    path.write_bytes(data)
    with Video.open(path, isolation="never") as video:
        assert video.duration_s == pytest.approx(4.0, abs=0.002)
        assert [number_of(image) for image in video.frames([1.0, 3.99]).images] == [24, 95]


@pytest.mark.parametrize(
    ("name", "codec"), [("long.flv", "aac"), ("long.mkv", "flac"), ("long.mp4", "aac"), ("long.ts", "mp2")]
)
def test_sound_that_outlasts_the_pictures_is_heard_to_its_end(tmp_path: Path, name: str, codec: str) -> None:
    path = write_sound(tmp_path / name, codec, seconds=14.0, picture_from_s=0.0, picture_s=4.0)
    with Video.open(path, isolation="never") as video:
        assert video.duration_s == pytest.approx(4.0, abs=0.21) and video.info.sound_s == pytest.approx(14.0, abs=0.1)
        assert any("the pictures end at 4" in warning for warning in video.info.warnings)
        assert number_of(video.frames([3.95]).images[0]) == 39
        with pytest.raises(WindowError, match=r"whose pictures end at 4\.\d+s and whose sound ends at 1[34]\.\d+s"):
            video.frames([10.0])
        with pytest.raises(WindowError):
            video.clip(8.0, 10.0, 1.0)
        heard = video.audio(11.0, 12.5)
        assert heard.padded_s == 0.0 and abs(lag_ms(heard.samples, 11.0)) <= 30
        with pytest.raises(WindowError):
            video.audio(13.0, 15.0)


def test_sound_that_outlasts_the_pictures_in_a_worker_process(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "long.flv", "aac", seconds=14.0, picture_from_s=0.0, picture_s=4.0)
    with Video.open(path, isolation="always") as video:
        assert video.duration_s == pytest.approx(4.0, abs=0.1) and video.audio(11.0, 12.5).padded_s == 0.0
        with pytest.raises(WindowError):
            video.frames([10.0])


@pytest.mark.parametrize("seconds", [60.0])
def test_pictures_that_end_long_before_the_sound_are_found(tmp_path: Path, seconds: float) -> None:
    path = write_sound(tmp_path / "radio.mkv", "flac", seconds=seconds, rate=16_000, picture_from_s=0.0, picture_s=2.0)
    with Video.open(path, isolation="never") as video:
        assert video.duration_s == pytest.approx(2.0, abs=0.01) and video.info.sound_s == pytest.approx(
            seconds, abs=0.01
        )


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv", "cut.flv"])
def test_a_file_cut_short_keeps_the_length_it_promised(tmp_path: Path, name: str) -> None:
    """The rest is missing, not over: a question about it must not be answered as if the rest had never existed."""
    path = write_film(
        tmp_path / name, "gop12", frames=240, options={"movflags": "faststart"} if name.endswith("mp4") else None
    )
    assert not is_cut_short(str(path))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    assert is_cut_short(str(path))
    with Video.open(path, isolation="never") as video:
        assert video.duration_s == pytest.approx(10.0, abs=0.1)
        assert number_of(video.frames([3.0]).images[0]) == 72
        with pytest.raises(MediaDecodeError):
            video.frames([9.5])
        if name != "cut.mp4":  # its index lists pictures that are missing
            assert any("cut short" in warning for warning in video.info.warnings)


@pytest.mark.parametrize(
    "name", ["whole.mp4", "whole.mov", "whole.mkv", "whole.webm", "whole.avi", "whole.flv", "whole.ts"]
)
def test_a_whole_file_is_not_taken_for_a_cut_one(tmp_path: Path, name: str) -> None:
    assert not is_cut_short(str(write_film(tmp_path / name, "vp8" if name.endswith("webm") else "gop12", frames=24)))


@pytest.mark.parametrize(
    "head",
    [
        b"\0",
        b"\x1aE\xdf\xa3",
        b"\x1aE\xdf\xa3\xff",
        b"\0\0\0\x08ftyp",
        b"RIFF",
        b"FLV",
        b"\0\0\0\x01ftyp\xff\xff\xff\xff\xff\xff\xff\xff",
    ],
)
def test_any_head_is_whole_or_cut_and_no_error(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "head"
    path.write_bytes(head)
    assert is_cut_short(str(path)) in (True, False)


def test_a_file_of_endless_small_boxes_is_left_alone(tmp_path: Path) -> None:
    """Two million boxes of 8 bytes: reading them all would take minutes for a file of some gigabytes."""
    path = tmp_path / "boxes.mp4"
    path.write_bytes(b"\0\0\0\x08free" * 2_000_000 + b"\0\0\0\xffmdat")
    assert not is_cut_short(str(path))
    path.write_bytes(b"\0\0\0\x08free" * 200 + b"\0\0\0\xffmdat")
    assert is_cut_short(str(path))
