"""A small teacher with other weights than the student's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`teachers("qwen2_5_vl")`: a checkpoint of that family, drawn with another seed than `tiny`'s."""
    pytest.importorskip("torch")
    from tiny_models import save_tiny

    @cache
    def make(family: str) -> Path:
        return save_tiny(family, tmp_path_factory.mktemp(f"teacher_{family}"), seed=5)

    return make
