"""Comparisons for the browser tests: one whose every text is an attack, and one of real episodes about a real video."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from apr_testing import Playback, answer, look, turn
from report_making import TASK, answered, made_summary, store_run, trajectory
from report_making import look as looked

from apr_plugin.compare.joined import Comparison, arm_of_run, join
from apr_plugin.loop import Budget, Card, Episode, EpisodeConfig, MediaRef, Option, Question
from apr_plugin.loop.feedback import ActionError, ErrorCode
from apr_plugin.runs.opened import open_run
from apr_plugin.runs.store import TrajectoryStore
from apr_plugin.scoring.truth import Evidence, Truth

HOSTILE = '</script></style></title><img src=x onerror="window.hacked=1"><script>window.hacked=1</script>{{7*7}}\u202e'


def hostile_comparison(folder: Path) -> Comparison:
    """Every text that a model or a data set writes is an attack."""
    error = ActionError(ErrorCode.OUT_OF_RANGE, HOSTILE)
    arms = []
    for seed, name in enumerate((f"agent {HOSTILE}", "__proto__")):
        turns = [
            looked(0, 50).model_copy(
                update={"text": HOSTILE, "observation": HOSTILE, "think": HOSTILE, "finish_reason": HOSTILE}
            ),
            looked(0, 50).model_copy(update={"shown": None, "error": error, "repairs": (HOSTILE,)}),
            answered(HOSTILE, forced=True).model_copy(
                update={"forced_why": HOSTILE, "observation": "", "text": HOSTILE}
            ),
        ]
        made = [
            trajectory(
                n, turns, HOSTILE, text=HOSTILE, path=f"{HOSTILE.replace('/', '|')}.mp4", stop_detail=HOSTILE,
                options=(Option(label="A", text=HOSTILE), Option(label=HOSTILE, text="b")),
            )
            for n in range(3)
        ]  # fmt: skip
        truths = {str(n): Truth((HOSTILE, "A"), (Evidence(10, 20),)) for n in range(3)}
        arm = arm_of_run(
            name, store_run(folder / str(seed), made, {str(n): n % 2 for n in range(3)}, truths, seed=seed)
        )
        arm.outcomes = {key: replace(one, bucket=HOSTILE) for key, one in arm.outcomes.items()}
        arm.about[HOSTILE], arm.notes = HOSTILE, [HOSTILE]
        arms.append(arm)
    found = join(arms)
    found.notes.append(HOSTILE)
    return found


def hostile_summary(found: Comparison) -> dict[str, Any]:
    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poisoned(item) for key, item in value.items()}
        if isinstance(value, list):
            return [poisoned(item) for item in value]
        return value if not isinstance(value, str) or value in kept else HOSTILE

    kept = {arm.name for arm in found.arms} | {"agent"}
    summary = made_summary(found)
    names = [{**bucket, "name": HOSTILE} for bucket in summary["buckets"]]
    return poisoned({**summary, "buckets": names}) | {"command": HOSTILE, "title": HOSTILE, "headline": [HOSTILE]}


def pictured_comparison(folder: Path, video: Path) -> Comparison:
    texts = [look(1.0, 3.0, 5), turn({"type": "get_audio", "start": 0.5, "end": 2.5}), answer("A")]
    options = (Option(label="A", text="one"), Option(label="B", text="two"))
    ref = MediaRef(path=str(video))
    question = Question(
        text="what?", kind="mcq", options=options, videos=(ref, ref), task=TASK, split="test", doc_id="0"
    )
    arms = []
    for arm in ("agent", "passive"):
        policy, config = Playback(texts if arm == "agent" else ["A"]), EpisodeConfig(arm=arm, budget=Budget(turns=8))
        done = asyncio.run(Episode(question, policy, config).run())
        with TrajectoryStore(folder / arm, config.hash(policy), Card.of(config, policy)) as store:
            store.save(done)
        arms.append(arm_of_run(arm, open_run(folder / arm)))
    return join(arms)
