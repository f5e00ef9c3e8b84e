"""What `docs/scoring.md` says about lmms-eval's scorers, checked with its real functions.

The column of the benchmarks' own scripts was measured by hand.
"""

from __future__ import annotations

import pytest

pytest.importorskip("lmms_eval")

VIDEOMME = {
    "videoID": "v",
    "duration": "short",
    "domain": "d",
    "sub_category": "s",
    "task_type": "t",
    "question_id": "001-1",
    "answer": "B",
}


@pytest.mark.parametrize(
    ("reply", "letter"),
    [("The answer is B, not C", "C"), ("It is not A. It is B", "B"), ("I don't know", ""), ("B", "B")],
    ids=["denied", "last", "none", "bare"],
)
def test_videomme(reply: str, letter: str) -> None:
    from lmms_eval.tasks.videomme.utils import videomme_process_results

    scored = videomme_process_results(VIDEOMME, [reply])["videomme_perception_score"]
    assert scored["pred_answer"] == letter and scored["score"] == float(letter == "B")


@pytest.mark.parametrize(
    ("reply", "right"), [("B.", True), ("(B)", True), ("B", True), ("", False)], ids=["stop", "round", "bare", "empty"]
)
def test_lvbench(reply: str, right: bool) -> None:
    from lmms_eval.tasks.lvbench.utils import lvbench_process_results

    assert lvbench_process_results({"answer": "B"}, [reply])["lvbench_score"] is right


@pytest.mark.parametrize(
    ("reply", "letter"),
    [("B.", "B"), ("The answer is B", "B"), ("The man (in red) leaves, so (B)", "B"), ("E", "")],
    ids=["stop", "words", "round", "beyond"],
)
def test_mlvu(reply: str, letter: str) -> None:
    from lmms_eval.tasks.mlvu.utils import mlvu_process_results

    doc = {"question": "q", "task_type": "ego", "answer": "B"}
    assert mlvu_process_results(doc, [reply])["mlvu_percetion_score"]["pred_answer"] == letter


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        (".5", 5),
        ("1,200", 1),
        ("1.5e3", 1.5),
        ("There are 3 boxes", 3),
        ("twenty-one", 21),
        ("33.730000000000004", 33.730000000000004),
    ],
)
def test_vsibench_numbers(reply: str, number: float) -> None:
    from lmms_eval.tasks.vsibench.utils import extract_number

    assert extract_number(reply) == number


@pytest.mark.parametrize(
    ("reply", "right"),
    [("B.", True), ("b red", True), ("(B)", False), ("B, because", False)],
    ids=["stop", "words", "round", "comma"],
)
def test_vsibench_letters(reply: str, right: bool) -> None:
    from lmms_eval.tasks.vsibench.utils import vsibench_process_results

    scored = vsibench_process_results({"question_type": "route_planning", "ground_truth": "B"}, [reply])
    assert scored["route_planning_accuracy"]["accuracy"] == float(right)
