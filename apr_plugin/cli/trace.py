"""Printing of turns: by `apr ask` as they come, and by `apr show` from a file.

What a model wrote is printed as plain text, never as markup.
"""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from apr_plugin.loop.action import describe
from apr_plugin.loop.describing import Has, describe_shown, everything
from apr_plugin.loop.imported import Figure
from apr_plugin.loop.question import Question
from apr_plugin.loop.trajectory import Trajectory, Turn
from apr_plugin.terminal import plain as _plain

LONGEST = 600
"""Most characters of one text that are shown."""


def plain(text: str) -> str:
    """Like `terminal.plain`, cut to `LONGEST`."""
    return _plain(text, LONGEST)


def print_question(console: Console, question: Question) -> None:
    """Print the question and its options."""
    console.print(Text(plain(question.text), "bold"))
    for option in question.options:
        console.print(Text(plain(f"  {option.label}. {option.text}")))
    for number, video in enumerate(question.videos):
        window = (
            ""
            if video.start_s is None and video.end_s is None
            else f" [{video.start_s or 0:g}s-{'end' if video.end_s is None else f'{video.end_s:g}s'}]"
        )
        console.print(Text(plain(f"  video {number}: {video.path}{window}"), "dim"))


def print_turn(console: Console, number: int, turn: Turn, has: Has = everything) -> None:
    """Print one turn: thought, action, what came back, cost, as far as it was recorded."""
    sure = f"  confidence {turn.confidence:.2f}" if turn.confidence is not None else ""
    forced = "  (forced: text only)" if turn.forced else ""
    console.print(Text(f"turn {number}{sure}{forced}", "bold cyan"))
    if turn.observation:
        console.print(Text("  note    ", "green") + Text(plain(turn.observation)))
    if turn.think:
        console.print(Text("  think   ", "green") + Text(plain(turn.think)))
    if turn.action is not None:
        console.print(Text("  action  ", "green") + Text(plain(describe(turn.action))))
    elif turn.error is not None or not turn.think:
        console.print(Text("  wrote   ", "green") + Text(plain(turn.text)))
    if turn.error is not None:
        console.print(Text("  error   ", "red") + Text(plain(f"{turn.error.code}: {turn.error.message}")))
    if turn.shown is not None:
        console.print(Text("  saw     ", "green") + Text(plain(describe_shown(turn.shown, has))))
    if turn.repairs:
        console.print(Text("  repair  ", "yellow") + Text(plain("; ".join(turn.repairs))))
    costs = [
        f"{turn.model_s:.2f} s model" if has(Figure.MODEL_SECONDS) else "",
        f"{turn.media_s:.2f} s media" if has(Figure.MEDIA_SECONDS) else "",
        f"{turn.usage.completion_tokens} tokens written" if turn.usage.completion_tokens is not None else "",
    ]
    console.print(Text(f"  cost    {', '.join(filter(None, costs)) or 'not recorded'}", "dim"))


def print_end(console: Console, trajectory: Trajectory) -> None:
    """Print how the episode ended and what it cost."""
    good = trajectory.answer_valid
    answer = Text(plain(trajectory.answer or "no answer"), "bold green" if good else "bold red")
    console.print(
        Text("answer ")
        + answer
        + Text(f"   ({trajectory.stop_reason}{': ' + plain(trajectory.stop_detail) if trajectory.stop_detail else ''})")
    )
    times = trajectory.timings
    turns = sum(not turn.forced for turn in trajectory.turns)
    forced = " and a forced answer" if turns < len(trajectory.turns) else ""
    has = trajectory.has
    told = [
        f"{turns} of {trajectory.turns_allowed} turns{forced}"
        if has(Figure.TURNS_ALLOWED)
        else f"{turns} turns{forced}",
        f"{trajectory.frames} frames" if has(Figure.FRAMES) else "",
        f"{sum(look.audio_s for look in trajectory.looks):.0f} s of sound" if has(Figure.AUDIO) else "",
        f"{trajectory.visual_tokens} visual tokens" if has(Figure.VISUAL_TOKENS) else "",
        f"{times.total_s:.2f} s ({times.model_s:.2f} model, {times.media_s:.2f} media)"
        if has(Figure.TOTAL_SECONDS)
        else "",
    ]
    console.print(Text(", ".join(filter(None, told)), "dim"))
    if trajectory.imported is not None:
        lacks = ", ".join(figure.replace("_", " ") for figure in trajectory.imported.absent)
        console.print(
            Text(plain(f"imported ({trajectory.imported.format}, {trajectory.imported.place}); not recorded: "), "dim")
            + Text(lacks or "nothing", "dim")
        )
