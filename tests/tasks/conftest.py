"""A bench for each test that runs task folders in lmms-eval."""

from __future__ import annotations

from pathlib import Path

import pytest
from task_testing import TaskBench


@pytest.fixture
def task_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskBench:
    """See `task_testing`; a module that runs several tests on one data set makes its own bench."""
    pytest.importorskip("lmms_eval")
    return TaskBench(tmp_path, monkeypatch)
