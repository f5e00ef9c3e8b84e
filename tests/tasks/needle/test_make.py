import json
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from apr_plugin.tasks.needle import make
from apr_plugin.tasks.needle.make import NeedleSpec, OtherSpecError, is_made, load_docs, make_needle
from apr_plugin.tasks.needle.render import is_complete

SMALL = NeedleSpec(buckets=("1m",), videos_per_bucket=3, width=112, height=112)


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_needle(tmp_path_factory.mktemp("made") / "set", SMALL, workers=2, progress=False)


@pytest.fixture
def copy(made, tmp_path) -> Path:
    folder = tmp_path / "set"
    subprocess.run(["cp", "-a", str(made), str(folder)], check=True)
    return folder


def test_set_is_whole(made):
    docs = load_docs(made)
    assert len(docs) == 3 * 5 * 2
    assert {Path(doc["video"]) for doc in docs} == set((made / "videos").iterdir())
    assert all(is_complete(Path(doc["video"])) for doc in docs)
    assert {doc["bucket"] for doc in docs} == {"1m"} and {doc["duration_s"] for doc in docs} == {60.0}
    assert json.loads((made / "spec.json").read_text())["fingerprint"] == SMALL.fingerprint()
    assert is_made(made, SMALL)


def test_names_and_order_tell_nothing(made):
    names = [path.name for path in (made / "videos").iterdir()]
    assert all(re.fullmatch(r"[0-9a-f]{16}\.mp4", name) for name in names)
    lines = [json.loads(line) for line in (made / "needle.jsonl").read_text().splitlines()]
    assert all(line["video"].startswith("videos/") for line in lines)
    kinds = [line["kind"] for line in lines]
    assert kinds != sorted(kinds)


def test_same_spec_same_bytes_whatever_the_workers(made, tmp_path):
    other = make_needle(tmp_path / "again", SMALL, workers=1, progress=False)
    assert {name: data for name, (_, data) in state(other).items()} == {
        name: data for name, (_, data) in state(made).items()
    }


def test_finished_set_is_left_alone(copy):
    before = state(copy)
    assert make_needle(copy, SMALL, progress=False) == copy
    assert state(copy) == before


def test_finished_set_on_a_read_only_disk_is_served(copy, monkeypatch):
    monkeypatch.setattr(make, "_locked", lambda path: pytest.fail("a finished set needs no lock"))
    assert make_needle(copy, SMALL, progress=False) == copy


@pytest.mark.parametrize("harm", ["removed", "cut"])
def test_only_what_is_missing_is_made_again(copy, harm):
    before = state(copy)
    victim = min((copy / "videos").iterdir())
    if harm == "removed":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-100])
    (copy / "videos" / f".{victim.name}.123.part").write_bytes(b"left by a killed maker")
    (copy / "needle.jsonl").unlink()
    assert not is_made(copy, SMALL)
    make_needle(copy, SMALL, workers=1, progress=False)
    after = state(copy)
    assert {name: data for name, (_, data) in after.items()} == {name: data for name, (_, data) in before.items()}
    untouched = set(before) - {f"videos/{victim.name}", "needle.jsonl", ".lock"}
    assert all(after[name][0] == before[name][0] for name in untouched)


def test_other_spec_is_refused(copy):
    before = state(copy)
    other = SMALL.model_copy(update={"seed": 7})
    with pytest.raises(OtherSpecError) as caught:
        make_needle(copy, other, progress=False)
    message = str(caught.value)
    assert SMALL.fingerprint() in message and other.fingerprint() in message and str(copy) in message
    assert "seed: 0 there, 7 wanted" in message and "Name another folder" in message
    assert {name: data for name, (_, data) in state(copy).items()} == {name: data for name, (_, data) in before.items()}


def test_older_generator_is_refused(copy, monkeypatch):
    monkeypatch.setattr(make, "GENERATOR_VERSION", make.GENERATOR_VERSION + 1)
    with pytest.raises(
        OtherSpecError, match=rf"generator_version: {make.GENERATOR_VERSION - 1} there, {make.GENERATOR_VERSION} wanted"
    ):
        make_needle(copy, SMALL, progress=False)


def test_unfinished_other_spec_is_refused(copy):
    (copy / "spec.json").unlink()
    with pytest.raises(OtherSpecError, match="3 videos that don't belong"):
        make_needle(copy, SMALL.model_copy(update={"seed": 7}), progress=False)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_broken_spec_file_is_refused(copy, text):
    (copy / "spec.json").write_text(text)
    with pytest.raises(OtherSpecError, match="not a needle spec"):
        make_needle(copy, SMALL, progress=False)


