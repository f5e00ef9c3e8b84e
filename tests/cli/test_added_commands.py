"""Commands that other packages add to `apr` through entry points, found in a real installed package."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from apr_plugin.cli import added

_CODE = """
import typer
app = typer.Typer(help="Somebody's commands.")
@app.command()
def hello(name: str) -> None:
    print("hello", name)
@app.command()
def other() -> None:
    pass
"""

_APR = """
import sys
from apr_plugin.cli import added
import typer
from typer.core import TyperGroup
class Group(TyperGroup):
    def get_command(self, ctx, name):
        return super().get_command(ctx, name) or added.command(name)
    def list_commands(self, ctx):
        return [*super().list_commands(ctx), *added.names()]
app = typer.Typer(cls=Group)
@app.command()
def own() -> None:
    print("own")
@app.callback()
def main() -> None: ...
print(*added.names())
assert "others" not in sys.modules, "nothing is imported for the list"
app()
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    info = tmp_path / "others-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[apr_plugin.commands]\nothers = others:app\nbroken = nowhere_at_all:app\n")
    (tmp_path / "others.py").write_text(_CODE)
    return tmp_path


def _apr(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", _APR, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )


def test_a_command_of_another_package(site: Path) -> None:
    done = _apr(site, "others", "hello", "you")
    assert done.returncode == 0 and done.stdout.endswith("hello you\n"), done.stderr
    assert {"others", "broken"} <= set(done.stdout.splitlines()[0].split())
    assert _apr(site, "own").stdout.endswith("own\n")
    assert "Somebody's commands." in _apr(site, "others", "--help").stdout


def test_a_package_that_can_not_be_imported(site: Path) -> None:
    done = _apr(site, "broken")
    assert (
        done.returncode == 1 and "command broken can't be imported" in done.stderr and "nowhere_at_all" in done.stderr
    )


def test_a_command_that_nobody_adds() -> None:
    assert added.command("surely not there") is None


def test_the_commands_of_this_package() -> None:
    """`apr train` is registered, and its entry point names what exists."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    places = project["entry-points"][added.GROUP] | project["entry-points"]["apr_plugin.policies"]
    assert {"train", "needle_teacher", "needle_judge"} <= set(places)
    for place in places.values():
        module, _, name = place.partition(":")
        assert getattr(importlib.import_module(module), name)
    done = subprocess.run([sys.executable, "-m", "apr_plugin", "train", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "synthesize" in done.stdout, done.stderr
