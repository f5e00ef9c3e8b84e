"""The files of the cache of percepts: every damage is noticed, and the least recently used make room."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import struct
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from percept_making import cache_in, entries, equal, key_of, media_of, total

from apr_plugin.loop.percepts import Decoded
from apr_plugin.training.percepts import PerceptCache, PerceptCacheError


@pytest.fixture
def kept(tmp_path: Path) -> tuple[PerceptCache, Path, bytes]:
    """A cache with one small entry, its file and its content."""
    cache = cache_in(tmp_path / "cache")
    cache.put(key_of("one"), media_of("one"))
    (path,) = entries(cache.folder)
    return cache, path, path.read_bytes()


def lost(cache: PerceptCache, caplog: pytest.LogCaptureFixture, why: str = "") -> None:
    """The entry can't be used: this is counted and logged, and the next one that is written is good."""
    before = cache.counts
    caplog.clear()
    cache._warned.clear()
    assert cache.get(key_of("one")) is None
    assert (cache.counts.damaged, cache.counts.misses) == (before.damaged + 1, before.misses + 1)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] and why in caplog.text


def test_damage_in_any_byte_is_noticed(
    kept: tuple[PerceptCache, Path, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """Each byte changed, each length, a byte more; then the entry is removed and written again."""
    cache, path, content = kept
    damaged = [
        content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]
        for place in range(len(content))
    ]
    damaged += [content[:length] for length in range(len(content))] + [content + b"\0", b"\0" * len(content)]
    for each in damaged:
        path.write_bytes(each)
        lost(cache, caplog)
        assert not path.exists()
    cache.put(key_of("one"), media_of("one"))
    assert path.read_bytes() == content and equal(cache.get(key_of("one")), media_of("one"))


def test_what_only_looks_like_an_entry_is_refused(
    kept: tuple[PerceptCache, Path, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """A program can write a header with a right checksum."""
    cache, path, content = kept
    _, length, _, summed = struct.unpack_from("<8sIII", content)
    header, body = content[20 : 20 + length], content[20 + length :]
    about = json.loads(header)
    for changed in (
        b"not JSON",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b"{}",
        json.dumps(about | {"key": "other"}).encode(),
        json.dumps(about | {"images": [2, 3, 5]}).encode(),
        *(json.dumps(about | {"samples": value}).encode() for value in (None, -7, 7.0, True, "7", 2**62, [7])),
    ):
        path.write_bytes(struct.pack("<8sIII", b"APRLOOK1", len(changed), zlib.crc32(changed), summed) + changed + body)
        lost(cache, caplog)
    path.write_bytes(struct.pack("<8sIII", b"APRLOOK1", 2**32 - 1, 0, 0) + content[20:])
    lost(cache, caplog, "its header is damaged")


def test_something_else_in_its_place(
    kept: tuple[PerceptCache, Path, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, path, content = kept
    one = media_of("one")

    def write_again(works: bool = True) -> None:
        before = cache.counts
        cache.put(key_of("one"), one)
        assert equal(cache.get(key_of("one")), one) == works
        assert cache.counts.not_kept == before.not_kept + (not works)

    cache.put(key_of("two"), media_of("two"))
    (other,) = set(entries(cache.folder)) - {path}
    shutil.copy(other, path)
    lost(cache, caplog, "another look")
    write_again()
    path.unlink()
    path.mkdir()
    lost(cache, caplog, "it is not a file")
    write_again()
    path.unlink()
    os.mkfifo(path)
    lost(cache, caplog, "it is not a file")
    write_again()
    target = tmp_path / "theirs"
    target.write_bytes(content)
    path.unlink()
    path.symlink_to(target)
    lost(cache, caplog, "can't be read")
    write_again()
    assert target.read_bytes() == content and not path.is_symlink()
    path.unlink()
    path.mkdir()
    (path / "mine").touch()
    lost(cache, caplog, "it is not a file")
    write_again(works=False)
    assert (path / "mine").exists() and equal(cache.get(key_of("two")), media_of("two")), "writing goes on"
    cache.put(key_of("three"), media_of("three"))
    assert equal(cache.get(key_of("three")), media_of("three"))


@pytest.mark.parametrize("images", [None, (1, 1, 1, 3), (3, 7, 11, 3)])
@pytest.mark.parametrize("samples", [None, 0, 1, 16_001])
def test_all_kinds_of_media(tmp_path: Path, images: Any, samples: int | None) -> None:
    """Also arrays that are not contiguous, which are neither changed nor held."""
    cache, key = cache_in(tmp_path), key_of("x", images, samples is not None)
    media = media_of("x", images, samples)
    mirrored = None if media.images is None else np.asfortranarray(media.images)
    cache.put(key, Decoded(mirrored, media.waveform))
    found = cache.get(key)
    assert equal(found, media)
    assert found is not None
    if found.images is not None and found.waveform is not None:
        found.images[:] = 0
        assert found.waveform.tobytes() == media.waveform.tobytes()  # type: ignore[union-attr]
    assert equal(cache.get(key), media)


def test_a_large_entry_is_written_and_read_whole(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    shape = (20, 448, 448, 3)
    cache.put(key_of("large", shape, False), media_of("large", shape, None))
    assert equal(cache.get(key_of("large", shape, False)), media_of("large", shape, None))


def test_the_least_recently_used_are_removed(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    cache.put(key_of("00"), media_of("00"))
    size = total(tmp_path)
    cache = cache_in(tmp_path, 16 * size)
    began = time.time_ns()
    for number in range(1, 16):
        cache.put(key_of(f"{number:02}"), media_of(f"{number:02}"))
    assert total(tmp_path) == 16 * size and not cache.counts.evicted
    by_name = {path.stem: path for path in entries(tmp_path)}
    for number in range(16):  # an hour between each and the next
        os.utime(by_name[key_of(f"{number:02}").name], ns=(began, began - (16 - number) * 3600 * 10**9))
    for number in (0, 3):
        assert cache.get(key_of(f"{number:02}")) is not None
    cache.put(key_of("16"), media_of("16"))
    cache.put(key_of("17"), media_of("17"))
    left = [n for n in range(18) if by_name.get(key_of(f"{n:02}").name, tmp_path / "none").exists() or n > 15]
    assert left == [0, *range(3, 18)], "the two oldest made room for two"
    assert cache.counts.evicted == 2 and total(tmp_path) == 16 * size
    for number in range(18, 80):
        cache.put(key_of(f"{number:02}"), media_of(f"{number:02}"))
        assert total(tmp_path) <= 16 * size
        assert equal(cache.get(key_of(f"{number:02}")), media_of(f"{number:02}")), "the newest is never removed"
    mine = tmp_path / "ab" / "notes.txt"
    mine.parent.mkdir(exist_ok=True)
    mine.write_bytes(b"\0" * 20 * size)
    (tmp_path / "ab" / ("0" * 40 + ".look")).mkdir()
    cache.put(key_of("80"), media_of("80"))
    assert mine.exists() and equal(cache.get(key_of("80")), media_of("80")), "other files neither count nor are removed"
    smaller = cache_in(tmp_path, 3 * size)
    smaller.put(key_of("81"), media_of("81"))
    assert total(tmp_path) - 20 * size - (tmp_path / "ab" / ("0" * 40 + ".look")).stat().st_size <= 3 * size


def test_what_is_larger_than_the_cache_is_not_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = cache_in(tmp_path, 2000)
    cache.put(key_of("small"), media_of("small"))
    large = (10, 20, 20, 3)
    cache.put(key_of("large", large), media_of("large", large))
    assert cache.counts.not_kept == 1 and not cache.counts.evicted and not caplog.records
    assert cache.get(key_of("large", large)) is None and cache.get(key_of("small")) is not None


def test_a_folder_of_many_entries_is_not_listed_for_each_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listings: Counter[str] = Counter()
    real = PerceptCache._listed

    def slow(self: PerceptCache, now_ns: int) -> Any:
        listings["all"] += 1
        time.sleep(0.05)
        return real(self, now_ns)

    monkeypatch.setattr(PerceptCache, "_listed", slow)
    cache = cache_in(tmp_path)
    for number in range(40):
        cache.put(key_of(str(number)), media_of(str(number)))
    assert listings["all"] == 1


def test_a_copy_begins_with_counts_of_its_own(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    cache.put(key_of("one"), media_of("one"))
    copy = pickle.loads(pickle.dumps(cache))
    assert equal(copy.get(key_of("one")), media_of("one"))
    assert (copy.counts.hits, copy.counts.bytes_written) == (1, 0) and cache.counts.hits == 0


@pytest.mark.parametrize("most", [0, -1, True, 1.5, float("nan"), "1", None])
def test_a_wrong_limit(tmp_path: Path, most: Any) -> None:
    with pytest.raises(PerceptCacheError, match="most_bytes must be a whole number of bytes"):
        PerceptCache(tmp_path, most_bytes=most)
    with pytest.raises(PerceptCacheError, match="least_free_bytes"):
        PerceptCache(tmp_path, most_bytes=1, least_free_bytes=-1)


def test_a_wrong_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PerceptCacheError, match="kept in a folder, and this is something else"):
        cache_in(tmp_path / "file")
    for wrong, why in (
        (tmp_path / "file" / "below", "Not a directory"),
        ("~nobody-of-this-name/percepts", "home directory"),
        ("a\0b", "null"),
        ("x" * 5000, "too long"),
    ):
        with pytest.raises(PerceptCacheError, match=f"no percepts can be kept there: .*{why}"):
            cache_in(Path(wrong))
