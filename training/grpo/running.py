"""`apr train grpo`: a recipe and its questions to a checkpoint."""

from __future__ import annotations

import hashlib
import importlib
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from apr_plugin import terminal
from apr_plugin.errors import AprError, require
from apr_plugin.loop.open_video import OpenVideo
from apr_plugin.media import MediaError, MediaSettings
from apr_plugin.training.grpo.recipe import GrpoRecipe
from apr_plugin.training.recipe_file import RecipeError
from apr_plugin.training.sft.running import FINAL, check_memory, claim_folder, last_checkpoint, student_of
from apr_plugin.training.student import Student
from apr_plugin.training.synthesis.questions import DocKey, TrainingQuestion, load_questions


@dataclass
class Usable:
    """Questions whose films can be opened."""

    questions: list[TrainingQuestion]
    durations: dict[DocKey, float]
    """Seconds of the films of each, all together."""
    left_out: Counter[str] = field(default_factory=Counter)
    """How many were not used, by reason: `unreadable`, `too_long`."""
    faults: list[str] = field(default_factory=list)
    """What is wrong with films, a line for each question."""


@dataclass(frozen=True)
class Method:
    """How rollouts are learned from; its modules are loaded when it runs."""

    making: str = "apr_plugin.training.grpo.making"
    """The module whose `make_trainer` gives the trainer."""
    tag: str = "grpo"
    """Its name in the model card's tags."""
    words: str = (
        "by GRPO (arXiv 2402.03300) on investigations of videos: each trajectory was rewarded for its answer, and each "
        "of its turns is a row with the prompt as the policy saw it"
    )
    """How it was trained, in the model card."""


def run_grpo(recipe: GrpoRecipe, out: Path, method: Method | None = None) -> Path:
    """Train.

    A folder that already has a checkpoint of the same recipe and questions is continued: with the next questions, and
    with the seeds that an unbroken run would have had.

    Args:
        recipe: What is trained and how; it names its questions.
        out: Folder of the run.
        method: Another way to learn from rollouts than GRPO.

    Returns:
        The folder of the trained checkpoint.

    Raises:
        AprError: nothing can be trained; the message says why.
    """
    for module in ("torch", "trl", "datasets"):
        require(module, "train")
    recipe.check_trainer()
    if not recipe.questions:
        raise RecipeError("the recipe names no questions; name them with --questions, or as `questions:` in the recipe")
    first = os.environ.get("RANK", "0") == "0"
    console = terminal.console(stderr=True)
    console.quiet = not first
    asked = load_questions(recipe.questions)
    usable = usable_questions(asked, recipe, console)
    with console.status("reading the student's processor …"):
        student = student_of(recipe.student)
    out = out.expanduser()
    claim_folder(out, _identity(recipe, usable.questions), first)
    if (out / FINAL / "config.json").is_file():
        console.print(f"{out / FINAL}: this run is finished; nothing was trained", soft_wrap=True)
        return out / FINAL
    return _train(recipe, usable, student, out, console, method or Method())


