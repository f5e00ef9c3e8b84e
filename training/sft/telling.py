"""What a staged run tells while it trains, and what it spent: a line now and then, a file in each stage's folder."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PrinterCallback, TrainerCallback

from apr_plugin.training.sft.recipe import Recipe, StageSettings

SPENT = "spent.jsonl"
"""In the folder of a stage: what each stretch between two logs cost; the sums are those of all starts together."""

EVERY_S = 20.0
"""Seconds between two lines."""


class Telling(TrainerCallback):  # type: ignore[misc]
    """Tells where a stage is and how long the run may still take, and keeps what was spent.

    Args:
        console: Where it is told.
        stage: Its name.
        least: Steps before which it does not end.
        most: Steps at which it ends.
        later: Tokens of the stages after it, at least and at most.
    """

    def __init__(self, console: Console, stage: str, least: int, most: int, later: tuple[float, float]) -> None:
        self._console = console
        self._stage = stage
        self._least = least
        self._most = most
        self._later = later
        self._began: tuple[int, float] | None = None
        self._last = (time.monotonic(), time.process_time())
        self._tokens = 0.0
        self._told = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Time runs from here."""
        self._began = (state.global_step, time.monotonic())
        self._last = (time.monotonic(), time.process_time())
        self._told = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Keep what was spent; tell it if the last line is old enough."""
        if not logs or "loss" not in logs or not state.is_world_process_zero or self._began is None:
            return
        now = (time.monotonic(), time.process_time())
        # TRL counts from each start anew.
        whole = float(logs.get("num_tokens", self._tokens))
        line = {
            "step": state.global_step,
            "tokens": round(whole - self._tokens),
            "seconds": round(now[0] - self._last[0], 2),
            "cpu_seconds": round(now[1] - self._last[1], 2),
            "loss": logs["loss"],
        }
        self._tokens, self._last = whole, now
        with (Path(args.output_dir) / SPENT).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if now[0] - self._told >= EVERY_S:
            self._told = now[0]
            self._console.print(self._line(state.global_step, float(logs["loss"]), now[0]), soft_wrap=True)

    def _line(self, step: int, loss: float, now: float) -> str:
        assert self._began is not None
        first, began = self._began
        steps, seconds = max(1, step - first), now - began
        per_step, per_s = self._tokens / steps, max(1.0, self._tokens / seconds)
        low, high = (
            (max(0, end - step) * per_step + later) / per_s / 60
            for end, later in zip((self._least, self._most), self._later, strict=True)
        )
        return (
            f"{self._stage}: step {step:,} of {self._least:,} to {self._most:,}, loss {loss:.3f}, {per_s:,.0f} tokens "
            f"a second; {low:,.0f} to {high:,.0f} minutes for everything that is left"
        )


def teller(recipe: Recipe, console: Console) -> Any:
    """Gives each trainer of a staged run its `Telling` (`staging.Watch`).

    Args:
        recipe: Of the run; lengths that are in tokens are in the estimate of time.
        console: Where it is told.
    """

    def watch(trainer: Any, stage: StageSettings, least: int, most: int) -> None:
        place = recipe.stages.index(stage)
        low = sum(float(later.length.tokens or 0) for later in recipe.stages[place + 1 :])
        high = sum(
            float((later.gate.at_most if later.gate else later.length).tokens or 0)
            for later in recipe.stages[place + 1 :]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Telling(console, stage.name, least, most, (low, high)))

    return watch


def spent(folder: Path) -> dict[str, float]:
    """What a stage cost over all of its starts: `tokens`, `seconds`, `cpu_seconds` of its first process."""
    file = folder / SPENT
    sums = {"tokens": 0.0, "seconds": 0.0, "cpu_seconds": 0.0}
    if not file.exists():
        return sums
    for text in file.read_text("utf-8").splitlines():
        try:
            line = json.loads(text)
            for name in sums:
                sums[name] += float(line[name])
        except (ValueError, KeyError, TypeError):
            continue  # cut off by a kill
    return sums
