"""The small agent for tests: the one that this package ships, or a made one of the same shape with random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from apr_plugin.models import bundled


@dataclass(frozen=True)
class SmallAgent:
    """Where the agent of a test is, and whether it can play."""

    folder: Path
    trained: bool
    """Whether it is the shipped one; otherwise it writes nonsense."""

    @property
    def model_args(self) -> str:
        """How a command of another process names it."""
        return bundled.MODEL_ARGS if self.trained else f"policy=hf,pretrained={self.folder}"


def made_run(folder: Path) -> Path:
    """A run of `apr train recipe` as it would be on disk, with random weights and records that say so."""
    from apr_plugin.training.tiny.prompts import PROFILE
    from apr_plugin.training.tiny.start import make_start

    made = make_start(folder / "final")
    # What random weights write never ends by itself.
    short = PROFILE.model_copy(update={"sampling": PROFILE.sampling.model_copy(update={"max_new_tokens": 24})})
    short.write(made)
    for name in ("01-captions", "02-agents"):
        shutil.copytree(made, folder / "stages" / name / "final")
    size = {"hidden": 128, "layers": 4}
    (folder / "run.json").write_text(json.dumps({"start": {"seed": 0, "size": size}, "shrink": 1.0}))
    stages = [
        {"name": "captions", "sources": {"needle_captions": 1.0}, "steps": 3},
        {"name": "agents", "sources": {"needle_agents": 0.75, "needle_captions": 0.25}, "steps": 4},
    ]
    gates = [
        {"measure": "needle_captions", "reach": {"colour": 0.99}},
        {"measure": "needle_agent", "reach": {"answered": 0.95}},
    ]
    measured = [
        [{"step": 2, "reached": False, "colour": 0.5}, {"step": 3, "reached": True, "colour": 0.9925}],
        [{"step": 4, "reached": True, "answered": 0.96875, "turns": 3.25}],
    ]
    for number, (one, lines) in enumerate(zip(stages, measured, strict=True), 1):
        place = folder / "stages" / f"{number:02}-{one['name']}"
        one["measured"] = lines
        costs = [{"step": 1, "tokens": 1200 * number, "seconds": 3.0, "cpu_seconds": 2.5, "loss": 1.0}] * 2
        (place / "spent.jsonl").write_text("".join(json.dumps(cost) + "\n" for cost in costs))
        _record(place / "final", stages[:number], gates)
    _record(folder / "final", stages, gates)
    return folder


def _record(folder: Path, stages: list[dict[str, object]], gates: list[dict[str, object]]) -> None:
    told = {
        "student": {"pretrained": "/home/somebody/start", "family": "Qwen2.5-Omni"},
        "stages": stages,
        "recipe": {
            "stages": [{"name": n, "gate": gate} for n, gate in zip(("captions", "agents"), gates, strict=True)]
        },
        "parameters": {"all": 2_254_208, "trained": 2_254_208},
        "processes": 1,
        "versions": {"torch": "2.15.0"},
        "machine": {"cpu": "a processor", "cores": 2, "memory_gib": 8.0, "gpus": []},
    }
    (folder / "training.json").write_text(json.dumps(told))


@contextmanager
def shipped(agent: SmallAgent) -> Iterator[None]:
    """While it lasts, the agent of this package is this one: the defaults take it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundled, "FOLDER", agent.folder)
        yield
