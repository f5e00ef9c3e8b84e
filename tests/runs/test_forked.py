"""A process that is forked while trajectories are written: its copies of the locks must not stop the run.

Harnesses fork: VLMEvalKit's API mode builds messages and scores answers in forked processes, while others are written.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apr_plugin.loop.files import append_line, held
from apr_plugin.runs.store import TrajectoryStore


@pytest.fixture
def children() -> Iterator[list[int]]:
    """Children that the test has forked; they are ended after it."""
    made: list[int] = []
    yield made
    for child in made:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _fork(children: list[int]) -> None:
    """A child that does nothing."""
    child = os.fork()
    if child == 0:
        time.sleep(600)
        os._exit(0)
    children.append(child)


_APPEND = """\
import sys
from pathlib import Path
from apr_plugin.loop.files import append_line
append_line(Path(sys.argv[1]), "x")
"""


def _append(path: Path) -> None:
    """Append in another process, which must not wait."""
    subprocess.run([sys.executable, "-c", _APPEND, str(path)], timeout=60, check=True)


def test_a_child_that_was_forked_during_a_write_does_not_hold_the_file(tmp_path: Path, children: list[int]) -> None:
    path = tmp_path / "t.jsonl"
    append_line(path, "one")
    with held(path):
        _fork(children)
    append_line(path, "two")
    _append(path)
    assert path.read_text() == "one\ntwo\nx\n"


def test_a_child_does_not_release_what_its_parent_holds(tmp_path: Path, children: list[int]) -> None:
    path = tmp_path / "t.jsonl"
    append_line(path, "one")
    with held(path):
        _fork(children)
        writing = subprocess.Popen([sys.executable, "-c", _APPEND, str(path)])
        with pytest.raises(subprocess.TimeoutExpired):
            writing.wait(3)
    assert writing.wait(60) == 0 and path.read_text() == "one\nx\n"


def test_the_run_of_a_killed_process_can_be_continued_although_its_children_live(tmp_path: Path) -> None:
    code = f"""
import os, time
from apr_plugin.runs.store import TrajectoryStore
with TrajectoryStore({str(tmp_path)!r}, "0" * 16, {{}}):
    if os.fork() == 0:
        open({str(tmp_path / "child")!r}, "w").write(str(os.getpid()))
        time.sleep(600)
    time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 60
    while not ((tmp_path / "child").exists() and (tmp_path / "child").read_text()):
        assert time.monotonic() < until and parent.poll() is None
        time.sleep(0.05)
    child = int((tmp_path / "child").read_text())
    try:
        parent.kill()
        parent.wait()
        with TrajectoryStore(tmp_path, "0" * 16, {}):
            pass
        os.kill(child, 0)  # it is still there
    finally:
        os.kill(child, signal.SIGKILL)
