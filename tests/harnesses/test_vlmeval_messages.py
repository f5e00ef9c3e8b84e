"""What VLMEvalKit passes to the model becomes a question, an answer a cell of its table; it is not needed here."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apr_plugin.harnesses.vlmeval import asked as asking
from apr_plugin.harnesses.vlmeval.asked import Asked, build, read_request
from apr_plugin.harnesses.vlmeval.cells import LONGEST, cell
from apr_plugin.harnesses.vlmeval.message import MARK, Heard, mark, read_message
from apr_plugin.harnesses.vlmeval.row_readers import write_fractions
from apr_plugin.harnesses.vlmeval.video_sets import SETS, bucket_of, read_row
from apr_plugin.loop.question import QuestionKind
from apr_plugin.scoring.text import NO_ANSWER

PROMPT = "What colour is it?\nA. red\nB. green\nAnswer with the option's letter from the given choices directly."


def _part(kind: str, value: Any, **more: Any) -> dict[str, Any]:
    return {"type": kind, "value": value, **more}


def test_a_message_is_read_by_type_and_role() -> None:
    message = [
        _part("text", "Watch.", role="system"),
        _part("video", "a.mp4"),
        _part("text", "Q?"),
        _part("text", "\nOptions", role="user"),
        _part("audio", "a.wav"),
        _part("image", "p.png"),
        _part("text", "Best option:(", role="assistant"),
    ]
    heard = read_message(message)
    assert (heard.prompt, heard.system) == ("Q?\nOptions", "Watch.")
    assert (heard.films, heard.images) == (("a.mp4", "a.wav"), ("p.png",))


@pytest.mark.parametrize("message", ["Q?", {"type": "text", "value": "Q?"}, ["Q?"], [_part("text", "Q?")]])
def test_every_form_of_a_text_is_read(message: Any) -> None:
    assert read_message(message).prompt == "Q?"


def test_a_bare_path_is_a_file_only_if_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    heard = read_message([str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4"), "words"])
    assert heard.films == (str(tmp_path / "a.mp4"),) and "b.mp4" in heard.prompt


def test_a_mark_names_the_row_and_changes_nothing_else() -> None:
    parts = [_part("video", "a.mp4", nframes=8), _part("text", "Q?")]
    marked = mark(parts, dataset="D", index="3")
    assert read_message(marked).marked == {"dataset": "D", "index": "3"}
    assert [{key: value for key, value in part.items() if key != MARK} for part in marked] == parts
    assert MARK not in parts[0]
    assert read_message(mark(None, dataset="D", index="3", fault="why")).marked["fault"] == "why"


def test_a_message_without_a_mark_is_read_from_its_words() -> None:
    asked = read_request([_part("video", "a.mp4"), _part("text", PROMPT)], "Some-Set", None)
    question = asked.asking.question
    assert (question.text, question.kind, question.task) == ("What colour is it?", QuestionKind.MCQ, "Some-Set")
    assert [option.label for option in question.options] == ["A", "B"]
    assert asked.write("B") == "B"
    again = read_request([_part("video", "a.mp4"), _part("text", PROMPT)], "Some-Set", None)
    other = read_request([_part("video", "b.mp4"), _part("text", PROMPT)], "Some-Set", None)
    assert again.asking.question.key == question.key != other.asking.question.key


def test_the_system_prompt_of_one_message_is_not_in_the_next() -> None:
    """VLMEvalKit's own `BaseAPI` keeps it."""
    first = read_request([_part("text", "The camera is upside down.", role="system"), _part("text", "Q?")], "D", None)
    second = read_request([_part("text", "Q?")], "D", None)
    assert "upside down" in first.asking.question.text
    assert second.asking.question.text == "Q?"


@pytest.mark.parametrize(
    "message",
    [
        None,
        7,
        [],
        [{"value": "no type"}],
        [_part("text", 7)],
        [_part("hologram", "x")],
        [_part("text", "Q?", apr={"dataset": "gone", "index": "1"})],
        [_part("text", "\ud800 lone \x1b[31m")],
        [_part("video", "x" * 10_000 + "\0")],
    ],
)
def test_any_message_becomes_a_question(message: Any) -> None:
    """One that can't be read fails with a reason when it is asked; nothing is raised here."""
    question = read_request(message, "D", None).asking.question
    assert question.task in ("D", "gone")
    json.loads(question.model_dump_json())


