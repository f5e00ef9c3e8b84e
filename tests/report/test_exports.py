"""Each board's form: every question is in it, and what has no answer is said."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from stored_runs import HOSTILE, stored

pytest.importorskip("yaml")
import yaml
from board_runs import (
    OPTIONS,
    VIDEOMME,
    asked,
    failing,
    longvideobench_data,
    lvbench_data,
    lvbench_run,
    mlvu_data,
    videomme_data,
    vue_tr_run,
    written,
)

from apr_plugin.cli.export import run_export
from apr_plugin.errors import AprError
from apr_plugin.report.export import BOARDS, export


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder, and no cache of the hub."""
    monkeypatch.setenv("APR_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def test_lvbench_holds_every_uid(tmp_path: Path, data: Path) -> None:
    lvbench_data(data)
    content, notes, readme = written("lvbench", lvbench_run(tmp_path / "run"), tmp_path / "out" / "answers.json")
    assert content == {"0": "A", "1": "D", "2": "", "100": "", "101": "", "102": ""}
    for words in ("4 of 6 questions were asked", "2 questions were not asked", "media_unreadable 1",
                  "1 answers have another form",                  "4 of 6 uids have the empty text",
                  "the official set has 1549"):  # fmt: skip
        assert words in notes and words in readme
    assert "test_acc.py" in readme and "expired" in readme and "script>" not in readme


def test_lvbench_needs_its_annotations_and_those_of_the_run(tmp_path: Path, data: Path) -> None:
    run = lvbench_run(tmp_path / "run")
    with pytest.raises(AprError, match="not on this machine; get them with: hf download"):
        export("lvbench", run, tmp_path / "a.json")
    lvbench_data(data, videos=1)
    with pytest.raises(AprError, match=r"doc 3 .* is not in the annotations"):
        export("lvbench", run, tmp_path / "a.json")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    lvbench_data(elsewhere)
    file = elsewhere / "lvbench" / "video_info.meta.jsonl"
    assert len(written("lvbench", run, tmp_path / "a.json", annotations=file)[0]) == 6
    with pytest.raises(AprError, match="no such file"):
        export("lvbench", run, tmp_path / "a.json", annotations=tmp_path / "none.jsonl")
    file.write_text("[]")
    with pytest.raises(AprError, match="LVBench"):
        export("lvbench", run, tmp_path / "a.json", annotations=file)


def test_a_run_that_counts_its_documents_otherwise_is_joined_by_question_and_video(tmp_path: Path, data: Path) -> None:
    rows = lvbench_data(data)
    for row in rows:
        for one in row["qa"]:
            one["question"] = "The same?\n(A) a\n(B) b"
    rows[0]["qa"][1]["question"] = "Another?"
    (data / "lvbench" / "video_info.meta.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = [
        asked("lvbench", 0, "C", text="Another?", path="video0.mp4"),
        asked("lvbench", 1, "B", text="The same?", path="video1.mkv"),
    ]
    content, _, _ = written("lvbench", stored(tmp_path / "run", made), tmp_path / "a.json")
    assert {uid for uid, letter in content.items() if letter} == {"1", "100"} and content["1"] == "C"


def test_a_question_is_not_taken_for_one_that_begins_alike(tmp_path: Path, data: Path) -> None:
    rows = lvbench_data(data, videos=1)
    texts = ["What is on page 12?", "What is on page 1", "WHAT is  on page 1 of the book?"]
    for one, text in zip(rows[0]["qa"], texts, strict=True):
        one["question"] = f"{text}\n(A) a\n(B) b"
    (data / "lvbench" / "video_info.meta.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = [
        asked("lvbench", 0, "A", text="What is on page 1 of the book?", path="video0.mp4"),
        asked("lvbench", 1, "B", text="Subtitles: none\n\nWhat is on page 12?\n(A) a\n(B) b", path="video0.mp4"),
    ]
    content, _, _ = written("lvbench", stored(tmp_path / "run", made), tmp_path / "a.json")
    assert content == {"0": "B", "1": "", "2": "A"}


def test_videomme_is_a_list_of_videos(tmp_path: Path, data: Path) -> None:
    videomme_data(data, [("001", "short"), ("301", "medium")])
    made = [
        asked("apr_videomme", 0, "A", path="v001.mp4"),
        asked("apr_videomme", 1, "The answer is B", path="v001.mp4").model_copy(update={"answer_valid": False}),
        failing("apr_videomme", 2, path="v001.mp4"),
        asked("apr_videomme", 4, "B", path="v301.mp4"),
    ]
    content, notes, readme = written("videomme", stored(tmp_path / "run", made, of=6), tmp_path / "o" / "r.json")
    assert [(video["video_id"], video["duration"], len(video["questions"])) for video in content] == [
        ("001", "short", 3), ("301", "medium", 3)
    ]  # fmt: skip
    assert set(content[0]) == {"video_id", "duration", "domain", "sub_category", "questions"}
    assert content[0]["questions"][0] == {
        "question_id": "001-1", "task_type": "Counting Problem", "question": "Question 0?",
        "options": VIDEOMME["options"], "answer": "A", "response": "A",
    }  # fmt: skip
    replies = [question["response"] for video in content for question in video["questions"]]
    assert replies == ["A", "The answer is B", "", "", "B", ""]
    assert "3 responses are empty" in notes and "300 videos" in notes and "Leaderboard" in readme


def test_videomme_without_annotations_takes_the_samples(tmp_path: Path) -> None:
    logged = {"question_id": "007-2", "duration": "long", "category": "Knowledge", "sub_category": "Law",
              "task_category": "OCR Problems", "answer": "C", "score": 1.0}  # fmt: skip
    made = [asked("videomme", 0, "C", text="What is it?"), asked("videomme", 1, "A")]
    lines = {"0": {"videomme_perception_score": logged}, "1": {"videomme_perception_score": "odd"}}
    content, notes, _ = written("videomme", stored(tmp_path / "run", made, lines), tmp_path / "r.json")
    (video,) = content
    assert video["video_id"] == "007" and video["domain"] == "Knowledge"
    assert video["questions"][0] | {"options": None} == {
        "question_id": "007-2", "task_type": "OCR Problems", "question": "What is it?", "options": None, "answer": "C",
        "response": "C",
    }  # fmt: skip
    assert video["questions"][0]["options"] == [f"{option.label}. {option.text}" for option in OPTIONS]
    assert "1 questions have no question_id" in notes and "not on this machine" in notes


def test_longvideobench_of_both_splits(tmp_path: Path, data: Path) -> None:
    made = [asked("apr_longvideobench", 0, "B", path="vid0.mp4"), failing("apr_longvideobench", 1, path="vid1.mp4")]
    run = stored(tmp_path / "val", made, {"0": {"lvb_acc": {"id": "vid0_0"}}}, of=3)
    content, notes, _ = written("longvideobench", run, tmp_path / "a.json")
    assert content == {"vid0_0": "B"} and "1 questions have no id" in notes and "not on this machine" in notes
    longvideobench_data(data)
    content, notes, readme = written("longvideobench", run, tmp_path / "b.json")
    assert content == {"vid0_0": "B", "vid1_0": "", "vid2_0": ""}
    assert "2 ids have the empty text" in notes and "test split alone" in readme and "undeliverable" in readme
    test = stored(
        tmp_path / "test", [asked("longvideobench_test_v", 0, "C")], {"0": {"submission": {"q_7": "(C) because"}}}
    )
    content, notes, readme = written("longvideobench", test, tmp_path / "c.json")
    assert content == {"q_7": "C"} and "official set" not in notes and "(test)" in readme


def test_mlvu_of_both_splits(tmp_path: Path, data: Path) -> None:
    made = [asked("apr_mlvu", 0, "B", path="plotQA.mp4"), asked("apr_mlvu", 1, "A", path="needle.mp4")]
    run = stored(tmp_path / "dev", made, of=7)
    with pytest.raises(AprError, match="not on this machine"):
        export("mlvu", run, tmp_path / "a.json")
    mlvu_data(data)
    content, notes, readme = written("mlvu", run, tmp_path / "a.json")
    assert content["acc_dict"]["plotQA"] == [1, 1] and content["acc_dict"]["needle"] == [0, 1]
    assert (
        content["acc_dict"]["count"] == [0, 1]
        and len(content["res_list"]) == 7
        and "5 questions were not asked" in notes
    )
    assert content["res_list"][0]["pred"] == "B" and content["res_list"][0]["gt"] == "(B) x" and "dev" in readme
    test = stored(tmp_path / "test", [asked("mlvu_test", 0, "D", text="Which sport?", path="s_1.mp4")])
    with pytest.raises(AprError, match=r"test_question\.json"):
        export("mlvu", test, tmp_path / "b.json")
    rows = [
        {"question_id": "AR_0", "question_type": "anomaly_reco", "question": "Which one?", "video": "a.mp4"},
        {"question_id": "SQA_0", "question_type": "sportsQA", "question": "Which sport?", "video": "s_1.mp4"},
    ]
    (tmp_path / "test_question.json").write_text(json.dumps(rows))
    content, _, _ = written("mlvu", test, tmp_path / "b.json", annotations=tmp_path / "test_question.json")
    assert content == [
        {"question_id": "AR_0", "question_type": "anomaly_reco", "option": ""},
        {"question_id": "SQA_0", "question_type": "sportsQA", "option": "D"},
    ]
    for text, words in (
        ("{", "cannot read"),
        ("[]", "no list of questions"),
        ('[{"question_id": 3}]', "row 0: it lacks"),
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(AprError, match=words):
            export("mlvu", test, tmp_path / "b.json", annotations=tmp_path / "bad.json")


def test_vue_tr_holds_every_query(tmp_path: Path, data: Path) -> None:
    run, _ = vue_tr_run(tmp_path / "run", data)
    content, notes, readme = written("vue_tr", run, tmp_path / "results_ours.json")
    assert [row["query_id"] for row in content] == [0, 1, 2, 3]
    assert content[0] == {
        "query_id": 0, "video_id": "vid0", "duration": 60.0, "query": "event 0", "task": "temporal_retrieval",
        "answer": [[0.0, 9.5], [20.0, 22.0]],
    }  # fmt: skip
    assert [row["answer"] for row in content[1:]] == [[], [[11.0, 19.0]], []]
    assert "2 of 4 queries have no span" in notes and "qa_eval.py" in readme
    (data / "vue_tr" / "VUE-TR_ground_truth.json").unlink()
    content, notes, _ = written("vue_tr", run, tmp_path / "b.json")
    assert (
        [row["query_id"] for row in content] == [0] and content[0]["answer"] and "2 queries have no query_id" in notes
    )
    with pytest.raises(AprError, match="no question of VUE-TR-V2"):
        export("vue_tr_v2", run, tmp_path / "c.json")


def test_a_model_card_is_what_the_hub_reads(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    made = [asked("apr_lvbench", 0, "A"), failing("apr_lvbench", 1)]
    done = export(
        "model_card", stored(tmp_path / "run", made, scores={"score": 0.51234}), tmp_path / "o" / "index.yaml"
    )
    text = done.files[0].read_text()
    card = hub.ModelCard(f"---\n{text}---\n# A model")
    (result,) = card.data.eval_results
    assert result.metric_value == 51.23 and result.dataset_type == "zai-org/LVBench" and result.dataset_split == "test"
    assert result.dataset_name == "LVBench (2 questions)" and result.metric_args["questions"] == 2
    assert "2 of 1549" in " ".join(done.notes) and "1 questions could not be answered" in " ".join(done.notes)
    assert len(done.files) == 2  # a part of a benchmark is nothing for a leaderboard
    with pytest.raises(AprError, match="no task of this run has a score"):
        export("model_card", stored(tmp_path / "other", made, scores={"odd": 1.0}), tmp_path / "b.yaml")


def test_a_whole_benchmark_goes_into_eval_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    from apr_plugin.report.export import model_card
    from apr_plugin.tasks.common.catalogue import sources

    small = {"apr_lvbench": dataclasses.replace(sources()["apr_lvbench"], n=1)}
    monkeypatch.setattr(model_card, "sources", lambda: small)
    done = export(
        "model_card",
        stored(tmp_path / "run", [asked("apr_lvbench", 0, "A")], scores={"score": 1.0}),
        tmp_path / "i.yaml",
    )
    (entry,) = hub._eval_results.parse_eval_result_entries(yaml.safe_load((tmp_path / "eval_results.yaml").read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("zai-org/LVBench", "default", 100.0) and len(
        done.files
    ) == 3


@pytest.mark.parametrize("board", [name for name in BOARDS if name != "model_card"])
def test_a_run_of_another_task_is_refused_with_its_tasks(board: str, tmp_path: Path) -> None:
    run = stored(tmp_path / "run", [asked("apr_made", 0, "A")])
    with pytest.raises(AprError, match="it has: 'apr_made'"):
        export(board, run, tmp_path / "a.json")


def test_what_cannot_be_exported_is_refused(tmp_path: Path, data: Path) -> None:
    lvbench_data(data)
    run = lvbench_run(tmp_path / "run")
    with pytest.raises(AprError, match="did you mean lvbench"):
        export("lvbnech", run, tmp_path / "a.json")
    (tmp_path / "taken").write_text("")
    with pytest.raises(AprError, match="cannot write"):
        export("lvbench", run, tmp_path / "taken" / "a.json")


def test_hostile_answers_are_data(tmp_path: Path, data: Path) -> None:
    videomme_data(data, [("001", "short")])
    made = [asked("apr_videomme", 0, HOSTILE, path="v001.mp4").model_copy(update={"answer_valid": False})]
    content, _, readme = written("videomme", stored(tmp_path / "run", made), tmp_path / "r.json")
    reply = content[0]["questions"][0]["response"]
    assert "\x1b" not in reply and "\ud800" not in reply and "</script>" in reply and "script>" not in readme


def test_the_command_prints_its_files_and_what_is_missing(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lvbench_data(data)
    lvbench_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    run_export("lvbench", tmp_path / "run")
    told = capsys.readouterr()
    assert told.out.split() == ["export_lvbench/lvbench_answers.json", "export_lvbench/lvbench_answers.README.md"]
    assert "4 of 6 uids have the empty text" in told.err
    run_export("card", tmp_path / "run", tmp_path / "card")
    assert (tmp_path / "card" / "card.md").is_file() and "card.yaml" in capsys.readouterr().out
    for board in ("card", "inspect"):
        with pytest.raises(AprError, match="--annotations has no meaning"):
            run_export(board, tmp_path / "run", annotations=tmp_path)
