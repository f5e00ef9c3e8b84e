"""`apr demo`: evaluate an agent and two passive arms on real videos with lmms-eval, and compare results and costs."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from apr_plugin import terminal
from apr_plugin.cli.needle import run_make
from apr_plugin.errors import AprError, require
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.runs.opened import open_run
from apr_plugin.scoring.statistics import mcnemar, wilson_interval
from apr_plugin.tasks.needle.make import load_docs

ARMS = {
    "agent": "policy=needle",
    "passive 32": "policy=needle,arm=passive,passive_frames=32",
    "passive 96": "policy=needle,arm=passive,passive_frames=96",
}
"""Ways of answering.

All read pixels by the same code, and only the agent chooses what to look at; 96 frames cost about what the agent
spends.
"""


@dataclass(frozen=True)
class Scored:
    """One question, scored by lmms-eval, with its cost."""

    bucket: str
    task: str
    score: float
    trajectory: Trajectory

    @property
    def right(self) -> bool:
        """Whether the answer is right; a time span is right at an IoU of at least 0.5."""
        return self.score >= 0.5


def run_demo(out: Path, videos_per_bucket: int, concurrency: int) -> None:
    """Make the set, evaluate every arm, and print the comparison.

    Raises:
        AprError: lmms-eval is missing, or the folder can't be written.
        SystemExit: an evaluation failed; the status is its own, and it has printed the reason.
    """
    require("lmms_eval", "lmms")
    console = terminal.console()
    began = time.perf_counter()
    out = out.expanduser().resolve()
    console.print(
        Text("1. real videos", "bold"), f"of 1 to 120 minutes with sound, made from a seed into {out / 'needle'}"
    )
    made = run_make(out / "needle", None, videos_per_bucket=videos_per_bucket)
    made_s = time.perf_counter() - began
    scored: dict[str, dict[tuple[str, str], Scored]] = {}
    for number, (arm, arguments) in enumerate(ARMS.items(), 2):
        console.print(Text(f"{number}. {arm}", "bold"), f"through lmms-eval: --model apr --model_args {arguments}")
        scored[arm] = _evaluate(out / arm.replace(" ", "-"), made, f"{arguments},concurrency={concurrency}")
    print_tables(console, scored)
    console.print(f"made in {made_s:.0f} s, everything in {time.perf_counter() - began:.0f} s")
    console.print("\nLook at what it did, or ask for yourself:\n")
    for command, remark in closing_commands(program(), out, load_docs(made)):
        console.print(Text(f"    {command}") + Text(f"  # {remark}" if remark else "", "dim"), soft_wrap=True)


def closing_commands(apr: str, out: Path, docs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Commands to paste after the demo: show one of its own questions and ask it again, with and without options.

    The questions are the set's first one with options and its first one without.

    Args:
        apr: How the program is called.
        out: The demo's folder.
        docs: The needle set's questions, with absolute video paths.

    Returns:
        Each command and a remark, which is the right answer if the command asks a question.
    """
    agent = out / "agent" / "trajectories"
    choice = next(doc for doc in docs if doc["options"])
    number = next(doc for doc in docs if doc["kind"] == "count")
    row = sum(doc["kind"] == choice["kind"] for doc in docs[: docs.index(choice)])
    options = " ".join(f"-o {shlex.quote(option)}" for option in choice["options"])
    right = choice["options"][ord(choice["answer"]) - ord("A")]
    return [
        (f"{apr} show {_path(agent)}", ""),
        (f"{apr} show {_path(agent)} --task apr_needle_{choice['kind']} --id {row}", ""),
        (
            f"{apr} ask {_path(choice['video'])} {shlex.quote(choice['question'])} {options}",
            f"{choice['answer']}, {right}",
        ),
        (f"{apr} ask {_path(number['video'])} {shlex.quote(number['question'])} --kind number", str(number["answer"])),
        (f"{apr} probe {_path(choice['video'])}", ""),
        (f"{apr} doctor", ""),
    ]


def program() -> str:
    """How this program was called, for lines that can be pasted: `apr`, `.venv/bin/apr`, or the module."""
    called = Path(sys.argv[0])
    if called.name != "apr":
        return f"{shlex.quote(sys.executable)} -m apr_plugin.cli"
    return "apr" if shutil.which("apr") == str(called) else _path(called)


def _path(path: Path | str) -> str:
    """The shortest form of the path from here, quoted for a shell."""
    whole = Path(path).absolute()
    return shlex.quote(str(whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole))


