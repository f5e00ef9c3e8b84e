"""The funnel as a Markdown table and as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apr_plugin.errors import AprError, require
from apr_plugin.training.synthesis.funnel import REASONS, Funnel


def markdown(funnel: Funnel) -> str:
    """The funnel as two Markdown tables."""
    text = ["| left after | questions | trajectories |", "|---|---:|---:|"]
    text += [f"| {name} | {questions:,} | {attempts:,} |" for name, questions, attempts in funnel.left()]
    text += ["", "| stage | reason | questions | trajectories |", "|---|---|---:|---:|"]
    text += [
        f"| {stage} | {REASONS.get(reason, reason)} | {questions:,} | {attempts:,} |"
        for stage, reason, questions, attempts in funnel.rows()
    ]
    if not funnel.audit:
        text += ["", "The audit was left out: right answers with unsupported steps are among what is kept."]
    text += [f"\n{len(funnel.problems)} lines could not be read."] if funnel.problems else []
    return "\n".join(text) + "\n"


def plot(funnel: Funnel, out: Path) -> list[Path]:
    """Draw `funnel.png` and `funnel.svg`: how many questions and trajectories are left after each stage.

    Raises:
        MissingExtra: matplotlib is not installed.
        AprError: a file can't be written.
    """
    require("matplotlib", "report")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {"font.size": 10, "svg.hashsalt": "apr", "axes.spines.top": False, "axes.spines.right": False}
    rows = funnel.left()
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        places_ = range(len(rows))
        for shift, values, colour, label in (
            (-0.2, [row[1] for row in rows], "#0b69b0", "questions"),
            (0.2, [row[2] for row in rows], "#b07400", "trajectories"),
        ):
            bars = axes.barh([place + shift for place in places_], values, 0.38, color=colour, label=label)
            axes.bar_label(bars, [f"{value:,}" for value in values], padding=3)
        axes.set_yticks(list(places_), [row[0] for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel("left")
        axes.legend(loc="lower right", frameon=False)
        written = []
        for form in ("png", "svg"):
            path = out / f"funnel.{form}"
            try:
                figure.savefig(path, dpi=160, metadata={"Date": None} if form == "svg" else {"Software": None})
            except OSError as error:
                raise AprError(f"{path}: cannot write this plot: {error.strerror or error}") from error
            written.append(path)
    return written
