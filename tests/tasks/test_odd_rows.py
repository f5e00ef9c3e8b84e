"""A row of a needle set that can't be read costs one question; the data set can still be loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from task_testing import spoiled

from apr_plugin.errors import AprError

pytest.importorskip("datasets")
from apr_plugin.tasks.common import doc_to_visual
from apr_plugin.tasks.needle import utils
from apr_plugin.tasks.needle.make import DOCS_NAME, SPEC_NAME, NeedleSpec, planned_docs

DOCS: list[Any] = planned_docs(NeedleSpec(buckets=("1m",), videos_per_bucket=1))
ASKED = {
    "glyph": utils.glyph_docs,
    "when": utils.when_docs,
    "sound": utils.sound_docs,
    "count": utils.count_docs,
    "order": utils.order_docs,
}


def _place(folder: Path, lines: list[bytes], patch: pytest.MonkeyPatch) -> None:
    (folder / DOCS_NAME).write_bytes(b"".join(line + b"\n" for line in lines))
    (folder / SPEC_NAME).write_text("{}")
    patch.setenv("APR_NEEDLE_DIR", str(folder))


def test_a_lone_surrogate_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = next(doc for doc in DOCS if doc["kind"] == "glyph")
    rows = [
        {**first, "video": name, "options": ["\udc80", "b"]}
        for name in ("videos/a.mp4", "videos/\ud800.mp4", "videos/a\0b.mp4")
    ]
    _place(tmp_path, [json.dumps(row).encode() for row in rows], monkeypatch)
    docs = list(utils.glyph_docs(None))
    assert [doc["apr_videos"][0].removeprefix(f"{tmp_path}/") for doc in docs] == [
        "videos/a.mp4",
        "videos/?.mp4",
        "videos/a\0b.mp4",
    ]
    assert docs[1]["options"] == ["?", "b"] and docs[0]["answer_spans"] == first["answer_spans"]


def test_lines_that_are_no_rows_are_questions_of_the_first_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [json.dumps(doc).encode() for doc in DOCS]
    odd = [
        b"{",
        b"\xff",
        b"[" * 100_000,
        b"9" * 5000,
        b"null",
        b"[]",
        b'{"kind": "riddle"}',
        b'{"kind": ["glyph"]}',
        b"{}",
    ]
    _place(tmp_path, [*odd, *good, b"", b" "], monkeypatch)
    n = {kind: sum(doc["kind"] == kind for doc in DOCS) for kind in ASKED}
    assert {kind: len(docs(None)) for kind, docs in ASKED.items()} == n | {"glyph": n["glyph"] + len(odd)}
    reasons = [doc["apr_unreadable"] for doc in utils.glyph_docs(None)]
    assert all(reasons[: len(odd)]) and not any(reasons[len(odd) :])
    assert [reason.partition(":")[0] for reason in reasons[:3]] == ["line 1", "line 2", "line 3"]


@pytest.mark.parametrize("kind", ASKED)
def test_a_row_that_cannot_be_read_costs_its_own_question(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [doc for doc in DOCS if doc["kind"] == kind]
    odd = [doc for doc in spoiled(good[0]) if isinstance(doc, dict) and doc.get("kind") == kind]
    _place(tmp_path, [json.dumps(doc).encode() for doc in (*odd, *good * len(odd))], monkeypatch)
    docs = list(ASKED[kind](None))
    assert len(docs) == len(odd) + len(good) * len(odd)
    why = [doc.get("apr_unreadable") for doc in docs]
    assert 30 < sum(map(bool, why)) < len(odd) and not any(why[len(odd) :])
    for doc, reason in zip(docs, why, strict=True):
        utils.doc_to_target(doc)
        assert utils.doc_to_text(doc)
        assert all(0 <= value <= 1 for value in utils.process_results(doc, [str(doc.get("answer"))]).values())
        if reason:
            assert utils.process_results(doc, ["A"])["score"] == 0.0
            with pytest.raises(AprError, match="can't be read"):
                doc_to_visual(doc)
        else:
            assert doc_to_visual(doc)[0].removesuffix(".mp4") == f"{tmp_path}/{doc['video'].removesuffix('.mp4')}"
