"""Annotations in each board's own form, and runs that answer them, for the tests of exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stored_runs import HOSTILE, stored  # isort: skip
from making import answered, look, trajectory  # isort: skip

from apr_plugin.loop.question import Option, QuestionKind
from apr_plugin.loop.trajectory import StopReason, Trajectory
from apr_plugin.report.export import export

OPTIONS = tuple(Option(label=label, text=f"text {label}") for label in "ABCD")


def asked(task: str, number: int, answer: str | None, text: str = "", path: str = "", **more: Any) -> Trajectory:
    turns = [look(0, 50), answered(answer or "")]
    return trajectory(
        number, turns, answer, task=task, text=text or f"Question {number}?", path=path, options=OPTIONS, **more
    )


def failing(task: str, number: int, **more: Any) -> Trajectory:
    return asked(task, number, None, stop_reason=StopReason.MEDIA_UNREADABLE, stop_detail="no such file", **more)


def written(board: str, run: Any, out: Path, **more: Any) -> tuple[Any, str, str]:
    """The content of the file, its notes, its README."""
    done = export(board, run, out, **more)
    text = done.files[0].read_bytes().decode("ascii")
    return json.loads(text), "\n".join(done.notes), done.files[-1].read_text()


def lvbench_data(folder: Path, videos: int = 2, per_video: int = 3) -> list[dict[str, Any]]:
    rows = [
        {
            "key": f"video{v}",
            "qa": [
                {
                    "uid": str(100 * v + q), "question": f"Question {v * per_video + q}?\n(A) a\n(B) b\n(C) c\n(D) d",
                    "answer": "ABCD"[(v + q) % 4], "time_reference": "00:01-00:02",
                    "question_type": ["reasoning"] if q else ["reasoning", "entity recognition"],
                }
                for q in range(per_video)
            ],
        }
        for v in range(videos)
    ]  # fmt: skip
    (folder / "lvbench").mkdir(exist_ok=True)
    (folder / "lvbench" / "video_info.meta.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def lvbench_run(out: Path) -> Any:
    """Right, wrong, failed, in another form; two of six were not asked."""
    made = [
        asked("apr_lvbench", 0, "A", path="video0.mp4"),
        asked("apr_lvbench", 1, "D", path="video0.mp4"),
        failing("apr_lvbench", 2, path="video0.mp4"),
        asked("apr_lvbench", 3, HOSTILE, path="video1.mp4").model_copy(update={"answer_valid": False}),
    ]
    return stored(out, made, of=6)


VIDEOMME = {
    "video_id": "001", "duration": "short", "domain": "Knowledge", "sub_category": "Law", "url": "u", "videoID": "abc",
    "task_type": "Counting Problem", "options": ["A. a", "B. b", "C. c", "D. d"],
}  # fmt: skip


def videomme_data(folder: Path, videos: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Three questions about each video."""
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = [
        {**VIDEOMME, "video_id": video, "duration": duration, "videoID": f"v{video}", "question_id": f"{video}-{q + 1}",
         "question": f"Question {3 * number + q}?", "answer": "ABCD"[q]}
        for number, (video, duration) in enumerate(videos) for q in range(3)
    ]  # fmt: skip
    (folder / "videomme" / "videomme").mkdir(parents=True, exist_ok=True)
    parquet.write_table(
        pyarrow.Table.from_pylist(rows), folder / "videomme" / "videomme" / "test-00000-of-00001.parquet"
    )
    return rows


def longvideobench_data(folder: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = [
        {"id": f"vid{n}_0", "video_path": f"vid{n}.mp4", "question": f"Question {n}?", "correct_choice": 1,
         "duration": 10.0,         "duration_group": 15, "question_category": "S2E", "option0": "a", "option1": "b",
         "option2": "N/A"}
        for n in range(3)
    ]  # fmt: skip
    (folder / "longvideobench").mkdir()
    parquet.write_table(
        pyarrow.Table.from_pylist(rows), folder / "longvideobench" / "validation-00000-of-00001.parquet"
    )


def mlvu_data(folder: Path) -> None:
    from apr_plugin.tasks.mlvu.utils import TASKS

    (folder / "mlvu" / "json").mkdir(parents=True)
    for number, (task, stem) in enumerate(TASKS.items()):
        rows = [{"video": f"{task}.mp4", "duration": 246, "question": f"Question {number}?",
                 "candidates": ["w", "x", "y", "z"], "answer": "x", "question_type": task}]  # fmt: skip
        (folder / "mlvu" / "json" / f"{stem}.json").write_text(json.dumps(rows))


def vue_tr_rows(n: int) -> list[dict[str, Any]]:
    return [
        {"query_id": q, "video_id": f"vid{q // 2}", "duration": 60.0, "query": f"event {q}",
         "gt": [[5.0 * q, 5.0 * q + 10]],         "task": "temporal_retrieval", "duration_category": "short",
         "query_format": "phrase",
         "query_modality": ("vision", "audio")[q % 2]}
        for q in range(n)
    ]  # fmt: skip


def vue_tr_run(out: Path, data: Path, n: int = 4) -> tuple[Any, list[dict[str, Any]]]:
    from apr_plugin.tasks.vue_tr.utils import rows_of

    rows = vue_tr_rows(n)
    (data / "vue_tr").mkdir(exist_ok=True)
    (data / "vue_tr" / "VUE-TR_ground_truth.json").write_text(json.dumps(rows))
    answers = ["[[0.0, 9.5], [20.0, 22.0]]", None, "[[11.0, 19.0]]"]
    texts = [row["question"] for row in rows_of([rows])]  # type: ignore[index]
    made = [
        asked(
            "apr_vue_tr", number, answer, text=texts[number], path=f"vid{number // 2}.mp4", kind=QuestionKind.GROUNDING
        )
        for number, answer in enumerate(answers)
    ]
    return stored(out, made, {"0": {"prediction": {**rows[0], "answer": []}}}, of=n), rows
