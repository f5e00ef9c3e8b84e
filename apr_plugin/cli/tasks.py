"""`apr tasks`: our task folder, which benchmarks are on this machine, and which benchmarks have a reader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from apr_plugin.cli.evaluate import tasks_dir
from apr_plugin.config import cache_dir, data_dir, needle_dir
from apr_plugin.errors import AprError
from apr_plugin.harnesses.readers import known_tasks
from apr_plugin.policies import did_you_mean
from apr_plugin.terminal import console, one_line, print_exact, quoted

_SHOWN = 20
"""Most videos of one kind that `check` names; the manifest has all."""

_WIDE = 140
"""Columns that the terminal needs for a table; on a narrower one each task is two lines."""


def run_tasks(only_path: bool) -> None:
    """Print the list and the readers, or only the folder."""
    if only_path:
        print_exact(str(tasks_dir()))
        return
    run_list()
    readers = Table(
        title="lmms-eval tasks with a reader of their own (all others are read from the prompt)", title_justify="left"
    )
    readers.add_column("task")
    readers.add_column("reader")
    for pattern, reader in known_tasks():
        readers.add_row(pattern, reader)
    console().print(readers)


def run_list() -> None:
    """Print every task: what it asks, how it is scored, which of its data is on this machine."""
    with console(stderr=True).status("looking for annotations and videos …"):
        entries = sorted(_entries())
    out = console()
    title = Text(f"tasks of this package, in {tasks_dir()}; data in {data_dir()} (APR_DATA)")
    if out.width < _WIDE:
        out.print(title)
        for task, kind, n, buckets, metric, data, ready in entries:
            out.print(Text(f"{task:<28} {n:>6}  {metric:<7}  {ready}", "bold"), soft_wrap=True)
            out.print(
                Text("  " + "; ".join(filter(None, (kind, buckets and f"buckets {buckets}", data)))), soft_wrap=True
            )
        return
    table = Table(title=title, title_justify="left")
    for name in _Entry._fields:
        table.add_column(
            name,
            justify="right" if name == "n" else "left",
            overflow="fold",
            no_wrap=name in ("task", "n"),
            max_width=30 if name == "data" else None,
        )
    for entry in entries:
        table.add_row(*map(Text, entry))
    out.print(table)


class _Entry(NamedTuple):
    """A line of the list."""

    task: str
    kind: str
    n: str
    buckets: str
    metric: str
    data: str
    ready: str


def _entries() -> Iterator[_Entry]:
    from apr_plugin.tasks.common.catalogue import sources

    kinds, folder, ready = _needle()
    yield _Entry("apr_needle", "group", f"{kinds.total():,}" if kinds else "", "", "score", str(folder), ready)
    for source in sources().values():
        if source.n:
            yield _Entry(
                source.task,
                source.kind,
                f"{source.n:,}",
                _buckets(source.buckets),
                source.metric,
                f"{source.folder}/",
                _readiness(source),
            )
        else:  # made on this machine
            n = f"{kinds[source.task.removeprefix('apr_needle_')]:,}" if kinds else ""
            yield _Entry(source.task, source.kind, n, _buckets(source.buckets), source.metric, str(folder), ready)


def _buckets(names: Sequence[str]) -> str:
    return f"{len(names)}: {names[0]} … {names[-1]}" if names else ""


def _needle() -> tuple[Counter[str], Path, str]:
    """The number of questions of each kind in the needle set on this machine, its folder, and whether it is ready."""
    from apr_plugin.tasks.needle.make import load_docs

    folder, named = needle_dir()
    try:
        docs = load_docs(folder)
    except FileNotFoundError:
        return Counter(), folder, "no, make it with: apr needle make" if named else "made by the first run"
    except (ValueError, KeyError, TypeError):
        return Counter(), folder, "no, it can't be read; delete it"
    videos = {doc["video"] for doc in docs}
    return (
        Counter(doc["kind"] for doc in docs),
        folder,
        _ready(sum(Path(video).is_file() for video in videos), len(videos)),
    )


def _ready(there: int, total: int) -> str:
    return f"yes, {total:,} videos" if there == total else f"no, {there:,} of {total:,} videos"


def _readiness(source: Any) -> str:
    from apr_plugin.tasks.common.check import count_videos

    try:
        counted = count_videos(source)
    except AprError as error:
        return str(error)
    if counted is None:
        return "no annotations"
    return _ready(*counted)


def run_check(task: str, videos: Path | None, hashes: bool, out: Path | None, media_root: Path | None = None) -> int:
    """Open every video of a task and report what is missing; return the exit status.

    Raises:
        AprError: there is no such task or folder, or no annotations.
    """
    from apr_plugin.tasks.common.catalogue import sources
    from apr_plugin.tasks.common.check import check

    known = sources()
    if task.startswith("apr_needle"):
        raise AprError(f"the videos of {task} are made on this machine, by: apr needle make")
    if task not in known:
        raise AprError(
            f"there is no task {quoted(task)} with videos to check{did_you_mean(task, known)}; list them "
            "with: apr tasks list"
        )
    if videos is not None and not videos.is_dir():
        raise AprError(f"--videos {videos}: no such folder")
    if media_root is not None and not media_root.is_dir():
        raise AprError(f"--media-root {media_root}: no such folder")
    source = known[task]
    report = check(source, () if videos is None else (videos,), hashes, media_root)
    out = out or cache_dir() / "manifests" / f"{task}.json"
    try:
        report.write(out)
    except OSError as error:
        raise AprError(f"--out {out}: cannot write there: {error.strerror}") from error
    printer = console(soft_wrap=True)
    present, missing, unreadable = (report.of(state) for state in ("present", "missing", "unreadable"))
    printer.print(
        Text(f"{source.title}: {len(present)} videos present, {len(missing)} missing, {len(unreadable)} unreadable")
    )
    printer.print(
        Text(
            f"{report.answerable} of {report.questions} questions can be asked; the benchmark has {source.n}"
            + ("" if report.complete else f": a score is one of n={report.answerable} of N={source.n}")
        )
    )
    for title, lines in {
        "missing": [f"{video.name}  (expected at {video.path})" for video in missing],
        "unreadable": [f"{video.name}  {video.error}" for video in unreadable],
        "of another length than annotated": [
            f"{video.name}  {video.seconds:.1f} s, annotated {video.annotated_s:.1f} s"
            for video in report.videos
            if video.off_s is not None
        ],
    }.items():
        if lines:
            printer.print(Text(f"{title}:", "bold"))
            printer.print(Text("\n".join(f"  {one_line(line)}" for line in lines[:_SHOWN])))
            if len(lines) > _SHOWN:
                printer.print(Text(f"  … and {len(lines) - _SHOWN} more"))
    printer.print(Text(f"manifest: {out}"))
    return 1 if missing or unreadable else 0