def test_load_docs_needs_a_finished_set(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"`apr needle make --out {tmp_path}`"):
        load_docs(tmp_path)


def test_failed_video_stops_the_run_and_leaves_no_part(copy, monkeypatch):
    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device", "x.mp4")

    min((copy / "videos").iterdir()).unlink()
    (copy / "spec.json").unlink()
    monkeypatch.setattr(make, "write_video", broken)
    with pytest.raises(OSError, match=r"No space left on device: 'x\.mp4'"):
        make_needle(copy, SMALL, workers=1, progress=False)
    assert not (copy / "spec.json").exists()


def test_unusable_folder_is_an_error_with_its_path(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match=str(tmp_path / "file")):
        make_needle(tmp_path / "file" / "set", SMALL, progress=False)


def hold_lock(folder: str, held: multiprocessing.Event, seconds: float) -> None:
    with make._locked(Path(folder) / ".lock"):
        held.set()
        time.sleep(seconds)


def test_second_maker_waits_for_the_first(copy, caplog):
    (copy / "spec.json").unlink()
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold_lock, args=(str(copy), held, 1.0))
    process.start()
    assert held.wait(30)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        make_needle(copy, SMALL, workers=1, progress=False)
    assert time.monotonic() - started > 0.5
    assert "another process is making" in caplog.text
    process.join()


def test_interrupted_set_has_only_whole_videos_and_resumes(tmp_path):
    code = (
        "import sys; from apr_plugin.tasks.needle.make import *;"
        "make_needle(sys.argv[1], NeedleSpec(buckets=('10m',), videos_per_bucket=6, questions_per_kind=1, "
        "width=112, height=112), progress=False)"
    )
    folder = tmp_path / "set"
    script = tmp_path / "script.py"
    script.write_text(f"if __name__ == '__main__':\n    {code}\n")
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder)], stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not list(folder.glob("videos/*.mp4")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get the signal too
    process.communicate(timeout=60)
    assert process.returncode != 0
    videos = list((folder / "videos").iterdir())
    assert 1 <= len(videos) < 6 and all(is_complete(path) for path in videos)
    assert not (folder / "spec.json").exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"fps": 0}, "fps.*greater than or equal to 1.*input_value=0"),
        ({"fps": float("nan")}, "fps.*input_value=nan"),
        ({"width": 110}, "width.*greater than or equal to 112.*input_value=110"),
        ({"height": 225}, "height.*multiple of 2.*input_value=225"),
        ({"gop_s": 20}, "gop_s.*less than or equal to 10.*input_value=20"),
        ({"buckets": ("1m", "5m")}, "buckets must be different names out of 1m, 10m, 30m, 60m, 120m, not 1m, 5m"),
        ({"buckets": ()}, "not none"),
        ({"buckets": ("1m", "1m")}, "different names"),
        ({"questions_per_kind": 3}, "questions_per_kind is 3, but a video of bucket 1m has no more than 2"),
        ({"videos_per_bucket": 0}, "videos_per_bucket.*input_value=0"),
        ({"decoys": 2}, "decoys.*less than or equal to 1"),
        ({"colour": "red"}, "colour.*Extra inputs"),
    ],
)
def test_bad_values_are_refused_by_name_and_limit(values, words):
    with pytest.raises(ValidationError, match=re.compile(words, re.DOTALL)):
        NeedleSpec(**values)


def test_workers_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="at least 1, not 0"):
        make_needle(tmp_path, SMALL, workers=0)


def test_fingerprint_follows_every_field():
    other = {
        "seed": 1, "buckets": ("1m",), "videos_per_bucket": 3, "questions_per_kind": 1, "width": 256, "height": 256,
        "fps": 12.0, "gop_s": 4.0, "decoys": 0.1, "lookalike": True, "event_length": 2.0,
    }  # fmt: skip
    assert set(other) == set(NeedleSpec.model_fields)
    assert (
        len({NeedleSpec(**{key: value}).fingerprint() for key, value in other.items()} | {NeedleSpec().fingerprint()})
        == len(other) + 1
    )
    assert NeedleSpec(buckets=("10m", "1m")).fingerprint() == NeedleSpec(buckets=("1m", "10m")).fingerprint()
