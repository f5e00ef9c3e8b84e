"""`apr tasks`: our task folder, and the benchmarks whose requests have a reader."""

from __future__ import annotations

import re

from rich.console import Console
from rich.table import Table
from rich.text import Text

from apr_plugin.cli.evaluate import tasks_dir
from apr_plugin.harnesses.readers import known_tasks


def run_tasks(only_path: bool) -> None:
    """Print the list, or only the folder."""
    folder = tasks_dir()
    if only_path:
        print(folder)  # noqa: T201
        return
    console = Console()
    table = Table(title=Text(f"tasks of this package, in {folder}"), title_justify="left")
    table.add_column("name")
    table.add_column("what")
    for path in sorted(folder.rglob("*.yaml")):
        text = path.read_text("utf-8")
        if found := re.search(r"^(group|task): *(\w+) *$", text, re.MULTILINE):
            table.add_row(found[2], "group" if found[1] == "group" else "task")
    console.print(table)
    readers = Table(title="lmms-eval tasks with a reader of their own (all others are read from the prompt)", title_justify="left")
    readers.add_column("task")
    readers.add_column("reader")
    for pattern, reader in known_tasks():
        readers.add_row(pattern, reader)
    console.print(readers)
