"""One line of words about what a look showed."""

from __future__ import annotations

from apr_plugin.loop.trajectory import Shown


def describe_shown(shown: Shown) -> str:
    """One line about what a look showed: `16 frames of 448x252, 0.00s to 60.00s, 1296 visual tokens`."""
    where = f"video {shown.video}, " if shown.video else ""
    match shown.kind:
        case "audio":
            text = f"{where}{shown.audio_s:.1f} s of sound from {shown.start_s:.2f}s"
        case "images":
            text = shown.remark
        case _:
            span = f"{shown.times_s[0]:.2f}s to {shown.times_s[-1]:.2f}s" if shown.times_s else "no times"
            sound = f" with {shown.audio_s:.1f} s of sound" if shown.audio_s else ""
            text = (
                f"{where}{len(shown.times_s)} frames of {shown.width}x{shown.height}, {span}{sound}, "
                f"{shown.visual_tokens} visual tokens"
            )
    return text + (f" {shown.remark}" if shown.remark and shown.kind != "images" else "")
