"""The boards' own scripts score our files: with `APR_OFFICIAL=DIR`, clones of LVBench, vidi and parse_answer."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from board_runs import asked, lvbench_data, lvbench_run, videomme_data, vue_tr_run, written
from stored_runs import stored

from apr_plugin.report.export import export
from apr_plugin.scoring import vue_tr

OFFICIAL = Path(os.environ.get("APR_OFFICIAL", "/nowhere"))


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder, and no cache of the hub."""
    monkeypatch.setenv("APR_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.mark.skipif(not (OFFICIAL / "LVBench").is_dir(), reason="needs APR_OFFICIAL with a clone of LVBench")
def test_the_official_script_of_lvbench_counts_every_uid(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lvbench_data(data)
    export("lvbench", lvbench_run(tmp_path / "run"), tmp_path / "answers.json")
    if importlib.util.find_spec("jsonlines") is None:
        lines = types.ModuleType("jsonlines")
        lines.open = JsonLines  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "jsonlines", lines)
    official = load(OFFICIAL / "LVBench" / "lvbench" / "metrics" / "compute_accuracy.py")
    result = official.compute_accuracy(str(tmp_path / "answers.json"), str(data / "lvbench" / "video_info.meta.jsonl"))
    assert result["acc"] == pytest.approx(1 / 6) and result["reasoning"] == pytest.approx(1 / 6)
    assert result["entity recognition"] == pytest.approx(1 / 2)


class JsonLines:
    def __init__(self, path: str) -> None:
        self.rows = [json.loads(line) for line in Path(path).read_text().splitlines()]

    def __enter__(self) -> list[Any]:
        return self.rows

    def __exit__(self, *_: object) -> None:
        pass


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"official_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not (OFFICIAL / "parse_answer").is_dir(), reason="needs APR_OFFICIAL with a clone of parse_answer")
def test_the_published_script_of_videomme_reads_the_file(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [(f"{number + 1:03}", ("short", "medium", "long")[number // 300]) for number in range(900)]
    rows = videomme_data(data, names)
    made = [
        asked("apr_videomme", number, rows[number]["answer"], path=f"{rows[number]['videoID']}.mp4")
        for number in range(4)
    ]
    made.append(asked("apr_videomme", 4, "D", path="v002.mp4"))
    _, notes, _ = written("videomme", stored(tmp_path / "run", made, of=2700), tmp_path / "r.json")
    assert "300 videos" not in notes and "2695 responses are empty" in notes
    official = load(OFFICIAL / "parse_answer" / "eval_your_results.py")
    official.eval_your_results(str(tmp_path / "r.json"), video_types="short,medium,long")
    assert capsys.readouterr().out.rstrip().endswith("Overall:  80.0%")  # 4 of the 5 with a letter; not of 2700


@pytest.mark.skipif(not (OFFICIAL / "vidi").is_dir(), reason="needs APR_OFFICIAL with a clone of vidi")
def test_the_official_script_of_vue_tr_scores_the_file_as_ours_does(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np = pytest.importorskip("numpy")
    pytest.importorskip("pandas")
    if not hasattr(np, "trapz"):
        monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)
    for plotting in ("matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, plotting, types.ModuleType(plotting))
    run, rows = vue_tr_run(tmp_path / "run", data)
    content, _, _ = written("vue_tr", run, tmp_path / "results_ours.json")
    official = load(OFFICIAL / "vidi" / "VUE_TR" / "qa_eval.py")
    results = official.load_result(
        str(data / "vue_tr" / "VUE-TR_ground_truth.json"), str(tmp_path / "results_ours.json")
    )
    precision, recall = official.compute_precision_recall(results)
    queries = [
        vue_tr.Query(row["query_id"], row["gt"], row["duration_category"], row["query_format"], row["query_modality"])
        for row in rows
    ]
    answers = {row["query_id"]: [tuple(span) for span in row["answer"]] for row in content}
    ours = vue_tr.score(queries, answers, 1)[vue_tr.OVERALL]
    assert ours.answered == len(results) == 4
    assert (ours.precision, ours.recall, ours.iou) == pytest.approx(
        (precision, recall, official.success_overlap(results)[1])
    )
