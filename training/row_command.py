"""`apr train rows`: the kept trajectories of a folder as rows of a student."""

from __future__ import annotations

from pathlib import Path

from rich.progress import Progress

from apr_plugin import terminal
from apr_plugin.errors import WrongUsage
from apr_plugin.files import read_regular
from apr_plugin.loop.budget import LEAST_FRAME_PIXELS
from apr_plugin.training.chats import ChatSource
from apr_plugin.training.making import RowSettings, Source, make_rows
from apr_plugin.training.rows import Key, RowError, write_rows
from apr_plugin.training.student import Student
from apr_plugin.training.synthesis.audit import rated_turns
from apr_plugin.training.synthesis.funnel import kept as read_kept
from apr_plugin.training.synthesis.funnel import kept_files


def settings_of(
    validation: float,
    seed: int,
    repaired: str,
    replies: str,
    chat_share: float | None,
    most_pixels: int | None = None,
) -> RowSettings:
    """The settings of the command line.

    Raises:
        WrongUsage: a word is not known, or a share is none.
    """
    if repaired not in ("rewrite", "drop"):
        raise WrongUsage(f"--repaired {terminal.quoted(repaired, 40)}: it is rewrite or drop")
    if replies not in ("each", "last"):
        raise WrongUsage(f"--replies {terminal.quoted(replies, 40)}: it is each or last")
    if chat_share is not None and not 0 < chat_share < 1:
        raise WrongUsage(f"--chat-share {chat_share:g}: it is above 0 and below 1")
    if most_pixels is not None and most_pixels < LEAST_FRAME_PIXELS:
        raise WrongUsage(f"--most-pixels {most_pixels}: the smallest picture has {LEAST_FRAME_PIXELS}")
    return RowSettings(
        validation=validation,
        seed=seed,
        repaired="rewrite" if repaired == "rewrite" else "drop",
        replies="each" if replies == "each" else "last",
        most_pixels=most_pixels,
        **({} if chat_share is None else {"chat_share": chat_share}),
    )


def run_rows(
    out: Path,
    student: str,
    file: Path,
    context_tokens: int | None,
    settings: RowSettings,
    chats: Path | None = None,
    least_rating: int | None = None,
) -> None:
    """Make the rows, write them, and say what became none.

    Args:
        out: The folder of the trajectories, after `apr train funnel`.
        student: The checkpoint that is to be trained: a folder, or a name on the hub.
        file: Where the rows go.
        context_tokens: The longest row; `None` is what the student was made for.
        settings: What becomes a row.
        chats: A file of chats that are mixed in.
        least_rating: Least rating by the judge of a turn that is learned; by default the trajectory's own threshold.

    Raises:
        AprError: nothing is kept, the student can't be read, or no row is left to train on.
    """
    if file.suffix != ".jsonl":
        raise WrongUsage(f"{file}: the rows are JSON Lines; name a file that ends with .jsonl")
    mixed_in = None if chats is None else ChatSource(chats.expanduser())
    if mixed_in is not None and Path(mixed_in.file).resolve() == file.resolve():
        raise WrongUsage(f"{file}: the rows would take the place of the chats; name another --file")
    out = out.expanduser()
    kept = kept_files(out)
    turns = None if least_rating is None else rated_at_least(out, least_rating)
    sources = [
        Source(
            one.file,
            one.card,
            one.source,
            "teacher",
            one.keys if turns is None else {key: turns[one.file, key] for key in one.keys},
        )
        for one in kept
    ]
    console = terminal.console(stderr=True)
    with console.status("reading the student's processor …"):
        reads = Student.from_pretrained(student, context_tokens=context_tokens)
    total = sum(len(one.keys) for one in kept)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("trajectories", total=total)
        mixing = None if mixed_in is None else bar.add_task("rows of chats", total=None)

        def mixed(rows: int) -> None:
            if mixing is not None:
                bar.update(mixing, completed=rows)

        made = make_rows(
            sources,
            reads,
            settings,
            chats=mixed_in,
            told=lambda done: bar.update(task, completed=min(done, total)),
            told_chats=mixed,
        )
    made.about["funnel"] = _funnel(out)
    write_rows(file, made)
    parts = ", ".join(f"{len(made.of(part)):,} for {part}" for part in ("train", "validation"))
    console = terminal.console()
    console.print(f"{len(made):,} rows ({parts}) of {total:,} trajectories in {file}", soft_wrap=True)
    if mixed_in is not None:
        found, train = made.about["chats"], len(made.of("train"))
        count = found["rows"]["train"]
        share = f"{count / train:.1%} of the train rows, {found['share_of_target_tokens']:.1%} of their target tokens"
        console.print(f"{count:,} of the train rows are chats of {chats} ({share})", soft_wrap=True)
    console.print(f"no rows: {made.told()}", soft_wrap=True)
    for note in made.about.get("notes", ()):
        terminal.warn(note)


def rated_at_least(out: Path, least: int) -> dict[tuple[Path, Key], list[int]]:
    """The turns of kept trajectories, by file and question, that a judge rated so; none of one that was not audited.

    So a trajectory with a mistake can be kept for what was done about it, and the mistake is not learned.

    Args:
        out: The folder of the trajectories, after `apr train funnel`.
        least: The least rating.

    Raises:
        AprError: see `funnel.kept`; or nothing was rated.
    """
    found: dict[tuple[Path, Key], list[int]] = {}
    for entry, trajectory, _ in read_kept(out):
        numbers = rated_turns(trajectory)
        if len(entry.ratings) != len(numbers):
            raise RowError(f"{out}: what is kept was not audited, so turns have no ratings; run: apr train audit {out}")
        rated = zip(numbers, entry.ratings, strict=True)
        turns = [number for number, rating in rated if rating is not None and rating >= least]
        found[out / str(entry.file), trajectory.question.key] = turns
    return found


def _funnel(out: Path) -> str | None:
    """The table of the funnel, for the model card; `None` if it is gone."""
    try:
        return read_regular(out / "funnel.md").decode("utf-8", "replace")
    except OSError:
        return None
