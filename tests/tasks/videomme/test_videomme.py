"""`apr_videomme` in lmms-eval: two short questions, one long one; numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
from task_testing import FAILS, TaskBench

from apr_plugin.tasks.videomme.utils import SOURCE

pytestmark = pytest.mark.xdist_group("lmms_eval")


def _row(number: int, duration: str, video: str, question: str, answer: str) -> dict[str, Any]:
    return {
        "video_id": f"{number:03}", "duration": duration, "domain": "Knowledge", "sub_category": "Law", "url": "", "videoID": video,
        "question_id": f"{number:03}-1", "task_type": "Counting Problem", "question": question,
        "options": ["A. red", "B. green", "C. blue", "D. none of them"], "answer": answer,
    }  # fmt: skip


ROWS = [
    _row(1, "short", "one", "What is first?", "A"),
    _row(2, "short", "one", "What is second?", "B"),
    _row(3, "long", "two", "What is third?", "C"),
    _row(4, "long", "gone", "What is fourth?", "D"),
]


def test_numbers(task_bench: TaskBench) -> None:
    task_bench.place(SOURCE, [ROWS], {"data/one.mp4": 3, "data/two.mp4": 4})
    got = task_bench.run("apr_videomme", {"first": "A", "second": "A", "third": FAILS, "fourth": "D"})["apr_videomme"]
    assert (got["score"], got["n"]) == (0.25, 4)
    assert (got["acc_short"], got["n_short"]) == (0.5, 2)
    assert (got["acc_long"], got["n_long"]) == (0, 2)
    assert "acc_medium" not in got
    assert (got["score_present"], got["n_present"]) == (pytest.approx(1 / 3), 3)
    assert got["videomme_perception_score"] == 25.0
    assert got["acc_short_stderr_clt"] == pytest.approx(0.5)
