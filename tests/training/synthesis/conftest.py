"""Fixtures of the synthesis tests: a small needle set of real videos, and a synthesis folder made from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from apr_plugin.tasks.needle.make import NeedleSpec, make_needle
from apr_plugin.training.synthesis.questions import TrainingQuestion, needle_questions


@pytest.fixture(scope="session")
def train_needle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ten needle questions about one minute of video."""
    folder = tmp_path_factory.mktemp("train_needle")
    spec = NeedleSpec(seed=7, buckets=("1m",), videos_per_bucket=1, width=112, height=112, fps=5)
    return make_needle(folder, spec, workers=1, progress=False)


@pytest.fixture(scope="session")
def needle_asked(train_needle: Path) -> list[TrainingQuestion]:
    return needle_questions(train_needle)
