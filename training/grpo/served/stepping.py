"""What a training step does when servers sample: weights to the servers, a rollout, and the trainer's own numbers.

Every function is called by all processes together. A fault of one process stops all of them, with the same message,
after the checkpoint of the present step was saved.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from apr_plugin.errors import AprError
from apr_plugin.training.grpo.rollouts import Investigation
from apr_plugin.training.grpo.rows import Judged, TurnRow, padding_row, together
from apr_plugin.training.grpo.served.control import ServerFault
from apr_plugin.training.grpo.served.rollouts import ServedRollouts
from apr_plugin.training.grpo.served.weights import check_names_of, merged, save_weights

if TYPE_CHECKING:
    from apr_plugin.training.grpo.trainer import InvestigationTrainer


class ServedSteps:
    """What a trainer has for steps with servers; to be inherited before a trainer of TRL."""

    state: Any
    args: Any
    model: Any
    _show: Any
    _save_checkpoint: Any
    keep_stopped: Any
    _seconds: dict[str, float]

    def training_step(self, *given: Any, **more: Any) -> Any:
        """A step, with the share of its time that each part took, where servers sample."""
        self._seconds = {}
        began = time.monotonic()
        loss = super().training_step(*given, **more)  # type: ignore[misc]
        whole = time.monotonic() - began
        for name, seconds in self._seconds.items():
            self._show({f"time/{name}": seconds, f"time/{name}_share": seconds / whole})
        return loss

    def note_seconds(self, name: str, seconds: float) -> None:
        """Remember how long a part of this step took."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def keep_step(self) -> str:
        """Save the checkpoint of the present step, and its trajectories if there are any; says where they are.

        All processes call it.
        """
        step, folder = self.state.global_step, self.keep_stopped()
        checkpoint = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        if step and not (checkpoint / TRAINER_STATE_NAME).is_file():
            self._save_checkpoint(self.model, trial=None)
        saved = (
            f"Step {step} is saved in {checkpoint}, and the same command continues from it"
            if step
            else "Nothing was trained yet; the same command begins again"
        )
        return saved + (f". The trajectories of the rollout are in {folder}" if folder is not None else "")


def sample_served(trainer: InvestigationTrainer, questions: Sequence[Any], step: int) -> list[Investigation]:
    """Give the servers the present weights and sample from them.

    Raises:
        ServerFault: a server could not load them, has others before or after the rollout, or reads prompts as other
            tokens than the student.
    """
    rollouts = trainer.rollouts
    assert isinstance(rollouts, ServedRollouts)
    weights = f"step {step}"
    began = time.monotonic()
    version = _load(trainer, rollouts, weights)
    loaded = time.monotonic()
    _together(trainer, lambda: rollouts.own.confirm(version), "before the rollout")
    done = rollouts.sample(None, questions, weights)
    trainer.note_seconds("weights", loaded - began)
    trainer.note_seconds("rollout", time.monotonic() - loaded)

    def check() -> None:
        rollouts.own.confirm(version)
        read, wrong = rollouts.prompts
        if wrong:
            raise ServerFault(f"{len(wrong)} of {read} prompts: {wrong[0]}")

    trainer.note_rollout(done)  # for a fault
    _together(trainer, check, "after the rollout, of which nothing is trained")
    return done


def _load(trainer: InvestigationTrainer, rollouts: ServedRollouts, weights: str) -> str:
    """Save the weights in the first process and load them into all servers; gives their version."""
    state = trainer.accelerator.get_state_dict(trainer.model)  # whole, on the first process, also of a sharded model
    version = rollouts.version_of(weights)

    def load() -> None:
        if not trainer.is_world_process_zero():
            return
        folder = rollouts.next_folder(weights)
        model, own = trainer.accelerator.unwrap_model(trainer.model), state
        if trainer.recipe.learn.what == "lora":
            lora = trainer.recipe.learn.lora
            model, own = model.get_base_model(), merged(state, lora.alpha / lora.r)
        save_weights(model, own, folder, processor=rollouts.student.encoder.processor, dtype=_dtype(trainer.args))
        check_names_of(folder, trainer.recipe.student.pretrained)
        rollouts.load(folder, version)

    _together(trainer, load, "loading the weights")
    return str(_of_all(trainer, version)[0])


