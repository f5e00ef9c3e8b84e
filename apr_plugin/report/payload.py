"""What the report page is given: one small row for each question, and a question's details, as plain JSON values.

Everything here is data. Texts of models and data sets stay text: no part of this module writes HTML.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from apr_plugin.compare.aiming import evidence_spans, is_repeat, shown_is_known, shows
from apr_plugin.compare.joined import Arm, Comparison
from apr_plugin.loop.action import Answer, describe
from apr_plugin.loop.imported import Figure
from apr_plugin.loop.text import printable
from apr_plugin.loop.trajectory import Shown, StopReason, Trajectory, Turn
from apr_plugin.report.cleaning import hidden
from apr_plugin.report.thumbnails import Seen
from apr_plugin.runs.meter import tokens_spent
from apr_plugin.runs.opened import Key
from apr_plugin.scoring.intervals import Span
from apr_plugin.scoring.truth import Truth

LONGEST = 20_000
"""Characters of one text in the page at most; a longer one ends with a note that says so."""

FLAGS = ("repeat", "no look", "forced", "hit", "miss", "unsupported", "failed", "refused")
"""The flags of an arm's outcome, by bit.

`unsupported`: right, and no look showed the evidence. `refused`: an action was refused, or could not be read.
"""

STATUSES = ("scored", "failed", "missing")

Detail = dict[str, Any]
"""One question, with what every arm did."""

SeenBy = Callable[[Arm, Trajectory], tuple[Mapping[int, Seen], str]]
"""The pictures and the sound of a trajectory's looks, by number in `Trajectory.looks`, and what could not be read."""


def text(value: object, longest: int = LONGEST) -> str:
    """A value as text for the page, cut where it is very long."""
    words = printable(str(value))
    return words if len(words) <= longest else f"{words[:longest]} … ({len(words) - longest:,} more characters)"


def finite(value: Any) -> Any:
    """The same JSON value with `None` for NaN and the infinities, which a browser's JSON reader refuses."""
    if isinstance(value, Mapping):
        return {printable(str(key)): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float) else text(value)


def details(comparison: Comparison, seen: SeenBy | None = None) -> Iterator[tuple[Key, Detail]]:
    """Every question with what each arm did, in the comparison's order; trajectories are read one at a time.

    Args:
        comparison: From `join`.
        seen: Reads pictures and sound again; without it the page has none.
    """
    for key in comparison.keys:
        yield key, _detail(comparison, key, seen)


