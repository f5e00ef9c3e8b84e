"""Whether lmms-eval wrote its results is decided by their content, because the clock may be set back meanwhile."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from apr_plugin.cli.evaluate import _check_results
from apr_plugin.errors import AprError

RESULTS = {"date": "20261126_12:00:00", "results": {"task": {"score,none": 1.0}}}


def test_a_file_of_this_run_counts_whatever_its_time(tmp_path: Path) -> None:
    path = tmp_path / "model" / "20261126_12-00-00_results.json"
    path.parent.mkdir()
    path.write_text(json.dumps(RESULTS))
    for seconds in (0, 2**33):
        os.utime(path, (seconds, seconds))
        _check_results(tmp_path, RESULTS)


@pytest.mark.parametrize("text", ["", '{"results": {"task"', '{"results": {"another": {}}}', "[]"])
def test_another_file_does_not(text: str, tmp_path: Path) -> None:
    (tmp_path / "20261126_12-00-00_results.json").write_text(text)
    (tmp_path / "20261126_11-00-00_results.json").write_text(json.dumps(RESULTS))
    with pytest.raises(AprError, match="could not write its results"):
        _check_results(tmp_path, RESULTS)
