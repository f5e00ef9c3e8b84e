"""`ServedRollouts`: whole episodes whose turns are sampled by external vLLM servers."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from apr_plugin import config as environment
from apr_plugin.errors import require
from apr_plugin.loop.policy import Prompt
from apr_plugin.loop.question import Question
from apr_plugin.runs.config import ConfigPerQuestion
from apr_plugin.training.grpo.recipe import SamplingSettings
from apr_plugin.training.grpo.rollouts import Investigation, Rollouts, TrainedPolicy
from apr_plugin.training.grpo.served.control import ServerControl, ServerFault
from apr_plugin.training.grpo.served.media import without_clip_sound
from apr_plugin.training.grpo.served.policy import ServedPolicy
from apr_plugin.training.grpo.served.settings import RolloutSettings
from apr_plugin.training.student import Student

FOLDER = "rollout-weights"
"""Where weights are written by default, in the folder of the run."""


class ServedRollouts(Rollouts):
    """Samples episodes from servers that get the weights of each step.

    Args:
        student: Reads prompts; the servers must read them as the same tokens.
        config: Budget, wire, sampling, seed.
        sampling: How many episodes at once.
        settings: The servers.
        out: Folder of the run.
        rank: This process; it uses server `rank` mod their number.
        quiet: Whether no progress is shown.

    Raises:
        ServerFault: this process's server can't be used.
        MissingExtra: openai is not installed.
    """

    foreign = True

    def __init__(
        self,
        student: Student,
        config: ConfigPerQuestion,
        sampling: SamplingSettings,
        settings: RolloutSettings,
        out: Path,
        *,
        rank: int = 0,
        quiet: bool = False,
    ) -> None:
        super().__init__(student, config, sampling, quiet=quiet)
        require("openai", "openai")
        self.settings = settings
        self.folder = Path(settings.weights_dir or out / FOLDER).expanduser().absolute()
        self._key = environment.api_key(settings.api_key_env)
        self.controls = [ServerControl(url, self._key, reload_s=settings.reload_s) for url in settings.servers]
        self.own = self.controls[rank % len(self.controls)]
        """The server that this process asks for turns."""
        self._model = self.own.look(settings.model, student.context_tokens)
        self._run = uuid.uuid4().hex[:12]
        """Names this start of training: no other one has given a server the same version."""
        self._loaded: Path | None = None

    def version_of(self, weights: str) -> str:
        """The servers' name of the weights of a step, as this process calls it."""
        return f"{self._run} {weights}"

    def next_folder(self, weights: str) -> Path:
        """Where the weights of a step are written."""
        return self.folder / weights.replace(" ", "-")

    def load(self, folder: Path, version: str) -> None:
        """Load weights into all servers at the same time; then the folder of those before is removed.

        Raises:
            ServerFault: a server could not load them; the message names all such servers.
        """

        def load(control: ServerControl) -> ServerFault | None:
            try:
                control.load(str(folder), version)
            except ServerFault as fault:
                return fault
            return None

        from tqdm import tqdm

        with ThreadPoolExecutor(len(self.controls)) as pool:
            waiting = tqdm(
                pool.map(load, self.controls),
                desc="weights to servers",
                total=len(self.controls),
                leave=False,
                disable=self.quiet,
            )
            faults = [fault for fault in waiting if fault is not None]
        if faults:
            raise ServerFault("; ".join(map(str, faults)))
        if self._loaded is not None and self._loaded != folder:
            shutil.rmtree(self._loaded, ignore_errors=True)
        self._loaded = folder

    def sample(self, model: Any, questions: Sequence[Question], weights: str) -> list[Investigation]:
        """Answer questions with what the server has loaded; `model` is not used. See `Rollouts.sample`."""
        return super().sample(None, questions, weights)

    @property
    def prompts(self) -> tuple[int, list[str]]:
        """How many prompts the server has read in the latest rollout, and which of them as other tokens."""
        policy = self.policy
        return (policy.prompts, policy.mismatches) if isinstance(policy, ServedPolicy) else (0, [])

    def _seen(self, prompt: Prompt) -> Prompt:
        return without_clip_sound(prompt)

    def _around(self, model: Any) -> TrainedPolicy:
        return ServedPolicy(
            self.student,
            f"{self.own.address}/v1",
            self._model,
            key=self._key,
            concurrency=self.sampling.concurrency,
            timeout_s=self.settings.timeout_s,
            retries=self.settings.retries,
        )
