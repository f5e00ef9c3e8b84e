"""Students of two families, and what a run with their checkpoint looks like."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

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
