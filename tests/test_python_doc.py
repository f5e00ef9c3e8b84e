"""The examples of docs/python.md, run in their order on a made needle video."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from apr_plugin.tasks.needle.make import NeedleSpec, make_needle

DOC = Path(__file__).parents[1] / "docs" / "python.md"


def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pandas")
    make_needle(tmp_path / "needle", NeedleSpec(buckets=("1m",), videos_per_bucket=1), workers=1, progress=False)
    monkeypatch.chdir(tmp_path)
    text = DOC.read_text("utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(blocks) == text.count("```") // 2 >= 6
    session: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], str(DOC), "exec"), session)  # a failure shows the line of the document
    printed = capsys.readouterr().out
    assert "get_frames" in printed and "<Run " in printed and "4 questions" in printed
    (glance,) = re.findall(r"^class Glance.*?return \{", text, re.MULTILINE | re.DOTALL)
    assert len([line for line in glance.splitlines() if line.strip()]) <= 15
