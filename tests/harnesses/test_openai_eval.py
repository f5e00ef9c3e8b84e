"""`apr eval` with a model server that dies: unanswered questions are counted and asked again.

None of them is silently scored as a wrong answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, drop

from apr_plugin.loop.trajectory import StopReason, Trajectory

pytest.importorskip("openai")

pytestmark = pytest.mark.xdist_group("lmms_commands")


def test_an_outage_is_counted_and_made_up_for(bench: Any, run_apr: Callable[..., list[Any]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    turns = [json.dumps(bench.look(0, 2)), json.dumps(bench.answer("A"))]
    with ChatServer(turns) as server, ChatServer(turns) as second:
        server.mishaps += [None] * 9 + [drop] * 200  # type: ignore[list-item]

        def told(url: str, retries: int) -> str:
            server = f"policy=openai,base_url={url},frame_pixels=4096,retries={retries},concurrency=2"
            return server + ',extra_body={"stop":["a,b"]}'

        def evaluate(model_args: str) -> list[str]:
            task = ["--tasks", "bench_many", "--limit", "8", "--include_path", str(bench.tasks)]
            return ["eval", *task, "--output_path", str(out), "--model_args", model_args]

        broken, repaired, asked = run_apr(
            evaluate(told(server.url, 0)),
            evaluate(told(f"[{second.url},http://127.0.0.1:9/v1]", 1)),
            ["ask", bench.videos["sound"], "Say A.", "-o", "A. red", "-m", told(f"[{second.url}]", 0)],
        )
    assert (
        broken.status == 3
        and "policy_unavailable" in broken.err
        and "The same command asks only those again" in broken.err
    ), broken.text
    lines = [t for path in out.rglob("bench_many.jsonl") for t in Trajectory.read(path)]
    assert repaired.status == 0, repaired.text
    failed = 8 - sum(json.dumps(chat["messages"]).count('"assistant"') == 1 for chat in server.chats[:9])
    assert f"{failed} questions could not be answered" in broken.err
    assert sum(len(chat["messages"]) == 2 for chat in second.chats) - 1 == failed, "only those are asked again"
    assert len(lines) == 8 and all(t.stop_reason is StopReason.ANSWERED and t.answer == "A" for t in lines)
    assert all(chat["stop"] == ["a,b"] for chat in second.chats)
    assert asked.status == 0 and "answer A" in asked.out, asked.text
