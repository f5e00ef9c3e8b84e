"""Students of two families, and what a run with their checkpoint looks like."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from vllm_server import free_port

if TYPE_CHECKING:
    from apr_plugin.training.rows import RowSet
    from apr_plugin.training.student import Student


@pytest.fixture(scope="session")
def student(tiny: Callable[[str], Path]) -> Callable[..., Student]:
    """`student("qwen2_5_omni", context_tokens=4096)`: the student of a small checkpoint."""
    pytest.importorskip("torch")
    from apr_plugin.training.student import Student

    @cache
    def make(name: str = "qwen2_5_omni", context_tokens: int | None = None) -> Student:
        return Student.from_pretrained(str(tiny(name)), context_tokens=context_tokens)

    return make


@pytest.fixture(scope="session")
def to_export(
    student: Callable[..., Student], shared_videos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Student, RowSet]]:
    """`to_export("qwen2_5_vl")`: a student and rows with every kind of look, of films with and without sound."""
    from export_making import rows_of

    @cache
    def make(name: str) -> tuple[Student, RowSet]:
        learner = student(name)
        films = shared_videos["sound"], shared_videos["silent"]
        return learner, rows_of(learner, tmp_path_factory.mktemp(name), *films)

    return make


class Ranks:
    """Two processes that run a script as `torchrun` starts it."""

    def __init__(self, warm: subprocess.Popen[str], script: Path, arguments: list[str], out: Path) -> None:
        self._warm, self._out = warm, out
        order = {"script": str(script), "arguments": arguments, "out": str(out), "port": free_port()}
        assert warm.stdin is not None
        warm.stdin.write(json.dumps(order) + "\n")
        warm.stdin.flush()

    def end(self) -> None:
        """Wait for both, and check that they ended well."""
        assert self._warm.stdout is not None
        ended = self._warm.stdout.readline()
        assert ended.strip() == "[0, 0]", ended + (self._out.read_text()[-4000:] if self._out.exists() else "")


@pytest.fixture(scope="session")
def start_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Ranks]]:
    """`start_ranks(script, "ddp", …)` starts two processes; `.end()` waits for them.

    Tests that use it say `xdist_group("ranks")`: what the processes load is loaded once.
    """
    places = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    warm = subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).with_name("warm_ranks.py"))],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": places},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def start(script: Path, *arguments: str | Path) -> Ranks:
        out = tmp_path_factory.mktemp("ranks") / "out"
        return Ranks(warm, script, [str(word) for word in arguments], out)

    yield start
    assert warm.stdin is not None
    warm.stdin.close()
    warm.wait()
