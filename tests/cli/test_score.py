"""`apr score`: the table with hand-computed values, JSON, and one line for every bad input."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from apr_plugin.cli.app import app
from apr_plugin.cli.score import run_score
from apr_plugin.errors import AprError
from apr_plugin.scoring.vue_tr import ATTRIBUTES


def true_row(
    query_id: int, *spans: tuple[float, float], duration: str = "short", form: str = "phrase", modality: str = "vision"
) -> dict[str, Any]:
    return {
        "query_id": query_id,
        "video_id": f"video{query_id}",
        "duration": 300.5,
        "query": "a red ball rolls",
        "gt": spans,
        "task": "temporal_retrieval",
        "duration_category": duration,
        "query_format": form,
        "query_modality": modality,
    }


TRUE = [
    true_row(1, (0, 10)),
    true_row(2, (0, 10), duration="long", modality="audio"),
    true_row(3, (0, 10), (20, 30)),
    true_row(4, (5, 9)),
]
ANSWERS: list[dict[str, Any]] = [
    {"query_id": 1, "answer": [[0.3, 9.8]]},  # widened to whole seconds it is exact: IoU 1; as written 0.95
    {"query_id": 2, "answer": [[0, 4], [900, 810]]},  # IoU 0.4; reversed, 4 of 94 predicted seconds are true
    {"query_id": 3, "answer": [[]]},  # nothing
]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path, TRUE, ANSWERS)


def write(folder: Path, true: Any, answers: Any) -> tuple[Path, Path]:
    paths = folder / "truth.json", folder / "predictions.json"
    for path, content in zip(paths, (true, answers), strict=True):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return paths


@pytest.mark.parametrize("benchmark", ["vue_tr", "vue_tr_v2", "apr_vue_tr", "VUE-TR"])
def test_json_by_hand(benchmark: str, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run_score(benchmark, *files, as_json=True)
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert cells["overall"] == pytest.approx(
        {
            "queries": 4,
            "answered": 3,
            "precision": (1 + 0.045)
            / 2,  # 4/94 is at least 0, 0.01 ... 0.04: five thresholds, the first of which weighs half
            "recall": (1 + 0.405 + 0.005) / 3,
            "iou": (0.995 + 0.395 + 0) / 3,
            "recall_all": (1 + 0.405 + 0.005 + 0.005) / 4,
            "iou_all": (0.995 + 0.395 + 0 + 0) / 4,
            "miou": (0.95 + 0.4 + 0) / 3,
            "miou_all": (0.95 + 0.4 + 0 + 0) / 4,
        }
    )
    assert cells["audio"]["iou"] == pytest.approx(0.395) and cells["medium"]["iou"] is None
    assert set(cells) == {"overall"}.union(*ATTRIBUTES.values())


def test_table_fits_a_terminal(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run_score("vue_tr", *files, as_json=False)
    out = capsys.readouterr().out
    rows = {cells[0]: cells[1:] for line in out.splitlines() if (cells := line.split())}
    assert rows["overall"] == ["3/4", "52.25", "47.00", "46.33", "45.00", "35.38", "34.75", "33.75"]
    assert rows["medium"] == ["0/0", *["-"] * 7]
    assert "3 of 4 queries answered" in out and "the 1 query without a prediction counts as 0" in out and "…" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_json_lines_and_the_other_name_of_the_id(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    lines = files[1].with_suffix(".jsonl")
    lines.write_text(
        "".join(json.dumps({"id": row["query_id"], "answer": row["answer"]}) + "\n" for row in ANSWERS) + "\n"
    )
    for path in (files[1], lines):
        run_score("vue_tr", files[0], path, as_json=True)
    out = capsys.readouterr().out
    assert out[: len(out) // 2] == out[len(out) // 2 :]


@pytest.mark.parametrize(
    ("true", "answers", "message"),
    [
        ("{", ANSWERS, "truth.json is not a JSON list of rows: Invalid JSON"),
        ({}, ANSWERS, "truth.json is not a JSON list of rows: Input should be a valid array"),
        ([], ANSWERS, "truth.json holds no queries"),
        (ANSWERS, ANSWERS, "truth.json: row 0: gt: Field required"),
        ([true_row(1, duration="huge")], ANSWERS, "row 0: duration_category is 'huge', not one of ultra-short, short"),
        ([true_row(1), true_row(1)], ANSWERS, "row 1: query_id 1 is there twice"),
        (TRUE, "", "predictions.json is not a JSON list of rows: Invalid JSON"),
        (TRUE, [5], "predictions.json: row 0: Input should be an object"),
        (TRUE, [{"query_id": 1}], "row 0: answer: Field required"),
        (TRUE, [{"query_id": "one", "answer": []}], "row 0: query_id: Input should be a valid integer"),
        (TRUE, [{"query_id": 1, "answer": "0-10"}], "row 0: 'answer' must be a list of [start, end] pairs in seconds"),
        (
            TRUE,
            [{"query_id": 1, "answer": [[1, 2, 3]]}],
            "row 0: 'answer' must be a list of [start, end] pairs in seconds",
        ),
        (
            TRUE,
            [{"query_id": 1, "answer": [["a", 2]]}],
            "row 0: 'answer' must be a list of [start, end] pairs in seconds",
        ),
        (TRUE, [{"query_id": 77, "answer": []}], "answers none of the 4 queries in"),
        (TRUE, [ANSWERS[0], {"query_id": 77, "answer": []}], "row 1: query_id 77 is not in"),
        (TRUE, [ANSWERS[0], ANSWERS[0]], "row 1: query_id 1 is answered twice"),
    ],
)
def test_bad_files(true: Any, answers: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(AprError) as caught:
        run_score("vue_tr", *write(tmp_path, true, answers), as_json=False)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_no_predictions_at_all_score_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_score("vue_tr", *write(tmp_path, TRUE, []), as_json=True)
    overall = json.loads(capsys.readouterr().out)["cells"]["overall"]
    assert overall["answered"] == 0 and overall["iou"] is None and overall["iou_all"] == 0


def test_command_line(files: tuple[Path, Path]) -> None:
    options = ["--ground-truth", str(files[0]), "--predictions", str(files[1])]
    done = CliRunner().invoke(app, ["score", "vue_tr", *options, "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["benchmark"] == "vue_tr"
    with pytest.raises(AprError, match=r"^can't read the predictions: .*: No such file or directory$"):
        run_score("vue_tr", files[0], files[1].with_name("none.json"), as_json=False)
    command = [sys.executable, "-m", "apr_plugin.cli", "score", "vue_rt", *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (
        ended.returncode == 1
        and ended.stderr == "error: can't score 'vue_rt'; did you mean vue_tr? There are: vue_tr, vue_tr_v2\n"
    )


def test_a_whole_benchmark_takes_under_two_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pick = random.Random(0)
    true = [
        true_row(
            n,
            *((start, start + 5) for start in range(0, 10 * pick.randint(1, 6), 10)),
            duration=pick.choice(ATTRIBUTES["duration_category"]),
        )
        for n in range(1600)
    ]
    answers = [
        {"query_id": n, "answer": [[start + 0.5, start + 7.25] for start in range(0, 10 * pick.randint(0, 6), 10)]}
        for n in range(1600)
    ]
    paths = write(tmp_path, true, answers)
    began = time.process_time()
    run_score("vue_tr", *paths, as_json=False)
    assert time.process_time() - began < 2.0
