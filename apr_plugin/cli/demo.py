"""`apr demo`: real videos, two arms through lmms-eval, one table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from apr_plugin.cli.ask import parse_model_args
from apr_plugin.cli.needle import run_make
from apr_plugin.errors import AprError, require
from apr_plugin.harnesses.settings import read_settings
from apr_plugin.loop.store import TrajectoryStore
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.scoring.statistics import mcnemar, wilson_interval

PASSIVE_FRAMES = 32
ARMS = {"agent": "policy=needle", "passive": f"policy=needle,arm=passive,passive_frames={PASSIVE_FRAMES}"}
"""The two ways of answering; both read pixels by the same code, and only one chooses what to look at."""


@dataclass(frozen=True)
class Scored:
    """One question, scored by lmms-eval, with what it cost."""

    bucket: str
    task: str
    score: float
    trajectory: Trajectory

    @property
    def right(self) -> bool:
        """Right answer, or for a time span an IoU of at least 0.5."""
        return self.score >= 0.5


def run_demo(out: Path, videos_per_bucket: int, concurrency: int) -> None:
    """Make the set, evaluate both arms, print the comparison.

    Raises:
        AprError: lmms-eval is missing, the folder can't be written, or an evaluation failed.
    """
    require("lmms_eval", "lmms")
    console = Console()
    began = time.perf_counter()
    out = out.expanduser().resolve()
    console.print(f"[bold]1. real videos[/] of 1 to 120 minutes with sound, made from a seed into {out / 'needle'}")
    made = run_make(out / "needle", None, videos_per_bucket=videos_per_bucket)
    made_s = time.perf_counter() - began
    scored: dict[str, dict[tuple[str, str], Scored]] = {}
    for number, (arm, arguments) in enumerate(ARMS.items(), 2):
        console.print(f"[bold]{number}. {arm}[/] through lmms-eval: --model apr --model_args {arguments}")
        scored[arm] = _evaluate(out / arm, made, f"{arguments},concurrency={concurrency}")
    _print_table(console, scored)
    console.print(
        f"made in {made_s:.0f} s, everything in {time.perf_counter() - began:.0f} s. Look closer: apr show {out / 'agent' / 'trajectories'}",
        soft_wrap=True,
    )


def _evaluate(folder: Path, needle: Path, arguments: str) -> dict[tuple[str, str], Scored]:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "apr_plugin.cli", "eval", "--tasks", "apr_needle", "--model_args", arguments]
    command += ["--output_path", str(folder), "--log_samples"]
    log = folder / "lmms-eval.log"
    started = time.time()
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, env=os.environ | {"APR_NEEDLE_DIR": str(needle)}, check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode != 0:
        raise AprError(f"the evaluation ended with status {done.returncode}; its output is in {log}. The same command continues where it was.")
    settings = read_settings(parse_model_args(arguments))
    store = TrajectoryStore(folder / "trajectories", settings.config.hash(settings.policy), {})
    scored: dict[tuple[str, str], Scored] = {}
    for sample_file in sorted(folder.rglob("*_samples_apr_needle_*.jsonl")):
        if sample_file.stat().st_mtime < started:
            continue
        task = sample_file.stem.partition("_samples_")[2]
        trajectories = {t.question.doc_id: t for t in Trajectory.iterate(store.path(task))}
        for line in sample_file.read_text("utf-8").splitlines():
            sample = json.loads(line)
            doc_id = str(sample["doc_id"])
            bucket = next(key.partition("_")[2] for key in sample if key.startswith(("acc_", "miou_")))
            scored[task, doc_id] = Scored(bucket, task, float(sample["score"]), trajectories[doc_id])
    if not scored:
        raise AprError(f"lmms-eval wrote no samples into {folder}; its output is in {log}")
    return scored


def _print_table(console: Console, scored: dict[str, dict[tuple[str, str], Scored]]) -> None:
    agent, passive = scored["agent"], scored["passive"]
    table = Table(title=f"needle: agent against {PASSIVE_FRAMES} uniform frames", title_justify="left")
    for name in ("minutes", "n", "agent", "passive", "p", "agent mIoU", "passive mIoU", "turns", "frames", "sound s", "visual tokens", "s"):
        table.add_column(name, justify="right")
    buckets = sorted({s.bucket for s in agent.values()}, key=lambda name: float(name.rstrip("m")))
    for bucket in [*buckets, "all"]:
        keys = [key for key, s in agent.items() if bucket in (s.bucket, "all")]
        ours, theirs = [agent[key] for key in keys], [passive[key] for key in keys]
        only_agent = sum(a.right and not b.right for a, b in zip(ours, theirs, strict=True))
        only_passive = sum(b.right and not a.right for a, b in zip(ours, theirs, strict=True))
        if bucket == "all":
            table.add_section()
        table.add_row(
            bucket.rstrip("m"),
            str(len(keys)),
            _share(ours),
            _share(theirs),
            f"{mcnemar(only_agent, only_passive):.2g}",
            _miou(ours),
            _miou(theirs),
            f"{_mean(len(s.trajectory.turns) for s in ours):.1f}",
            f"{_mean(s.trajectory.frames for s in ours):.0f}",
            f"{_mean(sum(look.audio_s for look in s.trajectory.looks) for s in ours):.0f}",
            f"{_mean(s.trajectory.visual_tokens for s in ours):.0f}",
            f"{_mean(s.trajectory.timings.total_s for s in ours):.2f}",
        )
    console.print(table)
    console.print(
        f"agent, passive: share of questions answered rightly [95% Wilson interval]; a time span counts as right at IoU >= 0.5, its mean IoU stands "
        f"beside it. p: exact McNemar test over the same questions. turns … s: mean cost of one question for the agent; the passive arm always takes "
        f"1 turn, {PASSIVE_FRAMES} frames and {_mean(s.trajectory.visual_tokens for s in passive.values()):.0f} visual tokens, and hears nothing. "
        "Both arms are scripted policies that read pixels and samples by the same code: this shows what choosing where to look is worth, "
        "not what a model can do.",
        style="dim",
    )


def _share(rows: list[Scored]) -> str:
    right = sum(row.right for row in rows)
    low, high = wilson_interval(right, len(rows))
    return f"{right / len(rows):.2f} [{low:.2f}, {high:.2f}]"


def _miou(rows: list[Scored]) -> str:
    spans = [row.score for row in rows if row.task == "apr_needle_when"]
    return f"{_mean(spans):.2f}" if spans else "–"  # noqa: RUF001


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0
