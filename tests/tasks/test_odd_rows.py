"""A row with a lone surrogate is one question that can't be answered, not a data set that can't be loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("datasets")


def test_a_lone_surrogate_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from apr_plugin.tasks.needle.make import DOCS_NAME, SPEC_NAME
    from apr_plugin.tasks.needle.utils import glyph_docs

    names = ["videos/a.mp4", "videos/\ud800.mp4", "videos/a\0b.mp4"]
    rows = [{"id": str(n), "video": name, "kind": "glyph", "options": ["\udc80", "b"], "spans": [[1, 2]]} for n, name in enumerate(names)]
    (tmp_path / DOCS_NAME).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / SPEC_NAME).write_text("{}")
    monkeypatch.setenv("APR_NEEDLE_DIR", str(tmp_path))
    docs = list(glyph_docs(None))
    assert [doc["video"].removeprefix(f"{tmp_path}/") for doc in docs] == ["videos/a.mp4", "videos/?.mp4", "videos/a\0b.mp4"]
    assert docs[1]["options"] == ["?", "b"] and docs[0]["spans"] == [[1, 2]]
