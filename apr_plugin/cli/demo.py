"""`apr demo`: real videos, an agent and four other arms through lmms-eval, and a page that shows what came of it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from apr_plugin import terminal
from apr_plugin.cli.compare import compare_specs
from apr_plugin.cli.needle import run_make
from apr_plugin.errors import require
from apr_plugin.models import bundled
from apr_plugin.tasks.needle.make import load_docs

AGENT = "policy=needle"
AGAINST = ("passive:matched", "passive:frames=32", "blind", "oracle")
"""The other arms. All read pixels by the same code, and only the agent chooses what to look at."""

TASKS = "apr_needle"


def run_demo(out: Path, videos_per_bucket: int, concurrency: int) -> int:
    """Make the set, run every arm, print the comparison and write its page; returns the exit status.

    Raises:
        AprError: something is not installed, or the folder can't be written.
    """
    from apr_plugin.compare.specs import read_specs

    require("lmms_eval", "lmms")
    console = terminal.console()
    began = time.perf_counter()
    out = out.expanduser().resolve()
    console.print(
        Text("real videos", "bold"), f"of 1 to 120 minutes with sound, made from a seed into {out / 'needle'}"
    )
    made = run_make(out / "needle", None, videos_per_bucket=videos_per_bucket)
    made_s = time.perf_counter() - began
    os.environ["APR_NEEDLE_DIR"] = str(made)
    specs = read_specs(agents(concurrency), AGAINST)
    model = len(specs) > 1 + len(AGAINST)
    title = "The needle benchmark: scripted arms" + (" and a small model" if model else "")
    status = compare_specs(specs, TASKS, out, title=title)
    if status:
        return status
    console.print(about_arms(model), style="dim")
    console.print(f"videos made in {made_s:.0f} s, everything in {time.perf_counter() - began:.0f} s")
    console.print("\nLook at what it did, or ask for yourself:\n")
    for command, remark in closing_commands(program(), out, load_docs(made)):
        console.print(Text(f"    {command}") + Text(f"  # {remark}" if remark else "", "dim"), soft_wrap=True)
    return 0


def agents(concurrency: int) -> list[str]:
    """The model_args of the agents: the scripted one, and the agent of this package if it is there."""
    own = bundled.bundled_agent()
    model = [f"{own},label={bundled.NAME},concurrency={concurrency}"] if own is not None else []
    return [f"{AGENT},label=agent,concurrency={concurrency}", *model]


def about_arms(model: bool) -> str:
    """What the table shows.

    Args:
        model: Whether the agent of this package is in it.
    """
    rest = "all other arms" if model else "all arms"
    words = (
        f"{rest.capitalize()} are scripted and read pixels by the same code: this shows what choosing where to look is "
        "worth, not what a model can do."
    )
    if model:
        taught = ", ".join(sorted(bundled.needle_kinds()))
        words = (
            f"{bundled.NAME} is a model, trained on such videos and on questions of the kinds {taught}; at others it "
            f"was never taught to answer. {words}"
        )
    return f"{words} A time span counts as right at IoU >= 0.5."


def closing_commands(apr: str, out: Path, docs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Commands to paste after the demo, made from its own first question with options.

    Args:
        apr: How the program is called.
        out: The demo's folder.
        docs: The needle set's questions, with absolute video paths.

    Returns:
        Each command and a remark, which is the right answer where the command asks.
    """
    doc = next(doc for doc in docs if doc["options"])
    row = sum(other["kind"] == doc["kind"] for other in docs[: docs.index(doc)])
    options = " ".join(f"-o {shlex.quote(option)}" for option in doc["options"])
    right = doc["options"][ord(doc["answer"]) - ord("A")]
    return [
        (f"{apr} show {_path(out / 'agent' / 'trajectories')} --task apr_needle_{doc['kind']} --id {row}", ""),
        (f"{apr} ask {_path(doc['video'])} {shlex.quote(doc['question'])} {options}", f"{doc['answer']}, {right}"),
        (f"{apr} view {_path(out)}", ""),
    ]


def program() -> str:
    """How this program was called, so that a line can be pasted: `apr`, `.venv/bin/apr`, or the module."""
    called = Path(sys.argv[0])
    if called.name != "apr":
        return f"{shlex.quote(sys.executable)} -m apr_plugin"
    return "apr" if shutil.which("apr") == str(called) else _path(called)


def _path(path: Path | str) -> str:
    """The path as it is shortest from here, quoted for a shell."""
    whole = Path(path).absolute()
    return shlex.quote(str(whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole))
