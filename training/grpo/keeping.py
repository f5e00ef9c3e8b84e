"""What a trainer does around its steps: it keeps trajectories, stops with a reason, gathers and logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from apr_plugin.errors import AprError
from apr_plugin.training.grpo.across import Across, OneProcess, TorchProcesses
from apr_plugin.training.grpo.recipe import GrpoRecipe
from apr_plugin.training.grpo.rollouts import Investigation, Rollouts
from apr_plugin.training.grpo.rows import Judged, Record
from apr_plugin.training.grpo.watching import keep_trajectories

SAMPLES = "samples"
"""Folder of the trajectories that are kept, in that of the run."""

STOPPED = "stopped"
"""Folder of the trajectories of a step at which training stopped."""


class WrongNumbers(AprError):
    """A step's numbers can't be trained on; nothing of it went into the weights."""


class Keeping:
    """To be inherited before a trainer of TRL that samples investigations."""

    accelerator: Any
    args: Any
    state: Any
    recipe: GrpoRecipe
    rollouts: Rollouts
    _metrics: Any
    _latest: tuple[list[Investigation], Judged | None, int] | None = None
    """The latest rollout, without its pictures: trajectories, rewards once they are known, number of the first one."""

    @property
    def across(self) -> Across:
        """The processes that train together."""
        return TorchProcesses(str(self.accelerator.device)) if self.accelerator.num_processes > 1 else OneProcess()

    def note_rollout(self, investigations: Sequence[Investigation], judged: Judged | None = None) -> None:
        """Remember the trajectories of this process for `keep_stopped`, without their pictures."""
        first = self.accelerator.process_index * len(investigations)
        self._latest = ([replace(done, turns={}) for done in investigations], judged, first)

    def _stop(self, why: str) -> None:
        """Keep the step's trajectories and raise `WrongNumbers`."""
        folder = self.keep_stopped()
        raise WrongNumbers(
            f"step {self.state.global_step}: {why}; training stopped before the weights changed. "
            + (f"The step's trajectories are in {folder}. " if folder else "")
            + f"The last checkpoint is in {self.args.output_dir}"
        )

    def keep_stopped(self) -> Path | None:
        """Write the trajectories of the present step of this process, and say where; `None` if there are none."""
        if self._latest is None:
            return None
        folder = Path(self.args.output_dir) / STOPPED / f"step-{self.state.global_step:06}"
        keep_trajectories(
            folder,
            self.rollouts.card(),
            *self._latest,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        return folder

    def _keep_samples(self, step: int) -> None:
        kept = self.recipe.samples
        if self._latest is None or not kept.trajectories or step % kept.every or not self.accelerator.is_main_process:
            return
        done, judged, first = self._latest
        folder = Path(self.args.output_dir) / SAMPLES / f"step-{step:06}"
        keep_trajectories(folder, self.rollouts.card(), done[: kept.trajectories], judged, first)

    def _everyones(self, own: list[Record]) -> list[Record]:
        """The records of all processes, in the order of their ranks."""
        if self.accelerator.num_processes == 1:
            return own
        parts: list[Any] = [None] * self.accelerator.num_processes
        torch.distributed.all_gather_object(parts, own)
        return [record for part in parts for record in part]

    def _show(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._metrics["train"][name].append(float(value))

    def _sum(self, count: int) -> int:
        return int(self.accelerator.gather(torch.tensor([count], device=self.accelerator.device)).sum())
