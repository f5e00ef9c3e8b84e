"""Rollouts: whole episodes, sampled from a model that is being trained, by the same code that evaluates it.

`run_episodes` asks `policy=hf` around the trainer's own model. Of each turn, the prompt with its pictures and sound and
the tokens that were written are kept until the step is over, so nothing is decoded again, and a row is what the policy
saw. Pictures are kept as bytes: patches in float32 are eight times larger.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from apr_plugin.errors import AprError
from apr_plugin.loop.card import Card
from apr_plugin.loop.policy import Generation, Policy, Prompt
from apr_plugin.loop.question import Question
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.models.checkpoint import Checkpoint
from apr_plugin.policies.hf import HfPolicy
from apr_plugin.runs.config import ConfigPerQuestion
from apr_plugin.runs.meter import Progress, run_sync
from apr_plugin.runs.runner import run_episodes
from apr_plugin.training.grpo.recipe import SamplingSettings
from apr_plugin.training.student import Student


@dataclass(frozen=True)
class SampledTurn:
    """A turn as it was sampled."""

    prompt: Prompt
    """What the policy saw, with its media."""
    generation: Generation
    """What it wrote: tokens, log-probabilities, entropies."""
    old: Any = None
    """Log-probabilities by the trainer's own model, a tensor of shape (tokens,), if another engine sampled the turn."""


@dataclass(frozen=True)
class Investigation:
    """An episode that was sampled for training."""

    trajectory: Trajectory
    """What happened."""
    turns: dict[int, SampledTurn]
    """Its turns by their number, from 1; a turn of which no token was written is left out."""


class TrainedPolicy(Policy, Protocol):
    """A policy whose weights change."""

    def weights_changed(self, weights: str | None = None) -> None:
        """Report that it has other weights now, with their name."""
        ...


class Rollouts:
    """Samples episodes from a model that somebody else owns and trains.

    Args:
        student: Reads its prompts.
        config: Budget, wire, sampling, seed.
        sampling: How many episodes at once, and memory for kept keys and values.
        quiet: Whether no progress is shown.
    """

    foreign = False
    """Whether another engine than the trainer's model samples, so that the trainer has to score what was sampled."""

    def __init__(
        self, student: Student, config: ConfigPerQuestion, sampling: SamplingSettings, *, quiet: bool = False
    ) -> None:
        self.student = student
        self.config = config
        self.sampling = sampling
        self.quiet = quiet
        self.policy: TrainedPolicy | None = None
        """The policy, made at the first rollout: a trainer may still replace or shard its model before."""

    def sample(self, model: Any, questions: Sequence[Question], weights: str) -> list[Investigation]:
        """Answer questions with the present weights.

        It also works where an event loop is running already, as in a notebook. A film that can't be read, or a policy
        that fails, ends one trajectory only.

        Args:
            model: The model, without the wrapper of data parallelism; the same one in each call.
            questions: The questions; each key occurs once.
            weights: Their name, which changes with each step: `step 12`. What was computed with others is dropped.

        Returns:
            In the order of the questions.
        """
        if self.policy is None:
            self.policy = self._around(model)
        self.policy.weights_changed(weights)
        turns: dict[str, dict[int, SampledTurn]] = {}

        def note(prompt: Prompt, generation: Generation) -> None:
            if prompt.asked is not None and generation.token_ids:
                turn = SampledTurn(self._seen(prompt), generation)
                turns.setdefault(prompt.asked.episode, {})[prompt.asked.turn] = turn

        with self._progress(len(questions)) as progress:
            done = run_sync(
                run_episodes(
                    questions,
                    self.policy,
                    self.config,
                    self.sampling.concurrency,
                    on_prompt=note,
                    on_done=None if progress is None else progress.done,
                )
            )
        return [
            Investigation(
                one,
                {number: turn for number, turn in turns.get(one.episode, {}).items() if number <= len(one.turns)},
            )
            for one in done
        ]

    def card(self) -> Card:
        """The card of the latest rollout.

        Raises:
            AprError: there was none.
        """
        if self.policy is None:
            raise AprError("nothing was sampled yet, so there is no card")
        return self.config.card(self.policy)

    def close(self) -> None:
        """Stop the policy's threads."""
        if self.policy is not None:
            self.policy.close()
            self.policy = None

    def _seen(self, prompt: Prompt) -> Prompt:
        """What the engine shows the model of a prompt."""
        return prompt

    def _around(self, model: Any) -> TrainedPolicy:
        return HfPolicy(
            Checkpoint.around(model, self.student.encoder.processor),
            batch_size=self.sampling.concurrency,
            kv_cache=self.sampling.kv_cache_gb > 0,
            kv_cache_gb=self.sampling.kv_cache_gb or 1.0,  # the policy takes no 0
            min_pixels=self.student.pixels.least,
            max_pixels=self.student.pixels.most,
            context_tokens=self.student.context_tokens,
        )

    @contextmanager
    def _progress(self, total: int) -> Iterator[Progress | None]:
        if self.quiet:
            yield None
            return
        from tqdm import tqdm

        progress = Progress(tqdm(total=total, desc="rollout", leave=False, dynamic_ncols=True))
        try:
            yield progress
        finally:
            progress.close()


@contextmanager
def whole_weights(model: Any) -> Iterator[None]:
    """Collect the weights of a model that FSDP2 shards, so that processes may run it a different number of times.

    Each process then holds all of them. Nothing happens to a model that is not sharded.
    """
    import torch

    if not torch.distributed.is_available():
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not parts:
        yield
        return
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            # The outermost part keeps its weights from forward to backward, as FSDP2 does by default.
            part.set_reshard_after_forward(part is not parts[0], recurse=False)
            part.reshard()
        torch.distributed.barrier()
