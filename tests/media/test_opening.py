"""Only plain local files are opened, and only films and sounds: no address, no playlist, no pipe, no picture, nothing
that would use up the memory."""

from __future__ import annotations

import http.server
import os
import socket
import stat
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import pytest
from apr_testing import number_of
from films import write_film

from apr_plugin.media import MediaError, MediaOpenError, Video, isolated, local, opening
from apr_plugin.media.errors import MediaTooLarge
from apr_plugin.media.isolated import IsolatedFile
from apr_plugin.media.local import LocalFile

Maker = Callable[..., Path]
REPOSITORY = Path(__file__).parents[2]
HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:6.0,\n{}\n#EXT-X-ENDLIST\n"


def _refusal(path: Path | str, **how: str) -> str:
    with pytest.raises(MediaOpenError) as caught:
        Video.open(path, **how)  # type: ignore[arg-type]
    assert str(path) in str(caught.value)
    return caught.value.reason


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """An HTTP server: its address, and every path that was requested."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()


@pytest.mark.parametrize("isolation", ["auto", "always"])
def test_playlists_are_refused_and_no_address_is_fetched(
    tmp_path: Path, server: tuple[str, list[str]], isolation: str
) -> None:
    address, asked = server
    write_film(tmp_path / "film.ts", frames=48)
    write_film(tmp_path / "film.mp4", frames=48)
    mpd = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
        'type="static"><Period><BaseURL>{}</BaseURL></Period></MPD>'
    )
    lists = {
        "local.m3u8": (HLS.format("film.ts"), "HLS"),
        "absolute.m3u8": (HLS.format(tmp_path / "film.ts"), "HLS"),
        "named_as_film.mp4": (HLS.format("film.ts"), "HLS"),
        "remote.m3u8": (HLS.format(f"{address}/a.ts"), "HLS"),
        "master.m3u8": (f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{address}/b.m3u8\n", "HLS"),
        "key.m3u8": (
            HLS.replace("#EXTINF", f'#EXT-X-KEY:METHOD=AES-128,URI="{address}/key"\n#EXTINF').format("film.ts"),
            "HLS",
        ),
        "list.ffconcat": ("ffconcat version 1.0\nfile film.mp4\n", "ffconcat"),
        "list.mp4": ("ffconcat version 1.0\nfile film.mp4\n", "ffconcat"),
        "itself.mp4": ("ffconcat version 1.0\nfile itself.mp4\n", "ffconcat"),
        "remote.mp4": (f"ffconcat version 1.0\nfile {address}/c.mp4\n", "ffconcat"),
        "dash.mpd": (mpd.format(f"{address}/d.mp4"), "DASH"),
        "stream.sdp": (
            "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
            "SDP",
        ),
        "list.asx": (f'<asx version="3.0"><entry><ref href="{address}/e.mp4"/></entry></asx>', "playlist"),
        "list.ram": (f"{address}/f.mp4\n", "address"),
    }
    for name, (text, word) in lists.items():
        (tmp_path / name).write_text(text)
        assert word in _refusal(tmp_path / name, isolation=isolation), name
    assert asked == []


def test_a_name_is_never_an_address(
    tmp_path: Path, server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, asked = server
    monkeypatch.chdir(tmp_path)
    film = write_film(tmp_path / "film.mp4", frames=48)
    names = [
        "concat:film.mp4|film.mp4",
        "subfile,,start,0,end,9,,:film.mp4",
        "file:film.mp4",
        "crypto:film.mp4",
        "data:x",
        "pipe:0",
        "fd:1",
        "lavfi:testsrc",
        "a:b",
    ]
    for name in names:
        with pytest.raises(MediaOpenError, match="no such file"):
            Video.open(name)
        Path(name).write_bytes(film.read_bytes())
        with Video.open(name, isolation="never") as video:  # the file with that name, and nothing else
            assert number_of(video.frames([1.0]).images[0]) == 24
    assert "only local files" in _refusal(f"{address}/direct.mp4")
    folder = tmp_path / "http:" / address.removeprefix("http://")
    folder.mkdir(parents=True)
    (folder / "trick.mp4").write_bytes(film.read_bytes())
    with Video.open(f"{address}/trick.mp4", isolation="never") as video:
        assert number_of(video.frames([1.0]).images[0]) == 24
    assert asked == []


def test_a_film_that_names_another_file_gets_nothing_of_it(tmp_path: Path) -> None:
    """QuickTime data references: the pictures would be in another file."""
    film = write_film(tmp_path / "secret.mp4", frames=48)
    data = film.read_bytes()
    at = data.index(b"dref") - 4
    name = str(film).encode() + b"\0"
    alias = struct.pack(">I4sI", 12 + len(name), b"url ", 0) + name
    (length,) = struct.unpack(">I", data[at : at + 4])
    changed = bytearray(data[:at] + struct.pack(">I4sII", 16 + len(alias), b"dref", 0, 1) + alias + data[at + length :])
    grown = 16 + len(alias) - length
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        place = changed.index(box) - 4
        changed[place : place + 4] = struct.pack(">I", struct.unpack(">I", changed[place : place + 4])[0] + grown)
    media = data.index(b"mdat")
    changed[media + 4 : data.index(b"moov") - 4] = bytes(data.index(b"moov") - 4 - media - 4)
    path = tmp_path / "outside.mp4"
    path.write_bytes(changed)
    with pytest.raises(MediaError), Video.open(path) as video:
        video.frames([1.0])


NAMES = [
    "line\nbreak.mp4",
    "per%03dcent.mp4",
    "-i.mp4",
    "two:colons:.mkv",
    "\u202egpj.mp4",
    "\t\x1b[31m.mp4",
    "film",
    "?*[a].mp4",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_file_works(tmp_path: Path, name: str) -> None:
    path = write_film(tmp_path / "x.mkv").rename(tmp_path / name)
    for isolation in ("never", "always"):
        with Video.open(path, isolation=isolation) as video:  # type: ignore[arg-type]
            assert number_of(video.frames([1.0]).images[0]) == 24


def test_a_name_in_no_encoding_works(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/\xff\xfe.mkv"
    os.rename(write_film(tmp_path / "x.mkv"), raw)  # noqa: PTH104 - bytes
    with Video.open(os.fsdecode(raw)) as video:
        assert number_of(video.frames([1.0]).images[0]) == 24


@pytest.mark.parametrize("name", ["", ".", "..", "a\0b.mp4", "\ud800.mp4", "x" * 5000, "/dev/null/x"])
def test_impossible_names_are_refused(name: str) -> None:
    with pytest.raises(MediaOpenError):
        Video.open(name)


def test_pipes_sockets_devices_and_folders_are_refused_at_once_behind_any_indirection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    reader, writer = os.pipe()
    with socket.socket(socket.AF_UNIX) as heard:
        monkeypatch.chdir(tmp_path)  # the name of a socket must be short
        heard.bind("socket.mp4")
        (tmp_path / "folder.mp4").mkdir()
        names = [
            "pipe.mp4",
            "socket.mp4",
            "folder.mp4",
            "/dev/zero",
            "/dev/null",
            "/dev/tty",
            f"/proc/self/fd/{reader}",
            f"/dev/fd/{reader}",
        ]
        for number, name in enumerate(names):
            (tmp_path / f"link{number}").symlink_to(name)
            (tmp_path / f"link_to_link{number}").symlink_to(f"link{number}")
        for name in [*names, *(f"link_to_link{number}" for number in range(len(names)))]:
            with pytest.raises(MediaOpenError, match=r"device or a pipe|a folder"):
                Video.open(name)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(
    "make", [lambda path: os.mkfifo(path), lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()]
)
def test_a_file_exchanged_for_something_else_after_it_was_looked_at_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    path = write_film(tmp_path / "film.mp4")
    look = opening.check_file

    def exchange(name: str) -> opening.Version:
        version = look(name)
        path.unlink()
        make(path)
        return version

    monkeypatch.setattr(opening, "check_file", exchange)
    with pytest.raises(MediaOpenError, match=r"device or a pipe|a folder"):
        opening.open_container(str(path))


def test_a_descriptor_of_a_film_is_read_like_the_film(tmp_path: Path) -> None:
    with (
        write_film(tmp_path / "film.mp4").open("rb") as file,
        Video.open(f"/proc/self/fd/{file.fileno()}", isolation="never") as video,
    ):
        assert number_of(video.frames([1.0]).images[0]) == 24


def test_sound_whose_beginning_does_not_tell_is_opened_by_its_name(make_video: Maker) -> None:
    """MP3 with a large picture before the sound: libav reads at most a megabyte of a file."""
    path = make_video("song.mp3", codec=None, sound_s=3.0, audio_codec="libmp3lame")
    length = 3 << 20
    size = bytes((length >> shift) & 0x7F for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\x03\0\0" + size + bytes(length) + path.read_bytes())
    with Video.open(path, isolation="never") as video:
        assert video.info.audio_codec.startswith("mp3") and len(video.audio(1.0, 2.0).samples) == 16_000


def _png(path: Path, side: int, *, whole: bool = True) -> bytes:
    """A PNG with 8 bytes per pixel, all black."""
    packer = zlib.compressobj(1)
    row = bytes(1 + side * 8)
    data = b"".join(packer.compress(row) for _ in range(side if whole else 1)) + packer.flush()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 16, 6, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path.read_bytes()


def _png_film(path: Path, side: int, *, whole: bool = True) -> Path:
    """A film with one such picture, as a QuickTime file."""
    picture = _png(path.with_suffix(".png"), side, whole=whole)
    with av.open(str(path), "w", format="mov") as out:
        stream = out.add_stream("png", rate=1)
        stream.width = stream.height = side
        stream.pix_fmt = "rgba64be"
        for number in range(2):
            packet = av.Packet(picture)
            packet.stream, packet.pts, packet.dts, packet.time_base, packet.is_keyframe = (
                stream,
                number,
                number,
                Fraction(1),
                True,
            )
            out.mux(packet)
    return path


def test_too_many_pixels_are_refused_before_any_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _png_film(tmp_path / "bomb.mov", 16_000, whole=False)
    with monkeypatch.context() as changed:
        changed.setattr(local, "read_info", lambda *_: pytest.fail("it was read"))
        changed.setattr(IsolatedFile, "__init__", lambda *_: pytest.fail("a worker was asked"))
        for isolation in ("auto", "never"):
            assert "16000x16000" in _refusal(path, isolation=isolation)
        large = _png_film(tmp_path / "large.mov", 4200, whole=False)
        with pytest.raises(MediaTooLarge, match="4200x4200"):
            LocalFile(str(large), 1, opening.PIXELS_HERE)
    assert "16000x16000" in _refusal(path, isolation="always")


def test_large_pictures_take_the_memory_of_a_worker_only(tmp_path: Path) -> None:
    """18 million pixels of 8 bytes are 141 MB in the process that decodes them."""
    path = _png_film(tmp_path / "large.mov", 4200)
    code = """
