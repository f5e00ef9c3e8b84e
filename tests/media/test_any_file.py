"""For any file: the right frames, or a typed error with the path, the stage and libav's words."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from apr_testing import number_of, picture
from films import SIZE, ffmpeg, truth, write_film, write_sound

from apr_plugin.media import MediaDecodeError, MediaError, MediaOpenError, Video

Maker = Callable[..., Path]


def _numbers(path: Path, times_s: list[float], **how: object) -> list[int]:
    with Video.open(path, isolation="never") as video:
        return [number_of(image) for image in video.frames(times_s, **how).images]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "pixel_format", "size"),
    [
        ("gop12", "yuv420p10le", SIZE),
        ("hevc", "yuv420p10le", SIZE),
        ("gop12", "yuv444p", (161, 49)),
        ("gop12", "yuv422p", SIZE),
        ("vp9", "yuv444p", (163, 51)),
        ("gop12", "gray", SIZE),
    ],
)
def test_depths_and_odd_sizes(tmp_path: Path, kind: str, pixel_format: str, size: tuple[int, int]) -> None:
    path = write_film(tmp_path / "odd.mkv", kind, pixel_format=pixel_format, size=size)
    with Video.open(path, isolation="never") as video:
        shown = video.frames([2.0, 0.5, 3.99])
        assert shown.images.shape == (3, size[1], size[0], 3)
        assert [number_of(image) for image in shown.images] == [48, 12, 95]
        assert video.info.pixel_format == pixel_format or kind == "gop12"
        if size[0] % 2:
            assert any("odd side" in warning for warning in video.info.warnings)


def test_hdr_says_so(tmp_path: Path) -> None:
    source, path = write_film(tmp_path / "s.mp4", "hevc", pixel_format="yuv420p10le", frames=48), tmp_path / "hdr.mp4"
    ffmpeg(
        "-i",
        source,
        "-c:v",
        "libx265",
        "-x265-params",
        "log-level=none:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc",
        path,
    )
    with Video.open(path, isolation="never") as video:
        assert any("HDR" in warning for warning in video.info.warnings)
        assert video.frames([1.0]).images.shape == (1, SIZE[1], SIZE[0], 3)


def test_interlaced_says_so(tmp_path: Path) -> None:
    path = write_film(tmp_path / "i.mp4", "interlaced")
    with Video.open(path, isolation="never") as video:
        assert any("interlaced" in warning for warning in video.info.warnings)
    assert _numbers(path, [1.0, 3.0]) == [24, 72]


def test_large_pictures_are_scaled_while_decoding(tmp_path: Path) -> None:
    path = write_film(tmp_path / "4k.mp4", "gop12", size=(3840, 2160), frames=6)
    with Video.open(path, isolation="never") as video:
        assert video.size == (3840, 2160)
        shown = video.frames([0.2], max_pixels=50_000)
        assert shown.images.shape[1] * shown.images.shape[2] <= 50_000
        assert number_of(shown.images[0]) == 4


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_rotated_by_the_container(tmp_path: Path, turn: int) -> None:
    source, path = write_film(tmp_path / "s.mp4", frames=24), tmp_path / "turned.mp4"
    ffmpeg("-i", source, "-c", "copy", "-metadata:s:v:0", f"rotate={turn}", path)
    with Video.open(path, isolation="never") as video:
        image = video.frames([0.5]).images[0]
        assert video.size == (image.shape[1], image.shape[0]) == (SIZE[::-1] if turn != 180 else SIZE)
    assert number_of(np.rot90(image, -turn // 90)) == 12  # ffmpeg itself shows it like this


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi", "webm"])
def test_one_picture(tmp_path: Path, suffix: str) -> None:
    path = write_film(tmp_path / f"one.{suffix}", "vp9" if suffix == "webm" else "gop12", frames=1)
    with Video.open(path, isolation="never") as video:
        shown = video.frames([0.0, video.duration_s / 2, video.duration_s])
        assert [number_of(image) for image in shown.images] == [0, 0, 0] and shown.times_s == (0.0, 0.0, 0.0)


def test_several_tracks_the_containers_default_wins(tmp_path: Path) -> None:
    speech, music, film = (tmp_path / name for name in ("a.mka", "b.mka", "v.mkv"))
    write_sound(speech, "flac", seconds=4.0)
    write_sound(music, "flac", seconds=4.0, rate=44_100)
    write_film(film)
    for chosen in (0, 1):
        path = tmp_path / f"default{chosen}.mkv"
        marks = [f"-disposition:a:{i}" for i in (0, 1)]
        ffmpeg(
            "-i",
            film,
            "-i",
            speech,
            "-i",
            music,
            *["-map", "0", "-map", "1", "-map", "2", "-c", "copy"],
            marks[chosen],
            "default",
            marks[1 - chosen],
            "0",
            path,
        )
        with Video.open(path, isolation="never") as video:
            assert video.info.audio_stream == 1 + chosen and "default" in video.info.audio_why
            assert len(video.audio(1.0, 2.0).samples) == 16_000


def test_several_pictures_and_a_cover(tmp_path: Path) -> None:
    small, large, cover = tmp_path / "small.mp4", tmp_path / "large.mp4", tmp_path / "cover.jpg"
    write_film(small, size=(80, 32), frames=24)
    write_film(large, frames=24)
    ffmpeg("-i", small, "-frames:v", "1", cover)
    path = tmp_path / "two.mkv"
    ffmpeg(
        "-i",
        small,
        "-i",
        large,
        *["-map", "0", "-map", "1", "-c", "copy", "-disposition:v:0", "0", "-disposition:v:1", "default"],
        path,
    )
    with Video.open(path, isolation="never") as video:
        assert video.info.video_stream == 1 and video.size == SIZE and "2" in video.info.video_why
        assert number_of(video.frames([0.5]).images[0]) == 12
    path = tmp_path / "cover.mp4"
    ffmpeg(
        "-i", cover, "-i", large, *["-map", "0", "-map", "1", "-c", "copy", "-disposition:v:0", "attached_pic"], path
    )
    with Video.open(path, isolation="never") as video:
        assert video.size == SIZE and any("cover" in warning for warning in video.info.warnings)
        assert number_of(video.frames([0.5]).images[0]) == 12
    sound, path = write_sound(tmp_path / "s.m4a", "aac", seconds=2.0), tmp_path / "album.m4a"
    ffmpeg(
        "-i",
        sound,
        "-i",
        cover,
        *["-map", "0", "-map", "1", "-c", "copy", "-disposition:v:0", "attached_pic", "-f", "mp4"],
        path,
    )
    with Video.open(path, isolation="never") as video:
        assert not video.has_video and video.has_audio


@pytest.mark.parametrize(("suffix", "container"), [("h264", "h264"), ("hevc", "hevc"), ("m4v", "m4v")])
def test_a_bare_stream_without_times_is_refused_with_a_way_out(tmp_path: Path, suffix: str, container: str) -> None:
    path = write_film(
        tmp_path / f"bare.{suffix}", {"h264": "gop12", "hevc": "hevc", "m4v": "mpeg4"}[container], container=container
    )
    with pytest.raises(MediaOpenError, match="time stamps"):
        Video.open(path)


@pytest.mark.parametrize("factor", [0.5, 4.0])
def test_a_lying_duration(tmp_path: Path, factor: float) -> None:
    path = write_film(tmp_path / "lie.mp4")
    data = bytearray(path.read_bytes())
    for box, at in ((b"mvhd", 16), (b"mdhd", 16), (b"tkhd", 20)):
        place = data.index(box) + 4 + at
        data[place : place + 4] = struct.pack(">I", int(struct.unpack(">I", data[place : place + 4])[0] * factor))
    path.write_bytes(data)
    with Video.open(path, isolation="never") as video:
        for t in (0.0, 1.0, 1.9, 3.9):
            if t <= video.duration_s:
                assert number_of(video.frames([t]).images[0]) == int(t * 24 + 1e-6)
        if video.duration_s > 6:
            with pytest.raises(MediaDecodeError, match="the pictures end before it"):
                video.frames([video.duration_s])


def test_without_a_duration_in_the_header_it_is_measured(tmp_path: Path) -> None:
    source, path = write_film(tmp_path / "s.mp4"), tmp_path / "live.mkv"
    ffmpeg("-i", source, "-c", "copy", "-live", "1", path)
    with Video.open(path, isolation="never") as video:
        assert video.duration_s == pytest.approx(4.0, abs=0.01) and "time stamps" in video.info.duration_from
    assert _numbers(path, [1.0, 3.97]) == [24, 95]


@pytest.mark.parametrize(
    "name", ["gop12.mp4", "open-pyramid.mp4", "closed-pyramid.mp4", "mpeg4-b.mp4", "hevc-open.mp4"]
)
def test_broken_in_the_middle(tmp_path: Path, name: str) -> None:
    """Whole packets are wiped: times that can't be known are listed, and each picture shown is the one that the whole
    file shows at that time."""
    path = write_film(tmp_path / name, name.partition(".")[0], frames=192, size=(320, 96))
    known = truth(path)
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    whole = path.read_bytes()
    for seed in range(4):
        rng = random.Random(f"{name} {seed}")
        data = bytearray(whole)
        first = rng.randrange(40, 100)
        for at, size in places[first : first + rng.choice([1, 2, 9])]:
            data[at : at + size] = bytes(size)
        path.write_bytes(data)
        with Video.open(path, isolation="never") as video:
            missing, wrong = 0, []
            for t in np.linspace(0, 7.9, 80).tolist():
                try:
                    shown = video.frames([t])
                except MediaDecodeError as error:
                    assert str(path) in str(error) and error.stage
                    missing += 1
                    continue
                missing += bool(shown.missing_s)
                number = known.at(shown.times_s[0] + 1e-4)
                if not np.array_equal(shown.images[0], known.images[number]) or (
                    not shown.missing_s and number != known.at(t)
                ):
                    wrong.append((t, shown.times_s[0], number))
            assert not wrong and 0 < missing < 60, (seed, first)
            assert not video.frames([0.5, 7.8]).missing_s
            together = video.frames(np.linspace(0, 7.9, 80).tolist())
            assert together.missing_s


def test_good_and_damaged_times_in_one_look(tmp_path: Path) -> None:
    path = write_film(tmp_path / "hole.mp4", "gop12", frames=120)
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for at, size in places[50:53]:
        data[at : at + size] = bytes(size)
    path.write_bytes(data)
    with Video.open(path, isolation="never") as video:
        look = [1.0, 49.5 / 24, 50.5 / 24, 55.5 / 24, 61.5 / 24]
        shown = video.frames(look)
        assert [number_of(image) for image in shown.images] == [24, 49, 60, 60, 61]
        assert shown.missing_s == (look[2], look[3])
        assert shown.times_s == pytest.approx((1.0, 49 / 24, 60 / 24, 60 / 24, 61 / 24), abs=1e-4)


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv", "cut.ts"])
def test_cut_short(tmp_path: Path, name: str) -> None:
    path = write_film(
        tmp_path / name,
        "closed-pyramid",
        frames=240,
        options={"movflags": "faststart"} if name.endswith("mp4") else None,
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with Video.open(path, isolation="never") as video:
        assert [number_of(image) for image in video.frames([0.5, 3.0, 4.5]).images] == [12, 72, 108]
        if name != "cut.ts":  # MPEG-TS has no header that promises more
            with pytest.raises(MediaDecodeError):
                video.frames([9.5])
            both = video.frames([1.0, 9.5])
            assert both.missing_s == (9.5,) and number_of(both.images[0]) == 24


@pytest.mark.parametrize(
    "name",
    ["with spaces.mp4", "Größe ü 視頻 🎬.mkv", "a'b\"c;$(x).mp4", "100%d.mp4", "-dash.mp4", "name:with:colons.mkv"],
)
def test_names(tmp_path: Path, name: str) -> None:
    path = write_film(tmp_path / name)
    assert _numbers(path, [1.0]) == [24]
    link = tmp_path / "link.mp4"
    link.symlink_to(path)
    assert _numbers(link, [2.0]) == [48]


def test_a_link_to_nothing(tmp_path: Path) -> None:
    link = tmp_path / "link.mp4"
    link.symlink_to(tmp_path / "nowhere.mp4")
    with pytest.raises(MediaOpenError, match="no such file"):
        Video.open(link)


def test_gone_between_two_looks(tmp_path: Path) -> None:
    path = write_film(tmp_path / "gone.mp4")
    with Video.open(path, workers=2) as video:
        assert number_of(video.frames([1.0]).images[0]) == 24
        path.unlink()
        try:
            shown = video.frames([0.5, 2.0, 3.5])
        except MediaError as error:
            assert str(path) in str(error)
        else:
            assert [number_of(image) for image in shown.images] == [12, 48, 84]


@pytest.mark.parametrize("isolation", ["never", "auto"])
def test_replaced_between_two_looks(tmp_path: Path, isolation: str) -> None:
    path, other = write_film(tmp_path / "now.mp4"), write_film(tmp_path / "then.mp4", "gop250", first=3)
    with Video.open(path, isolation=isolation) as video:  # type: ignore[arg-type]
        video.frames([1.0])
        other.replace(path)
        with pytest.raises(MediaError, match="changed"):
            video.frames([1.0, 3.0])


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_not_allowed(tmp_path: Path) -> None:
    path = write_film(tmp_path / "secret.mp4")
    path.chmod(0)
    with pytest.raises(MediaOpenError, match=r"[Pp]ermission"):
        Video.open(path)


@pytest.mark.parametrize("suffix", ["ts", "mkv"])
def test_pictures_that_change_their_size(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"change.{suffix}"
    parts = []
    for index, size in enumerate(((320, 96), (160, 48))):
        part = tmp_path / f"part{index}.ts"
        write_film(part, "gop12", size=size, frames=48, first=48 * index)
        parts.append(part.read_bytes())
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(parts))
    if suffix == "ts":
        path = joined
    else:
        ffmpeg("-copyts", "-i", joined, "-c", "copy", path)
    with Video.open(path, isolation="never") as video:
        shown = video.frames([0.5, 1.5, 2.5, 3.5])
        assert shown.images.shape == (4, 96, 320, 3)
        assert [number_of(image) for image in shown.images] == [12, 36, 12, 36]


def test_a_picture_with_square_numbers() -> None:
    assert number_of(picture(12345)) == 12345
