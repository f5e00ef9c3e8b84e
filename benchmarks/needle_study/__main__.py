"""The command line; see the package."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_plugin.compare.joined import Comparison, join
from apr_plugin.compare.running import Plan, arm_folder, open_comparison, read_plan, run_arms
from apr_plugin.compare.specs import ArmSpec
from apr_plugin.compare.summary import summarise
from apr_plugin.errors import AprError
from apr_plugin.report.tables import Table
from apr_plugin.report.write import write_all
from apr_plugin.runs.arguments import split_arguments
from apr_plugin.tasks.needle.make import BUCKETS, NeedleSpec, make_needle
from apr_plugin.training.tiny.worlds import meets
from benchmarks.needle_study import preloaded, specs, tables
from benchmarks.needle_study.evaluating import evaluate
from benchmarks.needle_study.pages import write_study
from benchmarks.needle_study.transfer import CASES, Case, make_set

PARTS = ("main", "scaling", "ablations", "transfer")
TASKS = "apr_needle_glyph,apr_needle_when,apr_needle_order"
"""Kinds of question for eyes alone; passive arms hear nothing."""


@dataclass(frozen=True)
class Part:
    """A part of the study: arms over one set."""

    name: str
    title: str
    arms: Callable[[], list[ArmSpec]]
    data: Callable[[], Path]
    """Makes the set, and gives its folder."""
    read: Callable[[Comparison], list[Table]]
    """The tables of what was run."""
    sweep: dict[str, Any] | None = None


def parts_of(args: argparse.Namespace) -> list[Part]:
    """The parts, for these arguments."""
    work: Path = args.work
    agents, rivals, others = args.agents, args.rivals, args.others
    cases = [Case.read(text) for text in args.transfer.split(",")]
    main = work / "main"
    values = {f"turns={value}": value for value in args.turns}

    def finished() -> Path:
        folder = arm_folder(main, ArmSpec(agents[0].name, "agent"))
        if not folder.is_dir():
            raise AprError(f"{main}: the part main comes before ablations")
        return folder

    def main_tables(comparison: Comparison) -> list[Table]:
        runs = {one.name: arm_folder(main, ArmSpec(one.name, "agent")) for one in agents}
        of = (tables.scores, tables.looks, tables.ladders, tables.costs)
        return [*(table for part in of for table in part(comparison)), *tables.entropies(runs)]

    sweep = {"setting": "turns", "values": values}
    return [
        Part(
            "main",
            "Agents and passive models",
            lambda: specs.main_arms(agents, rivals, args.given),
            args.set,
            main_tables,
        ),
        Part(
            "scaling",
            f"{agents[0].name}: turns allowed",
            lambda: specs.scaling_arms(agents[0], args.turns, args.given),
            args.set,
            lambda comparison: tables.scaling(comparison, sweep),
            sweep,
        ),
        Part(
            "ablations",
            f"{agents[0].name}: ablations",
            lambda: specs.ablation_arms(agents[0], finished(), others, args.given),
            args.set,
            tables.ablations,
        ),
        Part(
            "transfer",
            "Lengths and chapters that training has not met",
            lambda: specs.transfer_arms(agents, rivals, args.given),
            lambda: make_set(
                work / "transfer-set", cases, seed=args.seed, videos=args.transfer_videos, questions=2, edge=args.edge
            ),
            lambda comparison: tables.transfer(comparison, cases),
        ),
    ]


def run_part(part: Part, args: argparse.Namespace) -> Comparison:
    """Run a part's arms that are not finished, and write its page."""
    folder: Path = args.work / part.name
    data = part.data()
    arms = part.arms()
    plan = Plan(
        args.tasks,
        folder,
        args.limit,
        data={"set": (data / "spec.json").read_text()},
        title=part.title,
        sweep=part.sweep,
    )
    with using(data):
        comparison = join(run_arms(arms, plan, evaluate, tell))
        tell(f"{part.name}: writing its page")
        write_all(comparison, summarise(comparison, title=part.title, command=args.command, sweep=part.sweep), folder)
    return comparison


@contextmanager
def using(data: Path) -> Iterator[None]:
    """Within it, the needle tasks read this set."""
    before = os.environ.get("APR_NEEDLE_DIR")
    os.environ["APR_NEEDLE_DIR"] = str(data)
    try:
        yield
    finally:
        if before is None:
            del os.environ["APR_NEEDLE_DIR"]
        else:
            os.environ["APR_NEEDLE_DIR"] = before


