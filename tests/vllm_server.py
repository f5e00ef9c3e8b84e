"""A real vLLM server on the CPU with a small random model, for tests (the fixture `vllm_server`) and benchmarks.

It runs in the environment that `scripts/vllm_cpu.py` makes. If that is absent, tests that need it are skipped with a
message. Every test module that uses the server says `pytestmark = pytest.mark.xdist_group("vllm")`, so that one worker
starts one server for all of them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_tiny

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "vllm_cpu.py"
MODEL = "tiny"
"""The server's name of its model."""
BLOCK = 128
"""Tokens in a block of its prefix cache, as vLLM's attention on the CPU requires."""
START_S = 900
"""Longest start, in seconds: it takes about 40 s of CPU time, and more on a busy machine."""


def vllm_python() -> Path:
    """The Python of the environment that has vLLM; the test is skipped if it is absent."""
    found = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        pytest.skip(found.stderr.strip())
    return Path(found.stdout.strip())


def vllm_environment() -> dict[str, str]:
    """Environment variables for vLLM on the CPU of a machine with other work."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("VLLM_", "OMP_"))}
    ours = {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # otherwise every engine on the machine binds itself to the same cores
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    return kept | ours


def looking(letters: int = 20) -> dict[str, Any]:
    """A grammar (vLLM's `structured_outputs`) for turns that look at 2 to 4 frames of the first 5 seconds.

    Args:
        letters: Length of the observation, which decides how long a turn is.
    """
    note = f'"observation": "[a-z ]{{{letters}}}", "think": "[a-z ]{{10}}", "confidence": 0\\.[1-9]'
    action = '"action": \\{"type": "get_frames", "start": [0-2]\\.0, "end": [3-5]\\.0, "num": [2-4]\\}'
    return {"structured_outputs": {"regex": f"\\{{{note}, {action}\\}}"}}


def choosing(*turns: str) -> dict[str, Any]:
    """A grammar that lets a model choose among whole turns."""
    return {"structured_outputs": {"choice": list(turns)}}


@dataclass
class VllmServer:
    """A running server."""

    base_url: str
    """The address for `base_url=`; it ends with `/v1`."""
    process: subprocess.Popen[bytes]
    log: Path

    def metrics(self) -> dict[str, float]:
        """The server's own counters by name, summed over labels."""
        with urllib.request.urlopen(self.base_url.removesuffix("/v1") + "/metrics", timeout=60) as reply:
            lines = reply.read().decode().splitlines()
        found: dict[str, float] = {}
        for line in lines:
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                found[name] = found.get(name, 0.0) + float(value)
        return found

    def kill(self) -> None:
        """End it at once, with its children, like a machine that loses power."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End it in order; then end its whole process group, in case a child is left."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.kill()


def free_port() -> int:
    """A free port of the loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def serve(
    python: Path, model: Path, log: Path, *more: str, wait: bool = True, variables: Mapping[str, str] | None = None
) -> Iterator[VllmServer]:
    """Start a server on the loopback, wait until it is healthy, and end it with its children afterwards.

    Args:
        python: Python of the environment that has vLLM.
        model: Folder of the checkpoint.
        log: File for its output.
        more: More options of `vllm serve`.
        wait: Whether to wait; otherwise call `wait_until_healthy`.
        variables: More environment variables.

    Raises:
        RuntimeError: it ended, or was not healthy in time; with the end of its log.
    """
    port = free_port()
    command = [
        str(python.with_name("vllm")),
        "serve",
        str(model),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--served-model-name",
        MODEL,
    ]
    command += ["--max-model-len", "8192", "--max-num-seqs", "16", "--dtype", "float32", "--enforce-eager"]
    command += ["--enable-prefix-caching", "--enable-prompt-tokens-details"]
    # On the CPU, the engine dies when the prompt of a seeded generation is split (0.32).
    command += ["--no-enable-chunked-prefill"]
    command += more
    environment = vllm_environment() | dict(variables or {})
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    server = VllmServer(f"http://127.0.0.1:{port}/v1", process, log)
    try:
        if wait:
            wait_until_healthy([server])
        yield server
    finally:
        server.stop()


def wait_until_healthy(servers: Sequence[VllmServer], timeout_s: float = START_S) -> None:
    """Wait for servers that start at the same time.

    Raises:
        RuntimeError: one ended, or was not healthy in time; with the end of its log.
    """
    end = time.monotonic() + timeout_s
    for server in servers:
        while not _healthy(server):
            if server.process.poll() is not None or time.monotonic() > end:
                told = "ended" if server.process.poll() is not None else f"was not healthy after {timeout_s:.0f} s"
                raise RuntimeError(
                    f"the vLLM server {told}; the end of its log:\n" + server.log.read_text(errors="replace")[-4000:]
                )
            time.sleep(0.25)


def _healthy(server: VllmServer) -> bool:
    try:
        with urllib.request.urlopen(server.base_url.removesuffix("/v1") + "/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Qwen2.5-VL."""
    return save_tiny("qwen2_5_vl", tmp_path_factory.mktemp("tiny") / "qwen2_5_vl")


@pytest.fixture(scope="session")
def vllm_server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """A server with a small random Qwen2.5-VL: up to 64 images a prompt, 8,192 tokens."""
    python = vllm_python()
    with serve(
        python,
        tiny_checkpoint,
        tmp_path_factory.mktemp("vllm") / "server.log",
        "--limit-mm-per-prompt",
        '{"image": 64, "video": 1}',
    ) as server:
        yield server
