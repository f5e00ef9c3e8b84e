"""Commands in the process of `vlmeval_warm`, and what came of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    text: str


class Warm:
    """The process that has VLMEvalKit loaded.

    Args:
        folder: Where it keeps its files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._orders = 0
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("APR_", "LMMS_EVAL_"))}
        (folder / "lmu").mkdir()
        self.environment = kept | {
            "LMUData": str(folder / "lmu"),
            "HF_HOME": str(folder / "hub"),
            "HF_HUB_OFFLINE": "1",
            "APR_HOME": str(folder / "home"),
            "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        self._log = (folder / "warm.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("vlmeval_warm.py")), str(folder)],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )

    def run(
        self,
        *commands: Sequence[str | Path],
        setup: Path | None = None,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 500,
    ) -> list[Ended]:
        """Run commands one after the other in one new process, and wait for them."""
        self._orders += 1
        folder = self.folder / f"order{self._orders}"
        folder.mkdir()
        words = [[str(word) for word in command] for command in commands]
        order = {"commands": words, "folder": str(folder), "environment": dict(environment or {})}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order | {"setup": str(setup) if setup else ""}) + "\n")
        self._process.stdin.flush()
        self._wait_for(folder / "ended", timeout_s)
        told = {path.name: path.read_text(errors="replace") for path in folder.glob("*.*")}
        assert (folder / "ended").read_text() == "0", told or (self.folder / "warm.log").read_text()
        return [Ended(int(told[f"{n}.status"]), told[f"{n}.out"]) for n in range(len(commands))]

    @cached_property
    def loaded(self) -> dict[str, Any]:
        """What the import changed."""
        self._wait_for(self.folder / "loaded.json", 500)
        found: dict[str, Any] = json.loads((self.folder / "loaded.json").read_text())
        return found

    def _wait_for(self, path: Path, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while not path.exists():
            assert self._process.poll() is None and time.monotonic() < end, (self.folder / "warm.log").read_text()
            time.sleep(0.05)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._log.close()
