"""`apr tasks list` and `apr tasks check` on a small VSI-Bench: videos missing, unreadable, of another length."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from task_testing import TASKS, write
from typer.testing import CliRunner

from apr_plugin.cli.app import app
from apr_plugin.errors import AprError
from apr_plugin.tasks.common.catalogue import sources
from apr_plugin.tasks.common.check import check
from apr_plugin.tasks.common.media import Manifest
from apr_plugin.tasks.longvideobench.utils import SOURCE as LONG
from apr_plugin.tasks.vsibench.utils import SOURCE

KIND = {
    "dataset": "scannet",
    "question_type": "route_planning",
    "question": "?",
    "ground_truth": "A",
    "options": ["A. left", "B. right"],
}
ROWS = [{**KIND, "id": number, "scene_name": scene} for number, scene in enumerate(["good", "good", "gone", "words"])]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_videos: dict[str, Path]) -> Path:
    for name, folder in {"APR_DATA": "data", "APR_HOME": "home", "HF_HOME": "hub"}.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("COLUMNS", "200")
    write(tmp_path / "data/vsibench/test.jsonl", ROWS)
    write(tmp_path / "data/vsibench/videos/scannet/good.mp4", shared_videos["silent"].read_bytes())
    write(tmp_path / "data/vsibench/videos/scannet/words.mp4", b"words")
    return tmp_path


def _apr(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_check_says_what_is_missing_and_writes_a_manifest(home: Path, shared_videos: dict[str, Path]) -> None:
    done = _apr("tasks", "check", "apr_vsibench")
    assert done.exit_code == 1, done.output
    assert "1 videos present, 1 missing, 1 unreadable" in done.output
    assert "2 of 4 questions can be asked; the benchmark has 5130: a score is one of n=2 of N=5130" in done.output
    assert f"scannet/gone.mp4  (expected at {home}/data/vsibench/videos/scannet/gone.mp4)" in done.output
    assert "words.mp4" in done.output
    manifest = json.loads((home / "home/manifests/apr_vsibench.json").read_text())
    good, gone, words = manifest["videos"]
    silent = shared_videos["silent"].read_bytes()
    assert (good["state"], good["size"], good["seconds"], good["questions"]) == ("present", len(silent), 6.0, 2)
    assert (
        good["sha256"] == hashlib.sha256(silent).hexdigest() and words["sha256"] == hashlib.sha256(b"words").hexdigest()
    )
    assert gone["state"] == "missing" and gone["size"] is None
    assert words["state"] == "unreadable" and words["error"]
    assert manifest["questions_with_every_video"] == 2 and len(manifest["annotations"][0]["sha256"]) == 64


def test_check_of_another_folder_that_is_whole(home: Path, shared_videos: dict[str, Path]) -> None:
    for name in ("good", "gone", "words"):
        write(home / f"elsewhere/{name}.mp4", shared_videos["silent"].read_bytes())
    done = _apr(
        "tasks", "check", "apr_vsibench", "--videos", home / "elsewhere", "--no-hashes", "--out", home / "m.json"
    )
    assert done.exit_code == 0, done.output
    assert "3 videos present, 0 missing, 0 unreadable" in done.output
    manifest = json.loads((home / "m.json").read_text())
    assert [video["sha256"] for video in manifest["videos"]] == ["", "", ""] and str(home / "elsewhere") in manifest[
        "videos"
    ][0]["path"]


def test_lengths_are_compared_with_the_annotations(home: Path, shared_videos: dict[str, Path]) -> None:
    source = replace(LONG, files=(replace(LONG.files[0], name="validation.jsonl"),))
    rows = [
        {"video_path": f"{name}.mp4", "duration": seconds, "duration_group": 15}
        | dict.fromkeys(LONG.needs, "x")
        | {"correct_choice": 0}
        for name, seconds in {"right": 6.3, "cut": 30.0, "gone": 9.0}.items()
    ]
    write(source.home / "validation.jsonl", rows)
    for name in ("right", "cut"):
        write(source.home / f"videos/{name}.mp4", shared_videos["silent"].read_bytes())
    report = check(source, hashes=False)
    assert [video.off_s for video in report.videos] == [None, pytest.approx(-24.0), None]
    assert (report.questions, report.answerable, report.complete) == (3, 2, False)


def test_facts_are_read_once_and_again_when_a_file_has_changed(
    home: Path, shared_videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from apr_plugin.media import Video

    opened: list[str] = []
    real = Video.open.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        Video, "open", classmethod(lambda cls, path, **more: opened.append(Path(path).name) or real(cls, path, **more))
    )
    video = home / "data/vsibench/videos/scannet/good.mp4"
    for _ in range(2):
        assert check(SOURCE, hashes=False).videos[0].seconds == 6.0
    assert sorted(opened) == ["good.mp4", "words.mp4", "words.mp4"]  # files that could not be opened are tried again
    assert check(SOURCE, hashes=True).videos[0].sha256
    assert opened.count("good.mp4") == 1  # hashing opens nothing
    video.write_bytes(shared_videos["long"].read_bytes())
    assert check(SOURCE, hashes=False).videos[0].seconds == pytest.approx(75, abs=0.1)
    assert opened.count("good.mp4") == 2


def test_a_cache_that_can_t_be_written_costs_only_time(home: Path) -> None:
    write(home / "home", "a file in its place")
    assert [video.state for video in check(SOURCE).videos] == ["present", "missing", "unreadable"]


def test_a_damaged_manifest_is_made_anew(home: Path) -> None:
    for text in ("{", "[]", '{"files": {"a": {"size": 1}}}', '{"files": 3}'):
        write(home / "m.json", text)
        assert Manifest(home / "m.json").facts == {}


def test_wrong_usage(home: Path) -> None:
    for arguments, words in (
        (("apr_vsibenc",), "did you mean 'apr_vsibench'"),
        (("apr_needle_when",), "by: apr needle make"),
        (("apr_vsibench", "--videos", home / "no"), "no such folder"),
        (("apr_vsibench", "--out", home), "cannot write there"),
    ):
        done = _apr("tasks", "check", *arguments)
        assert isinstance(done.exception, AprError) and words in str(done.exception)


def test_list_says_what_is_ready(home: Path, shared_videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    done = _apr("tasks", "list")
    assert done.exit_code == 0, done.output
    lines = {line.split("│")[1].strip(): line for line in done.output.splitlines() if line.startswith("│")}
    assert (
        "no, 2 of 3 videos" in lines["apr_vsibench"]
        and "5,130" in lines["apr_vsibench"]
        and "14: 0-60s" in lines["apr_vsibench"]
    )
    assert "no annotations" in lines["apr_lvbench"]
    assert (
        "made by the first run" in lines["apr_needle_glyph"]
        and "number" in lines["apr_needle_count"]
        and "5: 1m … 120m" in lines["apr_needle_count"]
    )
    write(home / "data/vsibench/gone.mp4", shared_videos["silent"].read_bytes())
    assert "yes, 3 videos" in _apr("tasks", "list").output
    assert str(TASKS) in _apr("tasks", "--path").output
    write(home / "data/vsibench/test.jsonl", "{")
    assert "; download it" in _apr("tasks", "list").output  # the cell has a few lines


def test_list_on_a_narrow_terminal(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lines for each task, none cut; an existing needle set is counted."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("APR_NEEDLE_DIR", str(home / "n"))
    assert "no, make it with: apr needle make" in _apr("tasks", "list").output
    docs = [{"kind": kind, "video": "gone.mp4"} for kind in ("when", "when", "count")]
    write(home / "n/spec.json", {})
    write(home / "n/needle.jsonl", docs)
    lines = _apr("tasks", "list").output.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("apr_vsibench "))
    assert lines[at].split(maxsplit=3) == ["apr_vsibench", "5,130", "overall", "no, 2 of 3 videos"]
    assert lines[at + 1] == "  mcq, number; buckets 14: 0-60s … obj_appearance_order; vsibench/"
    assert all(len(line) <= 80 or str(home) in line for line in lines)
    assert next(line for line in lines if line.startswith("apr_needle_when ")).split(maxsplit=3) == [
        "apr_needle_when",
        "2",
        "score",
        "no, 0 of 1 videos",
    ]
    write(home / "n/needle.jsonl", "{")
    assert "can't be read" in _apr("tasks", "list").output


@pytest.mark.parametrize(
    "source", [source for source in sources().values() if source.n], ids=lambda source: str(source.task)
)
def test_every_source_is_whole(source: Any) -> None:
    folder = TASKS / source.folder
    assert (folder / f"{source.task}.yaml").is_file()
    assert (folder / "README.md").is_file() and source.licence and source.homepage.startswith("https://")
    assert f"`{source.task}`" in (TASKS.parent / "docs/tasks.md").read_text("utf-8")
    assert len((folder / "utils.py").read_text("utf-8").splitlines()) < 150
    assert source.n > 0 and len(set(source.buckets)) == len(source.buckets) and "," not in "".join(source.buckets)
    assert all(file.hub or file.url for file in source.files)
    readme = (folder / "README.md").read_text("utf-8")
    for part in (
        "| source |",
        "| licence |",
        "| videos |",
        "## Data",
        "## What is measured",
        "## Published scores",
        "ublished, not measured here",
    ):
        assert part in readme, part
    assert (
        f"apr tasks check apr_{source.folder}" in readme
        and "apr eval --tasks apr_" in readme
        and f"{source.n:,}" in readme
    )


def test_names_in_annotations_lead_nowhere_else(home: Path, shared_videos: dict[str, Path]) -> None:
    """A row may name any path; only files below the folders are found, by their last part."""
    from apr_plugin.tasks.common.media import Library

    for name in ("outside.mp4", "videos/inside.mp4", "videos/sub/deep.mp4"):
        write(home / name, shared_videos["silent"].read_bytes())
    library = Library([home / "videos"])
    for name in (
        str(home / "outside.mp4"),
        "../outside.mp4",
        "sub/../../outside.mp4",
        "../videos/../outside",
        "/etc/passwd",
        "..",
        "/",
        "a\0b",
    ):
        found = library.find(name)
        assert not found.is_file() and found.is_relative_to(home / "videos") and ".." not in found.parts, name
    assert library.find("/data/of/someone/inside.mp4") == home / "videos/inside.mp4"
    assert library.find("../../deep") == home / "videos/sub/deep.mp4"


def test_check_inside_a_folder(home: Path) -> None:
    """A link out of the folder is not followed, and not hashed."""
    folder = home / "data/vsibench/videos/scannet"
    (home / "elsewhere.mp4").write_bytes((folder / "good.mp4").read_bytes())
    (folder / "gone.mp4").symlink_to(home / "elsewhere.mp4")
    done = _apr("tasks", "check", "apr_vsibench", "--media-root", home / "data")
    assert done.exit_code == 1 and "1 videos present, 0 missing, 2 unreadable" in done.output, done.output
    assert f"gone.mp4  it is outside media_root={home / 'data'}" in done.output
    gone = json.loads((home / "home/manifests/apr_vsibench.json").read_text())["videos"][1]
    assert (gone["state"], gone["sha256"], gone["seconds"]) == ("unreadable", "", None)
    assert "2 videos present, 0 missing, 1 unreadable" in _apr("tasks", "check", "apr_vsibench").output
    assert isinstance(_apr("tasks", "check", "apr_vsibench", "--media-root", home / "no").exception, AprError)


def test_a_pipe_in_place_of_a_manifest_is_not_waited_for(home: Path) -> None:
    import os

    os.mkfifo(home / "m.json")
    assert Manifest(home / "m.json").facts == {}
