"""`write_inspect_logs`: a finished run as logs of inspect_ai, one for each task, which `inspect view` opens.

A sample is a question: its turns as messages with tool calls (a look is a call, what came back is its result), a
`model` event and a `tool` event for each, the harness's score, the tokens. Media-free, as trajectories are.

The policy did not see the messages as they are listed. In each turn it saw the question, its own notes and the media of
its latest look (`apr_plugin.loop.replay` rebuilds those prompts); the log's metadata says so. A trajectory records
durations and no clock times, so times in a log count from the time of the evaluation.

The form is that of log version 2 (inspect_ai `log/_log.py`, release 0.3.285). inspect_ai's own classes check it and
write the file.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from apr_plugin import __version__
from apr_plugin.errors import AprError, require
from apr_plugin.loop.action import Answer
from apr_plugin.loop.imported import Figure
from apr_plugin.loop.trajectory import Shown, StopReason, Trajectory, Turn
from apr_plugin.report.card_files import card_data
from apr_plugin.report.cleaning import clean
from apr_plugin.runs.opened import Key, Run

NOTE = (
    "Made from trajectories of apr-plugin. The policy saw, in each turn, the question, its own notes and the media "
    "of its latest look alone, and not the messages listed here. Clock times count from the evaluation's time."
)

_LIMITS = {StopReason.TURNS: "message", StopReason.TOKENS: "token", StopReason.WALL_CLOCK: "time"}
_NOT_LOGGED = {"text", "token_ids", "logprobs", "logprobs_of", "entropies", "entropy_top_k"}
"""Fields of a turn that a log has elsewhere, or does not have: what belongs to single tokens."""

_FIRST_TURN = "Nothing has been shown yet."


def write_inspect_logs(run: Run, folder: Path) -> list[Path]:
    """Write one `.eval` file for each task.

    Args:
        run: From `open_run`.
        folder: Where they go; it is made.

    Returns:
        The files, in order of the tasks.

    Raises:
        AprError: the run has no trajectory, or inspect_ai refuses or can't write the log.
        MissingExtra: inspect_ai is not installed.
    """
    require("inspect_ai", "inspect")
    if not len(run):
        raise AprError(f"{run.folder}: the run has no trajectory to make a log of")
    log: Any = importlib.import_module("inspect_ai.log")

    written = []
    for data in log_data(run):
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", data["eval"]["task"])[:100]
        path = folder / f"{data['eval']['created'][:19].replace(':', '-')}_{name}_{run.config_hash or 'run'}.eval"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            log.write_eval_log(log.EvalLog.model_validate(data), str(path), format="eval")
        except (OSError, ValueError) as error:
            raise AprError(f"{path}: cannot write this log: {error}") from error
        written.append(path)
    return written


def log_data(run: Run) -> Iterator[dict[str, Any]]:
    """The logs as plain values, one for each task."""
    card = card_data(run)
    tasks: dict[str, list[Key]] = {}
    for key in run.keys:
        tasks.setdefault(key[0], []).append(key)
    for task, keys in sorted(tasks.items()):
        yield clean(_log(run, card, task, keys), secrets=True)


def _log(run: Run, card: Mapping[str, Any], task: str, keys: list[Key]) -> dict[str, Any]:
    about = card["tasks"].get(task, {})
    began = _began(about.get("evaluated"))
    model = _model(card)
    samples = [_sample(run, key, model, began) for key in keys]
    usage = _sum(sample["model_usage"].get(model, {}) for sample in samples)
    seconds = sum(sample["total_time"] or 0.0 for sample in samples)
    metrics = {
        name.partition(",")[0]: {"name": name.partition(",")[0], "value": value}
        for name, value in about.get("scores", {}).items()
        if value is not None
    }
    splits = sorted({key[1] for key in keys})
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "eval_id": f"{run.config_hash}-{task}",
            "run_id": run.config_hash,
            "task_id": task,
            "created": _iso(began),
            "task": task,
            "task_version": about.get("version")
            if isinstance(about.get("version"), int | str)
            else str(about.get("version") or 0),
            "dataset": {
                "name": "/".join([task, *splits]),
                "samples": len(keys),
                "sample_ids": [sample["id"] for sample in samples],
            },
            "model": model,
            "model_args": {"policy": card["policy"]},
            "model_generate_config": _generate(card["configuration"]),
            "config": {"epochs": 1 + max(key[3] for key in keys)},
            "packages": {"apr-plugin": __version__, **card["versions"]},
            "metadata": {
                "note": NOTE,
                "arm": card["arm"],
                "config_hash": run.config_hash,
                "configuration": card["configuration"],
                "prompts": card["prompts"],
                "problems": card["problems"],
            },
            "scorers": [{"name": "lmms-eval"}],
        },
        "plan": {
            "name": "apr",
            "steps": [{"solver": f"apr/{card['arm']}", "params": {"budget": card["configuration"].get("budget")}}],
        },
        "results": {
            "total_samples": len(keys),
            "completed_samples": sum(sample["error"] is None for sample in samples),
            "scores": [{"name": "score", "scorer": "lmms-eval", "metrics": metrics}] if metrics else [],
        },
        "stats": {
            "started_at": _iso(began),
            "completed_at": _iso(began + timedelta(seconds=seconds)),
            "model_usage": {model: usage} if usage else {},
        },
        "samples": samples,
    }


def _sample(run: Run, key: Key, model: str, began: datetime) -> dict[str, Any]:
    trajectory, score, truth = run[key], run.scores.get(key), run.truths.get(key[:3])
    question = trajectory.question
    messages, events = _turns(trajectory, model, began)
    usage = _sum(_usage(turn) for turn in trajectory.turns)
    target: str | list[str] = list(truth.answers) if truth else (score.target or "") if score else ""
    failed = trajectory.stop_reason.failed
    scored = {}
    if score is not None and score.value is not None:
        scored["score"] = {
            "value": score.value,
            "answer": trajectory.answer,
            "explanation": f"{trajectory.stop_reason} {trajectory.stop_detail}".strip(),
            "metadata": {"metrics": dict(score.metrics), "buckets": list(score.buckets)},
        }
    limit = _LIMITS.get(trajectory.stop_reason)
    return {
        "id": question.doc_id,
        "epoch": question.repeat + 1,
        "input": _asked(trajectory),
        "choices": [option.text for option in question.options] or None,
        "target": target,
        "messages": messages,
        "output": _output(trajectory.turns[-1], model) if trajectory.turns else {"model": model},
        "scores": scored or None,
        "events": events,
        "model_usage": {model: usage} if usage else {},
        "total_time": trajectory.timings.total_s if trajectory.has(Figure.TOTAL_SECONDS) else None,
        "working_time": trajectory.timings.model_s + trajectory.timings.media_s
        if trajectory.has(Figure.MODEL_SECONDS)
        else None,
        "uuid": f"{run.config_hash}/{'/'.join(map(str, key))}",
        "error": {
            "message": f"{trajectory.stop_reason}: {trajectory.stop_detail}",
            "traceback": "",
            "traceback_ansi": "",
        }
        if failed
        else None,
        "limit": {"type": limit, "limit": trajectory.turns_allowed} if limit else None,
        "metadata": {
            "split": question.split,
            "kind": str(question.kind),
            "arm": trajectory.arm,
            "stop_reason": str(trajectory.stop_reason),
            "answer_valid": trajectory.answer_valid,
            "videos": [Path(video.path).name for video in question.videos],
            "durations_s": list(trajectory.video_durations_s),
            "frames": trajectory.frames if trajectory.has(Figure.FRAMES) else None,
            "visual_tokens": trajectory.visual_tokens if trajectory.has(Figure.VISUAL_TOKENS) else None,
            "evidence": [[part.start_s, part.end_s, part.video] for part in truth.evidence] if truth else [],
            "seed": trajectory.seed if trajectory.has(Figure.SEED) else None,
            "apr": _record(trajectory),
        },
    }


def _record(trajectory: Trajectory) -> dict[str, Any]:
    """The rest of our own record, so that `apr import` reads it back; of paths, only the names."""
    data = trajectory.model_dump(mode="json", exclude={"turns": True, "config_hash": True}, exclude_defaults=True)
    for video in data["question"].get("videos", ()):
        video["path"] = Path(video["path"]).name
        video.pop("subtitles", None)
    return data


def _turn_record(turn: Turn) -> dict[str, Any]:
    data = turn.model_dump(mode="json", exclude=_NOT_LOGGED, exclude_defaults=True)
    # The kind of an action is a default of its class.
    return data | ({} if turn.action is None else {"action": turn.action.model_dump(mode="json")})


def _turns(trajectory: Trajectory, model: str, began: datetime) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The messages and the events of an episode."""
    shown = " ".join(_told(look) for look in trajectory.first_shown)
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "\n\n".join(filter(None, [_asked(trajectory), shown])), "id": "m0"}
    ]
    events: list[dict[str, Any]] = []
    at = 0.0
    for number, turn in enumerate(trajectory.turns, 1):
        output = _output(turn, model, number)
        events.append(
            {
                "event": "model",
                "uuid": f"e{number}",
                "timestamp": _iso(began + timedelta(seconds=at)),
                "working_start": at,
                "model": model,
                "input": list(messages),
                "tools": [],
                "tool_choice": "auto",
                "config": {},
                "output": output,
                "completed": _iso(began + timedelta(seconds=at + turn.model_s)),
                "working_time": turn.model_s,
                "metadata": {
                    "confidence": turn.confidence,
                    "repairs": list(turn.repairs),
                    "forced": turn.forced,
                    "apr": _turn_record(turn),
                },
            }
        )
        messages.append(output["choices"][0]["message"])
        at += turn.model_s
        if (call := _call(turn, number)) is not None:
            result = _told(turn.shown) if turn.shown else ""
            fault = {"type": "parsing", "message": turn.error.message} if turn.error is not None else None
            messages.append(
                {"role": "tool", "id": f"r{number}", "content": result or (turn.error.feedback() if turn.error else ""),
                 "tool_call_id": call["id"], "function": call["function"], "error": fault}
            )  # fmt: skip
            events.append(
                {
                    "event": "tool",
                    "uuid": f"t{number}",
                    "timestamp": _iso(began + timedelta(seconds=at)),
                    "working_start": at,
                    "type": "function",
                    "id": call["id"],
                    "function": call["function"],
                    "arguments": call["arguments"],
                    "result": result,
                    "error": fault,
                    "completed": _iso(began + timedelta(seconds=at + turn.media_s)),
                    "working_time": turn.media_s,
                }
            )
        elif turn.error is not None:
            messages.append({"role": "user", "id": f"r{number}", "content": turn.error.feedback()})
        at += turn.media_s
    return messages, events


