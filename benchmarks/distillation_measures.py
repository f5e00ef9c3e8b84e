"""What the benchmark of distillation measures on rollouts: held-out divergence, and how steady a gradient is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ESTIMATORS = ("top_k", "sampled")


def make_distillation(recipe: dict[str, Any], out: Path) -> Any:
    """The trainer of `apr train distill`, which rolls out without training.

    Args:
        recipe: Its recipe.
        out: Its folder.
    """
    from rich.console import Console

    from apr_plugin.training.distill.making import make_trainer
    from apr_plugin.training.distill.recipe import DistillRecipe
    from apr_plugin.training.grpo.running import usable_questions
    from apr_plugin.training.sft.running import student_of
    from apr_plugin.training.synthesis.questions import load_questions

    read = DistillRecipe.model_validate(recipe)
    usable = usable_questions(load_questions(read.questions), read, Console(quiet=True))
    return make_trainer(read, usable.questions, usable.durations, student_of(read.student), out)


def rollout(trainer: Any, step: int, questions: Sequence[int]) -> Any:
    """The rows of a fresh rollout about some questions."""
    trainer.state.global_step = step
    each = trainer.recipe.generations
    (part,) = trainer._generate_and_score_completions([{"question": n} for n in questions for _ in range(each)])
    return part


def held_out(recipe: dict[str, Any], out: Path) -> dict[str, tuple[float, int]]:
    """The reverse KL over the whole vocabulary on the student's own rollouts about all questions of the recipe.

    Args:
        recipe: Of a distillation whose questions are in no training.
        out: Folder of its trainer.

    Returns:
        By question: the sum over learned tokens, in nats, and their number.
    """
    import torch

    from apr_plugin.training.distill.losses import whole_reverse_kl

    trainer = make_distillation(recipe, out)
    found: dict[str, tuple[float, int]] = {}
    with torch.no_grad():
        for pack in rollout(trainer, 0, range(len(trainer.train_dataset))).packs:
            taught = trainer.teacher.logits(pack).values
            head = trainer.model.get_output_embeddings()
            own = trainer.forward.logits(trainer.model, head, pack, trainer.accelerator.device).values
            words = min(own.shape[-1], taught.shape[-1])
            values = whole_reverse_kl(own[..., :words], taught[..., :words])
            for row, of in zip(pack, values, strict=True):
                learned = torch.tensor(trainer._learned(row))
                total, tokens = found.get(film := row.where.split(",")[0], (0.0, 0))
                found[film] = total + float(of[: len(learned)][learned].sum()), tokens + int(learned.sum())
    trainer.rollouts.close()
    return found


def gradients(trainer: Any, part: Any) -> dict[str, Any]:
    """The gradient of the same rows with each estimator, as a vector."""
    import torch

    found, was = {}, trainer.recipe
    for name in ESTIMATORS:
        trainer.recipe = was.model_copy(update={"distill": was.distill.model_copy(update={"estimator": name})})
        trainer.model.train()
        trainer.accelerator.backward(trainer.compute_loss(trainer.model, part))
        learned = [one for one in trainer.model.parameters() if one.requires_grad]
        parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in learned]
        found[name] = torch.cat([one.flatten() for one in parts]).double()
        trainer.model.zero_grad()
    trainer.recipe = was
    return found


def spread(gram: Any) -> tuple[float, float]:
    """From the products of n gradients with each other: the trace of their covariance, and their mean's square length.

    Both estimates are unbiased: the mean's own noise is not in its length. What is not above zero is not known.
    """
    n = len(gram)
    apart = (gram.sum() - np.trace(gram)) / (n * (n - 1))
    found = float(np.trace(gram) / n - apart), float(apart)
    return found[0] if found[0] > 0 else math.nan, found[1] if found[1] > 0 else math.nan


def jackknife(of: Callable[[Any], float], n: int) -> dict[str, float]:
    """A statistic of n rollouts, and its 95% interval; `of` takes the numbers of the rollouts that are used."""
    every = np.arange(n)
    value = of(every)
    left_out = np.array([of(np.delete(every, at)) for at in every])
    error = math.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    return {"value": value, "low": value - 1.96 * error, "high": value + 1.96 * error}


def variances(recipe: dict[str, Any], out: Path, rollouts: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """How much the gradient varies from rollout to rollout, with each estimator, at the recipe's student.

    Args:
        recipe: Of a distillation; each rollout is as large as one of its steps, about other questions.
        out: Folder of its trainer.
        rollouts: How many; at least 3.
        tell: Called with a line for each rollout.
    """
    import torch

    trainer = make_distillation(recipe, out)
    flats: dict[str, list[Any]] = {name: [] for name in ESTIMATORS}
    step, every = trainer.recipe.questions_per_step, len(trainer.train_dataset)
    for number in range(rollouts):
        tell(f"gradient variance: rollout {number + 1} of {rollouts}")
        asked = [at % every for at in range(step * number, step * (number + 1))]
        for name, flat in gradients(trainer, rollout(trainer, number, asked)).items():
            flats[name].append(flat)
    trainer.rollouts.close()
    stacked = {name: torch.stack(of) for name, of in flats.items()}
    found = compared({name: (of @ of.T).numpy() for name, of in stacked.items()})
    means = {name: of.mean(0) for name, of in stacked.items()}
    lengths = [float(mean.norm()) for mean in means.values()]
    found["cosine_of_means"] = float(means["top_k"] @ means["sampled"]) / math.prod(lengths)
    return found | {"rollouts": rollouts, "trajectories": step * trainer.recipe.generations}


def compared(grams: dict[str, Any]) -> dict[str, Any]:
    """The variances of both estimators and their ratios, from the products of their gradients on the same rollouts.

    What can't be told is `None`, such as a ratio to a mean gradient that does not stand out from its noise.
    """
    rollouts = len(grams["top_k"])

    def part(name: str, of: Any) -> tuple[float, float]:
        return spread(grams[name][np.ix_(of, of)])

    found: dict[str, Any] = {
        name: {
            "variance": jackknife(lambda of, name=name: part(name, of)[0], rollouts),
            "mean_square": part(name, np.arange(rollouts))[1],
            "noise_to_signal": jackknife(lambda of, name=name: part(name, of)[0] / part(name, of)[1], rollouts),
        }
        for name in ESTIMATORS
    }

    def log_ratio(of: Any, relative: bool) -> float:
        one, other = (part(name, of) for name in ("sampled", "top_k"))
        return math.log(one[0] / other[0]) - (math.log(one[1] / other[1]) if relative else 0.0)

    for name, relative in (("variance_ratio", False), ("noise_ratio", True)):
        logs = jackknife(lambda of, relative=relative: log_ratio(of, relative), rollouts)
        found[name] = {key: math.exp(value) for key, value in logs.items()}
    known: dict[str, Any] = _known(found)
    return known


def _known(found: Any) -> Any:
    """With `None` in place of what is not a number, which JSON has not."""
    if isinstance(found, dict):
        return {name: _known(value) for name, value in found.items()}
    return None if math.isnan(found) else found
