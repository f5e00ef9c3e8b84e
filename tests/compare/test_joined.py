"""Arms beside each other: what is compared where their questions differ, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from making import TASK, answered, arm_of, key_of, look, store_run, trajectory

from apr_plugin.compare.joined import Arm, arm_of_rows, arm_of_run, join
from apr_plugin.errors import AprError
from apr_plugin.loop.trajectory import StopReason
from apr_plugin.runs.opened import open_run
from apr_plugin.scoring.truth import Evidence, Truth


def test_a_run_becomes_an_arm(tmp_path: Path) -> None:
    made = [trajectory(n, [look(0, 50), answered("A")], "A") for n in range(3)]
    made.append(trajectory(3, [], None, stop_reason=StopReason.MEDIA_UNREADABLE))
    truth = Truth("A", (Evidence(10, 20),))
    run = store_run(tmp_path, made, {"0": 1.0, "1": 0.0, "3": 0.0}, {"0": truth})
    arm = arm_of_run("agent", run)
    assert {key[2]: (o.status, o.score) for key, o in arm.outcomes.items()} == {
        "0": ("scored", 1.0), "1": ("scored", 0.0), "2": ("missing", 0.0), "3": ("failed", 0.0),
    }  # fmt: skip
    compared = join([arm])
    assert compared.truths == {key_of(0): truth} and len(compared.common) == 2
    assert compared.bucket(key_of(0)) == "0-20min" and compared.cluster(key_of(0)) == compared.cluster(key_of(1))
    found = arm.trajectory(key_of(0))
    assert found is not None and found.answer == "A" and arm.trajectory(key_of(9)) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "compared", "words"),
    [
        (range(4), range(4), 4, ""),
        (range(4), range(3), 3, "in no other arm"),
        (range(3), range(5), 3, "are not among those of ours"),
        (range(4), range(2, 6), 2, "in no other arm"),
    ],
)
def test_sets_that_differ(ours: range, theirs: range, compared: int, words: str) -> None:
    found = join([arm_of("ours", dict.fromkeys(ours, 1.0)), arm_of("theirs", dict.fromkeys(theirs, 0.0))])
    assert len(found.keys) == compared and words in " ".join(found.notes) and bool(words) == bool(found.notes)


def test_a_question_that_one_of_three_lacks_stays_and_counts_as_wrong() -> None:
    found = join([arm_of(name, dict.fromkeys(range(n), 1.0)) for name, n in (("a", 3), ("b", 3), ("c", 2))])
    assert len(found.keys) == 3 and len(found.common) == 2
    assert found.arms[2].outcome(key_of(2)).status == "missing" and not found.arms[2].outcome(key_of(2)).right
    assert "c lacks 1 of the 3 questions" in found.notes[0]


def test_what_cannot_be_compared_is_refused() -> None:
    one = arm_of("a", {1: 1.0})
    for arms, words in (
        ([], "nothing to compare"),
        ([one, arm_of("a", {1: 0.0})], "two arms are called 'a'"),
        ([one, arm_of("b", {2: 0.0})], "no question in common"),
        ([Arm("empty", "agent", {}), one], "it has no questions"),
    ):
        with pytest.raises(AprError, match=words):
            join(arms)


def test_rows_of_others(tmp_path: Path) -> None:
    file = tmp_path / "theirs.jsonl"
    rows = [{"task": TASK, "doc_id": n, "score": n % 2 == 0, "answer": "A", "more": [1]} for n in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = join([arm_of("agent", {0: 1.0, 1: 1.0, 2: 0.0}), arm_of_rows("theirs", file)])
    assert found.common == [key_of(n) for n in range(3)]  # its rows name no split; the task has only one
    assert [found.arms[1].outcome(key).score for key in found.keys] == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 1: no row"), ("[]", "line 1: no row"), ('{"task":"t","doc_id":1}', "line 1: no row"),
        ('{"task":"t","doc_id":1,"score":2}', "a number from 0 to 1"),
        ('{"task":"t","doc_id":1,"score":NaN}', "a number from 0 to 1"),
        ('{"task":"t","doc_id":1,"score":"1"}', "a number from 0 to 1"), ("", "it holds no rows"),
        (f'{{"task":"t","doc_id":1,"score":1{"0" * 400}}}', "a number from 0 to 1"),
        ('{"task":null,"doc_id":1,"score":1}', "the name of a task"),
        ('{"task":"t","doc_id":null,"score":1}', "a whole number or a text"),
        ('{"task":"t","doc_id":1,"score":1}\n{"task":"t","doc_id":"1","score":1}', "comes twice"),
    ],
)  # fmt: skip
def test_bad_rows_are_refused_with_their_line(tmp_path: Path, line: str, words: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(line)
    with pytest.raises(AprError, match=words):
        arm_of_rows("theirs", file)
    with pytest.raises(AprError, match="cannot read"):
        arm_of_rows("theirs", tmp_path)


def test_doc_ids_and_splits_of_others(tmp_path: Path) -> None:
    file, ours = tmp_path / "rows.jsonl", arm_of("agent", {0: 1.0, 1: 0.0})
    rows = [{"task": TASK, "doc_id": 0.0, "score": 1}, {"task": TASK, "doc_id": "9" * 5000, "score": 1}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = join([ours, arm_of_rows("theirs", file)])
    assert found.keys == [key_of(0)] and found.common == found.keys
    assert len(join([arm_of_rows("theirs", file)]).keys) == 2  # a number of 5,000 digits has its place in the order
    for split, words in (("val", rf"questions of {TASK} \(val\) against"), ("test", "with its split and without")):
        more = [{**rows[0], "split": split}, *([rows[0]] if split == "test" else [])]
        file.write_text("".join(json.dumps(row) + "\n" for row in more))
        with pytest.raises(AprError, match=words):
            join([arm_of("agent", {0: 1.0}), arm_of_rows("theirs", file)])


def test_what_differs_between_runs_or_was_changed_by_hand_is_said(tmp_path: Path) -> None:
    made = [trajectory(n, [look(0, 50), answered("A")], "A") for n in range(3)]
    scores = {str(n): 1.0 for n in range(3)}
    one = store_run(tmp_path / "one", made, scores)
    other = store_run(tmp_path / "other", made, scores, seed=1, task_version=2.0)
    assert not one.problems and not other.problems
    found = join([arm_of_run("one", one), arm_of_run("other", other)])
    assert found.notes == [f"the arms were scored by different versions of the task {TASK}: one 1.0, other 2.0"]

    card = one.folder / "card.json"
    data = json.loads(card.read_text())
    data["config"]["budget"]["turns"] = 99
    data["versions"]["numpy"] = "0.1"
    card.write_text(json.dumps(data))
    (line, *rest) = (one.folder / f"{TASK}.jsonl").read_text().splitlines()
    old = json.loads(line) | {"version": 1, "budget": None, "videos": []}
    (one.folder / f"{TASK}.jsonl").write_text("\n".join([json.dumps(old), *rest]) + "\n{")
    edited = open_run(tmp_path / "one")
    found = join([arm_of_run("one", edited), arm_of_run("other", other)])
    said = " | ".join([*found.notes, *found.arms[0].notes])
    for words in (
        "the card was changed", "different versions of numpy: one 0.1", "1 of its trajectories are of version 1",
        "its last line is incomplete",
    ):  # fmt: skip
        assert words in said
    card.write_text(json.dumps(data | {"config": {"arm": 7}}))
    assert any("the card was changed" in problem for problem in open_run(tmp_path / "one").problems)
