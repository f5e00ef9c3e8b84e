"""Measures speed and memory of `apr_plugin.media`, compared with other ways to read the same frames.

The results are ratios of one run, and whether the targets are met.

    python -m benchmarks.media [--dir FOLDER] [--json FILE] [--quick] [--repeat 3]

The files (10 minutes and 2 hours of 720p H.264 at 4 Mbit/s, GOP 250, B-frames, sound; 2 hours of 1080p) are made in
`--dir` and used again; they have 4 GB. The looks are those of an agent: 32 frames over the whole file, then nine
narrowing looks of 19; one minute of sound; a clip of 10 s. Every way runs in its own process, in turns (`--repeat`
rounds, of which the best counts), so that a busy machine affects all of them alike. `--quick` reads the 10-minute file
only.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apr_plugin.config import cache_dir
from benchmarks.films import FPS, GOP, TEN_MINUTES_S, TWO_HOURS_S, long, repeat

MAX_PIXELS = 200_000
"""Frames are scaled to this many pixels, as an agent requests them (`max_pixels`)."""
GOP_S = GOP / FPS
TARGETS = (
    ("exact, 2 workers, is at least 4x faster than ffmpeg per frame", "ffmpeg per frame", "exact, workers=2", 4.0),
    ("exact, 2 workers, is at least 2.5x faster than decord", "decord", "exact, workers=2", 2.5),
    (
        "keyframe mode is at least 10x faster than ffmpeg per frame on the wide looks",
        "ffmpeg per frame, wide looks",
        "keyframe, wide looks",
        10.0,
    ),
)


@dataclass
class Row:
    """One way of reading the looks."""

    way: str
    film: str
    wall_s: float
    cpu_s: float
    open_s: float
    packets: int
    note: str = ""


def looks(seconds: float, count: int = 10) -> list[list[float]]:
    """The times of each look: a scan, then windows that narrow around places in the file.

    Every time has the same position within its GOP in a file of any length (a scan of 32 in one GOP each, windows of
    whole GOPs). So as many pictures have to be decoded in the 2-hour file as in the 10-minute one.
    """
    gops = int(seconds / GOP_S)
    step = max(1, int(gops / 32 - 0.875)) + 0.875  # step of the scan, in GOPs: 1.875 in 10 minutes, 21.875 in 2 hours

    def place(at: float) -> float:
        gop = min(int(at), gops - 1)
        return gop * GOP_S + (0.5 + int(at % 1 * GOP)) / FPS

    chosen = [[place(i * step % gops) for i in range(32)]]
    for number in range(count - 1):
        spread = min((30, 10, 5, 3, 2, 1, 1, 1, 1)[number % 9], gops)
        first = int((number * 0.61803 % 1) * (gops - spread))
        chosen.append([place(first + i * spread / 19) for i in range(19)])
    return chosen


def wide(times: list[float]) -> bool:
    """Whether frames are further apart than keyframes."""
    return (max(times) - min(times)) / (len(times) - 1) > GOP_S


def _size() -> tuple[int, int]:
    from apr_plugin.media import fit

    return fit(1280, 720, MAX_PIXELS)


def ours(path: str, plan: list[list[float]], workers: int = 2, mode: Any = "exact") -> tuple[float, int]:
    from apr_plugin.media import Video

    began = time.perf_counter()
    with Video.open(path, workers=workers) as video:
        opened = time.perf_counter() - began
        return opened, sum(video.frames(times, MAX_PIXELS, mode).packets for times in plan)


def ours_sound(path: str, plan: list[list[float]]) -> tuple[float, int]:
    from apr_plugin.media import Video

    began = time.perf_counter()
    with Video.open(path) as video:
        opened = time.perf_counter() - began
        start = plan[0][16]
        return opened, video.audio(start, start + 60).packets


def ours_clip(path: str, plan: list[list[float]]) -> tuple[float, int]:
    from apr_plugin.media import Video

    began = time.perf_counter()
    with Video.open(path) as video:
        opened = time.perf_counter() - began
        start = plan[0][16]
        return opened, video.clip(start, start + 10, 2.0, MAX_PIXELS).frames.packets


def floor(path: str, plan: list[list[float]]) -> tuple[float, int]:
    """Decode the same packets in one thread, from each keyframe to the last picture of its GOP that is needed.

    Nothing is skipped, scaled or kept.
    """
    import av

    began = time.perf_counter()
    packets = 0
    with av.open(path) as container:
        opened = time.perf_counter() - began
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        assert stream.time_base is not None
        for times in plan:
            last: dict[int, float] = {}
            for t in times:
                last[int(t / GOP_S)] = max(t, last.get(int(t / GOP_S), t))
            for until in last.values():
                limit = int(until / stream.time_base)
                container.seek(limit, stream=stream, backward=True)
                shown = False
                for packet in container.demux(stream):
                    if packet.dts is None or packet.dts > limit:
                        break
                    packets += 1
                    for frame in stream.codec_context.decode(packet):
                        shown = frame.pts is not None and frame.pts >= limit
                    if shown:
                        break
                stream.codec_context.flush_buffers()
    return opened, packets


def ffmpeg(path: str, plan: list[list[float]]) -> tuple[float, int]:
    """Start one process for each frame, as the official implementation does."""
    width, height = _size()
    for times in plan:
        for t in times:
            command = [
                "ffmpeg",
                "-v",
                "error",
                "-nostdin",
                "-ss",
                f"{t:.3f}",
                "-i",
                path,
                "-frames:v",
                "1",
                "-s",
                f"{width}x{height}",
            ]
            done = subprocess.run(
                [*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True
            )
            assert len(done.stdout) == width * height * 3
    return 0.0, 0


def decord(path: str, plan: list[list[float]]) -> tuple[float, int]:
    import decord as library

    width, height = _size()
    began = time.perf_counter()
    reader = library.VideoReader(path, ctx=library.cpu(0), width=width, height=height)
    opened = time.perf_counter() - began
    for times in plan:
        reader.get_batch([int(t * FPS) for t in times]).asnumpy()
    return opened, 0


def torchcodec(path: str, plan: list[list[float]], seek_mode: str = "approximate") -> tuple[float, int]:
    library = importlib.import_module("torchcodec.decoders")
    began = time.perf_counter()
    decoder = library.VideoDecoder(path, seek_mode=seek_mode, num_ffmpeg_threads=2)
    opened = time.perf_counter() - began
    for times in plan:
        decoder.get_frames_at([int(t * FPS) for t in times])
    return opened, 0


WAYS: dict[str, tuple[Any, dict[str, Any], bool]] = {
    "exact, workers=1": (ours, {"workers": 1}, False),
    "exact, workers=2": (ours, {"workers": 2}, False),
    "floor": (floor, {}, False),
    "ffmpeg per frame": (ffmpeg, {}, False),
    "decord": (decord, {}, False),
    "torchcodec approximate": (torchcodec, {}, False),
    "torchcodec exact": (torchcodec, {"seek_mode": "exact"}, False),
    "keyframe, wide looks": (ours, {"mode": "keyframe"}, True),
    "exact, wide looks": (ours, {}, True),
    "ffmpeg per frame, wide looks": (ffmpeg, {}, True),
    "sound, 60 s": (ours_sound, {}, False),
    "clip, 10 s at 2 fps": (ours_clip, {}, False),
}
"""Name -> the function that reads, its arguments, and whether it reads only the looks wider than a GOP."""


def measure(way: str, path: str, seconds: float, count: int) -> dict[str, Any]:
    """Read once in a child process; the result has wall and CPU seconds, including those of its own children."""
    work, options, only_wide = WAYS[way]
    plan = [times for times in looks(seconds, count) if wide(times) or not only_wide]
    for module in (
        "av",
        "numpy",
        "apr_plugin.media",
        *(["decord"] if way == "decord" else []),
        *(["torchcodec.decoders"] if "torchcodec" in way else []),
    ):
        importlib.import_module(module)
    before, began = os.times(), time.perf_counter()
    opened, packets = work(path, plan, **options)
    wall, after = time.perf_counter() - began, os.times()
    return {"wall_s": wall, "cpu_s": sum(after[:4]) - sum(before[:4]), "open_s": opened, "packets": packets}


def memory(path: str, seconds: float, count: int) -> dict[str, Any]:
    """Measure in a child process the resident memory after opening, and during many looks."""
    from apr_plugin.media import Video

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    before = resident()
    curve = []
    with Video.open(path) as video:
        for number in range(count):
            start = (number * 0.61803 % 1) * (seconds - 40)
            video.frames([start + i * 0.8 for i in range(8)], MAX_PIXELS)
            curve.append(resident() - before)
    tenth = max(1, count // 10)
    return {
        "highest_mb": max(curve),
        "first_tenth_mb": max(curve[:tenth]),
        "last_tenth_mb": max(curve[-tenth:]),
        "looks": count,
    }


def child(*arguments: object) -> dict[str, Any] | None:
    """Run `measure` or `memory` in a separate process; if that fails, print its last words and return `None`."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.media", "--child", json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        tell(f"  {arguments[1]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
        return None
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def available(way: str) -> bool:
    """Whether the program or library of a way is there."""
    if way.startswith("ffmpeg"):
        return shutil.which("ffmpeg") is not None
    library = way.split()[0]
    return library not in ("decord", "torchcodec") or importlib.util.find_spec(library) is not None


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def compare(film: Path, seconds: float, rounds: int, count: int, ways: list[str]) -> list[Row]:
    """Measure every way on one file, in turns; the least of each counts."""
    best: dict[str, Row] = {}
    for turn in range(rounds):
        for way in ways:
            tell(f"{film.name}, round {turn + 1} of {rounds}: {way}")
            got = child("measure", way, str(film), seconds, count)
            if got is not None:
                row = best.setdefault(
                    way, Row(way, film.stem, got["wall_s"], got["cpu_s"], got["open_s"], got["packets"])
                )
                row.wall_s = min(row.wall_s, got["wall_s"])
                row.cpu_s = min(row.cpu_s, got["cpu_s"])
                row.open_s = min(row.open_s, got["open_s"])
    return list(best.values())


def table(rows: list[Row]) -> str:
    """The results as Markdown; ratios are to ours with 2 workers (on the wide looks, to keyframe mode)."""
    lines = [
        "| file | way | wall s | CPU s | wall, ours = 1 | open s | packets decoded |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        own = "keyframe, wide looks" if "wide" in row.way else "exact, workers=2"
        base = next((other.wall_s for other in rows if other.film == row.film and other.way == own), None)
        ratio = f"{row.wall_s / base:.2f}" if base and not row.way.startswith(("sound", "clip")) else ""
        lines.append(
            f"| {row.film} | {row.way} | {row.wall_s:.2f} | {row.cpu_s:.2f} | {ratio} | {row.open_s:.3f} | "
            f"{row.packets or ''} |"
        )
    return "\n".join(lines)


def verdicts(rows: list[Row], ram: dict[str, Any] | None) -> list[tuple[str, float, bool]]:
    """Each target that could be measured, its figure, and whether it is met."""
    longest = rows[-1].film if rows else ""
    here = {row.way: row for row in rows if row.film == longest}
    short = {row.way: row for row in rows if row.film != longest}
    found = []
    for text, other, own, least in TARGETS:
        if other in here and own in here:
            ratio = here[other].wall_s / here[own].wall_s
            found.append((f"{text} ({longest})", ratio, ratio >= least))
    if "floor" in here and "exact, workers=1" in here:
        ratio = here["exact, workers=1"].cpu_s / here["floor"].cpu_s
        found.append(("exact, 1 worker, costs at most 1.25x the CPU time of the floor", ratio, ratio <= 1.25))
    for way in ("exact, workers=1", "exact, workers=2"):
        if way in here and way in short:
            ratio = here[way].cpu_s / short[way].cpu_s
            found.append((f"{way}: 2 hours cost at most 1.2x the CPU time of 10 minutes", ratio, ratio <= 1.2))
    if "exact, workers=2" in here:
        opened = here["exact, workers=2"].open_s
        found.append(("opening takes at most 0.3 s", opened, opened <= 0.3))
    if ram:
        found.append(("resident memory grows by less than 300 MB", ram["highest_mb"], ram["highest_mb"] < 300))
        growth = ram["last_tenth_mb"] - ram["first_tenth_mb"]
        found.append(
            (f"and by less than 30 MB from the first tenth of {ram['looks']} looks to the last", growth, growth < 30)
        )
    return found


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dir", type=Path, default=cache_dir() / "benchmarks", help="folder for the files it makes")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument(
        "--quick", action="store_true", help="the 10-minute file, four looks, one round, ours and the floor"
    )
    parser.add_argument("--repeat", type=int, default=3, help="rounds")
    parser.add_argument(
        "--seconds", type=int, default=TEN_MINUTES_S, help="length of the shorter file (for tests of this program)"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.child:
        name, *arguments = json.loads(wanted.child)
        print(json.dumps(measure(*arguments) if name == "measure" else memory(*arguments)))
        return
    count, rounds = (4, 1) if wanted.quick else (10, wanted.repeat)
    short = long(wanted.dir / f"{wanted.seconds}s-720p.mp4", wanted.seconds, 1280, 720, 4_000_000, tell)
    ways = [
        way for way in WAYS if available(way) and (not wanted.quick or way.startswith(("exact", "floor", "keyframe")))
    ]
    rows = compare(
        short,
        wanted.seconds,
        rounds,
        count,
        [way for way in ways if wanted.quick or way.startswith(("exact", "floor", "sound", "clip"))],
    )
    ram = None
    if not wanted.quick:
        two = repeat(short, wanted.dir / f"{TWO_HOURS_S}s-720p.mp4", TWO_HOURS_S // wanted.seconds)
        rows += compare(two, TWO_HOURS_S, rounds, count, ways)
        large = long(wanted.dir / f"{TWO_HOURS_S}s-1080p.mp4", TWO_HOURS_S, 1920, 1080, 1_000_000, tell, turn_s=20)
        tell("memory: 300 looks")
        ram = child("memory", str(large), TWO_HOURS_S, 300)
    judged = verdicts(rows, ram)
    machine = f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{machine}\n\n{table(rows)}\n")
    for text, figure, met in judged:
        print(f"{'pass' if met else 'MISS'}  {figure:8.2f}  {text}")
    if wanted.json:
        record = {"machine": machine, "rows": [asdict(row) for row in rows], "memory": ram, "targets": judged}
        wanted.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