def stored_part(part: Part, args: argparse.Namespace) -> Comparison | None:
    """A part that was run before; `None` if it was not."""
    folder = args.work / part.name
    plan = read_plan(folder)
    if plan is None:
        return None
    try:
        return join(open_comparison(folder, plan.specs))
    except AprError as error:
        tell(f"{part.name}: {error}")
        return None


def tell(words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def main(given: Sequence[str] | None = None) -> int:
    """Run the study; returns the exit status."""
    args = read(given)
    preloaded.register()
    done: dict[str, list[Table]] = {}
    comparisons: dict[str, Comparison] = {}
    try:
        if args.runs:
            done["training"] = tables.training(args.runs)
        for part in parts_of(args):
            comparison = run_part(part, args) if part.name in args.parts else stored_part(part, args)
            if comparison is not None:
                comparisons[part.name] = comparison
                done[part.name] = part.read(comparison)
    except AprError as error:
        print(f"needle study: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("needle study: stopped; the same command goes on", file=sys.stderr)
        return 130
    missing = [name for name in ("training", *PARTS) if name not in done]
    write_study(args.out, args.work, done, missing, comparisons, args)
    tell(f"{args.out}: written")
    return 0


def read(given: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, checked."""
    import benchmarks.needle_study as study

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.needle_study",
        description=study.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--agent", action="append", required=True, metavar="NAME=FOLDER", help="an agent; repeatable")
    parser.add_argument("--rival", action="append", default=[], metavar="NAME=FOLDER@FRAMES", help="a passive model")
    parser.add_argument(
        "--other", action="append", default=[], metavar="NAME=FOLDER", help="another agent, for ablations"
    )
    parser.add_argument(
        "--run",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a run of apr train recipe, for the table of training",
    )
    parser.add_argument(
        "--parts", default=",".join(PARTS), help="what is run now: all of main, scaling, ablations, transfer; or none"
    )
    parser.add_argument("--seed", type=int, default=2026, help="of the sets; worlds of training are refused")
    parser.add_argument("--videos", type=int, default=20, help="of each bucket")
    parser.add_argument("--buckets", default=",".join(BUCKETS))
    parser.add_argument("--edge", type=int, default=224, help="height and width of the videos' frames")
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--turns", default="2,3,4,6,9,12,16", help="budgets of turns of the part scaling")
    parser.add_argument("--transfer", default=",".join(CASES), help="cases: SECONDS or SECONDS:CHAPTERSxSCENES")
    parser.add_argument("--transfer-videos", type=int, default=10, help="of each case")
    parser.add_argument("--settings", default="", help="further model_args of every checkpoint: KEY=VALUE,…")
    parser.add_argument("--limit", type=int, help="only the first N questions of each task")
    parser.add_argument("--work", type=Path, default=Path("build/needle-study"))
    parser.add_argument("--out", type=Path, default=Path("results/runs/needle-study"))
    args = parser.parse_args(given)
    args.command = shlex.join(["python", "-m", "benchmarks.needle_study", *(sys.argv[1:] if given is None else given)])
    args.parts = [] if args.parts == "none" else args.parts.split(",")
    if unknown := sorted(set(args.parts) - set(PARTS)):
        parser.error(f"--parts: there is no {unknown[0]!r}; there are {', '.join(PARTS)}, and none")
    try:
        args.agents = [specs.Named.read(text) for text in args.agent]
        args.rivals = [specs.Named.read(text, passive=True) for text in args.rival]
        args.others = [specs.Named.read(text) for text in args.other]
        args.runs = {text.partition("=")[0]: Path(text.partition("=")[2]).resolve() for text in args.run}
        args.turns = [int(value) for value in args.turns.split(",")]
        args.given = split_arguments(args.settings) if args.settings else {}
        spec = NeedleSpec(
            seed=args.seed,
            buckets=tuple(args.buckets.split(",")),
            videos_per_bucket=args.videos,
            width=args.edge,
            height=args.edge,
        )
    except (AprError, ValueError) as error:
        parser.error(str(error))
    if found := meets(spec):
        parser.error(f"--seed {args.seed}: {len(found)} of its worlds are worlds of training")
    args.work = args.work.resolve()
    args.set = lambda: make_needle(args.work / "set", spec)
    return args


if __name__ == "__main__":
    sys.exit(main())
