"""`apr tasks`: our task folder, what of each benchmark is on this machine, and the benchmarks whose requests have a reader."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from apr_plugin.cli.evaluate import tasks_dir
from apr_plugin.config import cache_dir, data_dir
from apr_plugin.errors import AprError
from apr_plugin.harnesses.readers import known_tasks
from apr_plugin.policies import did_you_mean

_SHOWN = 20
"""Videos of one kind that `check` names; the manifest has all."""


def run_tasks(only_path: bool) -> None:
    """Print the list and the readers, or only the folder."""
    if only_path:
        print(tasks_dir())  # noqa: T201
        return
    run_list()
    readers = Table(title="lmms-eval tasks with a reader of their own (all others are read from the prompt)", title_justify="left")
    readers.add_column("task")
    readers.add_column("reader")
    for pattern, reader in known_tasks():
        readers.add_row(pattern, reader)
    Console().print(readers)


def run_list() -> None:
    """Print every task: what it asks, how it is scored, what of its data is here."""
    from apr_plugin.tasks.common.check import sources

    table = Table(title=Text(f"tasks of this package, in {tasks_dir()}; data in {data_dir()} (APR_DATA)"), title_justify="left")
    for name in ("task", "kind", "n", "buckets", "metric", "data", "ready"):
        table.add_column(name, justify="right" if name == "n" else "left", overflow="fold", no_wrap=name in ("task", "n"))
    known = sources()
    with Console(stderr=True).status("looking for annotations and videos …"):
        for path in sorted(tasks_dir().rglob("*.yaml")):
            found = re.search(r"^(group|task): *(\w+) *$", path.read_text("utf-8"), re.MULTILINE)
            if found is None:
                continue
            source = known.get(found[2])
            if source is None:
                table.add_row(found[2], "group" if found[1] == "group" else "needle", "", "", "score", "", "made by the first run")
            else:
                buckets = f"{len(source.buckets)}: {source.buckets[0]} … {source.buckets[-1]}"
                table.add_row(source.task, source.kind, f"{source.n:,}", buckets, source.metric, f"{source.folder}/", _readiness(source))
    Console().print(table)


def _readiness(source: Any) -> str:
    from apr_plugin.tasks.common.check import count_videos

    try:
        counted = count_videos(source)
    except AprError as error:
        return escape(str(error))
    if counted is None:
        return "no annotations"
    there, total = counted
    return f"yes, {total:,} videos" if there == total else f"no, {there:,} of {total:,} videos"


def run_check(task: str, videos: Path | None, hashes: bool, out: Path | None) -> int:
    """Open every video of a task and say what is missing; returns the exit status.

    Raises:
        AprError: there is no such task or folder, or no annotations.
    """
    from apr_plugin.tasks.common.check import check, sources

    known = sources()
    if task not in known:
        raise AprError(f"there is no task {task!r} with videos to check{did_you_mean(task, known)}; list them with: apr tasks list")
    if videos is not None and not videos.is_dir():
        raise AprError(f"--videos {videos}: no such folder")
    source = known[task]
    report = check(source, () if videos is None else (videos,), hashes)
    out = out or cache_dir() / "manifests" / f"{task}.json"
    try:
        report.write(out)
    except OSError as error:
        raise AprError(f"--out {out}: cannot write there: {error.strerror}") from error
    console = Console(soft_wrap=True)
    present, missing, unreadable = (report.of(state) for state in ("present", "missing", "unreadable"))
    console.print(Text(f"{source.title}: {len(present)} videos present, {len(missing)} missing, {len(unreadable)} unreadable"))
    console.print(
        Text(
            f"{report.answerable} of {report.questions} questions can be asked; the benchmark has {source.n}"
            + ("" if report.complete else f": a score is one of n={report.answerable} of N={source.n}")
        )
    )
    for title, lines in {
        "missing": [f"{video.name}  (expected at {video.path})" for video in missing],
        "unreadable": [f"{video.name}  {video.error}" for video in unreadable],
        "of another length than annotated": [
            f"{video.name}  {video.seconds:.1f} s, annotated {video.annotated_s:.1f} s" for video in report.videos if video.off_s is not None
        ],
    }.items():
        if lines:
            console.print(Text(f"{title}:", "bold"))
            console.print(Text("\n".join(f"  {line}" for line in lines[:_SHOWN])))
            if len(lines) > _SHOWN:
                console.print(Text(f"  … and {len(lines) - _SHOWN} more"))
    console.print(Text(f"manifest: {out}"))
    return 1 if missing or unreadable else 0
