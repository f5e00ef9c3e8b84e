"""Students of two families, and what a run with their checkpoint looks like."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
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
