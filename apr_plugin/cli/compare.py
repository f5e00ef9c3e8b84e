"""`apr compare`, `apr sweep` and `apr report`: several arms on the same questions, tested in pairs, with a page."""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import Progress
from rich.text import Text

from apr_plugin import terminal
from apr_plugin.errors import UNANSWERED, AprError, MissingExtra, WrongUsage, require
from apr_plugin.runs.arguments import join_arguments, split_arguments

ALIASES = {"turns": "max_turns", "frames": "frames_per_look"}
"""Short names of settings for `apr sweep`."""


def run_compare(
    runs: Sequence[Path],
    *,
    tasks: str,
    agents: Sequence[str],
    against: Sequence[str],
    out: Path | None,
    limit: int | None,
    include_path: str | None,
    again: bool,
    prices: Path | None,
    thumbnails: bool,
) -> int:
    """Run every arm, or open finished runs, and write what comes of it; returns the exit status.

    Raises:
        AprError: an arm can't be read or failed; what is finished is kept.
    """
    from apr_plugin.compare.specs import read_specs

    if runs and (agents or against):
        raise WrongUsage(
            "name finished runs, or arms to run (--agent, --against), not both; a finished run is also run:DIR"
        )
    if runs and (tasks or limit is not None or include_path or again):
        raise WrongUsage(
            "--tasks, --limit, --include-path and --again are for arms to run; finished runs stay as they are"
        )
    if runs:
        return run_report(runs, out, prices=prices, thumbnails=thumbnails)
    if not agents:
        raise WrongUsage(
            "nothing to compare: give --agent MODEL_ARGS with --against ARM, or the folders of finished runs"
        )
    if not tasks:
        raise WrongUsage("--tasks is missing; list what there is with: apr tasks")
    with _usage():
        specs = read_specs(agents, against)
        _check(specs)
    folder = out or _default_folder(tasks, agents[0])
    return compare_specs(
        specs, tasks, folder, limit=limit, include_path=include_path, again=again, prices=prices, thumbnails=thumbnails
    )


def compare_specs(
    specs: Sequence[Any],
    tasks: str,
    folder: Path,
    *,
    limit: int | None = None,
    include_path: str | None = None,
    again: bool = False,
    prices: Path | None = None,
    thumbnails: bool = False,
    sweep: Mapping[str, Any] | None = None,
    title: str = "",
) -> int:
    """Run the arms through lmms-eval and write the report into the folder; returns the exit status."""
    from apr_plugin.compare.joined import join
    from apr_plugin.compare.running import ArmFailed, Plan, run_arms
    from apr_plugin.harnesses.lmms_eval.process import evaluate

    _require()
    folder = folder.expanduser().resolve()
    console = terminal.console()
    known = _prices(prices)
    plan = Plan(tasks, folder, limit, include_path, again, _stamps(tasks), title, sweep)

    def tell(line: str) -> None:
        console.print(Text(line, "bold"), soft_wrap=True)

    try:
        arms = run_arms(specs, plan, evaluate, tell)
    except ArmFailed as error:
        terminal.complain(f"{error}; the same command continues there")
        return error.status
    return _finish(console, join(arms), folder, known, thumbnails, _about(specs, title, sweep))


def run_sweep(
    setting: str, *, tasks: str, agent: str, out: Path | None, limit: int | None, include_path: str | None, again: bool
) -> int:
    """Run one agent with several values of a setting; returns the exit status.

    Raises:
        AprError: the setting or the agent can't be read.
    """
    from apr_plugin.compare.specs import ArmSpec

    name, equals, values = setting.partition("=")
    chosen = [value.strip() for value in values.split(",") if value.strip()]
    if not equals or len(chosen) < 2 or len(set(chosen)) < len(chosen):
        raise WrongUsage(
            f"{terminal.quoted(setting, 80)}: write SETTING=VALUE,VALUE,… with two or more different values"
        )
    with _usage():
        arguments = split_arguments(agent)
    key = ALIASES.get(name.strip(), name.strip())
    if key in arguments:
        raise WrongUsage(f"--agent sets {key}= already; leave it out there")
    if "arm" in arguments or "trajectories" in arguments:
        raise WrongUsage("--agent: arm= and trajectories= are set by the sweep itself; leave them out")
    specs = [ArmSpec(f"{name.strip()}={value}", "agent", join_arguments({**arguments, key: value})) for value in chosen]
    with _usage():
        _check(specs)
    sweep = {
        "setting": name.strip(),
        "values": {spec.name: _number(value) for spec, value in zip(specs, chosen, strict=True)},
    }
    folder = out or _default_folder(f"{tasks}-{name.strip()}", agent)
    return compare_specs(specs, tasks, folder, limit=limit, include_path=include_path, again=again, sweep=sweep)


def run_report(runs: Sequence[Path], out: Path | None, *, prices: Path | None = None, thumbnails: bool = False) -> int:
    """Compare finished runs, or describe one; returns the exit status.

    Raises:
        AprError: one is no run, or they have no question in common.
    """
    _require(False)
    console = terminal.console()
    for path in runs:
        if not path.expanduser().exists():
            raise AprError(f"{path}: no such file or folder")
    known = _prices(prices)
    comparison, about = open_all(runs)
    folder = (out or (runs[0] if len(runs) == 1 and runs[0].is_dir() else Path("apr_report"))).expanduser().resolve()
    return _finish(console, comparison, folder, known, thumbnails, about)


