"""`media_root`: files outside a folder are not opened, whatever path leads to them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from apr_testing import Playback, answer

from apr_plugin.loop.config import EpisodeConfig
from apr_plugin.loop.episode import Episode
from apr_plugin.loop.question import MediaRef, Question, QuestionKind
from apr_plugin.loop.trajectory import StopReason
from apr_plugin.media import MediaOpenError, MediaSettings
from apr_plugin.media.confine import confine
from apr_plugin.media.pool import VideoPool


@pytest.fixture
def folders(tmp_path: Path, make_video: Callable[..., Path]) -> Path:
    """`root` with a film, beside it a film that may not be read, and every kind of path to that one."""
    film = make_video(frames=10)
    for name in ("root/sub", "rootless", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("root/film.mp4", "root/sub/film.mp4", "rootless/film.mp4", "elsewhere/film.mp4"):
        (tmp_path / name).write_bytes(film.read_bytes())
    (tmp_path / "root/link.mp4").symlink_to(tmp_path / "elsewhere/film.mp4")
    (tmp_path / "root/chain.mp4").symlink_to("link.mp4")
    (tmp_path / "root/folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/within.mp4").symlink_to("sub/film.mp4")
    (tmp_path / "root/loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "root/dangling.mp4").symlink_to("/etc/none.mp4")
    (tmp_path / "by_link").symlink_to("root")
    return tmp_path


INSIDE = ("root/film.mp4", "root/sub/../film.mp4", "root/within.mp4", "elsewhere/../root/film.mp4", "by_link/film.mp4")
OUTSIDE = ("elsewhere/film.mp4", "rootless/film.mp4", "root/../elsewhere/film.mp4", "root/link.mp4", "root/chain.mp4",
    "root/folder/film.mp4",
           "root/dangling.mp4", "/etc/passwd", "/proc/self/root/etc/passwd", "root/../../../../../../../../etc/passwd",
           "concat:/etc/passwd",
           "file:///etc/passwd", "http://127.0.0.1:1/x.mp4", "")  # fmt: skip


@pytest.mark.parametrize("root", ["root", "by_link", "root/sub/.."])
def test_links_and_dots_are_followed(folders: Path, root: str) -> None:
    for name in INSIDE:
        confine(folders / name, folders / root)
    for name in OUTSIDE:
        with pytest.raises(MediaOpenError, match="it is outside media_root="):
            confine(name if ":" in name else folders / name, folders / root)
    confine("/etc/passwd", None)


@pytest.mark.parametrize("name", ["a\0b.mp4", "x" * 5000, "root/loop.mp4"])
def test_paths_that_lead_nowhere(folders: Path, name: str) -> None:
    with pytest.raises(MediaOpenError):
        VideoPool().borrow(folders / name, MediaSettings(root=str(folders / "root")))


def test_relative_paths_are_those_of_the_process(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folders / "root")
    confine("film.mp4", ".")
    with pytest.raises(MediaOpenError):
        confine("../elsewhere/film.mp4", ".")


def test_a_question_outside_ends_with_the_reason_also_when_the_file_is_open(folders: Path) -> None:
    """Another question, without that limit, may have opened the file before."""

    def ask(path: Path, settings: MediaSettings) -> tuple[StopReason, str]:
        question = Question(text="?", kind=QuestionKind.FREE_FORM, videos=(MediaRef(path=str(path)),))
        config = EpisodeConfig(media=settings)
        done = asyncio.run(Episode(question, Playback([answer("x")]), config).run())
        return done.stop_reason, done.stop_detail

    confined = MediaSettings(root=str(folders / "root"))
    free = ask(folders / "root/link.mp4", MediaSettings())
    stop, why = ask(folders / "root/link.mp4", confined)
    assert free[0] is not StopReason.MEDIA_UNREADABLE
    assert (
        stop is StopReason.MEDIA_UNREADABLE
        and f"link.mp4: cannot open: it is outside media_root={folders / 'root'}" in why
    )
    assert ask(folders / "root/within.mp4", confined)[0] is free[0]


def test_a_pipe_inside_is_still_refused(folders: Path) -> None:
    os.mkfifo(folders / "root" / "pipe.mp4")
    with pytest.raises(MediaOpenError, match="not a file"):
        VideoPool().borrow(folders / "root/pipe.mp4", MediaSettings(root=str(folders / "root")))


def test_one_of_several_folders_has_to_contain_a_file(folders: Path) -> None:
    roots = (str(folders / "root"), str(folders / "rootless"))
    for name in ("root/film.mp4", "rootless/film.mp4"):
        confine(folders / name, roots)
    for name, several in (("elsewhere/film.mp4", roots), ("root/link.mp4", roots), ("root/film.mp4", ())):
        with pytest.raises(MediaOpenError, match="only files inside may be read"):
            confine(folders / name, several)
