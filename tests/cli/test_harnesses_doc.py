"""docs/harnesses.md names commands, options and files that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from apr_plugin.cli.app import app
from apr_plugin.harnesses.vlmeval.arguments import read_command
from apr_plugin.runs.arguments import parse_model_args
from apr_plugin.runs.foreign.importing import FORMATS
from apr_plugin.runs.settings import check_arguments

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "harnesses.md").read_text()
COMMANDS = re.findall(r"^    (apr .*)$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands(line: str, tmp_path: Path) -> None:
    group = get_command(app)
    _, name, *words = shlex.split(line)
    known = group.commands  # type: ignore[attr-defined]
    if name == "serve" and name not in known:
        pytest.skip("needs apr serve")
    command = known[name]
    if name == "vlmeval":
        words[words.index("--work-dir") + 1] = str(tmp_path)
        assert read_command(words).ours
    elif name != "eval":  # its options are lmms-eval's
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options
        command.make_context(name, words, resilient_parsing=True)
    if "--model_args" in words:
        check_arguments(parse_model_args(words[words.index("--model_args") + 1]))


def test_the_files() -> None:
    named = set(re.findall(r"`((?:harnesses|cli|runs|loop|compare|report)/[\w/]+\.py)`", TEXT))
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / "apr_plugin" / name).is_file()] == []
    linked = set(re.findall(r"\]\((\w+\.md)", TEXT)) - {"serve.md"}
    assert [name for name in sorted(linked) if not (ROOT / "docs" / name).is_file()] == []


def test_the_formats() -> None:
    table = TEXT.partition("| format |")[2].split("\n\n")[0].splitlines()[2:]
    assert [row.split("|")[1].strip().strip("`") for row in table] == list(FORMATS)
