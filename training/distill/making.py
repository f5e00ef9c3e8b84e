"""The trainer of a recipe of distillation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from apr_plugin.training.distill.recipe import DistillRecipe
from apr_plugin.training.distill.teacher import check_teacher
from apr_plugin.training.distill.trainer import DistillationTrainer
from apr_plugin.training.grpo import making
from apr_plugin.training.grpo.forward import RowForward
from apr_plugin.training.grpo.frozen import Frozen
from apr_plugin.training.recipe_file import RecipeError
from apr_plugin.training.sft.dummies import Dummies
from apr_plugin.training.sft.running import student_of
from apr_plugin.training.sft.trainer import sharded
from apr_plugin.training.student import Student
from apr_plugin.training.synthesis.questions import DocKey, TrainingQuestion


def make_trainer(
    recipe: DistillRecipe,
    questions: Sequence[TrainingQuestion],
    durations: Mapping[DocKey, float],
    student: Student,
    out: Path,
) -> DistillationTrainer:
    """The trainer of a recipe, with its teacher; see `training.grpo.making.make_trainer`.

    Raises:
        AprError: a checkpoint can't be loaded, teacher and student have different tokens, or a field of the recipe does
            not fit.
    """
    settings = recipe.teacher_settings()
    teacher = student_of(settings)
    check_teacher(teacher, student)
    if recipe.distill.top_k > len(student.tokenizer) - len(student.encoder.never_written):
        raise RecipeError(
            f"distill: top_k is {recipe.distill.top_k:,}, and the student writes "
            f"{len(student.tokenizer) - len(student.encoder.never_written):,} tokens"
        )
    trainer = making.make_trainer(recipe, questions, durations, student, out, kind=DistillationTrainer)
    forward = RowForward(
        teacher,
        recipe.sampling.temperature,
        Dummies(teacher).complete if sharded(trainer.args) else None,
        banned=sorted({*teacher.encoder.never_written, *student.encoder.never_written}),
        same_ids=teacher.digest == student.digest,
    )
    trainer.learn_from(Frozen(settings, forward, trainer))
    return trainer