def _evaluate(folder: Path, needle: Path, arguments: str) -> dict[tuple[str, str], Scored]:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "apr_plugin.cli", "eval", "--tasks", "apr_needle", "--model_args", arguments]
    command += ["--output_path", str(folder), "--log_samples"]
    log = folder / "lmms-eval.log"
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, env=os.environ | {"APR_NEEDLE_DIR": str(needle)}, check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode != 0:  # its error is on the screen already
        terminal.console(stderr=True, soft_wrap=True).print(
            f"lmms-eval's output is in {log}; the same command continues where it was"
        )
        raise SystemExit(done.returncode)
    return _read(folder, log)


def _read(folder: Path, log: Path) -> dict[tuple[str, str], Scored]:
    """Scores of the last evaluation in the folder.

    An earlier one of the same configuration may have had other questions.
    """
    run = open_run(folder, latest=True)
    if not run.evaluations or not run.scores:
        raise AprError(f"lmms-eval wrote no samples into {folder}; its output is in {log}")
    newest = run.evaluations[0].time
    scored: dict[tuple[str, str], Scored] = {}
    for trajectory in run:
        task, _, doc_id, _ = key = trajectory.question.key
        score = run.scores.get(key)
        if score is not None and score.evaluation == newest and score.value is not None:
            scored[task, doc_id] = Scored(score.buckets[0], task, score.value, trajectory)
    return scored


def print_tables(console: Console, scored: Mapping[str, Mapping[tuple[str, str], Scored]]) -> None:
    """Print the accuracy of every arm for each duration, then what a question costs.

    The first arm is tested against each of the others.
    """
    first, *others = scored
    agent = scored[first]
    buckets = [*sorted({s.bucket for s in agent.values()}, key=lambda name: float(name.rstrip("m"))), "all"]
    right = Table(
        title="questions answered rightly (95% interval)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
    )
    cost = Table(
        title=f"what one question costs the {first}, and mean IoU of time spans",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
    )
    for name in ("min", "n", *scored, *(f"p {arm.removeprefix('passive ')}" for arm in others)):
        right.add_column(name, justify="right", no_wrap=True)
    for name in (
        "min",
        "turns",
        "frames",
        "sound s",
        "tokens",
        "s",
        *(f"IoU {arm.removeprefix('passive ')}" for arm in scored),
    ):
        cost.add_column(name, justify="right", no_wrap=True)
    for bucket in buckets:
        keys = [key for key, s in agent.items() if bucket in (s.bucket, "all")]
        rows = {arm: [of_arm[key] for key in keys] for arm, of_arm in scored.items()}
        ours = rows[first]
        if bucket == "all":
            right.add_section()
            cost.add_section()
        right.add_row(
            bucket.rstrip("m"),
            str(len(keys)),
            *(_share(rows[arm]) for arm in scored),
            *(f"{_paired(ours, rows[arm]):.0e}" for arm in others),
        )
        cost.add_row(
            bucket.rstrip("m"),
            f"{_mean(len(s.trajectory.turns) for s in ours):.1f}",
            f"{_mean(s.trajectory.frames for s in ours):.0f}",
            f"{_mean(sum(look.audio_s for look in s.trajectory.looks) for s in ours):.0f}",
            f"{_mean(s.trajectory.visual_tokens for s in ours):.0f}",
            f"{_mean(s.trajectory.timings.total_s for s in ours):.2f}",
            *(_miou(rows[arm]) for arm in scored),
        )
    console.print(right)
    console.print(cost)
    passive = ", ".join(
        f"{arm.removeprefix('passive ')}: {_mean(s.trajectory.visual_tokens for s in scored[arm].values()):.0f}"
        for arm in others
    )
    console.print(
        "A time span counts as right at IoU >= 0.5. Intervals are Wilson's; p is the exact McNemar test of "
        f"the {first} against that arm over the "
        f"same questions. Tokens are visual tokens (one for 28x28 pixels). "
        f"Passive arms see uniform frames in one turn and hear nothing (tokens: {passive}). All arms are "
        "scripted and read "
        "pixels by the same code: this shows what choosing where to look is worth, not what a model can do.",
        style="dim",
    )


def _paired(ours: list[Scored], theirs: list[Scored]) -> float:
    only_ours = sum(a.right and not b.right for a, b in zip(ours, theirs, strict=True))
    only_theirs = sum(b.right and not a.right for a, b in zip(ours, theirs, strict=True))
    return mcnemar(only_ours, only_theirs)


def _share(rows: list[Scored]) -> str:
    right = sum(row.right for row in rows)
    low, high = (f"{bound:.2f}" for bound in wilson_interval(right, len(rows)))
    return f"{right / len(rows):.2f} ({low}-{high})"


def _miou(rows: list[Scored]) -> str:
    spans = [row.score for row in rows if row.task == "apr_needle_when"]
    return f"{_mean(spans):.2f}" if spans else "-"


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0
