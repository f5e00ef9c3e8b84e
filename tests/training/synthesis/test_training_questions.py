"""Training questions from a file: every field, every mistake with its line and field, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apr_plugin.errors import AprError
from apr_plugin.loop import QuestionKind
from apr_plugin.scoring.truth import Evidence, Truth
from apr_plugin.training.synthesis.questions import (
    TrainingQuestion,
    load_questions,
    missing_videos,
    read_questions,
)

LINE: dict[str, Any] = {
    "id": "q1", "video": "a.mp4", "question": "What is red?", "kind": "mcq", "options": ["A. a pot", "B. a hat"],
    "answer": "B",
}  # fmt: skip


def _write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_every_field(tmp_path: Path) -> None:
    file = _write(
        tmp_path / "set.jsonl",
        LINE | {"evidence": [[1, 2.5]], "source": "S", "duration_s": 60},
        "",
        {"id": 7, "task": "other", "split": "train", "question": "When?", "kind": "grounding",
         "answer": [[1, 2], [5, 6.5]], "videos": ["/x/b.mp4", {"path": "c.mkv", "start_s": 3, "end_s": 9}],
         "evidence": [[1, 2, 1]], "hint": "in s"},
        {"id": "n", "video": "a.mp4", "question": "How many?", "kind": "number", "answer": 3, "exact": True},
        {"id": "f", "video": "a.mp4", "question": "Who?", "kind": "free_form", "answer": ["Ann", "Anna"]},
    )  # fmt: skip
    one, two, three, four = read_questions(file, source="mine")
    assert one.key == ("set", "", "q1") and one.source == "S" and one.duration_s == 60
    assert [(option.label, option.text) for option in one.question.options] == [("A", "a pot"), ("B", "a hat")]
    assert one.truth == Truth("B", (Evidence(1, 2.5),)) and one.question.videos[0].path == str(tmp_path / "a.mp4")
    assert two.key == ("other", "train", "7") and two.source == "mine" and two.question.answer_hint == "in s"
    assert [(ref.path, ref.start_s, ref.end_s) for ref in two.question.videos] == [
        ("/x/b.mp4", None, None),
        (str(tmp_path / "c.mkv"), 3, 9),
    ]
    assert two.truth == Truth("[[1.0, 2.0], [5.0, 6.5]]", (Evidence(1, 2, 1),))
    assert three.truth.answer == "3" and three.exact and three.question.kind is QuestionKind.NUMBER
    assert four.truth.answers == ("Ann", "Anna")
    assert missing_videos([one, two]) == [str(tmp_path / "a.mp4"), "/x/b.mp4", str(tmp_path / "c.mkv")]

    copy = _write(tmp_path / "elsewhere.jsonl", *[asked.to_json() for asked in (one, two, three, four)])
    assert read_questions(copy) == [one, two, three, four]


def test_the_needle_benchmark(needle_asked: list[TrainingQuestion], tmp_path: Path) -> None:
    assert {one.question.task for one in needle_asked} == {
        f"needle_{k}" for k in ("glyph", "when", "sound", "count", "order")
    }
    assert len(needle_asked) == 10 and all(Path(one.question.videos[0].path).is_file() for one in needle_asked)
    assert {one.question.task for one in needle_asked if one.exact} == {"needle_count"}
    assert all(one.truth.evidence and one.truth.answer for one in needle_asked)
    again = read_questions(_write(tmp_path / "n.jsonl", *[one.to_json() for one in needle_asked]))
    assert again == needle_asked, "the copy in a synthesis folder is the same"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: line: not JSON"),
        ("[1]", "line 2: line: not a JSON object"),
        (LINE | {"id": "x", "answr": 1}, "line 2: answr: there is no such field (did you mean 'answer'?)"),
        ({key: value for key, value in LINE.items() if key != "kind"}, "line 2: kind: it is missing"),
        (LINE, "line 2: id: 'q1' is also the id of line 1"),
        (LINE | {"id": "x", "kind": "essay"}, "line 2: kind and options: kind must be one of mcq"),
        (LINE | {"id": "x", "options": []}, "line 2: kind and options: a question of kind mcq needs options"),
        (LINE | {"id": "x", "options": ["A. a", "A. b"]}, "line 2: kind and options: two options have the same label"),
        (LINE | {"id": "x", "answer": "C"}, "line 2: answer: 'C' is not one of the labels A, B"),
        (LINE | {"id": "x", "answer": 1}, "line 2: answer: 1 is not one of the labels A, B"),
        (LINE | {"id": "x", "kind": "number"}, "line 2: options: a question of kind number has none"),
        (LINE | {"id": "x", "kind": "number", "options": [], "answer": True}, "line 2: answer: True is not a number"),
        (LINE | {"id": "x", "kind": "number", "options": [], "answer": "nan"}, "line 2: answer: 'nan' is not a number"),
        (LINE | {"id": "x", "kind": "grounding", "options": [], "answer": [[2, 1]]}, "answer: [[2, 1]] is not [[start"),
        (LINE | {"id": "x", "kind": "grounding", "options": [], "answer": []}, "answer: [] is not [[start, end]"),
        (LINE | {"id": "x", "kind": "free_form", "options": [], "answer": " "}, "line 2: answer: ' ' is not a text"),
        (LINE | {"id": "x", "evidence": [[1, 2, 1]]}, "line 2: evidence: [1.0, 2.0, 1.0] is not [start, end]"),
        (LINE | {"id": "x", "videos": ["b.mp4"]}, "line 2: video: give one of video and videos"),
        ({**LINE, "id": "x", "video": None}, "line 2: video: it is missing"),
        (LINE | {"id": "x", "video": {"path": "a.mp4", "start_s": 5, "end_s": 5}}, "video: its window ends at 5 s"),
        (LINE | {"id": "x", "duration_s": -1}, "line 2: duration_s: Input should be greater than 0, not -1"),
        (LINE | {"id": "x", "version": 9}, "line 2: version: apr.training_question version 9"),
        (LINE | {"id": "x", "question": "\x1b[31m", "answer": "\x1b"}, "line 2: answer: '\\x1b' is not one of"),
    ],
)  # fmt: skip
def test_a_mistake_names_line_and_field(line: Any, words: str, tmp_path: Path) -> None:
    file = _write(tmp_path / "set.jsonl", LINE, line)
    with pytest.raises(AprError) as caught:
        read_questions(file)
    assert words in str(caught.value) and str(file) in str(caught.value) and "\x1b" not in str(caught.value)


def test_files_that_have_no_question(tmp_path: Path) -> None:
    with pytest.raises(AprError, match=r"none\.jsonl: cannot read the questions: No such file"):
        read_questions(tmp_path / "none.jsonl")
    with pytest.raises(AprError, match="it has no question"):
        read_questions(_write(tmp_path / "empty.jsonl", "", " "))
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(AprError, match="cannot read the questions"):
        read_questions(tmp_path / "bytes.jsonl")
    with pytest.raises(AprError, match="no questions: give --questions"):
        load_questions([])
    with pytest.raises(AprError, match="no finished needle set"):
        load_questions([f"needle:{tmp_path}"])


def test_many_mistakes_are_counted(tmp_path: Path) -> None:
    with pytest.raises(AprError, match=r"line 1: line: not JSON.*line 5: .*; and 4 more lines"):
        read_questions(_write(tmp_path / "set.jsonl", *["{"] * 9))


def test_one_question_in_two_sources(tmp_path: Path) -> None:
    file = _write(tmp_path / "set.jsonl", LINE)
    with pytest.raises(AprError, match="set/q1 is also in an earlier source"):
        load_questions([str(file), str(file)])
