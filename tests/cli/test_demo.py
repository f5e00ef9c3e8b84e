"""The closing commands of the demo, which the README shows."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from apr_plugin.cli.demo import closing_commands
from apr_plugin.tasks.needle.make import NeedleSpec, planned_docs

README = Path(__file__).parents[2] / "README.md"


def test_readme_shows_the_commands_that_the_demo_ends_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The set comes from a seed, so that names, questions and answers are the same on every machine."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "demo_out"
    docs = [doc | {"video": str(out / "needle" / doc["video"])} for doc in planned_docs(NeedleSpec())]
    commands = closing_commands(".venv/bin/apr", out, docs)
    shown = [line.strip() for line in README.read_text("utf-8").splitlines()]
    for command, remark in commands:
        assert (f"{command}  # {remark}" if remark else command) in shown
        words = shlex.split(command)
        if words[1] == "ask":
            (doc,) = (doc for doc in docs if doc["question"] == words[3] and doc["video"] == str(tmp_path / words[2]))
            assert remark.startswith(str(doc["answer"]))
