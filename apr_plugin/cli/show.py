"""`apr show`: trajectories as a table, or one of them turn by turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from apr_plugin.cli.trace import LONGEST, print_end, print_question, print_turn
from apr_plugin.errors import AprError
from apr_plugin.loop.describing import describe_shown
from apr_plugin.loop.imported import Figure
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.runs.finding import trajectory_files
from apr_plugin.terminal import console, plain


def run_show(path: Path, doc_id: str | None, task: str | None, failed: bool) -> None:
    """Print what the file or folder holds.

    Raises:
        AprError: the file or folder is empty, nothing matches, or a line is damaged.
    """
    files = trajectory_files(path)
    if not files:
        raise AprError(f"{path} holds no trajectory files (*.jsonl)")
    found = [t for file in files for t in Trajectory.iterate(file)]
    chosen = [
        t
        for t in found
        if (doc_id is None or t.question.doc_id == doc_id)
        and (task is None or t.question.task == task)
        and (not failed or t.stop_reason.failed)
    ]
    if not chosen:
        raise AprError(
            f"{path} holds {len(found)} trajectories; none matches"
            if found
            else f"{path} holds no finished trajectories"
        )
    out = console()
    if doc_id is not None or len(chosen) == 1:
        for trajectory in chosen:
            _print_whole(out, trajectory)
    else:
        _print_table(out, chosen)


def _print_whole(console: Console, trajectory: Trajectory) -> None:
    question = trajectory.question
    console.rule(
        Text(
            plain(
                f"{question.task} {question.split} doc {question.doc_id} · {trajectory.arm} · "
                + (f"seed {trajectory.seed}" if trajectory.has(Figure.SEED) else "seed not recorded"),
                LONGEST,
            )
        )
    )
    print_question(console, question)
    for shown in trajectory.first_shown:
        console.print(Text("  shown   ", "green") + Text(plain(describe_shown(shown, trajectory.has), LONGEST)))
    for number, turn in enumerate(trajectory.turns, 1):
        print_turn(console, number, turn, trajectory.has)
    print_end(console, trajectory)


def _print_table(console: Console, trajectories: list[Trajectory]) -> None:
    """Print one table for each way of answering: its arm and configuration."""
    by_run: dict[tuple[str, str], list[Trajectory]] = {}
    for trajectory in trajectories:
        by_run.setdefault((trajectory.arm, trajectory.config_hash), []).append(trajectory)
    for (arm, config_hash), run in by_run.items():
        table = Table(
            title=Text(plain(f"{arm}, configuration {config_hash}: {len(run)} trajectories", LONGEST)),
            title_justify="left",
            box=box.SIMPLE_HEAD,
        )
        for name in ("task", "doc", "question", "answer", "stop"):
            table.add_column(
                name,
                no_wrap=True,
                overflow="ellipsis",
                ratio=1 if name == "question" else None,
                max_width=18 if name == "answer" else None,
            )
        for name in ("turns", "frames", "tokens", "s"):
            table.add_column(name, justify="right", no_wrap=True)
        for t in run:
            table.add_row(
                *(
                    Text(plain(cell, 200))
                    for cell in (t.question.task, t.question.doc_id, t.question.text, t.answer or "–", t.stop_reason)  # noqa: RUF001
                ),
                str(len(t.turns)),
                str(t.frames) if t.has(Figure.FRAMES) else "–",  # noqa: RUF001
                str(t.visual_tokens) if t.has(Figure.VISUAL_TOKENS) else "–",  # noqa: RUF001
                f"{t.timings.total_s:.2f}" if t.has(Figure.TOTAL_SECONDS) else "–",  # noqa: RUF001
            )
        console.print(table)
        stops = Counter(t.stop_reason for t in run)
        means = [
            _mean([len(t.turns) for t in run], "turns", 2),
            _mean([t.frames for t in run if t.has(Figure.FRAMES)], "frames", 1),
            _mean([t.visual_tokens for t in run if t.has(Figure.VISUAL_TOKENS)], "visual tokens", 0),
            _mean([t.timings.total_s for t in run if t.has(Figure.TOTAL_SECONDS)], "s", 2),
        ]
        console.print(
            f"mean {', '.join(means)}; " + ", ".join(f"{reason} {count}" for reason, count in stops.most_common())
        )
    console.print("to see one turn by turn: apr show PATH --id DOC", style="dim")


def _mean(values: Sequence[float], unit: str, digits: int) -> str:
    if not values:
        return f"{'seconds' if unit == 's' else unit} not recorded"
    return f"{sum(values) / len(values):.{digits}f} {unit}"
