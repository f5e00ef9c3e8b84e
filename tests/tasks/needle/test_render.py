import resource
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from apr_plugin.tasks.needle.palette import CHIME_PARTIALS_HZ, PITCHES, draw_frame
from apr_plugin.tasks.needle.render import SAMPLE_RATE, audio_chunks, is_complete, write_video
from apr_plugin.tasks.needle.world import CHIME, Difficulty, World

WORLD = World.from_seed(4, 60.0, Difficulty(decoys=1.0))


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("render") / "one.mp4"
    write_video(WORLD, path)
    return path


def decode(path: Path) -> list[tuple[Fraction, np.ndarray]]:
    with av.open(str(path)) as container:
        return [(frame.pts * frame.time_base, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def listen(path: Path) -> np.ndarray:
    """The file's sound as float32 samples, each at the position of its timestamp."""
    with av.open(str(path)) as container:
        samples = np.zeros(round(container.duration / av.time_base * SAMPLE_RATE), dtype=np.float32)
        for frame in container.decode(audio=0):
            at = round(frame.pts * frame.time_base * SAMPLE_RATE)
            got = frame.to_ndarray()[0]
            skip = max(0, -at)
            got = got[skip : skip + max(0, len(samples) - at - skip)]
            samples[at + skip : at + skip + len(got)] = got
        return samples


@pytest.fixture(scope="module")
def frames(video):
    return decode(video)


@pytest.fixture(scope="module")
def samples(video):
    return listen(video)


def test_file_is_h264_and_aac_of_the_right_length(video):
    with av.open(str(video)) as container:
        picture, sound = container.streams.video[0], container.streams.audio[0]
        assert (picture.codec_context.name, sound.codec_context.name) == ("h264", "aac")
        assert (picture.width, picture.height, picture.format.name) == (224, 224, "yuv420p")
        assert picture.average_rate == 10 and picture.frames == 600
        assert (sound.rate, sound.channels) == (SAMPLE_RATE, 1)
        assert container.duration == 60 * av.time_base
        assert picture.start_time == sound.start_time == 0


def test_keyframes_stand_on_a_grid_and_nowhere_else(video):
    with av.open(str(video)) as container:
        keys = [
            float(packet.pts * packet.time_base)
            for packet in container.demux(video=0)
            if packet.size and packet.is_keyframe
        ]
    assert keys == [5.0 * i for i in range(12)]


def test_index_stands_before_the_media(video):
    data = video.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_every_frame_shows_its_world(frames):
    """Each of the 600 frames is compared with the picture that the world defines."""
    assert [time for time, _ in frames] == [Fraction(k, 10) for k in range(600)]
    segments = list(WORLD.segments())
    for time, picture in frames:
        (segment,) = [
            segment for segment in segments if Fraction(str(segment.start_s)) <= time < Fraction(str(segment.end_s))
        ]
        drawn = draw_frame(segment.colour, segment.pattern, segment.glyph, (224, 224))
        assert np.median(np.abs(picture.astype(int) - drawn)) <= 4
        assert np.abs(picture.astype(int) - drawn).mean() < 9


def test_sounds_start_and_end_where_the_world_says(samples):
    loud = np.convolve(np.abs(samples), np.ones(160) / 160, mode="same") > 0.02
    for start, end, name in WORLD.sounds():
        before = samples[round((start - 0.15) * SAMPLE_RATE) : round((start - 0.05) * SAMPLE_RATE)]
        assert np.abs(before).max() < 0.01
        first = np.flatnonzero(loud[round((start - 0.1) * SAMPLE_RATE) :])[0] / SAMPLE_RATE - 0.1
        assert abs(first) < 0.02
        if name != CHIME:
            last = np.flatnonzero(loud[: round((end + 0.1) * SAMPLE_RATE)])[-1] / SAMPLE_RATE - end
            assert abs(last) < 0.02


def test_sounds_have_their_pitch(samples):
    names = set()
    for start, end, name in WORLD.sounds():
        heard = samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
        hertz = np.fft.rfftfreq(len(heard), 1 / SAMPLE_RATE)[np.abs(np.fft.rfft(heard)).argmax()]
        wanted = CHIME_PARTIALS_HZ if name == CHIME else (PITCHES[name],)
        assert min(abs(hertz - each) for each in wanted) < 5
        names.add(name)
    assert names == {CHIME, *PITCHES}


def test_silence_is_silent(samples):
    silent = np.ones(len(samples), dtype=bool)
    for start, end, _ in WORLD.sounds():
        silent[round((start - 0.1) * SAMPLE_RATE) : round((end + 0.15) * SAMPLE_RATE)] = False
    assert silent.mean() > 0.5 and np.abs(samples[silent]).max() < 0.005


def test_chunks_of_sound_add_up():
    chunks = list(audio_chunks(WORLD))
    whole = np.concatenate(chunks)
    assert len(whole) == 60 * SAMPLE_RATE
    energy = sum(
        np.square(whole[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]).sum()
        for start, end, _ in WORLD.sounds()
    )
    assert energy == pytest.approx(np.square(whole).sum(), rel=1e-5)


def test_two_renders_are_the_same_bytes(video, tmp_path):
    code = (
        "import sys; from pathlib import Path; from apr_plugin.tasks.needle.render import write_video;"
        "from apr_plugin.tasks.needle.world import Difficulty, World;"
        "write_video(World.from_seed(4, 60.0, Difficulty(decoys=1.0)), Path(sys.argv[1]))"
    )
    other = tmp_path / "another name.mp4"
    subprocess.run([sys.executable, "-c", code, str(other)], check=True)
    assert other.read_bytes() == video.read_bytes()


def test_container_tells_nothing(video):
    with av.open(str(video)) as container:
        told = {
            **container.metadata,
            **{f"{stream.type}:{key}": value for stream in container.streams for key, value in stream.metadata.items()},
        }
    assert set(told) <= {
        "major_brand", "minor_version", "compatible_brands",
        "video:language", "video:handler_name", "video:vendor_id", "audio:language", "audio:handler_name",
        "audio:vendor_id",
    }  # fmt: skip
    assert {told["video:handler_name"], told["audio:handler_name"]} == {"VideoHandler", "SoundHandler"}


@pytest.mark.parametrize(
    ("size", "fps", "gop_s"), [((112, 112), 10.0, 10.0), ((320, 180), 5.0, 2.0), ((128, 240), 29.97, 4.0)]
)
def test_size_fps_and_keyframes_are_options(tmp_path, size, fps, gop_s):
    path = tmp_path / "v.mp4"
    write_video(WORLD, path, size, fps, gop_s)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == size
        assert float(stream.average_rate) == pytest.approx(fps)
        keys = [
            float(packet.pts * packet.time_base)
            for packet in container.demux(video=0)
            if packet.size and packet.is_keyframe
        ]
    assert np.allclose(np.diff(keys), gop_s, atol=0.6 / fps)
    segments = list(WORLD.segments())
    seen = {}
    for time, picture in decode(path):
        index = next(i for i, segment in enumerate(segments) if time < Fraction(str(segment.end_s)))
        seen.setdefault(index, picture)
    assert len(seen) == len(segments)
    for index, picture in seen.items():
        drawn = draw_frame(segments[index].colour, segments[index].pattern, segments[index].glyph, size)
        assert np.median(np.abs(picture.astype(int) - drawn)) <= 6


def test_damaged_files_are_not_complete(video, tmp_path):
    assert is_complete(video)
    data = video.read_bytes()
    for name, damaged in {
        "cut": data[:-1],
        "long": data + b"x",
        "empty": b"",
        "text": b"hello there, this is text",
        "head": data[:40],
    }.items():
        path = tmp_path / name
        path.write_bytes(damaged)
        assert not is_complete(path), name
    assert not is_complete(tmp_path / "missing")


def test_unwritable_folder_names_the_file(tmp_path):
    path = tmp_path / "nowhere" / "v.mp4"
    with pytest.raises(OSError, match=r"nowhere/v\.mp4"):
        write_video(WORLD, path)


@pytest.mark.parametrize("limit", [10_000, 150_000])
def test_full_disk_is_an_error_and_leaves_nothing(tmp_path, limit):
    """A limit on file size replaces a full disk."""
    code = (
        "import signal, sys; from pathlib import Path; from apr_plugin.tasks.needle.render import write_video;"
        "from apr_plugin.tasks.needle.world import World; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "write_video(World.from_seed(4, 60.0), Path(sys.argv[1]))"
    )
    path = tmp_path / "v.mp4"
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert run.returncode == 1
    assert "OSError" in run.stderr and str(path) in run.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
