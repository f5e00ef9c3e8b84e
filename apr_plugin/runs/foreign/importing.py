"""`import_run`: a file or folder of another program's records as a run of this package."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import cast

from apr_plugin.errors import AprError, WrongUsage
from apr_plugin.files import check_regular
from apr_plugin.runs.foreign.found import About, Reader, Wanted
from apr_plugin.runs.foreign.inspect_files import is_log
from apr_plugin.runs.foreign.matching import Matching
from apr_plugin.runs.foreign.omniagent_rows import is_row
from apr_plugin.runs.foreign.records import LONGEST_LINE, Left, whole_json
from apr_plugin.runs.foreign.writing import Writer, Written, digest, earlier, first, identity
from apr_plugin.runs.opened import open_run
from apr_plugin.terminal import one_line

MOST_FILES = 10_000
"""Files of one import."""


@dataclass(frozen=True)
class Format:
    """A format that can be read."""

    endings: tuple[str, ...]
    """Of its files."""
    reader: str
    """Where its reader is, as `module:function`."""
    about: str
    """What it is, in a few words."""


FORMATS = {
    "omniagent": Format(
        (".jsonl", ".json", ".parquet"),
        "apr_plugin.runs.foreign.omniagent:read_omniagent",
        "OmniAgent's rows, one for each turn",
    ),
    "inspect": Format((".eval", ".json"), "apr_plugin.runs.foreign.inspect_samples:read_inspect", "logs of inspect_ai"),
}
"""The formats by name."""

Told = Callable[[int], None]
"""Takes the number of trajectories that were read, to show progress."""


def import_run(
    source: Path,
    out: Path,
    *,
    format_name: str = "",
    task: str = "",
    scorer: str = "",
    like: Path | None = None,
    force: bool = False,
    told: Told | None = None,
) -> Written:
    """Read records and write them as a run.

    Args:
        source: A file, or a folder with files of one format.
        out: The run's folder: new, empty, or with an earlier import of the same.
        format_name: A name in `FORMATS`; empty takes the one that the files have.
        task: Name of the task; empty takes the record's own.
        scorer: Which of several scorers gives the score (`inspect`).
        like: A run of this package: its questions give the names to the same questions here.
        force: Replace an earlier import of something else.
        told: Called after each trajectory.

    Raises:
        AprError: nothing could be read, the files are of no known format, or the folder is taken.
    """
    files = _files(source, format_name)
    known = format_name or guess(files)
    if like is not None and task:
        raise WrongUsage("--task and --like both name the task; give one of them")
    if scorer and known != "inspect":
        raise WrongUsage(f"--scorer is for logs of inspect_ai, not for {known}")
    ours = None if like is None else open_run(like, latest=True)
    matching = None if ours is None else Matching(ours)
    sources = [{"name": file.name, "bytes": file.stat().st_size, "sha256": digest(file)} for file in files]
    options = {name: value for name, value in (("task", task), ("scorer", scorer)) if value}
    if ours is not None:
        options["like"] = " ".join(f"{'/'.join(map(str, one.question.key))} {one.question_hash}" for one in ours)
    config_hash = identity(known, sources, options)
    if (there := _there(out, config_hash, force)) is not None:
        return there
    writer, about, dropped = Writer(out, config_hash), About(), list[str]()

    def left(why: Left, place: str) -> None:
        writer.done.left[str(why.reason)] = writer.done.left.get(str(why.reason), 0) + 1
        dropped.append(one_line(f"{place}: {why.reason}{f': {why.detail}' if why.detail else ''}", 400))

    try:
        for done, found in enumerate(_reader(known)(files, Wanted(task, scorer), about, left), 1):
            try:
                writer.add(found if matching is None else matching.named(found))
            except Left as why:
                left(why, found.trajectory.imported.place if found.trajectory.imported else "")
            if told is not None:
                told(done)
        writer.done.named = first(dropped)
        if not writer.done.tasks:
            raise AprError(
                f"{source}: nothing in it can be read as {known}: {'; '.join(first(dropped, 5)) or 'it is empty'}"
            )
        if matching is not None and matching.unknown:
            about.notes.append(f"{matching.unknown} questions are not among those of --like, and keep their names")
        return writer.finish(known, sources, about)
    finally:
        writer.discard()


def guess(files: Sequence[Path]) -> str:
    """The format of files, from the first one.

    Raises:
        AprError: it is none that is known.
    """
    file = files[0]
    if file.suffix == ".eval":
        return "inspect"
    try:
        if file.suffix == ".jsonl":
            with file.open("rb") as lines:
                if is_row(json.loads(lines.readline(LONGEST_LINE))):
                    return "omniagent"
        elif file.suffix == ".json":
            data = whole_json(file)
            if is_log(data):
                return "inspect"
            if isinstance(data, list) and data and is_row(data[0]):
                return "omniagent"
    except (OSError, ValueError, RecursionError):
        pass
    raise AprError(
        f"{file}: its format is not known; name it with --format: "
        + ", ".join(f"{name} ({one.about})" for name, one in FORMATS.items())
    )


def _files(source: Path, format_name: str) -> list[Path]:
    if format_name and format_name not in FORMATS:
        raise WrongUsage(f"--format {one_line(format_name, 60)}: there are {', '.join(FORMATS)}")
    endings = FORMATS[format_name].endings if format_name else tuple({e for f in FORMATS.values() for e in f.endings})
    try:
        if not source.is_dir():
            check_regular(source)
            return [source]
    except FileNotFoundError:
        raise AprError(f"{source}: no such file or folder") from None
    except (OSError, ValueError) as error:
        raise AprError(f"{source}: cannot read it: {getattr(error, 'strerror', None) or error}") from error
    found = sorted(path for path in source.rglob("*") if path.suffix in endings and path.is_file())
    if not found:
        raise AprError(f"{source}: it holds no file that ends in {', '.join(sorted(endings))}")
    if len(found) > MOST_FILES:
        raise AprError(f"{source}: {len(found):,} files; at most {MOST_FILES:,} are imported at once")
    return found


def _there(out: Path, config_hash: str, force: bool) -> Written | None:
    """The same import, if it is there already.

    Raises:
        AprError: something else is.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    before = earlier(out)
    if before is None:
        raise AprError(f"{out}: it holds something that is no import; choose another folder")
    if before.config_hash == config_hash and not force:
        return before
    if not force:
        raise AprError(
            f"{out}: it holds an import of something else; choose another folder, or replace it with --force"
        )
    return None


def _reader(name: str) -> Reader:
    module, _, function = FORMATS[name].reader.partition(":")
    return cast(Reader, getattr(import_module(module), function))
