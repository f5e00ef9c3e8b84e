"""Damage small files of every codec and container in thousands of ways, and read each.

Nothing may crash, hang or raise an exception that is not typed.

    python -m benchmarks.fuzz_media --n 5000 --seed 0 --jobs 2

File `i` of a seed is the same in every run. Each is read (open, frames in both modes, audio, clip) in a child process.
A child that dies or takes over 10 s for a read is a failure, which is counted and kept in `--keep FOLDER`. The exit
status is 1 if there was any.
"""

from __future__ import annotations

import argparse
import json
import random
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.films import SMALL, small

LIMIT_S = 10.0
"""Longest time for one read: opening, a look, sound, a clip.

Files that take longer for all their reads together are counted too.
"""
_ASKED_S = 9.0  # the limit that a read gets; it is lower, so that a busy machine meets LIMIT_S too
_PATIENCE_S = 30.0  # after this a child counts as hung
HEADERS = (
    b"moov",
    b"trak",
    b"stsd",
    b"stts",
    b"stss",
    b"stsc",
    b"stsz",
    b"stco",
    b"ctts",
    b"tkhd",
    b"mdhd",
    b"mvhd",
    b"elst",
    b"avcC",
    b"hvcC",
    b"esds",
    b"moof",
    b"tfhd",
    b"trun",
    b"hdrl",
    b"strh",
    b"strf",
    b"idx1",
    b"movi",
    b"\x1aE\xdf\xa3",
    b"\x15I\xa9f",
    b"\x16T\xaek",
    b"\x1cS\xbbk",
    b"\x1fC\xb6u",
    b"OggS",
    b"OpusHead",
    b"fmt ",
    b"data",
    b"fLaC",
    b"onMetaData",
    b"av1C",
    b"vpcC",
)
_ODD = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE)


