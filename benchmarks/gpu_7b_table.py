"""What `benchmarks.gpu_7b` reports: the machine, and its figures by arm."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import av


def machine(device: str) -> dict[str, Any]:
    """What it ran on."""
    import torch
    import transformers

    about: dict[str, Any] = {"card": None, "driver": None, "cuda": torch.version.cuda}
    if device == "cuda":
        shown = torch.cuda.get_device_properties(0)
        about |= {"card": shown.name, "card_gib": round(shown.total_memory / 2**30, 1), "driver": _driver()}
    return about | {
        "cpus": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "av": av.__version__,
    }


def told(about: dict[str, Any]) -> str:
    """The same in one line."""
    card = f"{about['card']}, {about['card_gib']} GiB, driver {about['driver']}" if about["card"] else "CPU"
    return (
        f"{card}, {about['cpus']} processors, torch {about['torch']}, transformers {about['transformers']}, "
        f"PyAV {about['av']}"
    )


def _driver() -> str | None:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return None


def summary(episodes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Least and median of the seconds, medians of everything else."""
    counted = {key: [each[key] for each in episodes] for key in episodes[0] if key != "note"}
    middle = {key: None if None in values else statistics.median(values) for key, values in counted.items()}
    return {"episodes": len(episodes), "wall_s_min": min(counted["wall_s"])} | middle


def table(arms: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A row for each arm, and how the agent compares with each of the others."""
    yield (
        "| arm | episodes | wall s, least | wall s | model s | of it preparing, reading, writing | media s | frames "
        "| visual tokens | prompt tokens computed | from the kept cache | longest prompt | written | peak GPU GiB |"
    )
    yield "|" + "---|" * 14
    for arm, row in arms.items():
        parts = ", ".join(f"{row[key]:.2f}" for key in ("preparing_s", "reading_s", "writing_s"))
        peak = "" if row["peak_gpu_gb"] is None else f"{row['peak_gpu_gb']:.1f}"
        yield (
            f"| {arm} | {row['episodes']} | {row['wall_s_min']:.2f} | {row['wall_s']:.2f} | {row['model_s']:.2f} "
            f"| {parts} | {row['media_s']:.2f} | {row['frames']:,.0f} | {row['visual_tokens']:,.0f} "
            f"| {row['computed_tokens']:,.0f} | {row['reused_tokens']:,.0f} | {row['longest_prompt']:,.0f} "
            f"| {row['written_tokens']:,.0f} | {peak} |"
        )
    for arm, ratio in ratios(arms).items():
        told = ", ".join(f"{key.removesuffix('_s').replace('_', ' ')} {value:.2f}" for key, value in ratio.items())
        yield f"agent / {arm}: {told}"


def ratios(arms: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The agent's medians by those of every other arm."""
    compared = ("wall_s", "model_s", "media_s", "visual_tokens", "computed_tokens")
    return {
        arm: {key: arms["agent"][key] / row[key] for key in compared if row[key]}
        for arm, row in arms.items()
        if arm != "agent" and "agent" in arms
    }
