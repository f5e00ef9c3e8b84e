"""The cache of percepts where writing fails, where processes are killed, and where several use it at once."""

from __future__ import annotations

import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from percept_making import MANY, cache_in, ended, entries, equal, in_child, key_of, media_of, total

from apr_plugin.training.percepts import PerceptCache


def writes_nothing(cache: PerceptCache, caplog: pytest.LogCaptureFixture, why: str) -> None:
    for name in ("one", "two"):
        cache.put(key_of(name), media_of(name))
        assert cache.get(key_of(name)) is None
    assert cache.counts.not_kept == cache.counts.misses == 2 and not cache.counts.bytes_written
    assert len(caplog.records) == 1 and why in caplog.text and "no more percepts are kept" in caplog.text


def test_a_share_of_the_disk_stays_free(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = PerceptCache(tmp_path, most_bytes=MANY, least_free_bytes=2**62)
    writes_nothing(cache, caplog, "are to stay free")
    cache.least_free_bytes = 0
    cache.put(key_of("one"), media_of("one"))
    assert not [path for path in entries(tmp_path) if path.is_file()], "once writing has failed it is not tried again"
    cache_in(tmp_path).put(key_of("one"), media_of("one"))
    assert equal(cache.get(key_of("one")), media_of("one")), "what another process writes is found"


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A limit on the size of files fails in the middle of a write, as a full disk does."""

    cache = cache_in(tmp_path)

    def use() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        writes_nothing(cache, caplog, "File too large")

    assert ended(in_child(use)) == 0
    assert not [path for path in entries(tmp_path) if path.is_file()]
    cache_in(tmp_path).put(key_of("one"), media_of("one"))
    assert cache_in(tmp_path).get(key_of("one")) is not None


def test_a_read_only_folder_still_serves(caplog: pytest.LogCaptureFixture) -> None:
    with tempfile.TemporaryDirectory() as name:
        cache = cache_in(Path(name))
        cache.put(key_of("one"), media_of("one"))
        folders = [Path(name), *Path(name).iterdir()]
        for folder in folders:
            folder.chmod(0o555)
        for path in entries(Path(name)):
            path.chmod(0o444)

        def use() -> None:
            if os.geteuid() == 0:
                os.setegid(65_534)
                os.seteuid(65_534)  # for root, every folder is writable
            assert equal(cache.get(key_of("one")), media_of("one"))
            cache.put(key_of("two"), media_of("two"))
            cache.put(key_of("three"), media_of("three"))
            assert len(caplog.records) == 1 and "no more percepts are kept" in caplog.text

        assert ended(in_child(use)) == 0
        assert (cache.counts.hits, cache.counts.not_kept) == (1, 2), "a forked process counts here too"
        for folder in folders:
            folder.chmod(0o755)


KILLS = ("mkdir", "open", "write", "listed", "unlink", "replace", "replaced")


@pytest.mark.parametrize("where", KILLS)
def test_a_kill_at_any_step_leaves_a_usable_cache(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cache_in(tmp_path)
    first.put(key_of("0"), media_of("0"))
    size = total(tmp_path)
    for number in range(1, 4):
        first.put(key_of(str(number)), media_of(str(number)))

    def die(*_: object, **__: object) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    def after(work: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **more: (work(*args, **more), die())

    def use() -> None:
        cache = cache_in(tmp_path, 4 * size)
        match where:
            case "mkdir":
                monkeypatch.setattr(Path, "mkdir", after(Path.mkdir))
            case "open":
                monkeypatch.setattr(Path, "open", after(Path.open))
            case "write":
                real = Path.open

                class Half:
                    def __init__(self, file: Any) -> None:
                        self.file = file

                    def __enter__(self) -> Half:
                        return self

                    def __exit__(self, *_: object) -> None:
                        self.file.close()

                    def write(self, piece: memoryview) -> None:
                        self.file.write(piece[: len(piece) // 2])
                        die()

                monkeypatch.setattr(Path, "open", lambda path, mode: Half(real(path, mode, buffering=0)))
            case "listed":
                monkeypatch.setattr(PerceptCache, "_listed", die)
            case "unlink":
                monkeypatch.setattr(Path, "unlink", after(Path.unlink))
            case "replace":
                monkeypatch.setattr(os, "replace", die)
            case "replaced":
                monkeypatch.setattr(os, "replace", after(os.replace))
        cache.put(key_of("new"), media_of("new"))

    assert ended(in_child(use)) == -signal.SIGKILL
    unfinished = list(tmp_path.glob("*/*.part"))
    assert len(unfinished) == (where in ("open", "write", "listed", "unlink", "replace"))
    cache = cache_in(tmp_path)
    found = [cache.get(key_of(name)) for name in ("0", "1", "2", "3", "new")]
    gone = {"unlink": 1, "replaced": 2, "replace": 2}.get(where, 0)
    assert [each is not None for each in found[:4]].count(False) == gone
    assert (found[4] is not None) == (where == "replaced") and not cache.counts.damaged
    cache.put(key_of("new"), media_of("new"))
    assert equal(cache.get(key_of("new")), media_of("new"))
    cache_in(tmp_path).put(key_of("other"), media_of("other"))
    assert all(path.exists() for path in unfinished), "it may belong to a process that is still writing"
    for path in unfinished:
        os.utime(path, (0, 0))
    cache_in(tmp_path).put(key_of("another"), media_of("another"))
    assert not list(tmp_path.glob("*/*.part"))


def test_a_kill_at_a_random_moment(tmp_path: Path) -> None:
    shape = (4, 224, 224, 3)
    names = [str(number) for number in range(6)]
    made = {name: media_of(name, shape) for name in names}

    def write() -> None:
        cache = cache_in(tmp_path, 4 * 700_000)
        while True:
            for name in names:
                cache.put(key_of(name, shape), made[name])

    for kill in range(12):
        pid = in_child(write)
        time.sleep(0.005 + 0.004 * kill)
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
        cache = cache_in(tmp_path)
        for name in names:
            found = cache.get(key_of(name, shape))
            assert found is None or equal(found, made[name])
        assert not cache.counts.damaged
        for path in tmp_path.glob("*/*.part"):
            os.utime(path, (0, 0))
    assert cache.counts.hits


def test_several_processes_at_once(tmp_path: Path) -> None:
    """They write and read the same looks in a cache that is too small for them, and nobody sees a half entry."""
    names = [str(number) for number in range(40)]
    shape = (1, 64, 64, 3)
    made = {name: media_of(name, shape) for name in names}
    probe = cache_in(tmp_path / "probe")
    probe.put(key_of("0", shape), made["0"])
    size = total(tmp_path / "probe")
    folder, limit = tmp_path / "cache", 20 * size

    def use(number: int) -> None:
        order = np.random.default_rng(number)
        cache = cache_in(folder, limit)
        for _ in range(150):
            name = names[order.integers(len(names))]
            found = cache.get(key_of(name, shape))
            if found is None:
                cache.put(key_of(name, shape), made[name])
            else:
                assert equal(found, made[name])
        counts = cache.counts
        assert counts.hits and counts.evicted and not counts.damaged and counts.hits + counts.misses == 150
        assert not counts.not_kept

    assert [ended(pid) for pid in [in_child(lambda n=n: use(n)) for n in range(4)]] == [0] * 4  # type: ignore[misc]
    assert not list(folder.glob("*/*.part"))
    assert size < total(folder) <= limit + 4 * size, "each process may exceed it for a moment, by what it writes then"
    last = cache_in(folder, limit)
    last.put(key_of("last", shape), media_of("last", shape))
    assert total(folder) <= limit