def head(comparison: Comparison, summary: Mapping[str, Any], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """What the page needs before any question is opened.

    Args:
        comparison: From `join`.
        summary: The figures; shown as they are, without what looks like a key or a password.
        rows: From `row`, in the order of the questions.
    """
    return {
        "summary": finite(hidden(summary)),
        "arms": [
            {
                "name": text(arm.name, 200),
                "kind": text(arm.kind, 60),
                "about": {text(name, 60): text(hidden(str(value)), 400) for name, value in arm.about.items()},
                "looks": arm.run is not None,
            }
            for arm in comparison.arms
        ],
        "flags": FLAGS,
        "statuses": STATUSES,
        "stops": [str(reason) for reason in StopReason],
        "rows": rows,
    }


def row(detail: Detail) -> list[Any]:
    """The small row of a question: names, its text, and each arm's outcome.

    Returns:
        task, split, doc id, repeat, bucket, kind, text, video, seconds of video, right answer, and for each arm
        status, score, flags (bits, see `FLAGS`), answer, looks, frames, visual tokens, stop reason (its number).
    """
    question, truth = detail["question"], detail["truth"]
    return [
        *detail["key"],
        detail["bucket"],
        question["kind"],
        text(question["text"], 400),
        " ".join(video["name"] for video in question["videos"]),
        round(sum(video["duration"] or 0.0 for video in question["videos"]), 1),
        text(" or ".join(truth["answers"]), 120) if truth else "",
        [_cells(arm) for arm in detail["arms"]],
    ]


def _cells(arm: Detail) -> list[Any]:
    looks, stop = arm["looks"], arm["stop"]
    return [
        STATUSES.index(arm["status"]),
        arm["score"],
        sum(1 << FLAGS.index(flag) for flag in arm["flags"]),
        None if arm["answer"] is None else text(arm["answer"], 80),
        len(looks),
        None if Figure.FRAMES in arm["absent"] else sum(len(look["times"]) for look in looks),
        None if Figure.VISUAL_TOKENS in arm["absent"] else sum(look["tokens"] for look in looks),
        None if stop is None else list(StopReason).index(StopReason(stop)),
    ]


def _detail(comparison: Comparison, key: Key, seen: SeenBy | None) -> Detail:
    truth = comparison.truths.get(key)
    trajectories = [arm.trajectory(key) for arm in comparison.arms]
    arms = [
        _arm(arm, key, trajectory, truth, seen) for arm, trajectory in zip(comparison.arms, trajectories, strict=True)
    ]
    return {
        "key": [text(key[0], 200), text(key[1], 200), text(key[2], 200), key[3]],
        "bucket": text(comparison.bucket(key), 100),
        "question": _question(comparison, key, [one for one in trajectories if one is not None]),
        "truth": None if truth is None else _truth(truth),
        "arms": arms,
        "divergence": _divergence([arm for arm in arms if arm["kind"] == "agent" and arm["turns"]]),
    }


def _question(comparison: Comparison, key: Key, trajectories: Sequence[Trajectory]) -> Detail:
    if not trajectories:
        name = next((found for arm in comparison.arms if (found := arm.outcome(key).video)), "")
        videos = (
            [{"name": text(name, 300), "start": None, "end": None, "duration": None, "audio": None}] if name else []
        )
        return {"text": "", "kind": text(comparison.kind(key), 40), "options": [], "hint": "", "videos": videos}
    first = trajectories[0]
    longest = max(trajectories, key=lambda one: len(one.video_durations_s))
    films = {number: film for one in trajectories for number, film in enumerate(one.videos)}
    return {
        "text": text(first.question.text),
        "kind": str(first.question.kind),
        "options": [[text(option.label, 100), text(option.text)] for option in first.question.options],
        "hint": text(first.question.answer_hint),
        "videos": [
            {
                "name": text(Path(ref.path).name, 300),
                "start": ref.start_s,
                "end": ref.end_s,
                "duration": _seconds(longest.video_durations_s[number])
                if number < len(longest.video_durations_s)
                else None,
                "audio": films[number].has_audio if number in films else None,
            }
            for number, ref in enumerate(first.question.videos)
        ],
    }


def _truth(truth: Truth) -> Detail:
    videos = {part.video for part in truth.evidence}
    return {
        "answers": [text(answer) for answer in truth.answers],
        "evidence": [[_seconds(a), _seconds(b), video] for video in sorted(videos) for a, b in truth.spans(video)],
    }


def _arm(arm: Arm, key: Key, trajectory: Trajectory | None, truth: Truth | None, seen: SeenBy | None) -> Detail:
    outcome = arm.outcome(key)
    made: Detail = {
        "kind": arm.kind,
        "status": outcome.status,
        "score": round(outcome.score, 4),
        "right": outcome.right and outcome.status == "scored",
        "answer": None if outcome.answer is None else text(outcome.answer),
        "stop": None,
        "looks": [],
        "turns": [],
        "flags": ["failed"] if outcome.status == "failed" else [],
        "lost": "",
        "absent": [],
    }
    if trajectory is None:
        return made
    pictures, made["lost"] = ({}, "") if seen is None else seen(arm, trajectory)
    if trajectory.imported is not None:
        made["absent"] = [str(figure) for figure in trajectory.imported.absent]
    first = len(trajectory.first_shown)
    numbers = iter(range(first, len(trajectory.looks)))
    turns = [(turn, next(numbers) if turn.shown is not None else None) for turn in trajectory.turns]
    owners = [0] * first + [number for number, turn in enumerate(trajectory.turns, 1) if turn.shown is not None]
    made["looks"] = _looks(trajectory, owners, truth, pictures)
    made["turns"] = [_turn(turn, look) for turn, look in turns]
    spent = tokens_spent(trajectory)
    made |= {
        "valid": trajectory.answer_valid,
        "stop": str(trajectory.stop_reason),
        "detail": text(trajectory.stop_detail, 2000),
        "allowed": trajectory.turns_allowed,
        "seconds": _seconds(trajectory.timings.total_s) if trajectory.has(Figure.TOTAL_SECONDS) else None,
        "model_s": _seconds(trajectory.timings.model_s) if trajectory.has(Figure.MODEL_SECONDS) else None,
        "media_s": _seconds(trajectory.timings.media_s) if trajectory.has(Figure.MEDIA_SECONDS) else None,
        "prompt_tokens": None if spent is None else spent.prompt,
        "completion_tokens": None if spent is None else spent.completion,
        "target": text(target, 300) if (target := outcome.row.get("target")) is not None else None,
    }
    made["flags"] = _flags(made, trajectory)
    return made


def _flags(arm: Detail, trajectory: Trajectory) -> list[str]:
    looks = arm["looks"]
    known = any(look["hit"] is not None for look in looks)
    hit = any(look["hit"] for look in looks)
    failed = arm["status"] == "failed"
    holds = {
        "repeat": any(look["repeat"] for look in looks),
        "no look": arm["answer"] is not None and arm["kind"] == "agent" and not looks and shown_is_known(trajectory),
        "forced": trajectory.stop_reason is StopReason.FORCED,
        "hit": hit,
        "miss": known and not hit,
        "unsupported": arm["right"] and known and not hit,
        "failed": failed,
        "refused": any(turn.error is not None for turn in trajectory.turns),
    }
    return [flag for flag in FLAGS if holds[flag]]


def _looks(
    trajectory: Trajectory, owners: Sequence[int], truth: Truth | None, pictures: Mapping[int, Seen]
) -> list[Detail]:
    """Every look in order; `turn` is the turn that took it, 0 for what was shown before the first."""
    known = shown_is_known(trajectory)
    spans = {} if truth is None or not known else evidence_spans(trajectory, truth)
    looks, found = trajectory.looks, []
    for number, (shown, turn) in enumerate(zip(looks, owners, strict=True)):
        seen = pictures.get(number)
        found.append(
            {
                "turn": turn,
                "kind": shown.kind,
                "video": shown.video,
                "start": _seconds(shown.start_s),
                "end": _seconds(shown.end_s),
                "times": [_seconds(time) for time in shown.times_s],
                "counted": bool(shown.times_s) or trajectory.has(Figure.FRAMES),
                "size": [shown.width, shown.height],
                "audio_s": _seconds(shown.audio_s),
                "tokens": shown.visual_tokens if trajectory.has(Figure.VISUAL_TOKENS) else None,
                "remark": text(shown.remark, 1000),
                "untimed": shown.untimed,
                "hit": _hit(shown, spans),
                "repeat": known and turn > 0 and is_repeat(shown, looks[:number]),
                "thumbs": [] if seen is None else seen.thumbnails,
                "wave": None if seen is None else seen.wave,
            }
        )
    return found


def _hit(shown: Shown, spans: Mapping[int, Sequence[Span]]) -> bool | None:
    """Whether a look showed some of the evidence (`compare.aiming`); `None` where no evidence is known."""
    if not spans or shown.kind == "images":
        return None
    return any(shows(shown, span) for span in spans.get(shown.video, ()))


def _turn(turn: Turn, look: int | None) -> Detail:
    entropies = [value for value in turn.entropies or () if value is not None]
    action = turn.action
    return {
        "look": look,
        "action": None if action is None else action.type,
        "words": "" if action is None else text(describe(action), 4000),
        "answer": text(action.content) if isinstance(action, Answer) else None,
        "observation": text(turn.observation),
        "think": text(turn.think),
        "text": text(turn.text),
        "confidence": turn.confidence,
        "error": None if turn.error is None else [str(turn.error.code), text(turn.error.message, 2000)],
        "repairs": [text(repair, 300) for repair in turn.repairs],
        "forced": text(turn.forced_why, 500) or "a limit was reached" if turn.forced else None,
        "finish": text(turn.finish_reason, 60),
        "tokens": [turn.usage.prompt_tokens, turn.usage.completion_tokens, turn.usage.cached_tokens],
        "seconds": [_seconds(turn.model_s), _seconds(turn.media_s)],
        "entropy": round(sum(entropies) / len(entropies), 4) if entropies else None,
        "entropy_top_k": turn.entropy_top_k,
    }


def _divergence(agents: Sequence[Detail]) -> int | None:
    """The first look, counted from 1, in which the agents differ; `None` if they don't, or there are not two."""
    if len(agents) < 2:
        return None
    taken = [
        [(look["kind"], look["video"], look["start"], look["end"], len(look["times"])) for look in agent["looks"]]
        for agent in agents
    ]
    for number in range(max(map(len, taken))):
        if len({tuple(looks[number : number + 1]) for looks in taken}) > 1:
            return number + 1
    return None


def _seconds(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None