def mutate(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Damage a file in one way, sometimes in two; return what was done and the result."""
    ways = [_few_bits, _many_bits, _truncate, _swap, _zero, _early, _header, _number, _number, _insert]
    names, out = [], bytearray(data)
    for way in rng.choices(ways, k=rng.choice((1, 1, 1, 2))):
        way(out, rng)
        names.append(way.__name__.strip("_"))
    return "+".join(names), bytes(out)


def _flip(out: bytearray, low: int, high: int, count: int, rng: random.Random) -> None:
    for _ in range(count):
        out[rng.randrange(low, max(low + 1, high))] ^= 1 << rng.randrange(8)


def _few_bits(out: bytearray, rng: random.Random) -> None:
    _flip(out, 0, len(out), rng.randint(1, 10), rng)


def _many_bits(out: bytearray, rng: random.Random) -> None:
    _flip(out, 0, len(out), int(len(out) * 10 ** rng.uniform(-3, -1)) + 1, rng)


def _truncate(out: bytearray, rng: random.Random) -> None:
    del out[rng.randrange(1, len(out)) :]


def _swap(out: bytearray, rng: random.Random) -> None:
    size = rng.randint(1, max(1, len(out) // 8))
    for _ in range(rng.randint(1, 4)):
        a, b = rng.randrange(0, max(1, len(out) - size)), rng.randrange(0, max(1, len(out) - size))
        out[a : a + size], out[b : b + size] = out[b : b + size], out[a : a + size]


def _zero(out: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(out))
        size = min(rng.randint(1, max(1, len(out) // 10)), len(out) - at)
        out[at : at + size] = bytes(size)


def _early(out: bytearray, rng: random.Random) -> None:
    """Flip bits in the first KB only."""
    _flip(out, 0, min(1024, len(out)), rng.randint(1, 20), rng)


def _header(out: bytearray, rng: random.Random) -> None:
    """Flip bits directly after the name of a box."""
    at = _box(out, rng)
    _flip(out, at, min(at + rng.choice((8, 32, 128)), len(out)), rng.randint(1, 8), rng)


def _number(out: bytearray, rng: random.Random) -> None:
    """Replace a number in a header by an extreme one: sizes, counts, dimensions, time scales, sample tables."""
    for _ in range(rng.randint(1, 3)):
        at, size = max(0, _box(out, rng) + rng.randint(-8, 96)), rng.choice((1, 2, 4, 8))
        value = rng.choice((*_ODD, rng.getrandbits(16), rng.getrandbits(32))) & (256**size - 1)
        if at + size <= len(out):
            out[at : at + size] = value.to_bytes(size, rng.choice(("big", "little")))


def _insert(out: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(out))
    out[at:at] = rng.randbytes(rng.randint(1, 300)) if rng.random() < 0.5 else out[: rng.randint(1, 2000)]


def _box(out: bytearray, rng: random.Random) -> int:
    for name in rng.sample(HEADERS, len(HEADERS)):
        at = out.find(name)
        if at >= 0:
            return min(at + len(name), len(out) - 1)
    return rng.randrange(min(1024, len(out)))


def damaged(seeds: dict[str, bytes], seed: int, number: int) -> tuple[str, str, bytes]:
    """File `number` of a seed: its name, what was done to it, its bytes."""
    rng = random.Random(f"{seed}-{number}")
    name = sorted(seeds)[number % len(seeds)]
    way, data = mutate(seeds[name], rng)
    return name, way, data


def read(path: str, isolation: Any, seed: int) -> dict[str, Any]:
    """Do everything that a reader does with a file, and return the outcome."""
    import numpy as np

    from apr_plugin.media import MediaError, Video, isolated

    rng = random.Random(seed)
    began, kills = time.monotonic(), isolated.KILLS
    told: list[str] = []
    untyped: list[str] = []
    missing, used_worker, longest = 0, False, 0.0

    def attempt(work: Any) -> Any:
        nonlocal longest
        started = time.monotonic()
        try:
            return work()
        except MediaError as error:
            told.append(type(error).__name__)
        except Exception as error:  # noqa: BLE001 - the test searches for it
            import traceback

            untyped.append("".join(traceback.format_exception(error))[-1500:])
        finally:
            longest = max(longest, time.monotonic() - started)
        return None

    video = attempt(lambda: Video.open(path, isolation=isolation))
    if video is not None:
        length = video.duration_s
        for look in range(4) if video.has_video else []:
            times = [rng.uniform(0, length) for _ in range(rng.choice((1, 4, 8)))]
            if look == 3:
                times = [length * (i + 0.5) / 4 for i in range(4)]
            shown = attempt(
                lambda t=times, k=look: video.frames(t, 20_000, "keyframe" if k == 2 else "exact", timeout_s=_ASKED_S)
            )
            if shown is not None:
                missing += len(shown.missing_s)
                if shown.images.ndim != 4 or shown.images.dtype != np.uint8 or len(shown.images) != len(shown.times_s):
                    untyped.append(f"odd frames: {shown.images.shape} {len(shown.times_s)}")
                if len(shown.images) + len(shown.missing_s) < len(times) and len(set(times)) == len(times):
                    untyped.append(f"{len(times)} times, {len(shown.images)} frames, {len(shown.missing_s)} missing")
                if not all(np.isfinite(shown.times_s)):
                    untyped.append("a time that is not a number")
        start = rng.uniform(0, length)
        end = min(length, start + 1.0)
        if video.has_audio and end > start:
            sound = attempt(lambda: video.audio(start, end, timeout_s=_ASKED_S))
            if sound is not None and (
                sound.samples.shape != (round((end - start) * 16000),) or not np.isfinite(sound.samples).all()
            ):
                untyped.append(
                    f"odd sound: {sound.samples.shape} for {end - start}, finite: {np.isfinite(sound.samples).all()}"
                )
        if video.has_video and end > start:
            attempt(lambda: video.clip(start, end, 4.0, 20_000, timeout_s=_ASKED_S))
        used_worker = isolation == "auto" and video.isolated
        attempt(video.close)
    seconds = time.monotonic() - began
    return {
        "told": told,
        "untyped": untyped,
        "missing": missing,
        "worker": used_worker,
        "kills": isolated.KILLS - kills,
        "s": seconds,
        "longest": longest,
    }


def serve(isolation: str) -> None:
    """Run the child: read the files that are named on standard input, and print one JSON line for each."""
    for line in sys.stdin:
        path, seed = json.loads(line)
        print(json.dumps(read(path, isolation, seed)), flush=True)


class Child:
    """A process that reads files for the test."""

    def __init__(self, isolation: str) -> None:
        self._command = [sys.executable, "-m", "benchmarks.fuzz_media", "--child", isolation]
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, path: str, seed: int) -> dict[str, Any]:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
            )
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([path, seed]).encode() + b"\n")
        answer, until = b"", time.monotonic() + _PATIENCE_S
        while not answer.endswith(b"\n"):
            if not select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                self.close()
                return {"hang": _PATIENCE_S}
            piece = process.stdout.read(1 << 16)
            if not piece:
                status = process.wait()
                self._process = None
                return {"crash": status}
            answer += piece
        got: dict[str, Any] = json.loads(answer)
        return got

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@dataclass
class Report:
    """The results of a run."""

    counts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str, str, str]] = field(default_factory=list)
    """Number, name, what was done, and the outcome."""
    slowest: tuple[float, int] = (0.0, -1)

    def add(self, number: int, name: str, way: str, got: dict[str, Any]) -> None:
        """Count one file."""
        self.counts["files"] += 1
        bad = ""
        if "crash" in got:
            self.counts["process crashed"] += 1
            bad = f"crash: status {got['crash']}"
        elif "hang" in got:
            self.counts["over 10 s"] += 1
            bad = "hang"
        else:
            self.slowest = max(self.slowest, (got["longest"], number))
            self.counts["files over 10 s in all"] += got["s"] > LIMIT_S
            self.errors.update(got["told"])
            self.counts["worker kills"] += got["kills"]
            self.counts["files read by a worker"] += got["worker"]
            if got["untyped"]:
                self.counts["untyped exceptions"] += 1
                bad = got["untyped"][0]
            elif got["longest"] > LIMIT_S:
                self.counts["over 10 s"] += 1
                bad = f"{got['longest']:.1f} s"
            elif got["told"]:
                self.counts["clean errors"] += 1
            elif got["missing"] or got["worker"]:
                self.counts["recovered"] += 1
            else:
                self.counts["read without error"] += 1
        if bad:
            self.failures.append((number, name, way, bad))

    def text(self) -> str:
        """The counts, one line each."""
        order = ("files", "read without error", "recovered", "clean errors", "files read by a worker", "worker kills",
            "process crashed",
                 "untyped exceptions", "over 10 s", "files over 10 s in all")  # fmt: skip
        lines = [f"{name:24s} {self.counts[name]}" for name in order]
        lines += [f"  {name:22s} {count}" for name, count in self.errors.most_common()]
        return "\n".join([*lines, f"slowest read             {self.slowest[0]:.1f} s (number {self.slowest[1]})"])


def run(
    n: int,
    seed: int = 0,
    jobs: int = 2,
    isolation: str = "auto",
    keep: Path | None = None,
    first: int = 0,
    bar: bool = False,
) -> Report:
    """Damage and read `n` files."""
    report, lock, local = Report(), threading.Lock(), threading.local()
    children: list[Child] = []
    with tempfile.TemporaryDirectory(prefix="apr-fuzz-") as name:
        folder = Path(name)
        seeds = {film: small(folder, film).read_bytes() for film in SMALL}

        def one(number: int) -> None:
            if not hasattr(local, "child"):
                local.child = Child(isolation)
                children.append(local.child)
            film, way, data = damaged(seeds, seed, number)
            path = folder / f"{number}-{film}"
            path.write_bytes(data)
            got = local.child.read(str(path), seed + number)
            with lock:
                before = len(report.failures)
                report.add(number, film, way, got)
                if bar and (report.counts["files"] % 20 == 0 or report.counts["files"] == n):
                    done = report.counts["files"]
                    print(
                        f"\r[{'#' * (done * 40 // n):40s}] {done}/{n}, {len(report.failures)} failures ",
                        end="",
                        file=sys.stderr,
                        flush=True,
                    )
                if keep is not None and len(report.failures) > before:
                    keep.mkdir(parents=True, exist_ok=True)
                    path.replace(keep / path.name)
                    print(f"\n{number} {film} {way}: {report.failures[-1][3]}", file=sys.stderr)
            path.unlink(missing_ok=True)

        try:
            with ThreadPoolExecutor(jobs) as pool:
                list(pool.map(one, range(first, first + n)))
        finally:
            for child in children:
                child.close()
    return report


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--n", type=int, default=5000, help="files")
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="files read at once")
    parser.add_argument("--isolation", choices=("auto", "always", "never"), default="auto")
    parser.add_argument("--keep", type=Path, help="folder for the files that failed")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.child:
        serve(wanted.child)
        return
    began = time.monotonic()
    report = run(wanted.n, wanted.seed, wanted.jobs, wanted.isolation, wanted.keep, wanted.first, bar=True)
    print(f"\n{report.text()}\n{time.monotonic() - began:.0f} s, isolation={wanted.isolation}")
    for number, film, way, bad in report.failures:
        print(f"FAILED {number} {film} ({way}): {bad}")
    sys.exit(1 if report.failures else 0)


if __name__ == "__main__":
    main()
