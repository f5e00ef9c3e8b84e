"""The committed constraints name one release of everything that pyproject.toml asks for, and `make` uses them."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
ALONE = ("vllm", "inspect")
"""Extras that need their own environment."""


def pins(name: str, python: str) -> dict[str, Version]:
    """The releases that a file names for one Python on this platform."""
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.1"}
    found: dict[str, Version] = {}
    for line in (REPOSITORY / name).read_text("utf-8").splitlines():
        if line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate(environment):
            (exact,) = pin.specifier
            assert exact.operator == "==" and pin.url is None, line
            assert pin.name not in found, f"{pin.name} is pinned twice for Python {python}"
            found[canonicalize_name(pin.name)] = Version(exact.version)
    return found


def asked(*extras: str) -> list[Requirement]:
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in PROJECT["optional-dependencies"][extra])]
    return [requirement for requirement in map(Requirement, texts) if requirement.name != "apr-plugin"]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize(
    ("name", "extras"),
    [
        ("constraints.txt", [extra for extra in PROJECT["optional-dependencies"] if extra not in ALONE]),
        ("constraints-vllm.txt", ["lmms", "vllm", "openai", "dev"]),
    ],
)
def test_every_requirement_has_a_release_that_it_admits(name: str, extras: list[str], python: str) -> None:
    pinned = pins(name, python)
    for requirement in asked(*extras):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)], prereleases=True), (
            requirement
        )


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-vllm.txt"])
def test_names_and_versions_only(name: str) -> None:
    for line in (REPOSITORY / name).read_text("utf-8").splitlines()[1:]:
        assert re.fullmatch(r"[a-z0-9.-]+==[a-z0-9.+!]+( ; [^/@]+)?", line), line


def test_the_constraints_are_what_this_environment_has() -> None:
    """`make` installed with the constraints; an environment made by hand, or with vLLM, has its own releases."""
    made = REPOSITORY / ".venv"
    if Path(sys.prefix) != made or not (made / ".ready").exists():
        pytest.skip("these tests run in another environment than that of make")
    pinned = pins("constraints.txt", default_environment()["python_version"])
    here = {canonicalize_name(d.metadata["Name"]): Version(d.version) for d in metadata.distributions()}
    assert {name: str(here[name]) for name in pinned.keys() & here.keys() if here[name] != pinned[name]} == {}


def test_every_way_of_setting_up_uses_them() -> None:
    makefile = (REPOSITORY / "Makefile").read_text("utf-8").replace("\\\n", " ")
    installs = [line for line in makefile.splitlines() if "pip install" in line]
    assert installs and all("--constraint constraints.txt" in line for line in installs)
    commands = [
        line
        for line in (REPOSITORY / ".ci" / "run").read_text("utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert not [line for line in commands if re.search(r"\bpip\b", line)], "CI sets up by make alone"


def test_extras_that_cannot_share_an_environment_say_so() -> None:
    tool = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["tool"]["uv"]["conflicts"]
    assert {frozenset(entry["extra"] for entry in group) for group in tool} == {
        frozenset({"train", "vllm"}),
        frozenset({"all", "vllm"}),
    }
