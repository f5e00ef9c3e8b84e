"""Damaged files: nothing crashes, hangs or raises anything untyped.

`python -m benchmarks.fuzz_media` does the same with thousands of files.
"""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import av
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import fuzz_media, media


@pytest.mark.slow
def test_nothing_crashes_or_hangs_on_damaged_files() -> None:
    report = fuzz_media.run(300, seed=1, jobs=2)
    assert report.failures == [], report.text()
    assert report.counts["files"] == 300
    assert (
        report.counts["read without error"] > 30
        and report.counts["clean errors"] > 30
        and report.counts["recovered"] > 10
    )


def test_the_same_seed_damages_the_same_way() -> None:
    seeds = {"a.mp4": bytes(range(256)) * 40, "b.mkv": b"\x1aE\xdf\xa3" + bytes(5000)}
    first, again = ([fuzz_media.damaged(seeds, 3, number) for number in range(200)] for _ in range(2))
    assert first == again
    assert [fuzz_media.damaged(seeds, 4, number) for number in range(200)] != first
    assert len({way for _, way, _ in first}) > 8


def test_every_mutation_takes_the_shortest_file() -> None:
    for number in range(500):
        fuzz_media.mutate(b"\0\1", random.Random(number))


def test_a_crash_and_a_hang_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_media, "_PATIENCE_S", 0.5)
    reader = fuzz_media.Child("auto")
    reader._command = [sys.executable, "-c", "import os; input(); os.kill(os.getpid(), 11)"]
    assert reader.read("x", 0) == {"crash": -11}
    reader._command = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert reader.read("x", 0) == {"hang": 0.5}
    report = fuzz_media.Report()
    report.add(0, "x", "y", {"crash": -11})
    report.add(1, "x", "y", {"hang": 0.5})
    assert len(report.failures) == 2 and report.counts["process crashed"] == 1 and report.counts["over 10 s"] == 1


@pytest.mark.slow
def test_the_benchmark_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys,
        "argv",
        ["media", "--quick", "--seconds", "60", "--dir", str(tmp_path), "--json", str(tmp_path / "out.json")],
    )
    real = media.long
    monkeypatch.setattr(
        media, "long", lambda path, seconds, width, height, rate, tell: real(path, seconds, 320, 180, 200_000, tell, 10)
    )
    media.main()
    printed = capsys.readouterr().out
    assert "exact, workers=2" in printed and "floor" in printed and "opening takes" in printed
    assert (tmp_path / "out.json").stat().st_size > 100
    with av.open(str(tmp_path / "60s-720p.mp4")) as film:
        assert abs((film.duration or 0) / 1e6 - 60) < 0.1
    shutil.rmtree(tmp_path)


def test_looks_ask_for_the_same_pictures_of_each_gop_in_any_length() -> None:
    short, long = media.looks(600), media.looks(7200)
    assert [len(times) for times in short] == [len(times) for times in long] == [32] + [19] * 9
    assert [[round(t % 10, 6) for t in times] for times in short] == [
        [round(t % 10, 6) for t in times] for times in long
    ]
    assert max(map(max, short)) < 600 and 6500 < max(map(max, long)) < 7200
    assert [media.wide(times) for times in short] == [media.wide(times) for times in long] == [True, True] + [False] * 8
