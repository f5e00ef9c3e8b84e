"""Comparisons on disk, with their summaries, for the tests of the report and for its benchmark."""

from __future__ import annotations

import math
import random
import shutil
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "compare"))

from making import TASK, answered, key_of, look, store_run, trajectory

from apr_plugin.compare.joined import Arm, Comparison, arm_of_run, join
from apr_plugin.loop.feedback import ActionError, ErrorCode
from apr_plugin.loop.policy import Usage
from apr_plugin.loop.question import Option, QuestionKind
from apr_plugin.loop.trajectory import Shown, StopReason, Trajectory, Turn
from apr_plugin.scoring.truth import Evidence, Truth

BUCKETS = (("0-20min", 700.0), ("20-60min", 2300.0), ("60min+", 5400.0))

NOTES = (
    "The frames show a kitchen with a person at the stove; the clock on the wall can't be read at this size.",
    "At 12.50 s a red car passes from the left. No one gets out. The number plate is hidden by the tree.",
    "Nothing of what the question asks about is in this part; the camera moves along the shelf and stops at a door.",
    "A voice says that the train leaves in ten minutes, then the sound of a bell. The picture is dark until 40.20 s.",
)


def question_of(number: int) -> tuple[str, float, Truth, QuestionKind]:
    """Bucket, duration, truth and kind of a made question; the same for every arm."""
    bucket, duration = BUCKETS[number % 3]
    chance = random.Random(number)
    start = round(chance.uniform(0.1, 0.85) * duration, 1)
    end = start + chance.uniform(4, 40)
    kind = QuestionKind.GROUNDING if number % 7 == 3 else QuestionKind.MCQ
    answer = f"[[{start:.1f}, {end:.1f}]]" if kind is QuestionKind.GROUNDING else "AB"[number % 2]
    return bucket, duration, Truth(answer, (Evidence(start, end),)), kind


def agent_turns(number: int, seed: int, right: bool, words: int = 0) -> list[Turn]:
    """Looks that close in on the evidence, or don't, then an answer."""
    _, duration, truth, kind = question_of(number)
    chance = random.Random(f"{number}/{seed}")
    (start, end) = truth.spans()[0]
    turns = [look(0.0, duration, 16, tokens=16 * 80)]
    goal = (start + end) / 2 if right or chance.random() < 0.2 else chance.uniform(0, duration)
    width = duration / 4
    for _ in range(chance.randint(1, 5)):
        middle = goal + chance.uniform(-0.2, 0.2) * width
        left, right_ = max(0.0, middle - width / 2), min(duration, middle + width / 2)
        what = "audio" if chance.random() < 0.2 else "frames"
        turns.append(look(round(left, 2), round(right_, 2), 8, kind=what, tokens=8 * 80))
        width /= 3
    if chance.random() < 0.08:
        turns.append(turns[-1])
    if chance.random() < 0.1:
        bad = ActionError(ErrorCode.OUT_OF_RANGE, f"end={duration + 5:g} is after the end, {duration:g} s.")
        turns.append(turns[-1].model_copy(update={"shown": None, "error": bad}))
    content = truth.answers[0] if right else f"[[1.0, {duration / 9:.1f}]]" if kind is QuestionKind.GROUNDING else "C"
    turns.append(answered(content, forced=chance.random() < 0.06))
    vocabulary = _vocabulary() if words else ()

    def more() -> str:
        return " ".join(chance.choices(vocabulary, k=words)) if words else ""

    return [
        turn.model_copy(
            update={
                "observation": f"{chance.choice(NOTES)} ({number}.{place}) {chance.choice(NOTES)} {more()}".strip(),
                "think": f"Still unknown: who speaks at {chance.uniform(0, duration):.1f} s. {chance.choice(NOTES)}",
                "confidence": round(chance.random(), 2),
                "entropies": tuple(round(chance.random() * (1.4 if place % 3 else 0.6), 3) for _ in range(20)),
                "text": f'{{"observation": "{chance.choice(NOTES)}", "think": "…", "action": {{"n": {place}}}}}',
            }
        )
        for place, turn in enumerate(turns)
    ]


@cache
def _vocabulary() -> tuple[str, ...]:
    """The words of our own documentation, as often as they come there."""
    folder = Path(__file__).resolve().parents[2] / "docs"
    return tuple(word for file in sorted(folder.glob("*.md")) for word in file.read_text("utf-8").split())


