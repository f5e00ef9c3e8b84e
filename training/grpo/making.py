"""The trainer of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from apr_plugin.errors import AprError
from apr_plugin.loop.config import EpisodeConfig
from apr_plugin.training.grpo.budgets import group_budgets
from apr_plugin.training.grpo.contract import check_trl
from apr_plugin.training.grpo.forward import RowForward
from apr_plugin.training.grpo.frozen import Frozen
from apr_plugin.training.grpo.recipe import GrpoRecipe
from apr_plugin.training.grpo.rollouts import Rollouts
from apr_plugin.training.grpo.served.rollouts import ServedRollouts
from apr_plugin.training.grpo.trainer import InvestigationTrainer
from apr_plugin.training.recipe_file import RecipeError
from apr_plugin.training.sft.dummies import Dummies
from apr_plugin.training.sft.learner import choose_weights, load_learner, lora_config
from apr_plugin.training.sft.trainer import keep_positions, processes, sharded
from apr_plugin.training.student import Student
from apr_plugin.training.synthesis.questions import DocKey, TrainingQuestion

T = TypeVar("T", bound=InvestigationTrainer)


def make_trainer(
    recipe: GrpoRecipe,
    questions: Sequence[TrainingQuestion],
    durations: Mapping[DocKey, float],
    student: Student,
    out: Path,
    kind: type[T] = InvestigationTrainer,
) -> T:
    """The trainer of a recipe, ready for `train()`.

    Args:
        recipe: What is trained and how.
        questions: What is asked.
        durations: Seconds of the films of each question, all together.
        student: Reads the prompts.
        out: Folder of checkpoints, logs and samples.
        kind: The class of the trainer.

    Raises:
        AprError: the checkpoint can't be loaded, TRL differs from what is needed, a field of the recipe does not fit
            the questions or the machine, or a server of `rollouts` can't be used.
    """
    recipe.check_trainer()
    check_trl()
    from datasets import Dataset

    if len(questions) < recipe.sampled_questions:
        raise RecipeError(
            f"a rollout takes {recipe.sampled_questions} questions (questions_per_step times groups.oversample), and "
            f"there are {len(questions)}; lower questions_per_step, or give more questions"
        )
    args = arguments(recipe, out)
    quiet = bool(args.disable_tqdm) or args.process_index != 0
    config = episode_config(recipe, durations)
    rollouts = (
        ServedRollouts(student, config, recipe.sampling, recipe.rollouts, out, rank=args.process_index, quiet=quiet)
        if recipe.rollouts.servers
        else Rollouts(student, config, recipe.sampling, quiet=quiet)
    )
    model = load_learner(recipe.student)
    choose_weights(model, recipe.learn)
    complete = Dummies(student).complete if sharded(args) else None
    trainer = kind(
        recipe=recipe,
        questions=questions,
        rollouts=rollouts,
        forward=RowForward(student, recipe.sampling.temperature, complete),
        model=model,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "", "question": number} for number in range(len(questions))]),
        processing_class=student.encoder.processor,
        peft_config=lora_config(model, recipe.learn.lora) if recipe.learn.what == "lora" else None,
    )
    keep_positions(trainer)
    if beta := float(recipe.trainer.get("beta", 0.0)):
        trainer.beta = beta
        if recipe.learn.what != "lora":
            forward = RowForward(student, recipe.sampling.temperature, complete)
            trainer.reference = Frozen(recipe.student, forward, trainer)
    return trainer


def episode_config(recipe: GrpoRecipe, durations: Mapping[DocKey, float]) -> Any:
    """The configuration of rollouts.

    Raises:
        AprError: the file of the system prompt can't be read, or a range of `draws` is impossible.
    """
    base = EpisodeConfig(
        budget=recipe.budget,
        wire=recipe.wire,
        frame_references=recipe.frame_references,
        frame_times=recipe.frame_times,
        parsing=recipe.parsing,
        sampling=recipe.sampling.policy(),
        system_prompt=recipe.instructions(),
        seed=recipe.seed,
    )
    return group_budgets(base, recipe.draws, recipe.generations, durations)


def arguments(recipe: GrpoRecipe, out: Path) -> Any:
    """TRL's arguments of a recipe.

    Raises:
        RecipeError: a field of `trainer` is wrong, or trajectories can't be shared out equally over the processes.
    """
    from trl import GRPOConfig

    trajectories = recipe.sampled_questions * recipe.generations
    share = processes() * recipe.updates_per_rollout
    if trajectories % share:
        raise RecipeError(
            f"a rollout has {trajectories} trajectories, which {processes()} processes and "
            f"{recipe.updates_per_rollout} updates can't share equally; take a multiple of {share}"
        )
    given: dict[str, Any] = {
        "save_strategy": "steps",
        "save_steps": 10,
        "logging_steps": 1,
        "report_to": "none",
        "loss_type": "dapo",
        **recipe.trainer,
        "beta": 0.0,  # TRL would load a reference by itself, which it can't for every family; `make_trainer` does
    }
    if recipe.student.dtype == "float32" and not (given.get("bf16") or given.get("fp16")):
        given["bf16"] = False  # TRL's default is true
    try:
        return GRPOConfig(
            output_dir=str(out),
            per_device_train_batch_size=trajectories // share,
            gradient_accumulation_steps=1,
            steps_per_generation=recipe.updates_per_rollout,
            num_generations=recipe.generations,
            temperature=recipe.sampling.temperature,
            max_completion_length=recipe.sampling.max_new_tokens,
            scale_rewards=recipe.groups.scale_rewards,
            router_aux_loss_coef=0.0,
            remove_unused_columns=False,
            eval_strategy="no",
            **given,
        )
    except AprError:
        raise
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        raise RecipeError(f"recipe: trainer: {str(error).splitlines()[0]}") from error
