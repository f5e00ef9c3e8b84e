"""Files are opened once for all readers, replaced files are noticed, and unused files above the limit are closed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from apr_plugin.media import MediaOpenError, MediaSettings
from apr_plugin.media.pool import VideoPool


def test_one_file_is_opened_once_and_kept(make_video: Callable[..., Path]) -> None:
    pool, path = VideoPool(idle=1), make_video(frames=20)
    first, second = pool.borrow(path, MediaSettings()), pool.borrow(path, MediaSettings())
    assert first is second
    pool.give_back(first)
    pool.give_back(second)
    assert pool.borrow(path, MediaSettings()) is first
    assert pool.borrow(path, MediaSettings(isolation="never")) is not first


def test_the_cap_closes_what_was_unused_longest(make_video: Callable[..., Path]) -> None:
    pool = VideoPool(idle=1)
    paths = [make_video(f"{name}.mp4", frames=20) for name in "abc"]
    videos = [pool.borrow(path, MediaSettings()) for path in paths]
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    for video in videos:
        video.frames([0.0])
        pool.give_back(video)
    assert pool.borrow(paths[2], MediaSettings()) is videos[2]
    assert pool.borrow(paths[0], MediaSettings()) is not videos[0]
    if before:
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


def test_an_exchanged_file_is_opened_anew(make_video: Callable[..., Path]) -> None:
    pool, path = VideoPool(), make_video(frames=20)
    old = pool.borrow(path, MediaSettings())
    pool.give_back(old)
    path.unlink()
    make_video(frames=40)
    new = pool.borrow(path, MediaSettings())
    assert new is not old and new.duration_s == pytest.approx(4.0)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MediaOpenError, match="no such file"):
        VideoPool().borrow(tmp_path / "none.mp4", MediaSettings())


def test_many_threads_share(make_video: Callable[..., Path]) -> None:
    pool, paths = VideoPool(idle=2), [make_video(f"{name}.mp4", frames=30) for name in "abcd"]

    def use(number: int) -> tuple[float, ...]:
        video = pool.borrow(paths[number % 4], MediaSettings())
        try:
            return video.frames([0.0, 1.0, 2.5]).times_s
        finally:
            pool.give_back(video)

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(use, range(64))) == {(0.0, 1.0, 2.5)}
    pool.close()


def test_a_deleted_file_is_closed_on_request(make_video: Callable[..., Path]) -> None:
    pool, kept, gone = VideoPool(), make_video("kept.mp4", frames=20), make_video("gone.mp4", frames=20)
    first, second = pool.borrow(kept, MediaSettings()), pool.borrow(gone, MediaSettings())
    second.frames([0.0])
    pool.give_back(first)
    gone.unlink()
    pool.close_gone()
    assert second.frames([0.5]).images is not None, "it is still lent"
    pool.give_back(second)
    pool.close_gone()
    held = [str(link.resolve()) for link in Path("/proc/self/fd").iterdir()] if Path("/proc/self/fd").exists() else []
    assert not [path for path in held if "gone.mp4" in path]
    assert pool.borrow(kept, MediaSettings()) is first
