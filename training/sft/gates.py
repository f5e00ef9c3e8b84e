"""The gate at the end of a stage: what is measured, how often, and when it is enough."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from apr_plugin.errors import AprError
from apr_plugin.training.named import named
from apr_plugin.training.recipe_file import RecipeError
from apr_plugin.training.sft.recipe import GateSettings
from apr_plugin.training.student import Student

MEASURED = "measured.jsonl"
"""In the folder of a stage: a line for each measurement."""

Measure = Callable[[Any], Mapping[str, float]]
"""Numbers of a model, by name. A recipe names a factory of it, which gets `student` and the arguments of the recipe."""


class GateMissed(AprError):
    """A stage was as long as it may be, and did not reach its gate."""


class Gate(TrainerCallback):  # type: ignore[misc]
    """Measures while a stage is trained, and ends it when everything is reached.

    Args:
        stage: Its name.
        settings: What is to be reached.
        student: For the measure.
        least: Steps before which the stage does not end.
        most: Steps at which it is given up.
        folder: Of the stage.
        advice: What to do if it is not reached.

    Raises:
        AprError: there is no such measure, or it refuses its arguments.
    """

    def __init__(
        self,
        stage: str,
        settings: GateSettings,
        student: Student,
        least: int,
        most: int,
        folder: Path,
        advice: str = "Change the stage, and train in another folder",
    ) -> None:
        try:
            self._measure: Measure = named("measures", settings.measure)(student=student, **settings.given)
        except TypeError as error:
            raise RecipeError(f"stage {stage}: measure {settings.measure}: {error}") from error
        self._stage = stage
        self._settings = settings
        self._least = least
        self._most = most
        self._folder = folder
        self._advice = advice

    @property
    def reached_at(self) -> int | None:
        """The step of the measurement that reached everything."""
        return next((line["step"] for line in reversed(self.lines()) if line["reached"]), None)

    def lines(self) -> list[dict[str, Any]]:
        """All measurements so far, the last one of each step."""
        file = self._folder / MEASURED
        if not file.exists():
            return []
        found: dict[int, dict[str, Any]] = {}
        for text in file.read_text("utf-8").splitlines():
            try:
                line = json.loads(text)
                found[int(line["step"])] = line
            except (ValueError, KeyError, TypeError):
                continue  # cut off by a kill
        return [found[step] for step in sorted(found)]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Measure at every so many steps, and at the last."""
        step = state.global_step
        if step % self._settings.every and step != self._most:
            return
        numbers = self._numbers(model)
        reached = step >= self._least and self._reached(numbers)
        if state.is_world_process_zero:
            with (self._folder / MEASURED).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "reached": reached} | numbers) + "\n")
        if reached:
            control.should_training_stop = True
            control.should_save = True

    def require(self) -> None:
        """Check that the stage may end.

        Raises:
            GateMissed: it did not reach everything.
        """
        lines = self.lines()
        if lines and self.reached_at is not None:
            return
        last = lines[-1] if lines else {}
        missing = ", ".join(
            f"{name} is {last[name]:.4g}, not {least:g}" if name in last else f"{name} was never measured"
            for name, least in self._settings.reach.items()
            if not last.get(name, float("-inf")) >= least
        )
        raise GateMissed(
            f"stage {self._stage}: after {self._most:,} steps the gate {self._settings.measure} is not reached: "
            f"{missing}. The last checkpoint is in {self._folder}; its measurements are in {MEASURED}. "
            f"{self._advice}"
        )

    def _numbers(self, model: Any) -> dict[str, float]:
        import torch

        trained = model.training
        model.eval()
        try:
            with torch.random.fork_rng(), torch.no_grad():
                numbers = {name: float(value) for name, value in self._measure(model).items()}
        finally:
            model.train(trained)
        if unknown := set(self._settings.reach) - set(numbers):
            raise RecipeError(
                f"stage {self._stage}: measure {self._settings.measure} gives {', '.join(sorted(numbers))}, and not "
                f"{', '.join(sorted(unknown))}"
            )
        return numbers

    def _reached(self, numbers: Mapping[str, float]) -> bool:
        return all(numbers[name] >= least for name, least in self._settings.reach.items())