def _output(turn: Turn, model: str, number: int = 0) -> dict[str, Any]:
    call = _call(turn, number)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": turn.text,
        "id": f"a{number}",
        "source": "generate",
        "model": model,
    }
    if call is not None:
        message["tool_calls"] = [call]
    stop = "max_tokens" if turn.finish_reason == "length" else "tool_calls" if call else "stop"
    usage = _usage(turn)
    return {
        "model": model,
        "choices": [{"message": message, "stop_reason": stop}],
        "completion": turn.text,
        "usage": usage or None,
        "time": turn.model_s,
    }


def _call(turn: Turn, number: int) -> dict[str, Any] | None:
    """The look that a turn asked for, as a tool call."""
    action = turn.action
    if action is None or isinstance(action, Answer):
        return None
    arguments = action.model_dump(mode="json")
    return {"id": f"c{number}", "type": "function", "function": str(arguments.pop("type")), "arguments": arguments}


def _told(look: Shown) -> str:
    """What a look showed, in words; the media itself is not kept."""
    window = f"video {look.video}, {look.start_s:.2f} to {look.end_s:.2f} s"
    parts = [f"{look.kind}: {window}"]
    if look.times_s:
        times = ", ".join(f"{time:.2f}" for time in look.times_s[:100])
        parts.append(
            f"{len(look.times_s)} frames of {look.width}x{look.height} at "
            f"{times}{' …' if len(look.times_s) > 100 else ''} s"
        )
    if look.audio_s:
        parts.append(f"{look.audio_s:.2f} s of sound")
    return f"[{'; '.join([*parts, *filter(None, [look.remark])])}; media not kept]"


