#!/usr/bin/env python3
"""Tries this package with the newest release of everything.

It shows what the constraints keep from users, and what users without them get.

    make newest                                          # python scripts/newest.py
    python scripts/newest.py --pythons 3.12 --no-full    # the base package on one Python

Two kinds of environment, each made from nothing in a temporary folder and deleted afterwards:

- the base package alone, on each of the Pythons: `apr doctor`, a small needle set made, `apr probe`, `apr ask` with the
  right answer;
- `[lmms,report,dev]`, on this Python: lmms-eval's evaluator, `apr doctor`, `apr probe`, ten needle questions through
  plain `lmms-eval`, the fast tests.

It prints which packages differ from the constraints, which are held back by a bound in pyproject.toml, and what broke,
with the end of its output. Exit status 1: something broke. Nothing depends on it; if all is well, `make constraints`
moves the constraints forward.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from constraints import uv

REPOSITORY = Path(__file__).resolve().parents[1]
PYTHONS = "3.11,3.12,3.13"
STEP_S = 3600.0
"""Most seconds of one step."""


@dataclass
class Environment:
    """One environment, and the results of its steps."""

    name: str
    folder: Path
    extras: str
    editable: bool
    results: list[tuple[str, bool, float]] = field(default_factory=list)
    """The steps with their outcome and seconds."""

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def run(self, step: str, *command: str | Path, cwd: Path, expect: str = "", **variables: str) -> str | None:
        """Run one step and return its output; if it fails, print the end of the output and return `None`."""
        print(f"{self.name}: {step} …", flush=True)
        began = time.monotonic()
        environment = (
            os.environ | variables | {"PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"}
        )
        environment.pop("VIRTUAL_ENV", None)
        try:
            done = subprocess.run(
                [str(word) for word in command],
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=STEP_S,
                check=False,
            )
            output, well = done.stdout, done.returncode == 0 and expect in done.stdout
        except (OSError, subprocess.TimeoutExpired) as error:
            output, well = str(error), False
        self.results.append((step, well, time.monotonic() - began))
        if not well:
            print(f"{self.name}: {step} BROKE; the end of its output:")
            print("\n".join(f"    {line}" for line in output.rstrip().splitlines()[-25:]), flush=True)
        return output if well else None

    def make(self, interpreter: str, cwd: Path) -> bool:
        """Install the newest releases into it."""
        if (
            self.run(
                "environment",
                uv(),
                "venv",
                "--quiet",
                "--no-python-downloads",
                "--python",
                interpreter,
                self.folder,
                cwd=cwd,
            )
            is None
        ):
            return False
        what = f"{REPOSITORY}[{self.extras}]" if self.extras else str(REPOSITORY)
        install = [
            uv(),
            "pip",
            "install",
            "--quiet",
            "--upgrade",
            "--python",
            self.python,
            *(["--editable"] if self.editable else []),
            what,
        ]
        return self.run("install", *install, cwd=cwd) is not None

    def releases(self) -> dict[str, str]:
        """The installed releases."""
        listed = subprocess.run(
            [uv(), "pip", "list", "--quiet", "--format", "json", "--python", self.python],
            capture_output=True,
            text=True,
            check=True,
        )
        return {package["name"]: package["version"] for package in json.loads(listed.stdout)}

    def moved(self) -> list[str]:
        """The packages whose release is not the one in the constraints."""
        lines = (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines()
        tested: dict[str, set[str]] = {}
        for name, version in re.findall(r"^([a-z0-9.-]+)==(\S+)", "\n".join(lines), re.MULTILINE):
            tested.setdefault(name, set()).add(version)
        here = self.releases()
        return [
            f"{name} {'/'.join(sorted(tested[name]))} -> {here[name]}"
            for name in sorted(tested.keys() & here.keys())
            if here[name] not in tested[name]
        ]

    def held_back(self) -> list[str]:
        """The packages that have a newer release which a bound of pyproject.toml does not allow."""
        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
        texts = [
            *project["dependencies"],
            *(text for extra in project["optional-dependencies"].values() for text in extra),
        ]
        bounded = {re.match(r"[A-Za-z0-9._-]+", text)[0].lower() for text in texts if "<" in text}  # type: ignore[index]
        command = [uv(), "pip", "list", "--quiet", "--outdated", "--format", "json", "--python", self.python]
        listed = subprocess.run(command, capture_output=True, text=True, check=False)
        rows = json.loads(listed.stdout or "[]")
        return [
            f"{row['name']} {row['version']} ({row['latest_version']} is out)" for row in rows if row["name"] in bounded
        ]


def find_python(version: str) -> str | None:
    """An interpreter of a version, from the PATH or from pyenv."""
    places = [
        shutil.which(f"python{version}"),
        sys.executable,
        *map(str, sorted((Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python"))),
    ]
    for place in filter(None, places):
        told = subprocess.run(
            [place, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
        )
        if told.stdout.strip() == version:
            return place
    return None


def try_base(environment: Environment, cwd: Path) -> None:
    """Try the commands that need no extra."""
    apr = environment.folder / "bin" / "apr"
    environment.run("apr doctor", apr, "doctor", cwd=cwd, APR_HOME=str(cwd / "home"))
    needle = make_needle(environment, cwd)
    if needle is None:
        return
    doc = next(
        doc
        for line in (needle / "needle.jsonl").read_text("utf-8").splitlines()
        if (doc := json.loads(line))["kind"] == "glyph"
    )
    options = [word for text in doc["options"] for word in ("--option", text)]
    environment.run("apr probe", apr, "probe", needle / doc["video"], cwd=cwd, expect="frames per second")
    environment.run(
        "apr ask",
        apr,
        "ask",
        needle / doc["video"],
        doc["question"],
        *options,
        cwd=cwd,
        expect=f"answer {doc['answer']}",
        COLUMNS="160",
    )


def try_full(environment: Environment, cwd: Path) -> None:
    """Try the commands that need lmms-eval, and the fast tests."""
    apr, python = environment.folder / "bin" / "apr", environment.python
    environment.run("lmms-eval's evaluator", python, "-c", "import lmms_eval.evaluator", cwd=cwd)
    environment.run("apr doctor", apr, "doctor", cwd=cwd)
    if (needle := make_needle(environment, cwd)) is not None:
        environment.run(
            "apr probe", apr, "probe", next((needle / "videos").glob("*.mp4")), cwd=cwd, expect="frames per second"
        )
        tasks = environment.run("apr tasks --path", apr, "tasks", "--path", cwd=cwd) or ""
        arguments = [
            "--model",
            "apr",
            "--model_args",
            "policy=needle",
            "--tasks",
            "apr_needle",
            "--include_path",
            tasks.strip(),
            "--limit",
            "2",
        ]
        lmms = environment.folder / "bin" / "lmms-eval"
        ten = environment.run(
            "ten questions through lmms-eval",
            lmms,
            *arguments,
            "--output_path",
            cwd / "out",
            cwd=cwd,
            APR_NEEDLE_DIR=str(needle),
        )
        if ten is not None:
            lines = sum(path.read_bytes().count(b"\n") for path in (cwd / "apr_runs").rglob("*.jsonl"))
            environment.results.append((f"{lines} of 10 trajectories", lines == 10, 0.0))
    environment.run(
        "fast tests", python, "-m", "pytest", "-q", "-m", "not slow", "-n", "2", "--dist", "loadgroup", cwd=REPOSITORY
    )


def make_needle(environment: Environment, cwd: Path) -> Path | None:
    """A needle set of one video of a minute, with two questions of each kind."""
    needle = cwd / "needle"
    made = environment.run(
        "apr needle make",
        environment.folder / "bin" / "apr",
        *("needle", "make", "--buckets", "1m", "--videos", "1"),
        "--out",
        needle,
        cwd=cwd,
    )
    return needle if made is not None else None


def main() -> None:
    """Make and try every environment, then print what moved and what broke."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--pythons", default=PYTHONS, help=f"Pythons for the base package, comma-separated (default {PYTHONS})"
    )
    parser.add_argument("--no-full", action="store_true", help="leave out the environment with lmms-eval and the tests")
    asked = parser.parse_args()
    wanted = [(version, "", False) for version in asked.pythons.split(",") if version]
    wanted += [] if asked.no_full else [(f"{sys.version_info.major}.{sys.version_info.minor}", "lmms,report,dev", True)]
    report, broke = [], False
    for version, extras, editable in wanted:
        with tempfile.TemporaryDirectory(prefix="apr-newest-") as folder:
            work = Path(folder) / "work"
            work.mkdir()
            environment = Environment(
                f"{extras or 'base'} on Python {version}", Path(folder) / "venv", extras, editable
            )
            interpreter = find_python(version)
            if interpreter is None:
                report.append(f"{environment.name}: not tried, there is no Python {version} here")
                continue
            if environment.make(interpreter, work):
                (try_full if extras else try_base)(environment, work)
                moved, held = (
                    ", ".join(found) or "nothing" for found in (environment.moved(), environment.held_back())
                )
                report.append(f"{environment.name}: moved: {moved}; held back: {held}")
            for step, well, seconds in environment.results:
                report.append(f"    {'ok   ' if well else 'BROKE'} {step} ({seconds:.0f} s)")
                broke |= not well
    print("\n" + "\n".join(report))
    print(
        "\nsomething broke: keep the constraints"
        if broke
        else "\nall is well: `make constraints` may move the constraints forward"
    )
    sys.exit(1 if broke else 0)


if __name__ == "__main__":
    main()
