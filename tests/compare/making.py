"""Runs, truths and comparisons made in memory and on disk for the tests of `compare` and `report`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apr_plugin.compare.joined import Arm, Outcome
from apr_plugin.loop.action import Answer, GetAudio, GetFrames
from apr_plugin.loop.budget import Budget
from apr_plugin.loop.card import Card
from apr_plugin.loop.config import EpisodeConfig
from apr_plugin.loop.policy import Usage
from apr_plugin.loop.question import MediaRef, Option, Question, QuestionKind
from apr_plugin.loop.trajectory import Film, Shown, StopReason, Timings, Trajectory, Turn
from apr_plugin.policies.guess import GuessPolicy
from apr_plugin.runs.opened import Key, Run, open_run
from apr_plugin.runs.store import TrajectoryStore
from apr_plugin.runs.truths import write_truths
from apr_plugin.scoring.truth import Truth

TASK = "apr_made"


def key_of(number: int, task: str = TASK) -> Key:
    return (task, "test", str(number), 0)


def look(start: float, end: float, num: int = 4, *, kind: str = "frames", tokens: int = 80, video: int = 0) -> Turn:
    """A turn that looked at a window."""
    action: Any = (
        GetAudio(start=start, end=end, video=video)
        if kind == "audio"
        else GetFrames(start=start, end=end, num=num, video=video)
    )
    step = (end - start) / max(1, num)
    times = () if kind == "audio" else tuple(start + step * (number + 0.5) for number in range(num))
    shown = Shown(
        kind="audio" if kind == "audio" else "frames",
        video=video,
        start_s=start,
        end_s=end,
        times_s=times,
        width=320 if times else 0,
        height=180 if times else 0,
        audio_s=end - start if kind == "audio" else 0.0,
        visual_tokens=tokens if times else 0,
    )
    return Turn(
        text="{}",
        observation=f"looked at {start:g} to {end:g}",
        think="closer",
        confidence=0.5,
        action=action,
        shown=shown,
        usage=Usage(prompt_tokens=500, completion_tokens=40, cached_tokens=300),
        model_s=0.5,
        media_s=0.2,
    )


def answered(content: str, *, forced: bool = False) -> Turn:
    return Turn(
        text="{}",
        observation="seen",
        action=Answer(content=content),
        usage=Usage(prompt_tokens=600, completion_tokens=20),
        forced=forced,
        model_s=0.4,
    )


def trajectory(number: int, turns: Sequence[Turn], answer: str | None, **more: Any) -> Trajectory:
    """One finished question about `film<number // 2>.mp4`, 100 s long."""
    duration = more.pop("duration_s", 100.0)
    text = more.pop("text", f"What happens in {number}?")
    question = Question(
        text=text,
        kind=more.pop("kind", QuestionKind.MCQ),
        options=more.pop("options", (Option(label="A", text="red"), Option(label="B", text="blue"))),
        videos=(MediaRef(path=more.pop("path", f"film{number // 2}.mp4")),),
        task=more.pop("task", TASK),
        split="test",
        doc_id=str(number),
    )
    seconds = sum(turn.model_s + turn.media_s for turn in turns)
    return Trajectory(
        question=question,
        turns=tuple(turns),
        answer=answer,
        answer_valid=answer is not None,
        stop_reason=more.pop("stop_reason", StopReason.ANSWERED if answer is not None else StopReason.TURNS),
        turns_allowed=more.pop("turns_allowed", 8),
        video_durations_s=(duration,),
        videos=(Film(duration_s=duration, fps=25.0, has_audio=True),),
        timings=Timings(total_s=seconds, model_s=sum(turn.model_s for turn in turns)),
        question_hash=question.content_hash(),
        budget=Budget(),
        **more,
    )


def store_run(
    out: Path,
    made: Sequence[Trajectory],
    scores: Mapping[str, float],
    truths: Mapping[str, Truth] | None = None,
    *,
    arm: str = "agent",
    bucket: str = "0-20min",
    seed: int = 0,
    task_version: float = 1.0,
) -> Run:
    """A run on disk, as `apr eval --output_path OUT --log_samples` leaves one.

    Args:
        out: The output folder.
        made: Its trajectories; their configuration's hash is filled in.
        scores: By doc id; a question without one has no line in the samples.
        truths: By doc id.
        arm: Which arm answered.
        bucket: The duration bucket of every question.
        seed: Part of the configuration, so that two runs differ.
        task_version: The task's, by which it was scored.
    """
    policy, config = GuessPolicy(), EpisodeConfig(arm=arm, seed=seed)
    config_hash = config.hash(policy)
    with TrajectoryStore(out / "trajectories", config_hash, Card.of(config, policy)) as store:
        for one in made:
            store.save(one.model_copy(update={"config_hash": config_hash, "arm": arm}))
        write_truths(store.folder, {(TASK, "test", doc_id): truth for doc_id, truth in (truths or {}).items()})
    time, folder = "20261127_080000", out / "apr"
    folder.mkdir(parents=True, exist_ok=True)
    run = {"config_hash": config_hash, "folder": str(store.folder)}
    results = {
        "results": {TASK: {"score,none": sum(scores.values()) / max(1, len(scores))}},
        "configs": {TASK: {"test_split": "test"}},
        "versions": {TASK: task_version},
        "config": {"model": "apr", "resolved_cli_args": {"apr_run": run}},
    }
    (folder / f"{time}_results.json").write_text(json.dumps(results))
    answers = {one.question.doc_id: one.answer for one in made}
    with (folder / f"{time}_samples_{TASK}.jsonl").open("w") as lines:
        for doc_id, score in scores.items():
            row = {
                "doc_id": int(doc_id),
                "target": "A",
                "filtered_resps": [answers.get(doc_id) or "(no answer)"],
                "score": score,
                f"acc_{bucket}": score,
                f"n_{bucket}": 1,
            }
            lines.write(json.dumps(row) + "\n")
    return open_run(out)


def arm_of(name: str, scores: Mapping[int, float | None], *, kind: str = "agent", per_video: int = 1) -> Arm:
    """An arm in memory; a score of `None` is a question that it could not answer."""
    outcomes = {}
    for number, score in scores.items():
        key = key_of(number)
        status: Any = "failed" if score is None else "scored"
        outcomes[key] = Outcome(key, status, score or 0.0, None, "0-20min", "mcq", f"film{number // per_video}.mp4")
    return Arm(name, kind, outcomes)
