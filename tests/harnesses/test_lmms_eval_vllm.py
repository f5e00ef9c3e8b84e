"""The real `lmms-eval` command with model `apr` on a real vLLM server.

The task is lmms-eval's own; its data set is replaced by a small one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from vllm_server import MODEL, VllmServer, choosing

from apr_plugin.loop.trajectory import StopReason, Trajectory

pytest.importorskip("lmms_eval")
pytest.importorskip("openai")
pytestmark = pytest.mark.xdist_group("vllm")


def test_lmms_eval_against_the_server(bench: Any, vllm_server: VllmServer, tmp_path: Path) -> None:
    """Videos are decoded, pictures are sent, the model writes turns, and the task scores the answers."""
    turns = choosing(
        *(json.dumps(turn) for turn in (bench.look(0, 5, 4), bench.look(2, 3, 3), bench.answer("B"), bench.answer("C")))
    )
    model_args = f"policy=openai,base_url={vllm_server.base_url},model={MODEL},extra_body={json.dumps(turns)}"
    model_args += f",temperature=1.0,max_new_tokens=200,turns=4,concurrency=4,trajectories={tmp_path / 'trajectories'}"
    command = [
        sys.executable,
        "-m",
        "lmms_eval",
        "--model",
        "apr",
        "--model_args",
        model_args,
        "--include_path",
        str(bench.tasks),
    ]
    command += [
        "--tasks",
        "videomme_bench",
        "--batch_size",
        "1",
        "--output_path",
        str(tmp_path / "out"),
        "--log_samples",
    ]

    ended = subprocess.run(
        command, cwd=tmp_path, env=bench.environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert ended.returncode == 0 and "Traceback" not in ended.stderr, ended.stdout[-3000:] + ended.stderr[-3000:]
    (written,) = (tmp_path / "out").rglob("*_results.json")
    results = json.loads(written.read_text())
    saved = [t for path in (tmp_path / "trajectories").rglob("*.jsonl") for t in Trajectory.iterate(path)]
    assert sorted(t.question.doc_id for t in saved) == ["0", "1"]
    assert all(t.stop_reason in (StopReason.ANSWERED, StopReason.FORCED, StopReason.TURNS) for t in saved), [
        t.stop_detail for t in saved
    ]
    assert {t.question.reader for t in saved} == {"videomme"}
    for t in saved:
        for before, turn in zip(t.turns, t.turns[1:], strict=False):
            assert turn.usage.prompt_tokens is not None and turn.usage.prompt_tokens > 0
            if before.shown is not None and not turn.forced:
                assert len(before.shown.times_s) in (3, 4) and before.shown.visual_tokens > 0
    right = sum(t.answer == "B" for t in saved)
    assert results["results"]["videomme_bench"]["videomme_perception_score,none"] == pytest.approx(100 * right / 2)
    generations = sum(len(t.turns) for t in saved)
    assert vllm_server.metrics()["vllm:request_success_total"] >= generations, "the server wrote the turns"