def _dtype(args: Any) -> Any:
    """The type in which the trainer computes; `None` if it is that of its weights."""
    import torch

    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None


def score(
    trainer: InvestigationTrainer, investigations: list[Investigation], judged: Judged, first: int
) -> tuple[list[Investigation], Judged]:
    """Log-probabilities and entropies of the sampled turns by the trainer's own model, over the whole vocabulary.

    Only turns of trajectories that are learned from are scored. It is one more forward of each row, without gradients.

    Args:
        trainer: The trainer, with the weights that the servers sampled with.
        investigations: Those of this process.
        judged: Of all processes.
        first: The number, over all processes, of this process's first trajectory.

    Returns:
        The same with entropies, and with the trainer's log-probabilities as `SampledTurn.old`.
    """
    import torch

    began = time.monotonic()
    places: dict[int, tuple[int, int]] = {}
    rows: list[TurnRow] = []
    for at, one in enumerate(investigations):
        for number, turn in sorted(one.turns.items()) if judged.kept[first + at] else ():
            said = turn.generation
            where = f"{judged.records[first + at].question}, trajectory {first + at}, turn {number}"
            row = TurnRow(
                turn.prompt, said.prompt_token_ids or (), said.token_ids or (), said.logprobs or (), where=where
            )
            places[id(row)] = (at, number)
            rows.append(row)
    packs = together(rows, trainer.recipe.forward.token_budget)
    padding = padding_row(trainer.rollouts.student.end)
    packs += [(padding,)] * (max(_of_all(trainer, len(packs))) - len(packs))
    changed = [dict(one.turns) for one in investigations]
    for pack in packs:
        with torch.no_grad():
            logprobs, entropies = trainer.scores(pack)
        for number, row in enumerate(pack):
            if id(row) not in places:
                continue
            (at, turn_number), n = places[id(row)], len(row.target)
            turn = changed[at][turn_number]
            told = tuple(float(value) for value in entropies[number, :n].cpu())
            generation = replace(turn.generation, entropies=told, entropy_top_k=None)
            changed[at][turn_number] = replace(turn, generation=generation, old=logprobs[number, :n].float().cpu())
    done = [replace(one, turns=turns) for one, turns in zip(investigations, changed, strict=True)]
    trainer.note_seconds("extra_pass", time.monotonic() - began)
    return done, _with_entropies(trainer, done, judged)


def _with_entropies(trainer: InvestigationTrainer, own: list[Investigation], judged: Judged) -> Judged:
    """The records with the mean entropy of each turn, which servers did not give."""
    means = [
        tuple(
            sum(values) / len(values) if (values := turn.generation.entropies) else float("nan")
            for _, turn in sorted(one.turns.items())
        )
        for one in own
    ]
    every = [mean for part in _of_all(trainer, means) for mean in part]
    records = tuple(replace(record, entropies=mean) for record, mean in zip(judged.records, every, strict=True))
    return replace(judged, records=records)


def _together(trainer: InvestigationTrainer, work: Any, when: str) -> None:
    """Do something in every process; if it failed in one, save the step and stop in all."""
    said = None
    try:
        work()
    except AprError as error:
        said = str(error)
    faults = [fault for fault in _of_all(trainer, said) if fault is not None]
    if faults:
        raise ServerFault(
            f"step {trainer.state.global_step}, {when}: {'; '.join(dict.fromkeys(faults))}. {trainer.keep_step()}"
        )


def _of_all(trainer: InvestigationTrainer, own: Any) -> list[Any]:
    """What every process has, in the order of their ranks."""
    if trainer.accelerator.num_processes == 1:
        return [own]
    import torch

    parts: list[Any] = [None] * trainer.accelerator.num_processes
    torch.distributed.all_gather_object(parts, own)
    return parts
