"""Many threads, many files, cancelled reads, deadlines and memory."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apr_testing import number_of
from films import write_film, write_sound

from apr_plugin.media import MediaTimeout, Video
from apr_plugin.media.reader import PacketReader

KINDS = ["gop12.mp4", "open-pyramid.mkv", "hevc-open.mp4", "vp9.webm", "av1.mp4", "mpeg4-b.avi", "closed-pyramid.ts"]


@pytest.fixture(scope="session")
def eight(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("eight")
    films = [write_film(folder / name, name.partition(".")[0]) for name in KINDS]
    return [*films, write_sound(folder / "sound.mp4", "aac", picture_from_s=0.0)]


@pytest.fixture
def heavy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that takes two seconds to decode to its end."""
    needed = PacketReader._needed

    def slowly(self: PacketReader, packets: Any, limits: list[int]) -> Iterator[Any]:
        for item in needed(self, packets, limits):
            time.sleep(0.005)
            yield item

    monkeypatch.setattr(PacketReader, "_needed", slowly)
    return write_film(tmp_path / "heavy.mp4", "infinite", frames=400)


def _episode(videos: list[Video], seed: int) -> list[bytes]:
    rng = random.Random(seed)
    seen = []
    for _ in range(6):
        video = videos[rng.randrange(len(videos))]
        times = [rng.uniform(0, 3.9) for _ in range(rng.choice([1, 4, 12]))]
        shown = video.frames(times, max_pixels=rng.choice([None, 2000]), mode=rng.choice(["exact", "keyframe"]))
        seen.append(shown.images.tobytes() + repr(shown.times_s).encode())
        if video.has_audio:
            start = rng.uniform(0, 6)
            seen.append(video.audio(start, start + 1.0).samples.tobytes())
    return seen


@pytest.mark.parametrize("how", ["threads", "asyncio"])
def test_sixteen_episodes_read_eight_files_as_one_at_a_time(eight: list[Path], how: str) -> None:
    alone = []
    for seed in range(16):
        videos = [Video.open(path) for path in eight]
        alone.append(_episode(videos, seed))
        for video in videos:
            video.close()
    videos = [Video.open(path) for path in eight]
    if how == "threads":
        with ThreadPoolExecutor(16) as pool:
            together = list(pool.map(lambda seed: _episode(videos, seed), range(16)))
    else:

        async def every() -> list[list[bytes]]:
            return list(await asyncio.gather(*(asyncio.to_thread(_episode, videos, seed) for seed in range(16))))

        together = asyncio.run(every())
    assert together == alone
    assert not any(video.isolated for video in videos)
    for video in videos:
        video.close()


def test_a_cancelled_read_stops_at_once_and_the_next_look_works(heavy: Path) -> None:
    with Video.open(heavy) as video:
        for workers_busy in (1, 4):
            bell = threading.Event()
            stopped: list[float] = []

            def read(bell: threading.Event = bell, stopped: list[float] = stopped) -> None:
                try:
                    video.frames([16.0], cancelled=bell)
                except MediaTimeout:
                    stopped.append(time.monotonic())

            threads = [threading.Thread(target=read) for _ in range(workers_busy)]
            for thread in threads:
                thread.start()
            time.sleep(0.3)
            rung = time.monotonic()
            bell.set()
            for thread in threads:
                thread.join()
            assert len(stopped) == workers_busy and max(stopped) - rung < 0.5
            assert number_of(video.frames([0.5]).images[0]) == 12
        assert not video.isolated


def test_a_deadline_is_kept_also_while_others_read(heavy: Path) -> None:
    with Video.open(heavy, workers=1) as video:
        began = time.monotonic()
        with pytest.raises(MediaTimeout, match="too long") as caught:
            video.frames([16.0], timeout_s=0.3)
        assert time.monotonic() - began < 1.0 and caught.value.path == str(heavy)
        bell = threading.Event()

        def block() -> None:
            with pytest.raises(MediaTimeout):
                video.frames([16.0], cancelled=bell)

        thread = threading.Thread(target=block)
        thread.start()
        time.sleep(0.1)
        began = time.monotonic()
        with pytest.raises(MediaTimeout):  # the only reader is in use
            video.frames([0.0], timeout_s=0.3)
        assert time.monotonic() - began < 1.0
        bell.set()
        thread.join()
        assert not video.isolated and number_of(video.frames([0.0]).images[0]) == 0


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts pages with Linux's /proc")
def test_memory_does_not_grow_over_looks(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "m.mp4", "aac", seconds=20.0, picture_from_s=0.0, picture_s=20.0)
    rng = random.Random(0)
    with Video.open(path) as video:

        def look() -> None:
            video.frames([rng.uniform(0, 19.9) for _ in range(6)], max_pixels=rng.choice([None, 3000]))
            start = rng.uniform(0, 18)
            video.audio(start, start + 1.5)

        for _ in range(60):
            look()
        before = _resident_mb()
        for _ in range(300):
            look()
        assert _resident_mb() - before < 12


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files with Linux's /proc")
def test_closing_gives_every_file_back(eight: list[Path]) -> None:

    def count() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    videos = [Video.open(path) for path in eight]
    before = count()
    for _ in range(10):
        for path in eight:
            with Video.open(path, workers=4) as video:
                assert np.all(video.frames([0.0, 1.0, 2.0, 3.0]).images.shape)
    assert count() <= before
    for video in videos:
        video.close()
