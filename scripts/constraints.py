#!/usr/bin/env python3
"""Writes the committed constraints: one release of every package, for Python 3.11 to 3.13 and every platform.

    make constraints        # python scripts/constraints.py, with uv from .venv
    .venv/bin/python scripts/constraints.py --keep [--move pillow …]   # after a new dependency: the least that changes

- `constraints.txt` has what the extras need that can be installed together (`all`, `dev`). `make` and CI install with
  it.
- `constraints-vllm.txt` has what `apr-plugin[lmms,vllm]` needs on Linux, and the build of vLLM for the CPU that the
  tests use. Both have the release in `scripts/vllm_cpu.py`, so that the tests run what a GPU machine gets.

Every package moves to its newest release that the bounds in pyproject.toml allow. Run `make newest` before, and `make
test` after. With `--keep`, the packages in constraints.txt stay at their releases, but for those after `--move`, and
constraints-vllm.txt is left alone.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from pathlib import Path

from vllm_cpu import TORCH, VERSION

REPOSITORY = Path(__file__).resolve().parents[1]
OLDEST_PYTHON = "3.11"
HEAD = "# Made by `make constraints` from pyproject.toml; don't edit. {what}\n"
LINUX = [
    f"sys_platform == 'linux' and platform_machine == '{machine}' and python_version < '3.14'"
    for machine in ("x86_64", "aarch64")
]


def uv() -> str:
    """The program that resolves the constraints.

    Raises:
        SystemExit: uv is not installed.
    """
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise SystemExit(
            "error: uv is not installed; call this as `make constraints`, or install it with: pip install uv"
        )
    return found


def resolve(source: Path, *options: str) -> str:
    """Resolve a project into names and versions only: no addresses, hashes or remarks."""
    command = [
        uv(),
        "pip",
        "compile",
        source.name,
        "--universal",
        "--python-version",
        OLDEST_PYTHON,
        "--quiet",
        "--no-header",
        "--no-annotate",
    ]
    # [tool.uv] is read from the folder.
    ended = subprocess.run([*command, *options], cwd=source.parent, stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode != 0:
        raise SystemExit(f"error: uv could not resolve {source} (status {ended.returncode}); its reasons are above")
    return ended.stdout


def resolve_vllm(project: dict[str, dict[str, object]]) -> str:
    """Resolve the environment of vLLM.

    It is a separate project, because only there can uv be given platforms and overrides.
    """
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *extras["lmms"],
        *extras["openai"],
        *extras["dev"],
        f"vllm=={VERSION}",
        f"vllm-cpu=={VERSION}",
    ]  # type: ignore[misc]
    torch = TORCH.partition("+")[0]  # 2.13.0 allows 2.13.0+cpu; the index for the CPU build is not needed to resolve
    lines = ["[project]", 'name = "vllm-environment"', 'version = "0"', f'requires-python = ">={OLDEST_PYTHON}"']
    lines += [f"dependencies = {json.dumps(wanted)}", "[tool.uv]", f"environments = {json.dumps(LINUX)}"]
    lines += [f"override-dependencies = {json.dumps([torch])}", ""]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "pyproject.toml"
        source.write_text("\n".join(lines), "utf-8")
        resolved = resolve(source)
    (everywhere, _), *_ = Counter(line.partition(" ;")[2] for line in resolved.splitlines()).most_common()
    return resolved.replace(f" ;{everywhere}\n", "\n")  # the file is only for these platforms


def resolve_all(moved: list[str] | None) -> str:
    """Resolve what lives together. With `moved`, only those packages may leave the releases of constraints.txt."""
    options = [option for extra in ("all", "fuzz", "dev") for option in ("--extra", extra)]
    if moved is None:
        return resolve(REPOSITORY / "pyproject.toml", *options)
    lines = (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines()
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "kept.txt"
        kept.write_text("\n".join(line for line in lines if line.partition("==")[0] not in moved), "utf-8")
        return resolve(REPOSITORY / "pyproject.toml", *options, "--constraint", str(kept))


def write(name: str, what: str, lines: str) -> None:
    """Write a constraints file."""
    (REPOSITORY / name).write_text(HEAD.format(what=what) + lines, "utf-8")
    print(f"{name}: {len(lines.splitlines())} packages")


def main() -> None:
    """Write both files."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", action="store_true", help="constraints.txt: leave the packages at their releases")
    parser.add_argument("--move", nargs="*", default=[], metavar="PACKAGE", help="with --keep: but for these")
    given = parser.parse_args()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    write("constraints.txt", "For every extra but vllm.", resolve_all(given.move if given.keep else None))
    if not given.keep:
        what = "For apr-plugin[lmms,vllm] on Linux, and for vLLM on the CPU."
        write("constraints-vllm.txt", what, resolve_vllm(project))


if __name__ == "__main__":
    main()
