"""Trajectories of others: OmniAgent's rows and append-only messages, on made data of the same form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apr_testing import answer, look, turn

pytest.importorskip("torch")
pytest.importorskip("transformers")

from apr_plugin.errors import AprError
from apr_plugin.loop import Trajectory
from apr_plugin.training.loading import RowLoader
from apr_plugin.training.making import RowSettings, make_rows
from apr_plugin.training.readers.acting import imported
from apr_plugin.training.readers.messages import Filling, read_messages
from apr_plugin.training.readers.omniagent import read_omniagent
from apr_plugin.training.student import Student

Students = Callable[..., Student]
EVERYTHING = RowSettings(validation=0.0)


@pytest.fixture
def folder(make_video: Any, tmp_path: Path) -> Path:
    """A folder of videos: `clips/film.mp4`, 6 s at 10 frames per second, with sound."""
    (tmp_path / "clips").mkdir()
    make_video("clips/film.mp4", frames=60, sound_s=6.0)
    return tmp_path


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


FRAMES = [
    text("Frames 0.00s-5.00s (num=2)."),
    text("Frame 0.00s:"),
    {"type": "image", "image": "placeholder.jpg"},
    text("Frame 5.00s:"),
    {"type": "image", "image": "placeholder.jpg"},
]
CAME = [
    (FRAMES, "Frames 0.00s-5.00s (num=2). Timestamps: [0.00s, 5.00s] [MEDIA OMITTED - Refer to your Observation]"),
    (
        [text("Audio 0.00s-3.00s"), {"type": "audio", "audio": "placeholder.jpg"}],
        "Audio 0.00s-3.00s [MEDIA OMITTED - Refer to your Observation]",
    ),
    (
        [text("Clip 1.00s-4.00s"), {"type": "video", "video": "placeholder.jpg"}],
        "Clip 1.00s-4.00s [MEDIA OMITTED - Refer to your Observation]",
    ),
]
OUTPUTS = [
    look(0.0, 5.0, 2),
    turn({"type": "get_audio", "start": 0.0, "end": 3.0}),
    turn({"type": "get_clip", "start": 1.0, "end": 4.0}),
    answer("B"),
]
GUIDES = {
    "MCQ_made": ("\nOptions:\nB. two\nA. one\nWhen answering, set action.content to ONE uppercase letter (A, B, C …)."),
    "TR": "\nWhen answering, set action.content to a JSON array of timestamp pairs such as [[10.5, 20.0]].",
    "FF": "\nWhen answering, set action.content to **your free-form answer text**.",
    "NUM_count": "\nWhen answering, set action.content to **ONE number**, e.g. 42 or 3.14159.",
    "SIZE_room": "\nWhen answering, set action.content to **ONE number**, e.g. e.g., 203 or 10.3.",
}
"""As in the official environment (`video_env.py`)."""


def rows_of(kind: str = "MCQ_made", last: str = "B", **info: Any) -> list[dict[str, Any]]:
    """The rows of a trajectory with a look of each kind, written out by hand."""
    meta = "Video META:\n- duration_seconds: 6.00\n- fps: 10.00\n- has_audio: True\n\nQuestion: what?"
    outputs = [*OUTPUTS[:-1], answer(last)]
    made = []
    for step in range(1, 5):
        messages = [
            {"role": "system", "content": [text("\nYou look (Max 7 frames).\n")]},
            {"role": "user", "content": [text(meta + GUIDES[kind])]},
        ]
        for before in range(1, step):
            messages.append({"role": "assistant", "content": [text(outputs[before - 1])]})
            media, words = CAME[before - 1]
            messages.append({"role": "user", "content": list(media) if before == step - 1 else [text(words)]})  # type: ignore[arg-type]
        messages[-1]["content"].append(text(f"\n[NOTICE] Step {step - 1}/5. {6 - step} steps remaining."))  # type: ignore[attr-defined]
        limits = {"actual_max_steps": 5, "actual_max_frames": "7", "actual_max_audio": 4.0, "actual_max_clip": 3.5}
        about = {"video": "clips/film.mp4", "question_type": kind, "question": "what?", "env_config": limits}
        about |= {"options": ["B. two", "A. one"] if kind.startswith("MCQ") else None} | info
        made.append({"question_id": "q", "traj_id": "one", "step": step, "raw_input": messages})
        made[-1] |= {"output": outputs[step - 1], "extra_info": about}
    return made


def written(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return path


@pytest.mark.parametrize(
    "kind,last", [("MCQ_made", "B"), ("TR", "[[1.0, 2.0]]"), ("FF", "a pot"), ("NUM_count", "3"), ("SIZE_room", "2.5")]
)
def test_rows_of_omniagent_come_out_as_recorded(folder: Path, student: Students, kind: str, last: str) -> None:
    records = rows_of(kind, last)
    found = read_omniagent(written(folder / "sft.jsonl", records), folder, folder / "out")
    assert (found.played, found.skipped) == (1, [])
    learner = student()
    rows = make_rows([found.source], learner, EVERYTHING)
    assert [row.turn for row in rows.rows] == [1, 2, 3, 4] and not rows.dropped
    assert {row.source for row in rows.rows} == {"omniagent"}
    loader = RowLoader(learner)
    for row, record in zip(rows.rows, records, strict=True):
        prompt, target = loader.prompt(row)
        assert learner.text(target) == record["output"] and not row.rewritten
        for message, recorded in zip(prompt.messages, record["raw_input"], strict=True):
            words = "".join(part.get("text", "") for part in recorded["content"])
            assert (message.role, message.text) == (recorded["role"], words)
            media = [part for part in message.parts if not hasattr(part, "text")]
            assert len(media) == sum(part["type"] != "text" for part in recorded["content"])
    (done,) = Trajectory.read(found.source.file)
    assert (
        done.answer == last and done.budget is not None and (done.budget.frames_per_look, done.budget.turns) == (7, 5)
    )


def test_what_of_omniagent_cannot_be_mapped(folder: Path, student: Students) -> None:
    def named(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | {"traj_id": name} for row in rows]

    def at(rows: list[dict[str, Any]], step: int, old: str, new: str) -> list[dict[str, Any]]:
        return [json.loads(json.dumps(row).replace(old, new)) if row["step"] == step else row for row in rows]

    records = [
        *named("whole", rows_of()),
        *named("two steps alone", [row for row in rows_of() if row["step"] in (2, 4)]),
        *named("without its beginning", [rows_of()[3] | {"raw_input": rows_of()[2]["raw_input"]}]),
        *named("twice", [rows_of()[0], rows_of()[0]]),
        *named("gone", rows_of(video="clips/none.mp4")),
        *named("outside", rows_of(video="../../etc/passwd")),
        *named("odd kind", rows_of(question_type="ESSAY")),
        *named("odd options", rows_of(options=["one", "two"])),
        *named("no limits", rows_of(env_config={"actual_max_steps": 5})),
        *named("other time", at(rows_of(), 2, "Frame 5.00s:", "Frame 5.01s:")),
        *named("other limit", rows_of(env_config=rows_of()[0]["extra_info"]["env_config"] | {"actual_max_clip": 2.0})),
        {"question_id": "q"},
        [],
    ]
    late = [
        *named("bad limits", rows_of(env_config=rows_of()[0]["extra_info"]["env_config"] | {"actual_max_audio": -1})),
        *named("whole", rows_of()[1:2]),
    ]
    file = written(folder / "sft.jsonl", records)
    with file.open("a") as more:
        more.write("{broken\n")
        more.writelines(json.dumps(each) + "\n" for each in late)
    found = read_omniagent(file, folder, folder / "out")
    reasons: dict[str, list[str]] = {}
    for reason, name, _ in found.skipped:
        reasons.setdefault(str(reason), []).append(name)
    lines = len(records) + 1
    assert reasons == {
        "bad_record": [
            "twice", "odd options", "no limits", f"line {lines - 2}", f"line {lines - 1}", f"line {lines}",
            "bad limits", "whole",
        ],
        "missing_steps": ["without its beginning"],
        "no_video": ["gone", "outside"],
        "unknown_kind": ["odd kind"],
        "prompt_differs": ["other time", "other limit"],
    }  # fmt: skip
    assert "|image|Frame 5.00s" in next(detail for _, name, detail in found.skipped if name == "other time")
    assert found.played == 2 and list(found.source.kept.values()) == [{1, 2, 3, 4}, {2, 4}]  # type: ignore[union-attr]
    rows = make_rows([found.source], student(), EVERYTHING)
    assert [(row.key[3], row.turn) for row in rows.rows] == [(0, 1), (0, 2), (0, 3), (0, 4)]
    assert rows.counts() == {
        "omniagent": {"not_kept": {"dropped": 2, "turns": 2}, "duplicate": {"dropped": 2, "turns": 2}}
    }
    assert imported(folder / "out") == found
    with pytest.raises(AprError, match="run the reader again"):
        imported(folder)
    with pytest.raises(AprError, match="is there already"):
        read_omniagent(file, folder, folder / "out")


THOUGHT = "A bar moves at 2 s. I crop 1 s to 3 s."


def call(start: Any, end: Any, name: str = "crop_video") -> str:
    given = {"name": name, "arguments": {"video_path": "/theirs/film.mp4", "start_time": start, "end_time": end}}
    return f"<tool_call>\n{json.dumps(given)}\n</tool_call>"


def chat(*turns: str, video: Any = "clips/film.mp4", asked: str = "What moves?", **more: Any) -> dict[str, Any]:
    """A record as LongVT has them: all media stays in the messages."""
    told = [
        {"type": "video_url", "video_url": {"url": video}},
        text(asked + " Think first, call **crop_video** if needed"),
    ]
    messages: list[dict[str, Any]] = [{"role": "system", "content": "theirs"}, {"role": "user", "content": told}]
    for number, words in enumerate(turns):
        messages.append({"role": "assistant", "content": [text(words)]})
        if number < len(turns) - 1:
            image = {"type": "image_url", "image_url": {"url": "data:"}}
            messages.append({"role": "tool", "content": [image, text("cropped")]})
    return {"id": "a", "messages": messages} | more


TWO = (
    f"<think>{THOUGHT}</think>{call(1.0, 3.0)}",
    f"<think>Not yet clear.</think>{call('2', 6.4)}",
    "<think>It is a bar.</think><answer>a bar</answer>",
)


def test_append_only_messages_become_purged_turns(folder: Path, student: Students) -> None:
    as_text = chat(*TWO)
    as_text["messages"] = json.dumps(as_text["messages"]).replace("clips/", "file://clips/")  # ParaVT
    joined = "\n<tool_response>\nThe tool executed successfully.\n</tool_response>\n".join(TWO)
    called = chat(*TWO)
    for message, (start, end) in zip(called["messages"][2:5:2], ((1.0, 3.0), (2, 6.4)), strict=True):
        given = json.dumps({"video_path": "x", "start_time": start, "end_time": end})
        message["tool_calls"] = [{"function": {"name": "crop_video", "arguments": given}}]
        message["content"] = message["content"][0]["text"].partition("<tool_call>")[0]
    options = chat(*TWO[:2], TWO[2].replace("a bar<", "B<"), asked="What moves?\nOptions:\nA. a dot\nB. a bar\n")
    file = written(folder / "chats.jsonl", [chat(*TWO), as_text, chat(joined), called, options])
    found = read_messages(file, folder, folder / "out", filling=Filling(frames_per_crop=3, overview_frames=4))
    assert (found.played, found.skipped) == (5, [])
    learner = student()
    rows = make_rows([found.source], learner, EVERYTHING.model_copy(update={"deduplicate": False}))
    assert [row.turn for row in rows.rows] == [2, 3, 4] * 5 and {str(d.reason) for d in rows.dropped} == {"not_kept"}
    loader = RowLoader(learner)
    assert len({row.content for row in rows.rows[:12]}) == 3, "all four ways to write it give the same rows"
    prompts = [loader.prompt(row) for row in rows.rows[:3]]
    targets = [json.loads(learner.text(target)) for _, target in prompts]
    assert [each["observation"] for each in targets] == [THOUGHT, "Not yet clear.", "It is a bar."]
    assert [each["confidence"] for each in targets] == [0.5, 0.5, 0.95] and {each["think"] for each in targets} == {""}
    assert [each["action"] for each in targets] == [
        {"type": "get_frames", "start": 1.0, "end": 3.0, "num": 3},
        {"type": "get_frames", "start": 2.0, "end": 6.0, "num": 3},
        {"type": "answer", "content": "a bar"},
    ]
    for (prompt, _), frames in zip(prompts, (4, 3, 3), strict=True):
        media = [[part for part in message.parts if not hasattr(part, "text")] for message in prompt.messages]
        assert [len(each) for each in media] == [0] * (len(media) - 1) + [frames], "only the newest look has media"
        assert "Question: What moves?" in prompt.messages[1].text and "crop_video" not in prompt.text
    last = prompts[2][0].messages
    assert sum("[MEDIA OMITTED" in message.text for message in last) == 2 + 1, "two looks, and the instructions"
    done = Trajectory.read(found.source.file)[-1]
    assert [option.text for option in done.question.options] == ["a dot", "a bar"] and done.answer == "B"
    assert done.question.text == "What moves?"


def test_what_of_messages_cannot_be_mapped(folder: Path) -> None:
    think = "<think>so</think>"
    done = f"{think}<answer>a bar</answer>"
    cases: dict[str, list[Any]] = {
        "several_calls": [chat(think + call(1, 2) + call(3, 4), done)],
        "no_call": [chat(done)],
        "no_action": [
            chat(think, done),
            chat(think + call(1, 2)),
            chat(done, think + call(1, 2)),
            chat(think + "<tool_call>{not JSON}</tool_call>", done),
            chat(think + call(1, 2) + "<answer>a bar</answer>"),
            chat(think + call(1, 2), think + "<answer> </answer>"),
        ],
        "unknown_tool": [chat(think + call(1, 2, "search"), done)],
        "bad_record": [
            {"id": "x"},
            {"messages": "no JSON"},
            {"messages": []},
            chat(think + call("soon", 2), done),
            chat(think + call(1, float("nan")), done),
            {"messages": [{"role": "assistant", "content": done}]},
            chat(think + call(1, 2), done, asked=""),
            None,
            7,
        ],
        "no_video": [
            chat(think + call(1, 2), done, video="clips/none.mp4"),
            chat(think + call(1, 2), done, video="../up.mp4"),
            chat(think + call(1, 2), done, video=None),
            chat(think + call(1, 2), done, video="a\0b"),
        ],
        "look_refused": [chat(think + call(5, 2), done), chat(think + call(1, 2), think + call(1, 2), done)],
        "unreadable": [chat(think + call(1, 2), done, video="clips/noise.mp4")],
        "unanswered": [chat(think + call(1, 2), done, asked="Which?\nA. a dot\nB. a pot\n")],
    }
    (folder / "clips" / "noise.mp4").write_bytes(b"noise" * 100)
    records = [record for group in cases.values() for record in group]
    read: list[int] = []
    found = read_messages(written(folder / "c.jsonl", records), folder, folder / "out", told=read.append)
    assert found.played == 0 and len(found.skipped) == len(records) == read[-1]
    wanted = [reason for reason, group in cases.items() for _ in group]
    assert [str(reason) for reason, _, _ in found.skipped] == wanted
    assert found.counts() == {reason: len(group) for reason, group in cases.items()}


def test_files_of_records(folder: Path, student: Students) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    record = chat(*TWO)
    record["messages"] = json.dumps(record["messages"])
    parquet.write_table(arrow.Table.from_pylist([record] * 2), folder / "chats.parquet")
    (folder / "chats.json").write_text(json.dumps([record]))
    assert read_messages(folder / "chats.parquet", folder, folder / "one").played == 2
    assert read_messages(folder / "chats.json", folder, folder / "two").played == 1
    (folder / "chats.json").write_text("{")
    (folder / "chats.txt").write_text("")
    for name, words in (("chats.json", "cannot be read"), ("chats.txt", "only .jsonl"), ("none.jsonl", "No such file")):
        with pytest.raises(AprError, match=words):
            read_messages(folder / name, folder, folder / name.replace(".", "_"))
