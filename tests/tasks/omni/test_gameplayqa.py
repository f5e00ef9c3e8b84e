"""`apr_gameplayqa` in lmms-eval: several videos, windows, the order of options, errors by kind of distractor."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from apr_testing import make_video_file, number_of
from task_testing import FAILS, Knows, TaskBench, check_spoiled, check_truths, counted

from apr_plugin.loop.policy import Generation, ImagePart, Prompt, Sampling
from apr_plugin.policies import POLICIES
from apr_plugin.tasks.gameplayqa import utils
from apr_plugin.tasks.gameplayqa.questions import buckets_of, rows, statement_kind

pytestmark = pytest.mark.xdist_group("lmms_eval")

COLUMNS = (
    "id", "instance_id", "game_name", *(f"video_{number}_file_name" for number in range(1, 6)), "video_indices",
    "video_start", "video_end",
    "question_code", "task_name", "question_level", "question", "correct_option", "answer_start", "answer_end",
    *(f"distractor_{number}{end}" for number in (1, 2, 3) for end in ("", "_type")),
)  # fmt: skip
ONE, TWO = "annotation/project-batch1/videos/m_i1_v1.mp4", "annotation/project-batch1/videos/m_i1_v3.mp4"


def _row(id: str, question: str, right: str, *wrong: tuple[str, str], **more: Any) -> dict[str, str]:
    """A row of `qa.csv`; `wrong` are (text, type)."""
    usual = {
        "instance_id": "i-001", "game_name": "ApexLegends", "video_1_file_name": ONE, "video_indices": "0",
        "video_start": 0, "video_end": 4,
        "question_code": "SA-IDENT", "task_name": "Action Recognition", "question_level": 1,
    }  # fmt: skip
    distractors = {
        f"distractor_{n}{end}": value
        for n, pair in enumerate(wrong, 1)
        for end, value in zip(("", "_type"), pair, strict=True)
    }
    row = (
        dict.fromkeys(COLUMNS, "")
        | usual
        | {"id": id, "question": question, "correct_option": right}
        | distractors
        | more
    )
    return {name: str(value) for name, value in row.items()}


KINDS = [("one", "lexical"), ("two", "scene"), ("three", "temporal")]
SYNCED = {"video_2_file_name": TWO, "video_indices": "0, 2", "question_level": 3, "game_name": "CounterStrike2"}
EXIST = {"task_name": "State Recognition", "question_level": 2}
ROWS = [
    # Two videos, called 1 and 3; the window begins at 2 s. At its second 1, video 1 shows picture 30 and video 3, at
    # half the rate, picture 15.
    _row(
        "q-1", "Which number does Video 3 show at 00:01?", "15", ("30", "cross-video"), ("5", "temporal"),
        ("10", "role"),
        video_start=2, video_end=5, question_code="V1-SA2V3-SA-IDENT", task_name="Sync-Referring", **SYNCED,
    ),
    _row("q-2", "Who is second?", "right", ("one", "cross-video"), ("two", "scene"), ("three", "order"),
        task_name="POV Identification", **SYNCED),
    _row("q-3", "Who is third?", "right", *KINDS),
    _row("q-4", "Who is fourth?", "right", *KINDS),
    _row("q-5", "Did it happen, fifth?", "False", ("True", "binary"), question_code="SS-EXIST-Temporal", **EXIST),
    _row("q-6", "Did it happen, sixth?", "False", ("True", "binary"), question_code="SS-EXIST-Temporal", **EXIST),
    _row("q-7", "Did it happen, seventh?", "True", ("False", "binary"), question_code="SS-EXIST-True", **EXIST),
]  # fmt: skip
# In the official order q-2 is right, three, two, one; q-3 begins with the right option; q-4 is one, three, two, right.
SAYS = {
    "is second": "D", "is third": "A", "is fourth": "C", "happen, fifth": "True", "happen, sixth": FAILS,
    "happen, seventh": "True",
    "Which number": "watched",
}  # fmt: skip


class Watches(Knows):
    """As `Knows`, but a question about a number is answered by looking at the video and the second that it names."""

    name = "watches"

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        users = [message for message in prompt.messages if message.role == "user"]
        asked = re.search(r"Which number does Video (\d) show at 00:(\d\d)", users[0].text)
        if asked is None:
            return await super().generate(prompt, sampling)
        meant = re.search(rf'"Video {asked[1]}" in the question or its options is video (\d) of a look', users[0].text)
        assert meant is not None, users[0].text
        shown = [part for part in users[-1].parts if isinstance(part, ImagePart)]
        action: dict[str, Any] = {
            "type": "get_frames",
            "video": int(meant[1]),
            "start": int(asked[2]),
            "end": int(asked[2]),
            "num": 1,
        }
        if shown:
            label = re.search(rf"^([A-D])\. {number_of(shown[0].image)}$", users[0].text, re.MULTILINE)
            action = {"type": "answer", "content": label[1] if label else "D"}
        return Generation(json.dumps({"observation": "seen", "think": "so", "confidence": 0.9, "action": action}))


@pytest.fixture
def home(task_bench: TaskBench) -> TaskBench:
    """The rows, and two videos that show different numbers at the same second."""
    folder = task_bench.place(utils.SOURCE, [ROWS])
    (folder / ONE).parent.mkdir(parents=True)
    make_video_file(folder / ONE, frames=60, fps=10)
    make_video_file(folder / TWO, frames=30, fps=5)
    return task_bench


def test_numbers(home: TaskBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "knows", f"{__name__}:Watches")
    results = home.run("apr_gameplayqa", SAYS, bootstrap_iters=0)
    check_truths(results, "apr_gameplayqa")
    got = results["apr_gameplayqa"]
    # The watched one, the third and the seventh are right.
    assert [sample["score"] for sample in results["samples"]["apr_gameplayqa"]] == [1, 0, 1, 0, 0, 0, 1]
    assert (got["score"], got["n"], got["no_answer"]) == (pytest.approx(3 / 7), 7, pytest.approx(1 / 7))
    assert (got["acc_level_1"], got["n_level_1"], got["acc_level_2"], got["n_level_2"]) == (
        0.5,
        2,
        pytest.approx(1 / 3),
        3,
    )
    assert (got["acc_level_3"], got["n_level_3"]) == (0.5, 2)
    assert (got["acc_sync_referring"], got["acc_pov_identification"], got["acc_action_recognition"]) == (1, 0, 0.5)
    assert (got["acc_counter_strike_2"], got["n_counter_strike_2"], got["acc_apex_legends"], got["n_apex_legends"]) == (
        0.5,
        2,
        0.4,
        5,
    )
    assert (got["acc_videos_2"], got["n_videos_2"], got["n_videos_1"]) == (0.5, 2, 5)
    assert counted(utils.SOURCE, got) == 3 + 4 + 2 + 2
    # True-or-false statements from a temporal distractor: the fifth is wrong, the sixth has no answer.
    assert (got["error_temporal"], got["n_error_temporal"]) == (1, 2)
    assert "error_lexical" not in got and "n_error_scene" not in got
    # Chosen wrong options: the second `cross-video`, the fourth `scene`, the fifth the opposite of true or false.
    assert (got["picked_cross_video"], got["n_picked_cross_video"]) == (0.5, 2)
    assert (got["picked_scene"], got["n_picked_scene"]) == (pytest.approx(1 / 3), 3)
    assert (got["picked_temporal"], got["n_picked_temporal"], got["picked_role"], got["n_picked_role"]) == (0, 3, 0, 1)
    assert (got["picked_other"], got["n_picked_other"]) == (0.25, 4)


def test_options_stand_in_the_official_order() -> None:
    """The orders that `format_multiple_choice_from_row` of the official repository gives for these ids.

    The repository is HATS-ICT/GameplayQA at 6538485.
    """
    official = {
        "q-1767607156491-x4371a218": ["two", "right", "three", "one"],
        "q-1767607162605-5gpd14pzp": ["right", "one", "three", "two"],
        "q-1767607162393-eomchaujv": ["three", "right", "two", "one"],
        "q-4": ["one", "three", "two", "right"],
        "q-5": ["three", "one", "two", "right"],
    }
    for id, order in official.items():
        (row,) = rows([[_row(id, "Q?", " right ", *KINDS)]])
        assert (row["options"], row["answer"]) == (order, "ABCD"[order.index("right")])
        assert row["option_kinds"][order.index("two")] == "scene"
    two = {"q-1767607156491-x4371a218": ["two", "one", "right"], "q-1767607156404-u68ykyeoh": ["one", "right", "two"]}
    for id, order in two.items():
        (row,) = rows([[_row(id, "Q?", "right", *KINDS[:2])]])
        assert row["options"] == order
    exist = {"q-1767607156491-x4371a218": ["True", "False"], "q-1767607162605-5gpd14pzp": ["False", "True"]}
    for id, order in exist.items():
        (row,) = rows([[_row(id, "Q?", "false", ("True", "binary"), question_code="V1-SS2V2-SS-EXIST-Role")]])
        assert (row["options"], row["answer"]) == (order, "AB"[order.index("False")])


def test_several_videos_keep_the_names_the_question_gives_them(home: TaskBench) -> None:
    first, *_, last = utils.SOURCE.documents()
    assert first["video_numbers"] == [1, 3] and last["video_numbers"] == [1]
    assert "In their order they are Video 1, Video 3." in utils.doc_to_text(first)
    assert "In their order" not in utils.doc_to_text(last)
    assert [(item["video_start"], item["video_end"]) for item in utils.doc_to_visual(first)] == [(2, 5), (2, 5)]
    (unclear,) = rows([[_row("q", "Q?", "right", *KINDS, video_2_file_name=TWO, video_indices="1")]])
    assert unclear["video_numbers"] == [1, 2]


def test_names_of_buckets_and_kinds() -> None:
    row = {"game_name": "No Man's Sky", "task_name": "Static Object Count", "question_level": "1", "files": [ONE]}
    assert buckets_of(row) == ["level_1", "static_object_count", "no_mans_sky", "videos_1"]
    assert buckets_of({**row, "game_name": "Nexar", "task_name": "New"})[1:3] == ["other_task", "other_game"]
    assert statement_kind("V1-SS2V3-SA-EXIST-CrossVideo") == statement_kind("SA-EXIST-Cross-Video") == "cross_video"
    assert statement_kind("TR2OA-EXIST-Role") == "role"
    assert statement_kind("SA-EXIST-True") is None and statement_kind("SA-IDENT") is None


def test_a_row_that_cannot_be_read_costs_its_own_question(task_bench: TaskBench) -> None:
    check_spoiled(task_bench, utils.SOURCE, [ROWS], ["", "odd", 7, "nan", "1e999", "x" * 200_000])