import resource, sys
from apr_plugin.media import Video
began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with Video.open(sys.argv[1]) as video:
    shape = video.frames([0.0], max_pixels=3136).images.shape
    print(video.isolated, shape, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began) // 1024)
"""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment,
    )
    assert done.stdout.startswith("True (1, 56, 56, 3)"), done.stderr
    assert int(done.stdout.split()[-1]) < 70


@pytest.mark.parametrize("name", ["film.flv", "film.ts", "film.mpg"])
def test_streams_that_appear_later_than_the_headers_do_no_harm(make_video: Maker, name: str) -> None:
    """PyAV writes past the end of a list if it was given options for streams that do not exist yet, and the process may
    crash."""
    codec, sound = ("mpeg2video", "mp2") if name.endswith("mpg") else ("libx264", "aac")
    path = make_video(name, sound_s=2.0, frames=50, codec=codec, fps=25, audio_codec=sound)
    for _ in range(20):
        container = opening.open_container(str(path), None, opening.PIXELS_HERE)
        assert [stream.type for stream in container.streams.get(video=0, audio=0)] == ["video", "audio"]
        container.close()


def test_a_picture_that_grows_too_large_later_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (
        write_film(tmp_path / f"{name}.ts", size=size, first=first)
        for name, size, first in (("s", (160, 48), 0), ("l", (1600, 480), 96))
    )
    path = tmp_path / "grows.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    file = LocalFile(str(path), 1, max_pixels=160 * 48 * 4)
    shown = file.frames([1.0, 6.0], (160, 48), "exact", float("inf"), None)
    file.close()
    assert shown.missing_s == (6.0,) and number_of(shown.images[0]) == 24


def test_nothing_is_left_open_by_files_that_fail(tmp_path: Path) -> None:
    film = write_film(tmp_path / "whole.mp4", frames=48).read_bytes()
    contents = [
        b"", b"text", b"\x89PNG\r\n\x1a\n" + bytes(200), film[: len(film) // 2], film[:40] + bytes(len(film) - 40),
            b"\0" * 5000,
        b"ffconcat version 1.0\nfile 0.mp4\n", HLS.format("x.ts").encode(), b"\x1aE\xdf\xa3" + bytes(300),
            b"RIFF\0\0\0\0AVI " + bytes(99),
    ]  # fmt: skip
    paths = [tmp_path / f"{number}.mp4" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    os.mkfifo(tmp_path / "pipe.mp4")
    paths += [
        tmp_path / "pipe.mp4",
        tmp_path,
        tmp_path / "absent.mp4",
        _png_film(tmp_path / "bomb.mov", 16_000, whole=False),
    ]

    def held() -> tuple[int, int, int]:
        isolated.close_workers()
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), len(isolated._all)

    failed = 0
    before = held()
    for turn in range(15):
        for path in paths[: None if turn == 0 else -1]:  # the last one needs a worker
            try:
                Video.open(path).close()
            except MediaOpenError:
                failed += 1
    assert failed == 15 * (len(paths) - 1) + 1 >= 180
    assert held() == before


def test_every_open_of_the_package_goes_through_one_function() -> None:
    """Other code that gives a name to libav, decord or Pillow only writes, or reads bytes that it made."""
    found = {}
    for path in sorted((REPOSITORY / "apr_plugin").rglob("*.py")):
        lines = [
            line
            for line in path.read_text().splitlines()
            if "av.open(" in line or "VideoReader(" in line or "Image.open(" in line
        ]
        if lines:
            found[str(path.relative_to(REPOSITORY / "apr_plugin"))] = lines
    assert set(found) <= {
        "media/opening.py",
        "media/decord.py",
        "policies/openai/media.py",
        "harnesses/media.py",
        "harnesses/serve/question.py",
        "cli/doctor.py",
    }, found
    pictures = [line for name in found if name.startswith("harnesses/") for line in found[name]]
    assert all("descriptor(path) as fd" in line or "Image.open(file" in line for line in pictures), pictures
    assert all('"w"' in line for name in ("policies/openai/media.py", "cli/doctor.py") for line in found.get(name, []))
    assert all("/dev/fd/" in line for line in found["media/decord.py"])


def test_permissions_of_the_descriptor(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4")
    with opening.descriptor(str(path)) as fd:
        assert stat.S_ISREG(os.fstat(fd).st_mode) and not os.get_inheritable(fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(fd, b"x")
