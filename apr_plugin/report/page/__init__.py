"""`write_page`: a comparison as one HTML file, which opens from disk and needs no network.

The head of the page, with a small row for each question, is one compressed block; each question's details are a block
of their own, which the page inflates when it is opened. A block is base64 of deflated JSON, so nothing that a model or
a data set wrote can end it. The page shows every such text as text, and its content security policy lets run only the
scripts that are named here, by their hash.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

import jinja2

from apr_plugin.compare.joined import Arm, Comparison
from apr_plugin.errors import AprError
from apr_plugin.loop.card import Card, CardError
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.report.payload import SeenBy, details, head, row, text
from apr_plugin.report.thumbnails import Seen, read_again

LIBRARIES = ("htm-preact-3.1.1.js", "uplot-1.6.32.js", "fflate-0.8.3.js")
"""In the folder `vendor`."""

SCRIPTS = ("start.js", "charts.js", "figures.js", "summary.js", "questions.js", "ruler.js", "episode.js", "main.js")
"""Our own, in this order; they run as one script."""

STYLES = ("vendor/uplot-1.6.32.css", "page.css", "question.css")

MOST_THUMBNAIL_BYTES = 200_000_000
"""Of all questions' blocks with pictures; questions after it have none, and say so."""

OnProgress = Callable[[int, int], None]
"""Takes how many questions are done, and of how many."""


def write_page(
    comparison: Comparison,
    summary: dict[str, Any],
    out: Path,
    *,
    thumbnails: bool = False,
    find: Callable[[str], str | Path] | None = None,
    on_progress: OnProgress | None = None,
    live: str = "",
) -> Path:
    """Write the report page of a comparison.

    Args:
        comparison: From `join`; the trajectories are read one at a time.
        summary: Its figures, as `compare.summary` makes them.
        out: The file to write, `….html`; it is complete or not there.
        thumbnails: Read every look's pictures and sound again and put small ones into the page.
        find: Gives a video's present path from the path that the question names, for thumbnails.
        on_progress: Called after each question.
        live: For a page that a server gives: its version, which the page compares with `/version`.

    Returns:
        The file.

    Raises:
        AprError: the file can't be written.
    """
    out = Path(out)
    spent = _Budget(MOST_THUMBNAIL_BYTES)
    seen = _reader(comparison, find, spent) if thumbnails else None
    rows: list[list[Any]] = []
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile("w+", encoding="ascii", dir=out.parent) as blocks:
            for number, (_, detail) in enumerate(details(comparison, seen)):
                block = pack(detail)
                spent.take(len(block))
                blocks.write(f'<script type="text/plain" id="q{number}">{block}</script>\n')
                rows.append(row(detail))
                if on_progress is not None:
                    on_progress(number + 1, len(comparison.keys))
            blocks.seek(0)
            _write(out, _shell(summary, pack(head(comparison, summary, rows)), live), blocks)
    except OSError as error:
        raise AprError(f"{out}: cannot write the page: {error.strerror or error}") from error
    return out


def pack(value: Any) -> str:
    """A JSON value as base64 of raw deflated UTF-8; the page's `unpack` is the inverse."""
    data = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    deflate = zlib.compressobj(6, wbits=-15)
    return base64.b64encode(deflate.compress(data) + deflate.flush()).decode("ascii")


class _Budget:
    """How many bytes the blocks with pictures may still have."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, size: int) -> None:
        self.left -= size


def _reader(comparison: Comparison, find: Callable[[str], str | Path] | None, budget: _Budget) -> SeenBy:
    cards: dict[str, Card | str] = {}
    for arm in comparison.arms:
        if arm.run is not None:
            try:
                cards[arm.name] = Card.read(arm.run.folder)
            except CardError as error:
                cards[arm.name] = str(error)

    def seen(arm: Arm, trajectory: Trajectory) -> tuple[Mapping[int, Seen], str]:
        card = cards[arm.name]
        if isinstance(card, str):
            return {}, card
        if budget.left <= 0:
            return {}, f"the page has {MOST_THUMBNAIL_BYTES // 1_000_000} MB of pictures already; these are left out"
        return read_again(trajectory, card, find=find)

    return seen


def _write(out: Path, shell: tuple[str, str], blocks: IO[str]) -> None:
    """Write the page under another name first, so that a reader sees the old page or the whole new one."""
    before, after = shell
    handle, name = tempfile.mkstemp(".part", f".{out.name[:80]}.", out.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(before)
            while piece := blocks.read(1 << 20):
                file.write(piece)
            file.write(after)
        Path(name).chmod(0o644)
        Path(name).replace(out)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def _shell(summary: Mapping[str, Any], index: str, live: str) -> tuple[str, str]:
    """The page before and after its questions' blocks."""
    libraries, own, style = _assets()
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(_source(script) for script in (*libraries, own))}",
            f"style-src {_source(style)}",
            "img-src data:",
            *(["connect-src 'self'"] if live else []),
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    page = _template().render(
        policy=policy,
        title=text(summary.get("title") or "Report", 300),
        made=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        live=live,
        style=style,
        libraries=libraries,
        script=own,
        index=index,
    )
    before, mark, after = page.partition("<!-- questions -->")
    assert mark
    return before, after


def _source(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_read("page.jinja"))


@cache
def _assets() -> tuple[tuple[str, ...], str, str]:
    """The libraries, our script and the style sheet, as they are in the page."""
    libraries = tuple(_read(f"vendor/{name}") for name in LIBRARIES)
    own = "(() => {\n'use strict';\n" + "\n".join(_read(name) for name in SCRIPTS) + "\n})();\n"
    style = "\n".join(_read(name) for name in STYLES)
    assert not any("</script" in script or "<!--" in script for script in (*libraries, own)) and "</style" not in style
    return libraries, own, style


def _read(name: str) -> str:
    place = files("apr_plugin.report.page")
    for part in name.split("/"):
        place = place / part
    return place.read_text("utf-8")