def made_trajectory(number: int, arm: str, seed: int, right: bool, words: int = 0) -> Trajectory:
    """What one arm did with a made question; each note has that many random words more."""
    _, duration, truth, kind = question_of(number)
    options = tuple(
        Option(label=label, text=text) for label, text in (("A", "a red car"), ("B", "blue"), ("C", "none"))
    )
    about: dict[str, Any] = {
        "duration_s": duration,
        "kind": kind,
        "options": () if kind is QuestionKind.GROUNDING else options,
        "text": f"Question {number}: what passes the shop with the green door before the bell rings a second time?",
        "path": f"film{number // 3:04d}.mp4",
    }
    if arm != "agent":
        times = tuple((place + 0.5) * duration / 64 for place in range(64))
        shown = Shown(kind="frames", end_s=duration, times_s=times, width=320, height=180, visual_tokens=64 * 80)
        answer = truth.answers[0] if right else "C"
        turn = Turn(text=answer, usage=Usage(prompt_tokens=5600, completion_tokens=4), model_s=1.5)
        return trajectory(number, [turn], answer, first_shown=(shown,), turns_allowed=1, **about)
    if number % 41 == 5 and seed == 1:
        detail = f"film{number // 3:04d}.mp4: the file ends after 12,288 bytes"
        return trajectory(number, [], None, stop_reason=StopReason.MEDIA_UNREADABLE, stop_detail=detail, **about)
    turns = agent_turns(number, seed, right, words)
    reason = StopReason.FORCED if turns[-1].forced else StopReason.ANSWERED
    return trajectory(number, turns, truth.answers[0] if right else "C", stop_reason=reason, turns_allowed=12, **about)


def made_comparison(
    folder: Path, n: int, arms: Sequence[tuple[str, str, float]] | None = None, words: int = 0
) -> Comparison:
    """Arms over the same `n` questions, as runs on disk.

    Args:
        folder: Where the runs are written.
        n: How many questions.
        arms: Name, kind and share of right answers.
        words: Random words in each note of an agent, besides the made ones.
    """
    arms = arms or (("agent", "agent", 0.62), ("agent, 8 frames", "agent", 0.58), ("passive 64", "passive", 0.5))
    joined = []
    truths = {str(number): question_of(number)[2] for number in range(n)}
    for seed, (name, kind, share) in enumerate(arms):
        right = {number: random.Random(f"{number}:{seed}:r").random() < share for number in range(n)}
        made = [made_trajectory(number, kind, seed, right[number], words) for number in range(n)]
        scores = {
            str(number): float(right[number])
            for number, one in enumerate(made)
            if not one.stop_reason.failed and not (seed == 2 and number % 97 == 11)
        }
        run = store_run(folder / f"run{seed}", made, scores, truths, arm=kind, seed=seed)
        arm = arm_of_run(name, run)
        for number in range(n):
            outcome = arm.outcomes[key_of(number)]
            arm.outcomes[key_of(number)] = type(outcome)(**{**vars(outcome), "bucket": question_of(number)[0]})
        joined.append(arm)
    return join(joined)


def interval(values: Iterable[float]) -> dict[str, Any]:
    """A mean with its normal interval; enough for tests, which are not about statistics."""
    known = list(values)
    if not known:
        return {"value": None, "low": None, "high": None, "n": 0}
    half = 1.96 * stdev(known) / math.sqrt(len(known)) if len(known) > 1 else 0.0
    middle = fmean(known)
    return {"value": middle, "low": middle - half, "high": middle + half, "n": len(known)}


