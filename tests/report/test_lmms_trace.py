"""lmms-eval's trace fields beside our trajectories, read by lmms-eval's own code."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from stored_runs import HOSTILE, stored

pytest.importorskip("yaml")
from making import answered, look, trajectory

from apr_plugin.errors import AprError
from apr_plugin.loop.feedback import ActionError, ErrorCode
from apr_plugin.loop.trajectory import StopReason
from apr_plugin.report.lmms_trace import write_traces
from apr_plugin.runs.opened import Run, open_run


def _run(out: Path) -> Run:
    unread = answered("x").model_copy(
        update={"action": None, "error": ActionError(ErrorCode.MALFORMED_JSON, "no JSON"), "text": HOSTILE}
    )
    refused = look(90, 190).model_copy(
        update={"shown": None, "error": ActionError(ErrorCode.OUT_OF_RANGE, "the video ends at 100 s")}
    )
    made = [
        trajectory(0, [look(0, 50), unread, refused, answered("A")], "A"),
        trajectory(1, [look(0, 9)], None, stop_reason=StopReason.TURNS),
        trajectory(2, [], None, stop_reason=StopReason.MEDIA_UNREADABLE),
    ]
    return stored(out, made, {"0": {"score": 1.0}, "1": {"score": 0.0}, "2": {"score": 0.0}})


def _traces(out: Path) -> list[dict[str, Any]]:
    (file,) = write_traces(_run(out))
    assert file.parent.name == "lmms_trace" and len(open_run(out).keys) == 3, "they are no trajectories"
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_the_fields_and_what_they_hold(tmp_path: Path) -> None:
    first, second, third = _traces(tmp_path)
    assert list(first)[:5] == ["success", "metrics", "final_state", "steps", "metadata"]
    assert list(first["final_state"]) == ["env_id", "step_idx", "observation", "terminal", "metadata"]
    assert list(first["steps"][0]) == [
        "step_idx", "raw_model_output", "model_output", "action", "parse_error", "reward", "done", "info",
    ]  # fmt: skip
    assert (first["success"], second["success"]) == (True, False) and first["metrics"] == {"score": 1.0}
    one, two, three, four = first["steps"]
    assert one["action"] == {
        "type": "get_frames", "data": {"start": 0.0, "end": 50.0, "num": 4, "video": 0}, "agent_id": "agent",
        "metadata": {},
    }  # fmt: skip
    assert len(one["info"]["shown"]["times_s"]) == 4 and (one["reward"], one["done"]) == (None, False)
    assert two["parse_error"] == "no JSON" and two["action"] is None and "\x1b" in two["raw_model_output"]
    assert three["parse_error"] is None and three["info"]["error"]["code"] == "OUT_OF_RANGE"
    assert (four["reward"], four["done"], four["step_idx"]) == (1.0, True, 3)
    assert first["final_state"]["terminal"] and not third["final_state"]["terminal"] and third["steps"] == []
    assert [trace["doc_id"] for trace in (first, second, third)] == ["0", "1", "2"]


def test_the_agentic_tasks_of_lmms_eval_read_them(tmp_path: Path) -> None:
    pytest.importorskip("lmms_eval")
    found = importlib.util.find_spec("lmms_eval")
    assert found is not None and found.submodule_search_locations is not None
    place = Path(found.submodule_search_locations[0]) / "tasks" / "tau2_bench" / "utils.py"
    spec = importlib.util.spec_from_file_location("tau2_utils", place)
    assert spec is not None and spec.loader is not None
    tau2 = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tau2)
    first, second, _ = (
        tau2.tau2_process_results({"target_state": {"answer": "A"}}, [json.dumps(t)]) for t in _traces(tmp_path)
    )
    assert (first["tau2_success"], second["tau2_success"]) == (1.0, 0.0)
    assert first["tau2_avg_tool_calls"] == 2.0 and first["tau2_trace_step_validity"] == pytest.approx(1 / 3)
    assert first["tau2_trace_state_progress"] == 1.0 and second["tau2_trace_state_progress"] == 0.0
    assert (first["tau2_trace_termination_quality"], second["tau2_trace_termination_quality"]) == (1.0, 0.0)


def test_a_run_without_trajectories_has_no_trace(tmp_path: Path) -> None:
    run = _run(tmp_path)
    next(run.folder.glob("*.jsonl")).write_text("")
    with pytest.raises(AprError, match="no trajectory"):
        write_traces(open_run(run.folder))
