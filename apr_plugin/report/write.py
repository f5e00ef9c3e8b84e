"""Everything that is kept of a comparison, in one folder.

| file | content |
|---|---|
| `summary.json` | the summary (`compare.summary`) |
| `table.md` | headline, tables and notes |
| `report.html` | the page: one file, no network |
| `plots/` | each plot as PNG and SVG |
| `questions.csv`, `turns.csv`, `pairs.csv` | the rows |
| `cards/ARM/card.yaml`, `card.md` | what makes each run repeatable |
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from apr_plugin.compare.joined import Comparison
from apr_plugin.compare.running import file_name
from apr_plugin.errors import AprError
from apr_plugin.loop.text import printable
from apr_plugin.report import plots
from apr_plugin.report.card_files import write_cards
from apr_plugin.report.cleaning import hidden
from apr_plugin.report.page import write_page
from apr_plugin.report.tables import markdown

PAGE = "report.html"
"""Name of the page in the folder."""


def write_all(
    comparison: Comparison,
    summary: Mapping[str, Any],
    folder: Path,
    *,
    thumbnails: bool = False,
    find: Callable[[str], str | Path] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the files of the table above; returns the page. What looks like a key or a password is left out.

    Args:
        comparison: The arms and their questions.
        summary: From `compare.summary.summarise`.
        folder: Made if it does not exist.
        thumbnails: Put the frames that were shown into the page; they are read again from the videos.
        find: Gives a video's present path from the path that its question names.
        on_progress: Called with how many questions are in the page and how many there are.

    Raises:
        AprError: the folder can't be written.
    """
    summary = hidden(summary)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text(
            printable(json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)) + "\n", encoding="utf-8"
        )
        (folder / "table.md").write_text(printable(markdown(summary)), encoding="utf-8")
        plots.write(summary, folder / "plots")
        plots.tables_csv(comparison, summary, folder)
        for arm in comparison.arms:
            if arm.run is not None:
                command = arm.about.get("command")
                write_cards(
                    arm.run,
                    folder / "cards" / file_name(arm.name),
                    command=None if command is None else shlex.join(command),
                )
        return write_page(
            comparison, dict(summary), folder / PAGE, thumbnails=thumbnails, find=find, on_progress=on_progress
        )
    except OSError as error:
        raise AprError(f"{folder}: cannot write the report there: {error.strerror or error}") from error
