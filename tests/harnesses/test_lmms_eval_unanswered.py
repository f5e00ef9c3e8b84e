"""The reply for a question without an answer must be wrong for the task's own scorer, for every right option."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest
from test_readers import CASES, Case, hub, load  # noqa: F401 - hub and load are fixtures

pytest.importorskip("lmms_eval")
TASKS = ("videomme", "lvbench", "longvideobench_val_v", "mmvu_val", "motionbench_full", "neptune_full_v",
    "mmou_test_mini", "vsibench", "minerva",
         "video_holmes", "mvbench_action_sequence", "mlvu_dev", "timelens_charades", "extremewhenbench")  # fmt: skip


@pytest.mark.parametrize("case", [case for case in CASES if case.task in TASKS], ids=lambda case: case.task)
def test_no_answer_is_a_wrong_answer(case: Case, load: Callable[[Case], Any], monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    from apr_plugin.scoring.text import NO_ANSWER

    # Some scorers guess if they can't read a reply. The random choice is removed, so that only their reading remains.
    monkeypatch.setattr(random, "choice", lambda options: "Z")
    task = load(case)
    for right in "ABCD":
        gold = {
            key: right
            for key in case.gold
            if isinstance(case.doc.get(key), str) and len(case.doc[key]) == 1 and case.doc[key].isalpha()
        }
        assert task.score(dataclasses.replace(case, doc={**case.doc, **gold}), NO_ANSWER) == 0
