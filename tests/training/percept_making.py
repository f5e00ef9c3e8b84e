"""What the tests of the cache of percepts are made with: small looks, and processes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from apr_plugin.loop.percepts import Decoded, LookKey
from apr_plugin.training.percepts import PerceptCache

MANY = 2**30


def cache_in(folder: Path, most_bytes: int = MANY) -> PerceptCache:
    return PerceptCache(folder, most_bytes=most_bytes, least_free_bytes=0)


def key_of(name: str, images: tuple[int, int, int, int] | None = (2, 3, 5, 3), sound: bool = True) -> LookKey:
    return LookKey(json.dumps({"name": name}), images, sound)


def media_of(name: str, images: tuple[int, int, int, int] | None = (2, 3, 5, 3), samples: int | None = 7) -> Decoded:
    rng = np.random.default_rng(list(name.encode()))
    return Decoded(
        None if images is None else rng.integers(0, 256, images, np.uint8),
        None if samples is None else rng.standard_normal(samples).astype(np.float32),
    )


def equal(one: Decoded | None, other: Decoded) -> bool:
    return one is not None and all(
        (mine is None and theirs is None) or (mine is not None and theirs is not None and same([mine], [theirs]))
        for mine, theirs in ((one.images, other.images), (one.waveform, other.waveform))
    )


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(
        (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()) for a, b in zip(one, other, strict=True)
    )


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*"))


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in entries(folder))


def in_child(work: Callable[[], object]) -> int:
    """The process id of a child that does this and ends with 0, or with 1 after an exception."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException as error:  # noqa: BLE001
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
