"""On-policy distillation on whole investigations: the rows of `InvestigationTrainer` with another loss.

Rollouts, rows, forwards and the sum over processes are those of `training.grpo.trainer`. A teacher reads each row's own
purged prompt, with its pictures and sound, and the turn that the student wrote. The loss is (`losses`, arXiv
2603.25562)

    sum over turns and their tokens of w * KL(student || teacher) / number of learned tokens

over all processes, so it is a mean over tokens; w is 1, or the turn's entropy weight, whose mean over the turns of a
question is one (`DistillSettings.weighting`). Not learned are turns that were cut off, trajectories that failed,
padding, and the tokens of `masked_tokens`. Logits of teacher and student exist for the targets of one pack at a time.

| log | value |
|---|---|
| `loss` | the loss |
| `distill/kl_top_k`, `distill/kl_sampled` | both estimates of the reverse KL, means over learned tokens, in nats |
| `distill/mass` | the student's probability of the teacher's top-K tokens together |
| `distill/masked` | share of the tokens of trained turns that are not learned |
| `turns_without_tokens` | turns that are no rows: cut off, without a token, or with what the teacher can't read |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from apr_plugin.loop.policy import Generation
from apr_plugin.training.distill.losses import sampled_reverse_kl, teacher_support, top_k_reverse_kl
from apr_plugin.training.distill.recipe import DistillRecipe
from apr_plugin.training.grpo.credit import CreditSettings
from apr_plugin.training.grpo.forward import padded, scored
from apr_plugin.training.grpo.frozen import Frozen
from apr_plugin.training.grpo.groups import Chosen, Fate
from apr_plugin.training.grpo.rollouts import Investigation
from apr_plugin.training.grpo.rows import Judged, Part, Record, StepRows, TurnRow, rows_of
from apr_plugin.training.grpo.trainer import InvestigationTrainer
from apr_plugin.training.student import Student
from apr_plugin.training.synthesis.questions import TrainingQuestion

RULES = {"none": "none", "turn_entropy": "taura"}
"""The rule of credit that gives the weights of each weighting."""


def masked_tokens(student: Student, special: str) -> frozenset[int]:
    """The tokens at whose positions nothing is learned: placeholders of media, and special tokens if they are masked.

    Args:
        student: Knows its tokens.
        special: `DistillSettings.special_tokens`.
    """
    never = frozenset(student.encoder.never_written)
    return student.special | student.ends | never if special == "masked" else never


class DistillationTrainer(InvestigationTrainer):
    """Distillation from a frozen teacher, on the student's own investigations.

    It learns after `learn_from`: the teacher stands beside a trainer, so that is made first.
    """

    recipe: DistillRecipe
    teacher: Frozen

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.masked = masked_tokens(self.rollouts.student, self.recipe.distill.special_tokens)
        self._sums = torch.zeros(5, dtype=torch.float64)
        """Over the packs of a step: learned tokens, kl_top_k, kl_sampled, mass, masked tokens."""

    def learn_from(self, teacher: Frozen) -> None:
        """Take a teacher; what it can't write, such as its own placeholders of media, is not learned."""
        self.teacher = teacher
        self.masked = self.masked | frozenset(teacher.forward.banned)

    def _judged(self, records: Sequence[Record], step: int) -> Judged:
        """Every trajectory that did not fail and has tokens is learned from, whatever its reward."""
        judged = super()._judged(records, step)
        kept = tuple(record.learnable and not record.failed for record in records)
        groups = {record.group: False for record in records}
        for record, one in zip(records, kept, strict=True):
            groups[record.group] |= one
        fates = {group: Fate.KEPT if any_kept else Fate.BROKEN for group, any_kept in groups.items()}
        chosen = Chosen(tuple(group for group, any_kept in groups.items() if any_kept), fates)
        return replace(judged, chosen=chosen, advantages=tuple(map(float, kept)), kept=kept)

    def _rows_of(
        self,
        investigations: Sequence[Investigation],
        asked: Sequence[TrainingQuestion],
        judged: Judged,
        first: int,
        step: int,
    ) -> StepRows:
        """A row for each turn that can be learned; its advantage is its weight."""
        rule = CreditSettings(rule=RULES[self.recipe.distill.weighting])
        return rows_of(investigations, judged, first, rule, self.across, step=step, keep=self.learnable)

    def learnable(self, said: Generation) -> bool:
        """Whether a turn is a row: it was not cut off, and the teacher reads no placeholder of media in it.

        The second happens with a teacher of another family, whose placeholders may be other tokens of the student.
        """
        return not said.cut and set(said.token_ids or ()).isdisjoint(self.teacher.forward.student.encoder.never_written)

    def _trained_tokens(self, rows: Sequence[TurnRow]) -> int:
        return sum(sum(self._learned(row)) for row in rows)

    def _learned(self, row: TurnRow) -> list[bool]:
        """Which tokens of a row are learned."""
        return [row.trained and token not in self.masked for token in row.target]

    def compute_loss(
        self, model: Any, inputs: Part, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a step; see `InvestigationTrainer.compute_loss`."""
        self._sums.zero_()
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        sums = self.across.add(self._sums.numpy())
        tokens, top_k, sampled, mass, masked = sums.tolist()
        if tokens:
            shown = {"kl_top_k": top_k, "kl_sampled": sampled, "mass": mass}
            self._show({f"distill/{name}": value / tokens for name, value in shown.items()})
            self._show({"distill/masked": masked / (tokens + masked)})
        return loss

    def _pack_loss(self, model: Any, rows: tuple[TurnRow, ...], part: Part) -> Any:
        """The reverse KL of some rows; the loss is the mean over processes of the sums over packs."""
        settings, device = self.recipe.distill, self.accelerator.device
        longest = max(len(row.target) for row in rows)
        learned = torch.zeros(len(rows), longest, dtype=torch.bool, device=device)
        for number, row in enumerate(rows):
            learned[number, : len(row.target)] = torch.tensor(self._learned(row), device=device)
        weights = torch.tensor([row.advantage for row in rows], dtype=torch.float32, device=device)
        taught = self.teacher.logits(rows)
        ids, among = teacher_support(taught.values[..., : len(self.rollouts.student.tokenizer)], settings.top_k)
        theirs = scored(taught).logprobs.nan_to_num(neginf=0.0)  # at tokens that are masked
        del taught
        head = self.accelerator.unwrap_model(self.model).get_output_embeddings()
        with self.accelerator.autocast():
            given = self.forward.logits(model, head, rows, device)
        self._rows = rows
        try:
            # Only the single-token form differentiates what the whole vocabulary adds up to.
            with torch.set_grad_enabled(settings.estimator == "sampled"):
                own = scored(given)
            if self._fresh:
                self._compare(own)
        finally:
            self._rows = ()
        with torch.set_grad_enabled(settings.estimator == "top_k"):
            top_k = top_k_reverse_kl(given.values, ids, among)
        old = [row.old for row in rows]
        before = None if any(of is None for of in old) else padded(old, longest, device)
        sampled = sampled_reverse_kl(own.logprobs, theirs, before)
        self._note(learned, top_k, own.logprobs - theirs, given.values, ids, rows)
        cost = top_k if settings.estimator == "top_k" else sampled
        total = torch.where(learned, weights[:, None] * cost, 0.0).sum()
        return total * self.accelerator.num_processes / max(1, part.tokens)

    def _note(self, learned: Any, top_k: Any, sampled: Any, values: Any, ids: Any, rows: Sequence[TurnRow]) -> None:
        """Add to what the step's log says."""
        with torch.no_grad():
            inside = values.gather(-1, ids).logsumexp(-1) - values.logsumexp(-1)
            sums = [learned.sum(), *(of[learned].double().sum() for of in (top_k, sampled, inside.exp()))]
            trained = sum(len(row.target) for row in rows if row.trained)
            self._sums += torch.stack([*(value.double() for value in sums), trained - sums[0].double()]).cpu()