def _asked(trajectory: Trajectory) -> str:
    question = trajectory.question
    return "\n".join([question.text, *(f"{option.label}. {option.text}" for option in question.options)])


def _usage(turn: Turn) -> dict[str, int]:
    """Tokens of a turn; empty where the policy counted none."""
    usage = turn.usage
    if usage.prompt_tokens is None and usage.completion_tokens is None:
        return {}
    cached = usage.cached_tokens or 0
    read, wrote = max(0, (usage.prompt_tokens or 0) - cached), usage.completion_tokens or 0
    return {
        "input_tokens": read,
        "output_tokens": wrote,
        "total_tokens": read + cached + wrote,
        "input_tokens_cache_read": cached,
    }


def _sum(usages: Iterator[Mapping[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for usage in usages:
        for name, count in usage.items():
            found[name] = found.get(name, 0) + count
    return found


def _generate(configuration: Mapping[str, Any]) -> dict[str, Any]:
    sampling = configuration.get("sampling")
    sampling = sampling if isinstance(sampling, Mapping) else {}
    names = {"temperature": "temperature", "top_p": "top_p", "max_new_tokens": "max_tokens", "seed": "seed"}
    return {theirs: sampling[ours] for ours, theirs in names.items() if sampling.get(ours) is not None}


def _model(card: Mapping[str, Any]) -> str:
    policy, name = card["policy"].get("name"), card["model"]["name"]
    return "/".join(dict.fromkeys(str(part) for part in ("apr", policy, name) if part))


def _began(time: Any) -> datetime:
    """When the evaluation began, by its name; the epoch where that is not known."""
    try:
        return datetime.strptime(str(time), "%Y%m%d_%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return datetime(1970, 1, 1, tzinfo=UTC)


def _iso(time: datetime) -> str:
    return time.isoformat()
