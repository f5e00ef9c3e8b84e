"""The models of lmms-eval and VLMEvalKit for OpenAI-compatible servers, pointed at the endpoint, in their runners."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serve_testing import Served
from vlmeval_testing import Warm

import apr_plugin.tasks
from apr_plugin.loop.trajectory import StopReason
from apr_plugin.tasks.needle.make import load_docs

LOCAL = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def _number(folder: Path, kind: str) -> int:
    return sum(doc["kind"] == kind for doc in load_docs(folder))


@pytest.mark.slow
@pytest.mark.xdist_group("lmms_commands")
def test_lmms_eval_s_openai_model(start_apr: Callable[..., Any], served_needles: Path, tmp_path: Path) -> None:
    """Its own evaluator asks and scores; a question that can't be asked is no answer that a scorer could read."""

    def command(name: str, url: str, *tasks: str) -> list[str]:
        arguments = f"model=apr,base_url={url},api_key=none,pass_video_url=True,num_concurrent=4,max_retries=1"
        where = ["--output_path", str(tmp_path / name), "--include_path", str(next(iter(apr_plugin.tasks.__path__)))]
        own = ["lmms-eval", "--model", "openai", "--model_args", arguments, "--tasks", ",".join(tasks)]
        return [*own, *where, "--batch_size", "1", "--log_samples"]

    tasks = ("apr_needle_glyph", "apr_needle_count")
    with (
        Served(tmp_path / "kept", served_needles) as server,
        Served(tmp_path / "lost", tmp_path, unanswered="null") as other,  # without the folder of the videos
    ):
        good, bad = start_apr(
            command("good", server.url, *tasks),
            command("bad", other.url, tasks[0]),
            environment=LOCAL | {"APR_NEEDLE_DIR": str(served_needles)},
        ).end()
        stored, lost = server.stored(), other.stored()
    assert good.status == bad.status == 0, good.text + bad.text
    results = json.loads(next((tmp_path / "good").rglob("*_results.json")).read_text())["results"]
    assert {task: results[task]["score,none"] for task in tasks} == dict.fromkeys(tasks, 1.0)
    asked = sum(_number(served_needles, kind) for kind in ("glyph", "count"))
    assert len(stored) == asked and {t.stop_reason for t in stored} == {StopReason.ANSWERED}
    assert all(t.frames or any(look.audio_s for look in t.looks) for t in stored), "the agent saw the file itself"
    files = (tmp_path / "bad").rglob("*_samples_*.jsonl")
    rows = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    assert {row["filtered_resps"] for row in rows} == {"(null)"} and len(rows) == len(lost)
    assert {t.stop_reason for t in lost} == {StopReason.MEDIA_UNREADABLE}


SETUP = """\
from functools import partial
import vlmeval.config
from vlmeval.api.gpt import CustomAPIModel

vlmeval.config.supported_VLM["endpoint"] = partial(
    CustomAPIModel, model="apr", api_base={url!r}, key="none", video_llm=True, retry=1, wait=0
)
"""


@pytest.mark.slow
@pytest.mark.xdist_group("vlmeval")
def test_vlmevalkit_s_api_model(vlmeval: Warm, served_needles: Path, tmp_path: Path) -> None:
    """Its own runner asks and scores."""
    out = tmp_path / "out"
    with Served(tmp_path / "kept", served_needles) as server:
        (tmp_path / "setup.py").write_text(SETUP.format(url=f"{server.url}/chat/completions"))
        (done,) = vlmeval.run(
            ["vlmeval", "--data", "apr_needle_glyph", "--model", "endpoint", "--work-dir", out],
            setup=tmp_path / "setup.py",
            environment=LOCAL | {"APR_NEEDLE_DIR": str(served_needles)},
        )
        stored = server.stored()
    assert done.status == 0, done.text
    results = json.loads(next(out.rglob("*_results.json")).read_text())["results"]
    assert results["apr_needle_glyph"]["score,none"] == 1.0
    assert len(stored) == _number(served_needles, "glyph")
    assert {t.question.kind for t in stored} == {"mcq"} and all(t.frames for t in stored)
