"""A run as inspect_ai's logs: read back with its own reader, turn by turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stored_runs import HOSTILE, stored

pytest.importorskip("yaml")
from making import answered, look, trajectory

from apr_plugin.errors import AprError, MissingExtra
from apr_plugin.loop.feedback import ActionError, ErrorCode
from apr_plugin.loop.trajectory import StopReason
from apr_plugin.report.cleaning import clean
from apr_plugin.report.inspect_log import NOTE, log_data, write_inspect_logs
from apr_plugin.runs.foreign.importing import import_run
from apr_plugin.runs.opened import Run, open_run


def _run(out: Path) -> Run:
    refused = look(90, 190).model_copy(
        update={"shown": None, "error": ActionError(ErrorCode.OUT_OF_RANGE, "the video ends at 100 s")}
    )
    unread = answered("x").model_copy(
        update={
            "action": None,
            "error": ActionError(ErrorCode.MALFORMED_JSON, "no JSON"),
            "text": HOSTILE,
            "finish_reason": "length",
        }
    )
    made = [
        trajectory(0, [look(0, 50), look(10, 20, kind="audio"), answered("A")], "A"),
        trajectory(1, [refused, unread, answered(HOSTILE)], HOSTILE, text=HOSTILE),
        trajectory(2, [], None, stop_reason=StopReason.MEDIA_UNREADABLE, stop_detail="no such file"),
        trajectory(3, [look(0, 9)], None, stop_reason=StopReason.TURNS),
    ]
    return stored(out, made, scores={"score": 0.25})


def test_every_turn_is_a_message_and_an_event(tmp_path: Path) -> None:
    (log,) = log_data(_run(tmp_path))
    first, second, third, last = log["samples"]
    assert [message["role"] for message in first["messages"]] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
        "assistant",
    ]
    assert [event["event"] for event in first["events"]] == ["model", "tool", "model", "tool", "model"]
    call = first["messages"][1]["tool_calls"][0]
    assert call["function"] == "get_frames" and call["arguments"] == {"start": 0.0, "end": 50.0, "num": 4, "video": 0}
    assert (
        "4 frames of 320x180 at 6.25, 18.75" in first["messages"][2]["content"]
        and "media not kept" in first["messages"][2]["content"]
    )
    assert "10.00 s of sound" in first["messages"][4]["content"]
    starts = [event["working_start"] for event in first["events"]]
    assert (
        starts == sorted(starts)
        and first["events"][1]["working_start"] == 0.5
        and first["working_time"] == pytest.approx(1.4)
    )
    usage = {
        "input_tokens": 200 + 200 + 600,
        "output_tokens": 100,
        "total_tokens": 1700,
        "input_tokens_cache_read": 600,
    }
    assert (
        first["model_usage"] == {"apr/guess": usage}
        and log["stats"]["model_usage"]["apr/guess"]["output_tokens"] == 220
    )
    assert first["scores"]["score"]["value"] == 0.5 and first["target"] == "A" and first["choices"] == ["red", "blue"]
    assert second["messages"][2]["error"]["message"] == "the video ends at 100 s"
    assert (
        second["messages"][4]["content"].startswith("[ERROR] MALFORMED_JSON: no JSON")
        and second["events"][2]["output"]["choices"][0]["stop_reason"] == "max_tokens"
    )
    assert third["error"]["message"] == "media_unreadable: no such file" and third["messages"][0]["role"] == "user"
    assert last["limit"] == {"type": "message", "limit": 8} and last["error"] is None
    assert log["results"]["completed_samples"] == 3 and log["results"]["scores"][0]["metrics"]["score"]["value"] == 0.25
    text = json.dumps(log, ensure_ascii=False)
    assert "\x1b" not in text and "\ud800" not in text and NOTE in text


def test_without_the_package_it_says_which_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "inspect_ai" else found(name, *more)
    )
    with pytest.raises(MissingExtra, match=r"apr-plugin\[inspect\]"):
        write_inspect_logs(_run(tmp_path), tmp_path / "logs")


def test_its_own_reader_gives_it_back(tmp_path: Path) -> None:
    log_module: Any = pytest.importorskip("inspect_ai.log")
    run = _run(tmp_path / "run")
    (path,) = write_inspect_logs(run, tmp_path / "logs")
    log = log_module.read_eval_log(str(path))
    assert log.status == "success" and log.eval.task == "apr_made" and log.eval.model == "apr/guess"
    assert log.eval.metadata["config_hash"] == run.config_hash and log.results.scores[0].metrics["score"].value == 0.25
    (data,) = log_data(run)
    for sample, expected in zip(log.samples, data["samples"], strict=True):
        assert sample.id == expected["id"] and sample.input == expected["input"]
        assert [message.role for message in sample.messages] == [message["role"] for message in expected["messages"]]
        assert [message.text for message in sample.messages] == [message["content"] for message in expected["messages"]]
        assert [event.event for event in sample.events] == [event["event"] for event in expected["events"]]
    assert log.samples[0].scores["score"].value == 0.5 and log.samples[0].output.completion == "{}"
    assert log.samples[2].error.message.startswith("media_unreadable")
    if hasattr(log_module, "read_eval_log_sample_summaries"):  # what its page lists, in newer releases
        summaries = log_module.read_eval_log_sample_summaries(str(path))
        assert [one.id for one in summaries] == ["0", "1", "2", "3"]


def test_what_its_own_writer_wrote_is_imported_as_it_was(tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai")
    run = _run(tmp_path / "run")
    (path,) = write_inspect_logs(run, tmp_path / "logs")
    import_run(path, tmp_path / "out")
    for before, after in zip(run, open_run(tmp_path / "out"), strict=True):
        data = clean(before.model_dump(mode="json", exclude={"config_hash": True, "imported": True}), secrets=True)
        assert after.model_dump(mode="json", exclude={"config_hash": True, "imported": True}) == data


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai")
    run = _run(tmp_path / "run")
    (tmp_path / "taken").write_text("")
    with pytest.raises(AprError, match="cannot write this log"):
        write_inspect_logs(run, tmp_path / "taken" / "logs")
    next(run.folder.glob("*.jsonl")).write_text("")
    with pytest.raises(AprError, match="no trajectory"):
        write_inspect_logs(open_run(run.folder), tmp_path / "logs")
