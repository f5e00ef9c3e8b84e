"""TRL's GRPOTrainer on whole investigations: a trajectory is rewarded, and each of its turns is a row.

TRL generates one sequence a prompt and scores it as it stands. An investigation is several sequences: earlier media is
purged, so each turn has a prompt of its own. So the trainer samples episodes (`rollouts`), compares their rewards
within the question's group (`rows.judge`), gives each turn its share (`credit`), and makes a row of each turn. The loss
of a row is TRL's own (`_compute_loss`), with every one of its types.

An optimizer step is one call of `training_step`. Its rows go through the model one after the other (or in packs), each
with its own backward pass, and gradients are reduced over processes after the last one. So memory follows the longest
row. All processes do as many forwards; one that has fewer rows adds short rows that are not trained. The gradient is
the sum over all trained turns of all processes, divided as the type of loss says:

| loss type | divided by |
|---|---|
| `dapo`, `cispo`, `vespo`, `bnpo` | the number of trained tokens |
| `grpo`, `sapo`, `luspo` | the number of turns; `grpo` and `sapo` take the mean over the tokens of a turn |
| `dr_grpo` | the number of turns times the longest turn |
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from trl import GRPOTrainer

from apr_plugin.errors import AprError
from apr_plugin.training.grpo.forward import RowForward, padded
from apr_plugin.training.grpo.frozen import Frozen
from apr_plugin.training.grpo.gains import Wanted, asked_of, gains_of
from apr_plugin.training.grpo.keeping import Keeping
from apr_plugin.training.grpo.moving import RowExchange
from apr_plugin.training.grpo.recipe import GrpoRecipe
from apr_plugin.training.grpo.rollouts import Investigation, Rollouts, whole_weights
from apr_plugin.training.grpo.rows import (
    Judged,
    Part,
    Probabilities,
    Record,
    StepRows,
    TurnRow,
    judge,
    padding_row,
    record_of,
    rows_of,
    together,
    trained_tokens,
)
from apr_plugin.training.grpo.served.stepping import ServedSteps, sample_served, score
from apr_plugin.training.grpo.watching import rollout_metrics, row_metrics
from apr_plugin.training.sft.resuming import OwnNames
from apr_plugin.training.synthesis.questions import TrainingQuestion

BY_TOKENS = ("dapo", "cispo", "vespo")
"""Types of loss that TRL divides by `num_items_in_batch`."""


class InvestigationTrainer(ServedSteps, Keeping, OwnNames, GRPOTrainer):  # type: ignore[misc]
    """GRPO on whole investigations.

    Args:
        recipe: What is trained and how.
        questions: What is asked; an element of `train_dataset` has the number of one as `question`.
        rollouts: Samples episodes.
        forward: Scores rows.
        given: Arguments of `GRPOTrainer`.
    """

    def __init__(
        self,
        *,
        recipe: GrpoRecipe,
        questions: Sequence[TrainingQuestion],
        rollouts: Rollouts,
        forward: RowForward,
        **given: Any,
    ) -> None:
        super().__init__(reward_funcs=[reward_of_trajectory], **given)
        self.recipe = recipe
        self.questions = questions
        self.rollouts = rollouts
        self.forward = forward
        self._parts: tuple[Part, ...] = ()
        """The rows of the latest rollout, one part for each update."""
        self._rows: tuple[TurnRow, ...] = ()
        """The rows that go through the model now."""
        self._fresh = False
        """Whether the weights are still those that the rows were sampled with."""
        self.reference: Frozen | None = None
        """What `beta` keeps the student near to; `None` with adapters, without which the model is the reference."""
        self._exchange = RowExchange()
        self._gain_forwards = 0

    def _prepare_inputs(self, generation_batch: Any) -> Part:
        """The rows of this step; a rollout is made when those of the last one are used up."""
        step, parts = self.state.global_step, self.args.steps_per_generation
        self._fresh = not self._parts or step % (parts * self.num_iterations) == 0
        if self._fresh:
            self._parts = ()  # frees the pictures of the last rollout
            self._parts = self._generate_and_score_completions(generation_batch)
        part: Part = self._parts[step % parts]
        return part

    def _generate_and_score_completions(self, inputs: Any) -> tuple[Part, ...]:
        """Sample episodes, reward them, and make rows of their turns.

        Args:
            inputs: The elements of this process, `generations` in a row for each question.
        """
        step, recipe = self.state.global_step, self.recipe
        self._latest = None
        visit = step // (self.args.steps_per_generation * self.num_iterations)
        first = self.accelerator.process_index * len(inputs)
        asked = [self.questions[element["question"]] for element in inputs]
        groups = [(first + at) // recipe.generations for at in range(len(inputs))]
        repeats = [visit * recipe.generations + (first + at) % recipe.generations for at in range(len(inputs))]
        investigations = self._sample([one.attempt(repeat) for one, repeat in zip(asked, repeats, strict=True)], step)
        own = [
            record_of(done, one, group, recipe.reward)
            for done, one, group in zip(investigations, asked, groups, strict=True)
        ]
        records = self._everyones(own)
        judged = self._judged(records, step)
        self.note_rollout(investigations, judged)
        if self.rollouts.foreign:
            investigations, judged = score(self, investigations, judged, first)
        made = self._rows_of(investigations, asked, judged, first, step)
        parts = self._shared_out(self._balanced(made.rows), step)
        skipped = self._sum(made.skipped)
        self._show(rollout_metrics(judged) | row_metrics(made) | {"turns_without_tokens": skipped})
        forwards = sum(len(part.packs) for part in parts)
        self._show({"rows": sum(part.rows for part in parts), "forwards": forwards})
        if self._gain_forwards:  # forwards without a backward pass are a third of the work of the others
            self._show({"gain/share_of_forwards": self._gain_forwards / (self._gain_forwards + forwards)})
        self._keep_samples(step)
        return parts

    def _judged(self, records: Sequence[Record], step: int) -> Judged:
        """Which trajectories are learned from, and how much."""
        recipe = self.recipe
        wanted = recipe.questions_per_step if recipe.groups.oversample > 1 else None
        return judge(records, recipe.reward, recipe.groups, wanted=wanted, step=step)

    def _rows_of(
        self,
        investigations: Sequence[Investigation],
        asked: Sequence[TrainingQuestion],
        judged: Judged,
        first: int,
        step: int,
    ) -> StepRows:
        """The rows of the trajectories of this process that are learned from."""
        rule, gains = self.recipe.credit, None
        decode = self.rollouts.student.text if rule.rule == "taura_action" else None
        if rule.rule == "information_gain":
            kept = [
                (at, done, of.truth, f"{judged.records[at].question}, trajectory {at}")
                for at, (done, of) in enumerate(zip(investigations, asked, strict=True), first)
                if judged.kept[at]
            ]
            gains = self._gains(asked_of(kept, self.rollouts.student))
        return rows_of(investigations, judged, first, rule, self.across, step=step, decode=decode, probability=gains)

    def _gains(self, wanted: Wanted) -> Probabilities:
        """p(right answer) before and after each turn, under the weights that sampled; logs what it costs."""
        began, rows = time.monotonic(), [row for one in wanted.values() for row in one.rows]
        packs = self._as_many(together(rows, self.recipe.forward.token_budget))
        found: dict[int, Any] = {}
        for pack in packs:
            with torch.no_grad():
                scored, _ = self.scores(pack, compare=False)
            found |= {id(row): values.float().cpu().numpy() for row, values in zip(pack, scored, strict=True)}
        gains = gains_of(wanted, lambda row: found[id(row)])
        told = [after - before for before, after in gains.values() if not math.isnan(after)]
        total, looks, every = self.across.add(np.array([sum(told), len(told), len(rows)], dtype=float)).tolist()
        self._gain_forwards = len(packs)
        self._show({"gain/mean": total / max(1.0, looks), "gain/rows": every})
        self._show({"gain/forwards": len(packs), "gain/seconds": time.monotonic() - began})
        return gains

    def _balanced(self, rows: Sequence[TurnRow]) -> Sequence[TurnRow]:
        """The rows of this process, after all were shared out by their tokens."""
        processes = self.accelerator.num_processes
        if processes == 1 or not self.recipe.forward.rebalance:
            return rows
        found, told = self._exchange.balanced(
            rows,
            self.across,
            self.accelerator.process_index,
            processes,
            even_rows=self.is_fsdp_enabled or self.is_deepspeed_enabled,
        )
        self._show({f"balance/{name}": value for name, value in told.items()})
        return found

    def _trained_tokens(self, rows: Sequence[TurnRow]) -> int:
        """How many tokens of these rows are learned."""
        return trained_tokens(rows)

    def _sample(self, questions: Sequence[Any], step: int) -> list[Investigation]:
        if self.rollouts.foreign:
            return sample_served(self, questions, step)
        model = self.accelerator.unwrap_model(self.model)
        with contextlib.ExitStack() as held:
            if self.is_deepspeed_enabled:
                from trl.models.utils import unwrap_model_for_generation

                model = held.enter_context(unwrap_model_for_generation(self.model_wrapped, self.accelerator))
            held.enter_context(whole_weights(self.model))
            return self.rollouts.sample(model, questions, f"step {step}")

    def _shared_out(self, rows: Sequence[TurnRow], step: int) -> tuple[Part, ...]:
        """The rows of each update, as packs; each process gets as many packs."""
        many = self.args.steps_per_generation
        mixed = list(rows)
        if many > 1:  # the turns of a trajectory shall not all be in one update
            random.Random(f"{self.recipe.seed}:{step}:{self.accelerator.process_index}").shuffle(mixed)
        budget = self.recipe.forward.token_budget
        shares = [mixed[number::many] for number in range(many)]
        packs = [together(share, budget) for share in shares]
        packs = [self._as_many(of) for of in packs]
        if many * self.num_iterations > 1 and not self.rollouts.foreign:
            packs = [[self._with_old(pack) for pack in of] for of in packs]
        if self.beta:
            packs = [[self._with_reference(pack) for pack in of] for of in packs]
        return tuple(
            Part(tuple(of), self._sum(len(share)), self._sum(self._trained_tokens(share)))
            for of, share in zip(packs, shares, strict=True)
        )

    def _as_many(self, packs: Sequence[tuple[TurnRow, ...]]) -> list[tuple[TurnRow, ...]]:
        """These packs, and packs of padding, so that every process has as many, and at least one."""
        count = torch.tensor([len(packs)], device=self.accelerator.device)
        most = max(1, int(self.accelerator.gather(count).max()))
        return [*packs, *[(padding_row(self.rollouts.student.end),)] * (most - len(packs))]

    def _with_old(self, rows: tuple[TurnRow, ...]) -> tuple[TurnRow, ...]:
        """The rows with their log-probabilities under the present weights, from the same forward as in training."""
        with torch.no_grad():
            scored, _ = self.scores(rows)
        return tuple(
            replace(row, old=values[: len(row.target)].cpu()) for row, values in zip(rows, scored, strict=True)
        )

    def scores(self, rows: tuple[TurnRow, ...], *, compare: bool = True) -> tuple[Any, Any]:
        """Log-probabilities and entropies of some rows, of shape (rows, longest target), from the forward of training.

        All processes call it as often.

        Args:
            rows: They go through the model together.
            compare: Whether they are compared with those of sampling, if the weights are still the same.
        """
        self._rows, fresh = rows, self._fresh
        self._fresh = fresh and compare
        try:
            return self._get_per_token_logps_and_entropies(self.model_wrapped, None, None, 0, compute_entropy=True)[:2]
        finally:
            self._rows, self._fresh = (), fresh

    def _with_reference(self, rows: tuple[TurnRow, ...]) -> tuple[TurnRow, ...]:
        """The rows with their log-probabilities under the reference: the student as it was, or without its adapters."""
        if self.reference is not None:
            scored = self.reference.scored(rows).logprobs
        else:
            from trl.trainer.utils import use_adapter

            with torch.no_grad(), use_adapter(self.accelerator.unwrap_model(self.model), None):
                scored, _ = self.scores(rows, compare=False)
        return tuple(
            replace(row, reference=values[: len(row.target)].cpu()) for row, values in zip(rows, scored, strict=True)
        )

    def compute_loss(
        self, model: Any, inputs: Part, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a step: the backward passes of all packs but the last are done here, the last by the caller.

        Raises:
            WrongNumbers: the loss is no finite number.
        """
        done = torch.zeros((), device=self.accelerator.device)
        self.current_gradient_accumulation_steps = len(inputs.packs)  # TRL divides by it
        try:
            for pack in inputs.packs[:-1]:
                with self._unreduced(model):
                    loss = self._pack_loss(model, pack, inputs)
                    self.accelerator.backward(loss)
                done += loss.detach()
            loss = self._pack_loss(model, inputs.packs[-1], inputs)
        finally:
            self.current_gradient_accumulation_steps = 1
        total = loss + done
        if not math.isfinite(worst := float(self.accelerator.gather(total.detach()).sum())):
            self._stop(f"the loss is {worst}")
        return total

    def _unreduced(self, model: Any) -> Any:
        return contextlib.nullcontext() if self.recipe.forward.reduce_each else self.accelerator.no_sync(model=model)

    def _pack_loss(self, model: Any, rows: tuple[TurnRow, ...], part: Part) -> Any:
        """TRL's loss of some rows, scaled so that the sum over all packs and processes is that of the part."""
        device, n = self.accelerator.device, len(rows)
        longest = max(len(row.target) for row in rows)
        wrote = torch.zeros(n, longest, dtype=torch.long, device=device)
        target = torch.full((n, longest), self.rollouts.student.pad, device=device)
        for number, row in enumerate(rows):
            wrote[number, : len(row.target)] = 1
            target[number, : len(row.target)] = torch.tensor(row.target, device=device)
        nothing = torch.zeros(n, 0, dtype=torch.long, device=device)  # prompts are in the rows
        packs = self.current_gradient_accumulation_steps
        items = part.tokens * self.args.steps_per_generation / packs
        given: dict[str, Any] = {
            "prompt_ids": nothing,
            "prompt_mask": nothing,
            "completion_ids": target,
            "completion_mask": wrote,
            "tool_mask": torch.tensor([[int(row.trained)] for row in rows], device=device).expand_as(wrote),
            "advantages": torch.tensor([row.advantage for row in rows], dtype=torch.float32, device=device),
            "num_items_in_batch": torch.tensor(float(items), device=device),
        }
        for name, values in (
            ("old_per_token_logps", [row.old for row in rows]),
            ("ref_per_token_logps", [row.reference for row in rows]),
        ):
            if all(of is not None for of in values):
                given[name] = padded(values, longest, device)
        self._rows = rows
        try:
            loss = self._compute_loss(model, given)
        finally:
            self._rows = ()
        return loss * self._share(rows, part, packs)

    def _share(self, rows: tuple[TurnRow, ...], part: Part, packs: int) -> float:
        """What a pack's loss is multiplied by.

        TRL takes the mean over the rows of a pack (`bnpo`: over its tokens), divides by the number of packs, and
        processes are averaged. Packs and processes have different numbers of trained rows, and some have none.
        """
        if self.loss_type in BY_TOKENS:
            return 1.0
        if self.loss_type == "bnpo":
            own, every = trained_tokens(rows), part.tokens
        else:
            own, every = len(rows), part.rows
        return own * packs * self.accelerator.num_processes / every if every else 0.0

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Any,
        attention_mask: Any,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **_: Any,
    ) -> tuple[Any, Any, None]:
        """Log-probabilities and entropies of the rows of `_compute_loss`, with all of their media.

        TRL's own passes pictures only; here prompts come from the rows, and the tensors of ids are not read.
        """
        head = self.accelerator.unwrap_model(self.model).get_output_embeddings()
        with self.accelerator.autocast():
            scored = self.forward(model, head, self._rows, self.accelerator.device)
        if self._fresh:
            self._compare(scored)
        return scored.logprobs, scored.entropies if compute_entropy else None, None

    def _compare(self, scored: Any) -> None:
        """Compare with what the policy had when it sampled these rows.

        Raises:
            WrongNumbers: they differ by more than the recipe allows.
        """
        far, wide, where = 0.0, 0.0, ""
        for number, row in enumerate(self._rows):
            if row.logprobs:
                n = len(row.target)
                own = scored.logprobs[number, :n].detach().double().cpu()
                gap = float((own - torch.tensor(row.logprobs, dtype=torch.float64)).abs().max())
                if row.entropies:
                    were = torch.tensor(row.entropies, dtype=torch.float64)
                    wide = max(wide, float((scored.entropies[number, :n].double().cpu() - were).abs().max()))
                if not gap <= far:
                    far, where = gap, row.where
        self._metrics["train"]["sampling/logp_difference"].append(far)
        self._metrics["train"]["sampling/entropy_difference"].append(wide)
        if (limit := self.recipe.tolerance) is not None and not far <= limit:
            self._stop(
                f"{where}: its log-probabilities in training differ from those in sampling by up to {far:.3g}, and "
                f"{limit:g} is allowed (sampling.tolerance): it was sampled with other weights, or is read otherwise"
            )


def reward_of_trajectory(**_: Any) -> list[float | None]:
    """TRL wants a function; rewards are computed from trajectories (`rows.judge`), and this is never called."""
    raise AprError("rewards are those of trajectories; see apr_plugin.training.grpo.rewards")
