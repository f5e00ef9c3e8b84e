"""How well a judge finds right answers with an unsupported step.

    python -m benchmarks.audit_judge                                   # the scripted judge
    python -m benchmarks.audit_judge --judge policy=openai,model=NAME  # a real one

Sound trajectories are needle runs of the scripted reference policy, some with refused steps from which it recovers;
each gets a plant (`training/synthesis/planted.py`) whose answer is right too. Recall is the share of plants that the
audit drops, precision the share of plants in what it drops; the intervals are over videos. With a real judge this costs
a request for each turn (the line before the run says how many).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from apr_plugin.compare.stats import Interval
from apr_plugin.loop.config import EpisodeConfig
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.runs.arguments import parse_model_args
from apr_plugin.runs.meter import run_sync
from apr_plugin.runs.runner import run_episodes
from apr_plugin.runs.settings import read_settings
from apr_plugin.tasks.needle.make import NeedleSpec, make_needle
from apr_plugin.training.synthesis.audit import THRESHOLD, Judge, Tally, audit, judge_audit, open_verdicts, rated_turns
from apr_plugin.training.synthesis.outcome import judge_outcome
from apr_plugin.training.synthesis.planted import Labelled, Quality, labelled_set, quality
from apr_plugin.training.synthesis.questions import needle_questions
from apr_plugin.training.synthesis.scripted import NeedleTeacher

SEED = 21
SLIPS = 0.15
"""Share of refused steps in the sound trajectories, so that recoveries are rated too."""


def make_set(folder: Path, videos: int, buckets: Sequence[str] = ("10m", "30m")) -> list[Labelled]:
    """Sound and planted trajectories of a needle set, which is made in the folder."""
    spec = NeedleSpec(seed=SEED, buckets=tuple(buckets), videos_per_bucket=videos)
    questions = needle_questions(make_needle(folder, spec))
    done = run_sync(
        run_episodes([one.question for one in questions], NeedleTeacher(hasty=0.0, slips=SLIPS), EpisodeConfig(), 2)
    )
    right = [
        trajectory
        for one, trajectory in zip(questions, done, strict=True)
        if judge_outcome(trajectory, one.truth, exact=one.exact).right
    ]
    return labelled_set(right)


def measure(
    labelled: Sequence[Labelled], judge: Judge, folder: Path, threshold: int = THRESHOLD
) -> tuple[Quality, Tally]:
    """Let a judge rate the set; verdicts are kept in the folder, and not asked for again."""
    verdicts = open_verdicts(folder, judge)
    reads = [partial(_same, one.trajectory) for one in labelled]
    tally = run_sync(audit(reads, judge, verdicts))
    dropped = [not judge_audit(one.trajectory, verdicts.of(one.trajectory), threshold).passed for one in labelled]
    return quality(labelled, dropped), tally


def _same(trajectory: Trajectory) -> Trajectory:
    return trajectory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", default="policy=needle_judge", help="model_args of the judge")
    parser.add_argument("--videos", type=int, default=6, help="videos of 10 and of 30 minutes each")
    parser.add_argument("--threshold", type=int, default=THRESHOLD)
    parser.add_argument("--out", type=Path, help="folder for videos and verdicts; default: a temporary one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.out or Path(temporary)
        labelled = make_set(folder / "needle", given.videos)
        turns = sum(len(rated_turns(one.trajectory)) for one in labelled)
        print(f"{len(labelled)} trajectories of {len({one.video for one in labelled})} videos, {turns} turns to rate")
        settings = read_settings(parse_model_args(given.judge))
        began = time.perf_counter()
        found, tally = measure(
            labelled, Judge(settings.policy, settings.config.sampling), folder / "audit", given.threshold
        )
        settings.policy.close()
    print(f"judge {json.dumps(settings.policy.describe())}, threshold {given.threshold}")
    print(f"| {'share':28} | value | 95% interval | n |\n|---|---:|---|---:|")
    rows = {"recall (plants dropped)": found.recall, "precision (dropped are plants)": found.precision,
            "sound ones kept": found.sound_kept}  # fmt: skip
    for name, interval in (rows | {f"recall, {kind}": one for kind, one in found.by_plant.items()}).items():
        print(f"| {name:28} | {_cells(interval)} |")
    print(
        f"{found.sound} sound, {found.planted} planted; {tally.nonsense} nonsense verdicts, {tally.unreachable} not "
        f"reached; {time.perf_counter() - began:.1f} s"
    )


def _cells(interval: Interval | None) -> str:
    if interval is None:
        return "| | 0"
    low, high = (("?" if edge is None else f"{edge:.3f}") for edge in (interval.low, interval.high))
    return f"{interval.value:.3f} | {low} to {high} | {interval.n}"


if __name__ == "__main__":
    main()
