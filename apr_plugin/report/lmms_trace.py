"""`write_traces`: a run's trajectories with the fields of lmms-eval's own agentic traces, one line for each question.

lmms-eval has two kinds, and a line here has the fields of both:

- `generate_until_game` (pull requests 1418 and 1419, open in November 2026; `lmms_eval/agentic/trace.py`): `success`,
  `metrics`, `final_state`, `steps[{step_idx, raw_model_output, model_output, action, parse_error, reward, done, info}]`
  and `metadata`.
- `generate_until_agentic`, release 0.7.3 (`evaluator.py`, `_run_generate_until_agentic`): `success`, `tool_calls`,
  `valid_tool_calls`, `invalid_steps`, `state`, `submit`, `trace`, which the `process_results` of its tasks read.

There a trace is the text of the model's response. The model `apr` returns the answer alone, because official scorers
read it, so traces are files beside our trajectories. `task`, `split`, `doc_id` and `repeat` are added to each line.

A value that we don't have is null: the reward of a step before the last, and `success` without a score.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from apr_plugin.compare.joined import RIGHT
from apr_plugin.errors import AprError
from apr_plugin.loop.action import Answer
from apr_plugin.loop.imported import Figure
from apr_plugin.loop.text import printable
from apr_plugin.loop.trajectory import Trajectory, Turn
from apr_plugin.runs.opened import Run
from apr_plugin.runs.scores import Score
from apr_plugin.runs.store import TrajectoryStore

FOLDER = "lmms_trace"
"""Folder of the traces, in that of the run's trajectories."""

AGENT = "agent"
"""What lmms-eval calls the only agent of an episode."""


def write_traces(run: Run, folder: Path | None = None) -> list[Path]:
    """Write a file of traces for each task.

    Args:
        run: From `open_run`.
        folder: Where they go; without it `lmms_trace` beside the trajectories.

    Returns:
        The files, in order of the tasks.

    Raises:
        AprError: the run has no trajectory, or they can't be written.
    """
    if not len(run):
        raise AprError(f"{run.folder}: the run has no trajectory to make a trace of")
    out = run.folder / FOLDER if folder is None else folder
    names = TrajectoryStore(out, "", {})
    tasks = sorted({key[0] for key in run.keys})
    try:
        out.mkdir(parents=True, exist_ok=True)
        for task in tasks:
            fresh = names.path(task).with_suffix(".part")
            with fresh.open("w", encoding="utf-8") as file:
                for key in run.keys:
                    if key[0] == task:
                        file.write(_line(trace_of(run[key], run.scores.get(key))) + "\n")
            fresh.replace(names.path(task))
    except OSError as error:
        raise AprError(f"{out}: cannot write traces there: {error.strerror or error}") from error
    return [names.path(task) for task in tasks]


def trace_of(trajectory: Trajectory, score: Score | None) -> dict[str, Any]:
    """The trace of a question, as plain values."""
    value = None if score is None else score.value
    steps = list(_steps(trajectory, value))
    looks = [turn for turn in trajectory.turns if turn.action is not None and not isinstance(turn.action, Answer)]
    valid = sum(turn.error is None for turn in looks)
    state = _state(trajectory)
    success = None if value is None else value >= RIGHT
    question = trajectory.question
    return {
        "success": success,
        "metrics": {} if score is None else dict(score.metrics),
        "final_state": {
            "env_id": f"apr/{trajectory.arm}",
            "step_idx": len(steps),
            "observation": trajectory.turns[-1].observation if trajectory.turns else "",
            "terminal": not trajectory.stop_reason.failed,
            "metadata": state | {"success": success},
        },
        "steps": steps,
        "metadata": {
            "max_steps": trajectory.turns_allowed if trajectory.has(Figure.TURNS_ALLOWED) else None,
            "agent_id": AGENT,
            "multiturn": True,
            "config_hash": trajectory.config_hash,
        },
        "tool_calls": len(looks),
        "valid_tool_calls": valid,
        "invalid_steps": sum(turn.error is not None for turn in trajectory.turns),
        "state": state,
        "submit": None if trajectory.answer is None else {"answer": trajectory.answer},
        "trace": [turn.text for turn in trajectory.turns],
        "task": question.task,
        "split": question.split,
        "doc_id": question.doc_id,
        "repeat": question.repeat,
    }


def _state(trajectory: Trajectory) -> dict[str, Any]:
    return {
        "answer": trajectory.answer,
        "answer_valid": trajectory.answer_valid,
        "stop_reason": str(trajectory.stop_reason),
        "stop_detail": trajectory.stop_detail,
    }


def _steps(trajectory: Trajectory, score: float | None) -> Iterator[dict[str, Any]]:
    last = len(trajectory.turns) - 1
    for number, turn in enumerate(trajectory.turns):
        done = number == last and not trajectory.stop_reason.failed
        yield {
            "step_idx": number,
            "raw_model_output": turn.text,
            "model_output": turn.text,
            "action": _action(turn),
            "parse_error": turn.error.message if turn.error is not None and turn.action is None else None,
            "reward": score if done else None,
            "done": done,
            "info": _info(trajectory, turn),
        }


def _action(turn: Turn) -> dict[str, Any] | None:
    if turn.action is None:
        return None
    data = turn.action.model_dump(mode="json")
    return {"type": data.pop("type"), "data": data, "agent_id": AGENT, "metadata": {}}


def _info(trajectory: Trajectory, turn: Turn) -> dict[str, Any]:
    shown = turn.shown
    has: dict[str, Any] = {
        "observation": turn.observation,
        "think": turn.think,
        "confidence": turn.confidence,
        "error": None if turn.error is None else {"code": str(turn.error.code), "message": turn.error.message},
        "forced": turn.forced,
        "prompt_tokens": turn.usage.prompt_tokens,
        "completion_tokens": turn.usage.completion_tokens,
    }
    if shown is not None:
        look: dict[str, Any] = {"kind": shown.kind, "video": shown.video, "start_s": shown.start_s}
        look |= {"end_s": shown.end_s, "times_s": list(shown.times_s) if trajectory.has(Figure.FRAMES) else None}
        has["shown"] = look | {"audio_s": shown.audio_s if trajectory.has(Figure.AUDIO) else None}
    return has


def _line(trace: Mapping[str, Any]) -> str:
    return printable(json.dumps(trace, ensure_ascii=False, default=str))
