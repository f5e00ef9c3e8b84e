"""One line of words about what a look showed."""

from __future__ import annotations

from collections.abc import Callable

from apr_plugin.loop.imported import Figure
from apr_plugin.loop.trajectory import Shown

Has = Callable[[Figure], bool]
"""Whether a figure was recorded (`Trajectory.has`)."""


def everything(_: Figure) -> bool:
    """Every figure was recorded."""
    return True


def describe_shown(shown: Shown, has: Has = everything) -> str:
    """One line about what a look showed, as far as it was recorded."""
    where = f"video {shown.video}, " if shown.video else ""
    match shown.kind:
        case "audio":
            text = f"{where}{shown.audio_s:.1f} s of sound from {shown.start_s:.2f}s"
        case "images":
            text = shown.remark
        case _:
            span = f"{shown.times_s[0]:.2f}s to {shown.times_s[-1]:.2f}s" if shown.times_s else "no times"
            if not shown.times_s and not has(Figure.FRAMES):
                return f"{where}{shown.kind} of {shown.start_s:.2f}s to {shown.end_s:.2f}s; which frames, not recorded"
            sound = f" with {shown.audio_s:.1f} s of sound" if shown.audio_s else ""
            size = f" of {shown.width}x{shown.height}" if shown.width else ""
            tokens = f", {shown.visual_tokens} visual tokens" if has(Figure.VISUAL_TOKENS) else ""
            text = f"{where}{len(shown.times_s)} frames{size}, {span}{sound}{tokens}"
    return text + (f" {shown.remark}" if shown.remark and shown.kind != "images" else "")
