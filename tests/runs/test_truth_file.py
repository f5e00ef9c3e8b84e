"""The file of a run's truths: what is written comes back, and a damaged line costs only itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apr_plugin.runs.truths import TRUTHS_FILE, read_truths, write_truths
from apr_plugin.scoring.truth import Evidence, Truth

TRUTHS = {
    ("t", "test", "0"): Truth("A", (Evidence(1.0, 2.0), Evidence(3.0, 4.0, 1))),
    ("t", "test", "1"): Truth(("one", "1")),
}


def test_truths_come_back_and_the_later_one_counts(tmp_path: Path) -> None:
    write_truths(tmp_path, TRUTHS)
    write_truths(tmp_path, TRUTHS)
    assert read_truths(tmp_path) == TRUTHS and len((tmp_path / TRUTHS_FILE).read_text().splitlines()) == 2
    write_truths(tmp_path, {("t", "test", "1"): Truth("B")})
    assert read_truths(tmp_path) == {**TRUTHS, ("t", "test", "1"): Truth("B")}
    assert read_truths(tmp_path / "nowhere") == {}


@pytest.mark.parametrize(
    "change",
    [
        {"evidence": [[0, 1, float("inf")]]},
        {"evidence": [[10**400, 1, 0]]},
        {"evidence": 3},
        {"answer": None},
        {"task": []},
    ],
)
def test_a_damaged_line_costs_only_itself(change: dict, tmp_path: Path) -> None:
    write_truths(tmp_path, TRUTHS)
    file = tmp_path / TRUTHS_FILE
    data = json.loads(file.read_text().splitlines()[0]) | {"doc_id": "7"} | change
    file.write_text(f"{json.dumps(data)}\n[]\n{{\n" + file.read_text() + '{"schema": "apr.tr')
    found = read_truths(tmp_path)
    assert {key: found[key] for key in TRUTHS} == TRUTHS and ("t", "test", "7") not in found