def share(right: Sequence[bool]) -> dict[str, Any]:
    """A share with Wilson's interval."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = map(float, proportion_confint(sum(right), len(right), method="wilson"))
    return {"value": sum(right) / max(1, len(right)), "low": low, "high": high, "n": len(right)}


def _mcnemar(only_a: int, only_b: int) -> float:
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def made_summary(found: Comparison, **more: Any) -> dict[str, Any]:
    """A summary of the shape that `compare.summary` makes, with simple intervals."""
    keys = found.keys
    names = sorted({found.bucket(key) for key in keys})
    groups = {name: [key for key in keys if found.bucket(key) == name] for name in names}

    def costs(arm: Arm, chosen: Sequence[Any]) -> dict[str, Any]:
        rows = [arm.outcome(key).row for key in chosen if arm.outcome(key).row]
        names = ("turns", "frames", "audio_s", "visual_tokens", "prompt_tokens", "completion_tokens", "seconds")
        return {name: interval(float(row[name] or 0) for row in rows) if rows else None for name in names}

    def diff(a: Arm, b: Arm, chosen: Sequence[Any]) -> dict[str, Any]:
        return interval(float(a.outcome(key).right) - float(b.outcome(key).right) for key in chosen)

    def arm_of(arm: Arm) -> dict[str, Any]:
        stops: dict[str, int] = {}
        for key in keys:
            if reason := arm.outcome(key).row.get("stop_reason"):
                stops[reason] = stops.get(reason, 0) + 1
        status = [arm.outcome(key).status for key in keys]
        return {
            "name": arm.name, "kind": arm.kind, "about": {}, "n": len(keys), "scored": status.count("scored"),
            "failed": status.count("failed"), "missing": status.count("missing"),
            "score": interval(arm.outcome(key).score for key in keys),
            "common_score": interval(arm.outcome(key).score for key in found.common),
            "accuracy": share([arm.outcome(key).right for key in keys]), "cost": costs(arm, keys),
            "slope": {"visual_tokens": {"value": 120.5, "low": -20.0, "high": 260.1, "n": len(keys)}},
            "stops": stops, "notes": arm.notes,
        }  # fmt: skip

    first, *others = found.arms
    pairs = []
    for other in others:
        both = [(first.outcome(key).right, other.outcome(key).right) for key in keys]
        a, b = sum(x and not y for x, y in both), sum(y and not x for x, y in both)
        pairs.append(
            {
                "a": first.name, "b": other.name, "n": len(keys), "only_a": a, "only_b": b,
                "diff": diff(first, other, keys), "p": _mcnemar(a, b), "test": "exact McNemar",
                "score_diff": diff(first, other, keys), "needed": 1840, "visible": 0.041,
                "buckets": [
                    {"name": name, "n": len(group), "diff": diff(first, other, group), "p": 0.04, "p_holm": 0.12}
                    for name, group in groups.items()
                ],
            }
        )  # fmt: skip
    hit = {"hit": share([True, False, True]), "coverage": share([True, False, False]), "looks_to_hit": interval([2, 3])}
    return {
        "title": "needle: agent against passive", "command": "apr compare runs/agent runs/passive --out report",
        "made": "2026-11-27T09:45:01Z", "tasks": [TASK], "n": len(keys), "common": len(found.common),
        "arms": [arm_of(arm) for arm in found.arms],
        "buckets": [
            {
                "name": name, "n": len(group),
                "arms": {arm.name: share([arm.outcome(key).right for key in group]) for arm in found.arms},
                "cost": {arm.name: costs(arm, group) for arm in found.arms},
            }
            for name, group in groups.items()
        ],
        "pairs": pairs, "aiming": {arm.name: hit for arm in found.arms if arm.kind == "agent"},
        "ladder": {
            "blind": share([True] + [False] * 3), "passive": share([True, False]), "agent": share([True] * 3 + [False]),
            "oracle": share([True] * 9 + [False]), "realised": interval([0.6, 0.7]),
        },
        "sweep": {
            "setting": "max_turns",
            "points": [
                {"value": turns, "arm": f"agent, {turns} turns", "score": share([True] * turns + [False] * 9),
                 "turns": interval([turns, turns - 1]), "frames": interval([8.0 * turns, 6.0 * turns])}
                for turns in (2, 4, 8, 16)
            ],
        },
        "published": [
            {"system": "VideoSeek (GPT-5)", "benchmark": "lvbench", "metric": "accuracy (%)", "value": 68.4,
             "frames": 92.3, "source": "arXiv 2603.20185", "note": "agent"},
            {"system": "Qwen2.5-VL-7B", "benchmark": "lvbench", "metric": "accuracy (%)", "value": 45.3,
             "frames": 768.0, "source": "a table", "note": "passive"},
            {"system": "HAVEN", "benchmark": "lvbench", "metric": "accuracy (%)", "value": 84.1, "frames": None,
             "source": "arXiv 2601.13719", "note": "agent; reads the whole video before"},
        ],
        "headline": ["agent is right on 62.1 % of the questions, passive 64 on 49.5 %, with half of the frames."],
        "notes": list(found.notes),
    } | more  # fmt: skip


def chromium() -> str | None:
    """The path of a Chromium or Chrome on this machine."""
    names = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


CHROMIUM_OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
"""It runs as root in a container, where its sandbox can't."""
