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
from apr_plugin.config import cache_dir, needle_dir

EXTRAS = {
    "lmms": ("lmms_eval", "lmms-eval", "apr eval, apr demo: evaluation inside lmms-eval"),
    "vlmeval": ("vlmeval", "ms-vlmeval", "evaluation inside VLMEvalKit"),
    "hf": ("transformers", "transformers", "models in this process, through transformers"),
    "vllm": ("vllm", "vllm", "models in this process, through vLLM"),
    "openai": ("openai", "openai", "models behind an OpenAI-compatible server"),
    "decord": ("decord", "decord", "tasks of lmms-eval that import decord (longvideobench)"),
    "train": ("trl", "trl", "training"),
    "report": ("pandas", "pandas", "tables and plots"),
}
"""For each extra: the module that shows whether it is there, the distribution that tells its version, and what it is for."""


def run_doctor() -> None:
    """Print the report."""
    console = Console()
    facts = Table(title=f"apr-plugin {__version__}", title_justify="left", show_header=False)
    facts.add_row("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    libraries = ", ".join(
        f"{name} {'.'.join(map(str, version))}" for name, version in av.library_versions.items() if name in ("libavcodec", "libavformat")
    )
    facts.add_row("FFmpeg", f"inside PyAV {av.__version__} ({libraries}); no ffmpeg program is needed{_program()}")
    facts.add_row("codecs", ", ".join(f"{name} {'yes' if _can(name, mode) else 'NO'}" for name, mode in _CODECS))
    with console.status("looking for a GPU …"):
        facts.add_row("GPU", _gpu())
    facts.add_row("cache", Text(f"{cache_dir()} ({_free(cache_dir())} free)"))
    folder = needle_dir()[0]
    facts.add_row("needle set", Text(str(folder) if (folder / "spec.json").exists() else f"not made yet; apr needle make puts it in {folder}"))
    console.print(facts)
    table = Table(title="extras", title_justify="left")
    for name in ("extra", "installed", "for", "to add it"):
        table.add_column(name, no_wrap=name != "for")  # a command broken over two lines can't be copied
    for extra, (module, distribution, purpose) in EXTRAS.items():
        here = importlib.util.find_spec(module) is not None
        table.add_row(extra, _version(distribution) if here else "no", purpose, "" if here else f"pip install 'apr-plugin\\[{extra}]'")
    console.print(table)
    works = ["apr ask, apr show, apr needle make"]
    if importlib.util.find_spec("lmms_eval") is not None:
        works.append("apr eval and apr demo")
    console.print("Will work here: " + ", ".join(works) + ".")


_CODECS: tuple[tuple[str, Literal["r", "w"]], ...] = (
    ("h264", "r"),
    ("hevc", "r"),
    ("vp9", "r"),
    ("av1", "r"),
    ("aac", "r"),
    ("opus", "r"),
    ("libx264", "w"),
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