def run_view(runs: Sequence[Path], port: int) -> None:
    """Serve the page of runs on this machine until Ctrl-C.

    Raises:
        AprError: one is no run, or the port is taken.
    """
    from apr_plugin.compare.summary import summarise
    from apr_plugin.report.view import serve

    _require(False)
    paths = [path.expanduser() for path in runs]
    for path in paths:
        if not path.exists():
            raise AprError(f"{path}: no such file or folder")
    with terminal.console(stderr=True).status("opening the runs …"):
        open_all(paths)  # says what is wrong before anything is served

    def make() -> tuple[Any, dict[str, Any]]:
        comparison, about = open_all(paths)
        return comparison, summarise(comparison, **about)

    viewer = serve(make, port, followed=paths)
    terminal.console().print(Text(f"{viewer.url}  (Ctrl-C stops)"), soft_wrap=True)
    viewer.run()


def open_all(runs: Sequence[Path]) -> tuple[Any, dict[str, Any]]:
    """The comparison of finished runs; each is named by its folder, as far up as the names differ.

    A single folder may be that of a comparison. Then the second value has its title, its published figures and its
    sweep, as `summarise` takes them.

    Raises:
        AprError: one is no run, or they have no question in common.
    """
    from apr_plugin.compare.joined import join
    from apr_plugin.compare.running import open_comparison, opened, read_plan

    if len(runs) == 1 and (plan := read_plan(runs[0].expanduser())) is not None:
        about = _about(plan.specs, plan.title, plan.sweep)
        return join(open_comparison(runs[0].expanduser(), plan.specs)), about
    paths = [path.expanduser().absolute() for path in runs]
    for depth in range(1, 20):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    else:
        raise AprError("the same run is named twice")
    return join([opened(name, path) for name, path in zip(names, paths, strict=True)]), {}


def _finish(
    console: Any,
    comparison: Any,
    folder: Path,
    prices: Mapping[str, Any] | None,
    thumbnails: bool,
    about: Mapping[str, Any],
) -> int:
    from apr_plugin.compare.summary import summarise
    from apr_plugin.report.tables import print_summary
    from apr_plugin.report.write import write_all

    command = shlex.join(["apr", *sys.argv[1:]])
    with terminal.console(stderr=True).status("testing differences …"):
        summary = summarise(comparison, command=command, prices=prices, **about)
    with Progress(console=terminal.console(stderr=True), transient=True) as progress:
        task = progress.add_task("writing the page", total=len(comparison.keys))
        page = write_all(
            comparison,
            summary,
            folder,
            thumbnails=thumbnails,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    print_summary(console, summary)
    console.print(Text(f"\nthe page: {page}"), soft_wrap=True)
    return UNANSWERED if any(arm["failed"] for arm in summary["arms"]) else 0


@contextmanager
def _usage() -> Iterator[None]:
    """Errors in what was typed end with status 2."""
    try:
        yield
    except MissingExtra:
        raise
    except AprError as error:
        raise WrongUsage(str(error)) from error


def _check(specs: Sequence[Any]) -> None:
    """Find mistakes in every arm's arguments before the first one runs."""
    from apr_plugin.compare.joined import arm_of_rows
    from apr_plugin.compare.running import opened
    from apr_plugin.runs.arguments import parse_model_args
    from apr_plugin.runs.settings import check_arguments

    for spec in specs:
        if spec.is_run and spec.model == "apr":
            try:
                check_arguments(parse_model_args(spec.arguments))
            except AprError as error:
                raise AprError(f"{spec.name}: {error}") from error
        elif spec.kind == "published":
            _published(spec.source)
        elif spec.kind in ("rows", "run"):
            source = Path(spec.source)
            if not source.exists():
                raise AprError(f"{spec.name}: {spec.source}: no such file or folder")
            (arm_of_rows if spec.kind == "rows" else opened)(spec.name, source)


def _about(specs: Sequence[Any], title: str, sweep: Mapping[str, Any] | None) -> dict[str, Any]:
    """What `summarise` is told of a comparison besides its arms."""
    figures = [figure for spec in specs if spec.kind == "published" for figure in _published(spec.source)]
    return {"title": title, "published": figures, "sweep": sweep}


def _prices(file: Path | None) -> Mapping[str, Any] | None:
    """The prices; read before anything runs, so that a mistake in the file is said at once."""
    from apr_plugin.compare.cost import read_prices

    return None if file is None else read_prices(file)


def _published(benchmark: str) -> list[dict[str, Any]]:
    from apr_plugin.report.published import published

    return [figure.model_dump() for figure in published(benchmark)]


def _stamps(tasks: str) -> dict[str, Any]:
    """Size and time of the annotation files of our tasks, so that an arm over other questions is not reused."""
    from apr_plugin.tasks.common.catalogue import sources

    stamps: dict[str, Any] = {}
    for name in sources():
        if not any(name == task or name.startswith(f"{task}_") for task in tasks.split(",")):
            continue
        for file in sources()[name].files:
            path = sources()[name].local_file(file)
            if path is not None and path.exists():
                stamps[str(path)] = [path.stat().st_size, path.stat().st_mtime_ns]
    return stamps


def _require(running: bool = True) -> None:
    for module, extra in (("lmms_eval", "lmms"),) if running else ():
        require(module, extra)
    for module in ("scipy", "statsmodels", "matplotlib", "pandas", "yaml"):
        require(module, "report")


def _default_folder(tasks: str, agent: str) -> Path:
    arguments = split_arguments(agent)
    model = Path(arguments.get("pretrained") or arguments.get("model") or arguments.get("policy", "agent")).name
    return Path("results") / "runs" / re.sub(r"[^\w.-]+", "-", f"{tasks}-{model}").strip("-.")


def _number(text: str) -> float | str:
    """A value of a sweep as a number, where it is one that JSON has."""
    try:
        value = float(text)
    except ValueError:
        return text
    if not math.isfinite(value):
        return text
    return int(value) if value.is_integer() else value