class _Rows:
    """A data set with one row."""

    def asked(self, index: str, heard: Heard) -> Asked:
        reading = read_row("VideoMME", {"question": "Q?", "candidates": "['A. x', 'B. y']"}, heard.prompt)[1]
        if index == "bad":
            raise LookupError("this row is cursed")
        return build(reading, heard, task="T", split="S", doc_id=index, reader="r")

    def key(self, index: str) -> tuple[str, str, str]:
        return "T", "S", index

    def truths(self) -> dict[Any, Any]:
        return {}


def test_the_data_set_that_built_a_message_says_what_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(asking.DATASETS, "D", _Rows())
    message = mark([_part("video", "a.mp4"), _part("text", PROMPT)], dataset="D", index="4")
    assert read_request(message, "another name", None).asking.question.key == ("T", "S", "4", 0)
    fault = mark(None, dataset="D", index="5", fault="KeyError: 'candidates'")
    broken = read_request(fault, "another name", None).asking.question
    assert broken.key == ("T", "S", "5", 0) and "KeyError" in broken.videos[0].path
    cursed = read_request(mark(message, dataset="D", index="bad"), "D", None).asking.question
    assert "cursed" in cursed.videos[0].path


def test_pictures_are_shown_if_there_is_no_video(tmp_path: Path) -> None:
    place = tmp_path / "p.png"
    Image.fromarray(np.full((40, 60, 3), 9, np.uint8)).save(place)
    alone = read_request([_part("image", str(place)), _part("text", "Q?")], "D", str(tmp_path)).asking
    assert alone.pictures is not None
    (shown,) = alone.pictures(600)
    assert shown.image.shape == (20, 30, 3)
    beside = read_request([_part("image", str(place)), _part("video", "a.mp4"), _part("text", "Q?")], "D", None).asking
    assert beside.pictures is None and "1 pictures" in beside.question.reader
    outside = read_request([_part("image", str(place)), _part("text", "Q?")], "D", str(tmp_path / "x")).asking
    assert outside.pictures is not None
    with pytest.raises(Exception, match="outside"):
        outside.pictures(None)


@pytest.mark.parametrize("text", ["A", "[[1.5, 2]]", NO_ANSWER, "yes", "12", "no"])
def test_an_answer_is_a_cell_as_it_is(text: str) -> None:
    assert cell(text) == text


def test_a_cell_is_read_back_as_the_same_words() -> None:
    pandas = pytest.importorskip("pandas")
    texts = ["None", "NA", "nan", "null", "N/A", "", "=1+2", "x" * (LONGEST + 9)]
    cells = [cell(text) for text in texts]
    table = pandas.DataFrame({"prediction": cells})
    back = pandas.read_csv(io.StringIO(table.to_csv(sep="\t", index=False)), sep="\t")["prediction"].tolist()
    assert back == cells
    assert [str(one).rstrip(".") for one in back[:4]] == texts[:4]
    assert not str(back[6]).startswith("=") and len(back[7]) == LONGEST


def test_cgbench_gets_fractions_of_the_duration() -> None:
    """At most five, in time order; its scorer multiplies them with the duration again."""
    written = write_fractions("[[10.0, 20.0], [0, 1]]", duration_s=40.0)
    assert json.loads(written.strip("`json\n")) == {"result": [[0.0, 0.025], [0.25, 0.5]]}
    many = write_fractions(json.dumps([[at, at + at / 10 + 1] for at in range(0, 80, 10)]), duration_s=100.0)
    kept = json.loads(many.strip("`json\n"))["result"]
    assert len(kept) == 5 and kept == sorted(kept) and kept[-1][0] == 0.7
    assert write_fractions("the beginning", duration_s=10.0) == "the beginning"
    assert write_fractions("[[1, 2]]", duration_s=0.0) == "[[1, 2]]"


