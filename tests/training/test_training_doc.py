"""docs/training.md names the fields, reasons, files and options that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from apr_plugin.training.commands import app
from apr_plugin.training.synthesis import funnel, questions

TEXT = (Path(__file__).parents[2] / "docs" / "training.md").read_text()


def _table(header: str) -> list[list[str]]:
    """The cells of the table with this first header."""
    rows = TEXT.partition(f"| {header} |")[2].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_fields_of_a_question() -> None:
    named = {name for row in _table("field") for name in re.findall(r"`(\w+)`", row[0])}
    assert named == set(questions._Line.model_fields) - {"schema_", "version"}


def test_the_reasons() -> None:
    told = {row[0].strip("`"): re.findall(r"`(\w+)`", row[1]) for row in _table("stage | reasons")}
    assert tuple(told) == funnel.STAGES
    assert {name for names in told.values() for name in names} == set(funnel.REASONS)


def test_the_commands_and_their_options() -> None:
    group = get_command(app)
    lines = re.findall(r"apr train ([\w-]+)([^\n`]*)", TEXT)
    assert {name for name, _ in lines} == set(group.commands)  # type: ignore[attr-defined]
    for name, rest in lines:
        known = {option for parameter in group.commands[name].params for option in parameter.opts}  # type: ignore[attr-defined]
        assert set(re.findall(r"(?<!\S)--?[a-z][\w-]*", rest)) <= known, rest
    every = {option for command in group.commands.values() for parameter in command.params for option in parameter.opts}  # type: ignore[attr-defined]
    for option in re.findall(r"`(--[a-z-]+)", TEXT):
        assert option in every, option


@pytest.mark.parametrize("line", re.findall(r"^    ((?:from|import) .*)$", TEXT, re.MULTILINE))
def test_the_imports(line: str) -> None:
    exec(line, {})
