"""The error for a file that is not a film says what it is; a file that only looks unusual is read."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from apr_testing import number_of, picture
from films import SIZE, write_film
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from apr_plugin.media import MediaOpenError, Video, kinds

LFS = (
    b"version https://git-lfs.github.com/spec/v1\noid "
    b"sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def _reason(path: Path) -> str:
    with pytest.raises(MediaOpenError) as caught:
        Video.open(path)
    return caught.value.reason


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.txt", "x" * 100)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (LFS, "Git LFS"),
        (b"../../.git/annex/objects/Xk/7p/SHA256E-s1--2/SHA256E-s1--2.mp4", "git-annex"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"\xef\xbb\xbf\n <HTML><head></head></HTML>", "web page"),
        (b"<!-- a -->\n<html></html>", "web page"),
        ("<html>é</html>".encode("utf-16"), "web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
        (b"<Error><Code>NoSuchKey</Code></Error>", "XML"),
        (b'{"error": {"message": "not found"}}', "JSON"),
        (b"WEBVTT\n\n00:00.000 --> 00:01.000\nhello\n", "subtitles"),
        (b"1\n00:00:01,000 --> 00:00:02,000\nhello\n", "subtitles"),
        (b"https://example.org/film.mp4\n", "address"),
        (b"no such video\n", "text file"),
        (b"x" * 200_000, "text file"),
        (b"%PDF-1.7\n%\xe2\xe3", "PDF"),
        (_zip(), "ZIP"),
        (gzip.compress(bytes(500)), "gzip"),
        (b"\x7fELF" + bytes(60), "program"),
        (bytes(300_000), "zeros"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
    ],
    ids=lambda value: (
        value if isinstance(value, str) else "file"
    ),  # bytes that contain a date are not the same in every worker
)
def test_what_stands_in_place_of_a_film_is_named(tmp_path: Path, content: bytes, word: str) -> None:
    for name in ("film.mp4", "film.mkv", "film"):
        path = tmp_path / name
        path.write_bytes(content)
        assert word in _reason(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_picture_is_no_film(tmp_path: Path, kind: str) -> None:
    for name in ("picture.mp4", f"picture.{kind.lower()}"):
        Image.fromarray(picture(7, *SIZE)).save(tmp_path / name, format=kind)
        assert f"{kind} picture".replace("WEBP", "WebP") in _reason(tmp_path / name)


@pytest.mark.parametrize(("kind", "opens"), [("GIF", True), ("PNG", True), ("WEBP", False)])
def test_animated_pictures(tmp_path: Path, kind: str, opens: bool) -> None:
    pictures = [Image.fromarray(picture(number, *SIZE)) for number in range(6)]
    path = tmp_path / f"moves.{kind.lower()}"
    pictures[0].save(path, format=kind, save_all=True, append_images=pictures[1:], duration=500)
    if not opens:
        assert "animated WebP" in _reason(path)
        return
    with Video.open(path, isolation="never") as video:
        assert [number_of(image) for image in video.frames([0.1, 1.1, 2.3]).images] == [0, 2, 4]


def _fragments(path: Path) -> tuple[bytes, bytes]:
    """The init segment and the rest of a fragmented MP4."""
    data = write_film(path, frames=48, options={"movflags": "frag_keyframe+empty_moov+default_base_moof"}).read_bytes()
    at = data.index(b"moof") - 4
    return data[:at], data[at:]


def test_pieces_of_a_stream_are_named_and_together_they_are_a_film(tmp_path: Path) -> None:
    init, media = _fragments(tmp_path / "whole.mp4")
    for name, content, word in (("init.mp4", init, "init segment"), ("media.m4s", media, "without the init segment")):
        (tmp_path / name).write_bytes(content)
        assert word in _reason(tmp_path / name)
    (tmp_path / "both.mp4").write_bytes(init + media)
    with Video.open(tmp_path / "both.mp4", isolation="never") as video:
        assert number_of(video.frames([1.0]).images[0]) == 24


def test_a_download_that_was_broken_off(tmp_path: Path) -> None:
    whole = write_film(tmp_path / "whole.mp4").read_bytes()
    for size in (200, len(whole) // 2, whole.index(b"moov") - 4, whole.index(b"moov") + 300):
        (tmp_path / "film.mp4").write_bytes(whole[:size])
        assert "cut off" in _reason(tmp_path / "film.mp4")
    (tmp_path / "film.mp4.part").write_bytes(bytes(range(1, 200)) * 50)
    assert "download" in _reason(tmp_path / "film.mp4.part")
    (tmp_path / "film.mp4.crdownload").write_bytes(whole)
    # The download is complete nevertheless.
    with Video.open(tmp_path / "film.mp4.crdownload", isolation="never") as video:
        assert number_of(video.frames([1.0]).images[0]) == 24


def test_an_encrypted_film_says_so(tmp_path: Path) -> None:
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "00" * 16, "encryption_kid": "01" * 16}
    assert "encrypted" in _reason(write_film(tmp_path / "film.mp4", options=options))
    assert "encrypted" in _reason(write_film(tmp_path / "fast.mp4", options=options | {"movflags": "faststart"}))


def test_a_scrambled_broadcast_says_so(tmp_path: Path) -> None:
    data = bytearray(write_film(tmp_path / "film.ts").read_bytes())
    for at in range(0, len(data), 188):
        if (data[at + 1] & 0x1F) << 8 | data[at + 2] >= 0x100 and at > 188 * 4:
            data[at + 3] |= 0x80
    (tmp_path / "film.ts").write_bytes(data)
    assert "encrypted" in _reason(tmp_path / "film.ts")


def test_a_format_that_is_not_opened_says_so(tmp_path: Path) -> None:
    path = tmp_path / "picture.mp4"
    path.write_bytes(b"P6\n160 48\n255\n" + picture(3, *SIZE).tobytes())  # a PPM picture
    assert "ffmpeg -i IN OUT.mkv" in _reason(path)


MAGICS = [
    b"",
    b"GIF89a",
    b"\0\0\0\x18ftypisom",
    b"RIFF\0\0\0\0WEBPVP8X",
    b"\x89PNG\r\n\x1a\n",
    b"\0\0\0\1moov\0\0\0\0\0\0\0\x40",
]


@given(st.binary(max_size=400), st.sampled_from(MAGICS))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_looked_at_without_an_error(rest: bytes, magic: bytes) -> None:
    fd = os.memfd_create("bytes")
    try:
        os.write(fd, magic + rest)
        head = magic + rest
        for told in (
            kinds.picture(fd, head, len(head)),
            kinds.no_film(fd, head, len(head), "x.mp4"),
            kinds._film_in_boxes(fd, len(head)),
        ):
            assert told is None or (told.isprintable() and len(told) < 200)
    finally:
        os.close(fd)


def _layout_film(path: Path, layout: str, codec: str = "pcm_f32le") -> tuple[Path, np.ndarray[Any, Any]]:
    """One second of sound with channel `c` at a level of 0.02 * (c + 1); and the level of each channel."""
    count = av.AudioLayout(layout).nb_channels
    levels = 0.02 * (np.arange(count) + 1)
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=48_000, layout=layout)
        for at in range(0, 48_000, 4800):
            block = np.tile(levels.astype(np.float32), 4800)[None]
            frame = av.AudioFrame.from_ndarray(block, format="flt", layout=layout)
            frame.sample_rate, frame.pts = 48_000, at
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path, levels


@pytest.mark.parametrize(
    "layout", ["mono", "stereo", "5.1", "7.1", "5.1.4", "7.1.4", "22.2", "13 channels", "64 channels", "FL+LFE"]
)
def test_sound_of_any_layout_is_heard(tmp_path: Path, layout: str) -> None:
    path, levels = _layout_film(tmp_path / "film.mkv", layout)
    with Video.open(path, isolation="never") as video:
        heard = video.audio(0.25, 0.75)
        middle = float(np.median(heard.samples))
        assert heard.padded_s == 0 and 0.01 < middle <= 1.0
        if layout in ("13 channels", "64 channels"):
            assert middle == pytest.approx(min(1.0, float(levels.mean())), abs=0.01)


def test_ambisonic_sound_is_its_channel_0() -> None:
    frame = av.AudioFrame.from_ndarray(
        np.tile(np.array([0.5, -0.3, -0.3, -0.3], np.float32), 4800)[None], format="flt", layout="ambisonic 1"
    )
    frame.sample_rate, frame.pts = 48_000, 0
    from apr_plugin.media.mixing import MonoResampler

    mixer = MonoResampler(16_000)
    parts = [part for part in [*mixer.resample(frame), *mixer.resample(None)] if part is not None]
    samples = np.concatenate([part.to_ndarray().reshape(-1) for part in parts])
    assert len(samples) == 1600 and float(samples[800]) == pytest.approx(0.5, abs=0.01)
