"""Where each look is drawn on the time axis of a video, in percent of its length. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from apr_plugin.loop.trajectory import Shown

LANES = ("frames", "audio", "clip")
"""One below the other, in this order."""

LEAST_WIDTH = 0.5
"""Percent; shorter looks are drawn as long as this."""

LABEL_WIDTH = 3.0
"""Percent that the number after a look takes."""

LEAST_S, MOST_S = 0.001, 1e9
"""A length outside these is not believed."""

MOST_TICKS = 8
"""Marks on the axis."""

_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)


@dataclass(frozen=True)
class Bar:
    """One look."""

    turn: int
    """The turn that took it; 0 is before the first."""
    shown: Shown
    """What it showed."""
    left: float
    """Percent of the axis."""
    width: float
    """Percent of the axis."""
    line: int
    """Line within its lane, from 0."""
    frames: tuple[float, ...]
    """Where its frames are, in percent of the bar."""


@dataclass(frozen=True)
class Lane:
    """The looks of one kind."""

    kind: str
    """`frames`, `audio` or `clip`."""
    bars: tuple[Bar, ...]
    """In the order in which they were taken."""
    lines: int
    """How many lines they need, so that none covers another."""


@dataclass(frozen=True)
class Ruler:
    """All looks at one video."""

    duration_s: float
    """Length of the axis in seconds."""
    ticks: tuple[tuple[float, str], ...]
    """Percent and label of each mark."""
    lanes: tuple[Lane, ...]
    """Those that have looks."""


def draw(duration_s: float, looks: Sequence[tuple[int, Shown]], video: int = 0) -> Ruler:
    """The ruler of one video.

    Args:
        duration_s: Its length in seconds.
        looks: Every look so far, with its turn.
        video: Which of the question's videos.
    """
    own = [(turn, shown) for turn, shown in looks if shown.video == video and shown.kind != "images"]
    known = math.isfinite(duration_s) and LEAST_S <= duration_s <= MOST_S
    longest = duration_s if known else max([1.0, *(shown.end_s for _, shown in own)])
    lanes = []
    for kind in LANES:
        bars, ends = [], list[float]()
        for turn, shown in own:
            if shown.kind != kind:
                continue
            left = min(_percent(shown.start_s, longest), 100 - LEAST_WIDTH)
            width = max(LEAST_WIDTH, _percent(shown.end_s, longest) - left)
            line = next((n for n, end in enumerate(ends) if end <= left), len(ends))
            ends[line : line + 1] = [left + width + LABEL_WIDTH]
            places = [_percent(time, longest) for time in shown.times_s]
            inside = tuple(max(0.0, min(100.0, 100 * (place - left) / width)) for place in places)
            bars.append(Bar(turn, shown, left, width, line, inside))
        if bars:
            lanes.append(Lane(kind, tuple(bars), len(ends)))
    return Ruler(longest, _ticks(longest), tuple(lanes))


def clock(seconds: float, fine: bool = False) -> str:
    """Seconds as m:ss or h:mm:ss, with tenths if `fine`."""
    if not math.isfinite(seconds):
        return "?"
    tenths = round(seconds, 1) if fine else round(seconds)
    hours, minutes, rest = int(tenths // 3600), int(tenths % 3600 // 60), tenths % 60
    words = f"{rest:04.1f}" if fine else f"{int(rest):02d}"
    return f"{hours}:{minutes:02d}:{words}" if hours else f"{minutes}:{words}"


def _percent(time_s: float, duration_s: float) -> float:
    return 100 * max(0.0, min(duration_s, time_s if math.isfinite(time_s) else 0.0)) / duration_s


def _ticks(duration_s: float) -> tuple[tuple[float, str], ...]:
    step = next((step for step in _STEPS if duration_s / step <= MOST_TICKS), duration_s / MOST_TICKS)
    count = int(duration_s / step + 1e-6)
    return tuple((100 * number * step / duration_s, clock(number * step, step < 1)) for number in range(count + 1))