CHOICES = "['red', 'green', 'blue', 'black']"


@pytest.mark.parametrize(
    ("name", "row", "kind", "labels"),
    [
        ("VideoMME", {"question": "Q?", "candidates": "['A. red', 'B. green']", "answer": "B"}, "mcq", "AB"),
        ("LongVideoBench", {"question": "Q?", "candidates": CHOICES, "correct_choice": 1}, "mcq", "ABCD"),
        ("MLVU_MCQ", {"question": "Q?", "candidates": CHOICES, "answer": "green"}, "mcq", "ABCD"),
        ("VideoMMEv2", {"question": "Q?", "options": "A. red\nB. green\nC. blue"}, "mcq", "ABC"),
        ("CGBench_MCQ_Grounding", {"question": "Q?", "choices": CHOICES, "task_mode": "long_acc"}, "mcq", "ABCD"),
        (
            "CGBench_MCQ_Grounding",
            {"question": "Q?", "choices": CHOICES, "task_mode": "miou", "duration": 60.0},
            "grounding",
            "",
        ),
        ("OMTGBench", {"question": "Find every stroke."}, "grounding", ""),
        ("WorldSense", {"question": "Q?", "candidates": "['A. red', 'B. green']"}, "mcq", "AB"),
        ("STIBench", {"question": "Q?", "options": CHOICES, "time_start": 1, "time_end": 2}, "mcq", "ABCD"),
        ("SiteBenchVideo", {"question": "Q?", "candidates": CHOICES}, "mcq", "ABCD"),
        ("MVUEval", {"question": "Q?", "options": '["A. red", "B. green"]'}, "mcq", "AB"),
        ("VsiSuperCount", {"question": "How many chairs?"}, "number", ""),
        ("VsiBench", {"question": "How many?", "question_type": "object_counting", "candidates": ""}, "number", ""),
        ("TempCompass_YorN", {"question": "Is it red?"}, "mcq", "AB"),
        ("TempCompass_MCQ", {"question": "Q?\nA. red\nB. green", "task_type": "multi-choice"}, "mcq", "AB"),
        ("CGAVCounting", {"question": "How many?", "task_mode": "long_acc"}, "number", ""),
        ("CGAVCounting", {"question": "How many?", "task_mode": "clue_acc", "category": "event"}, "grounding", ""),
    ],
)
def test_a_row_is_read_column_by_column(name: str, row: dict[str, Any], kind: str, labels: str) -> None:
    read_by, reading = read_row(name, row, "the prompt")
    assert read_by == name
    assert reading.kind == kind
    assert "".join(option.label for option in reading.options) == labels


@pytest.mark.parametrize(
    "row",
    [{}, {"question": "Q?"}, {"question": "Q?", "candidates": "not a list"}, {"question": "Q?", "candidates": "[1]"}],
)
def test_a_row_that_does_not_fit_is_read_from_its_prompt(row: dict[str, Any]) -> None:
    name, reading = read_row("VideoMME", row, PROMPT)
    assert name.startswith("prompt (VideoMME reader: ")
    assert len(reading.options) == 2


def test_columns_are_never_evaluated(tmp_path: Path) -> None:
    """VLMEvalKit evaluates such a column as Python; the agent's reader takes literals alone."""
    touched = tmp_path / "touched"
    row = {"question": "Q?", "candidates": f"__import__('pathlib').Path({str(touched)!r}).touch() or ['a', 'b']"}
    assert read_row("LongVideoBench", row, PROMPT)[0].startswith("prompt (")
    assert not touched.exists()


def test_duration_groups() -> None:
    assert bucket_of(SETS["VideoMME"], {"duration": "short"}) == "short"
    assert bucket_of(SETS["CGBench_MCQ_Grounding"], {"duration": 1300.0}) == "20-30min"
    assert bucket_of(SETS["MLVU_MCQ"], {"duration": 30.0}) == "0-5min"
    assert bucket_of(SETS["MVBench"], {"duration": 30.0}) is None
    assert bucket_of(SETS["MLVU_MCQ"], {}) is None
