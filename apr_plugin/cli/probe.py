"""`apr probe`: print what the reader finds in a file."""

from __future__ import annotations

import time
from pathlib import Path

from rich.table import Table
from rich.text import Text

from apr_plugin.media import OUTLASTS_S, Video
from apr_plugin.media.confine import confine
from apr_plugin.terminal import console


def run_probe(path: Path, media_root: Path | None = None) -> None:
    """Print the facts of a file and a warning for each oddity.

    Raises:
        MediaOpenError: the file can't be used, or is outside `media_root`.
    """
    confine(str(path), None if media_root is None else str(media_root))
    began = time.perf_counter()
    with Video.open(path) as video:
        opened_s = time.perf_counter() - began
        info = video.info
    out = console()
    facts = Table(title=str(path), title_justify="left", show_header=False)
    facts.add_row("format", info.format)
    facts.add_row("duration", f"{info.duration_s:.3f} s, by the {info.duration_from}")
    if info.sound_s is not None and info.sound_s > info.duration_s + OUTLASTS_S:
        facts.add_row("", f"{info.sound_s:.3f} s with its sound")
    facts.add_row("second 0", f"time stamp {info.start_s:.3f} s of the file")
    if info.has_video:
        width, height = info.size or (0, 0)
        rate = f"{info.fps:.3f} frames per second" if info.fps else "no frame rate"
        count = f", {info.frame_count} frames by the header" if info.frame_count else ""
        turned = (f", turned by {info.rotation} degrees" if info.rotation else "") + (
            ", mirrored" if info.mirrored else ""
        )
        facts.add_row(
            "picture",
            f"stream {info.video_stream} ({info.video_why}): {info.video_codec} {width}x{height}{turned} "
            f"{info.pixel_format}",
        )
        facts.add_row("", f"{rate}{count}")
    else:
        facts.add_row("picture", "none")
    facts.add_row(
        "sound", f"stream {info.audio_stream} ({info.audio_why}): {info.audio_codec}" if info.has_audio else "none"
    )
    for number, stream in enumerate(info.streams):
        facts.add_row("streams" if number == 0 else "", stream)
    facts.add_row("opened in", f"{opened_s * 1000:.0f} ms")
    out.print(facts)
    for warning in info.warnings:
        out.print(Text("warning: ", "bold yellow") + Text(warning))