def _train(recipe: GrpoRecipe, usable: Usable, student: Student, out: Path, console: Console, method: Method) -> Path:
    with console.status("loading TRL and the model …"):
        from apr_plugin.training.grpo.card import card_of, card_page
        from apr_plugin.training.grpo.making import episode_config
        from apr_plugin.training.profile import Carried, WriteProfile, profile_of_config
        from apr_plugin.training.sft.finishing import StopAtNan, TrainingStopped, save_trained
        from apr_plugin.training.sft.learner import sizes
        from apr_plugin.training.sft.trainer import processes

        make_trainer = importlib.import_module(method.making).make_trainer
        trainer = make_trainer(recipe, usable.questions, usable.durations, student, out)
    trainer.add_callback(StopAtNan())
    profile = Carried(profile_of_config(episode_config(recipe, usable.durations).base), "of the rollouts")
    trainer.add_callback(WriteProfile(profile.file))
    found, counts = last_checkpoint(out), sizes(trainer.model)
    console.print(
        f"{len(usable.questions):,} questions; {recipe.sampled_questions} of them with {recipe.generations} "
        f"trajectories each in a rollout; {counts['trained']:,} of {counts['all']:,} parameters are trained; "
        f"{processes()} process{'es' if processes() > 1 else ''}",
        soft_wrap=True,
    )
    if found is not None:
        console.print(f"continuing from {found}", soft_wrap=True)
    began = time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=None if found is None else str(found))
    except TrainingStopped:
        if (folder := trainer.keep_stopped()) is not None:
            terminal.warn(f"the trajectories of the last rollout are in {folder}")
        raise
    except RuntimeError as error:
        advice = (
            "lower student.context_tokens or sampling.max_new_tokens, set trainer.activation_checkpointing, train "
            "adapters (learn.what: lora), or shard the model with forward.reduce_each"
        )
        check_memory(error, advice, out)
        raise
    finally:
        trainer.rollouts.close()

    def card() -> tuple[dict[str, Any], str]:
        data = card_of(trainer, recipe, usable.questions, usable.left_out, student, time.monotonic() - began, profile)
        return data, card_page(data, method.tag, method.words)

    folder = save_trained(trainer, recipe, student, card, out, profile)
    console.print(f"{folder}: trained; its README.md says how", soft_wrap=True)
    return folder


def usable_questions(asked: Sequence[TrainingQuestion], recipe: GrpoRecipe, console: Console) -> Usable:
    """Open the films of all questions and measure them.

    Args:
        asked: The questions.
        recipe: Says which are too long, and what happens with films that can't be opened.
        console: Shows progress.

    Raises:
        AprError: a film can't be opened and the recipe says `unreadable: stop`; or nothing is left.
    """
    known: dict[Any, float | MediaError] = {}
    found = Usable([], {})
    with Progress(console=console, transient=True) as bar:
        for one in bar.track(asked, description="measuring films"):
            total = 0.0
            for ref in one.question.videos:
                if ref not in known:
                    known[ref] = _seconds(ref)
                length = known[ref]
                if isinstance(length, MediaError):
                    found.left_out["unreadable"] += 1
                    found.faults.append(f"{'/'.join(filter(None, one.key))}: {length}")
                    break
                total += length
            else:
                if recipe.longest_s is not None and total > recipe.longest_s:
                    found.left_out["too_long"] += 1
                else:
                    found.questions.append(one)
                    found.durations[one.key] = total
    for line in found.faults[:10]:
        console.print(f"  {terminal.one_line(line)}", soft_wrap=True)
    if found.faults and recipe.unreadable == "stop":
        raise AprError(
            f"the films of {len(found.faults)} questions can't be opened (the first: "
            f"{terminal.one_line(found.faults[0])}); mend them, or leave them out with `unreadable: skip`"
        )
    if found.faults:
        terminal.warn(f"{len(found.faults)} questions are left out, because their films can't be opened")
    if not found.questions:
        reasons = ", ".join(f"{name} {count}" for name, count in found.left_out.items())
        raise AprError(f"no question is left, so there is nothing to train on: {reasons}")
    return found


def _seconds(ref: Any) -> float | MediaError:
    try:
        opened = OpenVideo(ref, MediaSettings())
    except MediaError as error:
        return error
    try:
        return float(opened.film().duration_s)
    finally:
        opened.close()


def _identity(recipe: GrpoRecipe, questions: Sequence[TrainingQuestion]) -> dict[str, Any]:
    """What decides the run, for its folder."""
    told = recipe.model_dump(mode="json", exclude={"about", "questions", "unreadable", "samples", "rollouts"})
    for name in ("frame_references", "frame_times"):  # left out, they don't change the identity of earlier runs
        if told[name] is None:
            del told[name]
    if recipe.rollouts.servers:  # which ones does not matter
        told["rollouts"] = "servers"
    digest = hashlib.sha256()
    for one in questions:
        digest.update(f"{one.key} {one.question.content_hash()} {one.truth.answers} {one.exact}\n".encode())
    told["questions"] = digest.hexdigest()[:16]
    if (words := recipe.instructions()) is not None:
        told["system_prompt"] = hashlib.sha256(words.encode()).hexdigest()[:16]
    return told
