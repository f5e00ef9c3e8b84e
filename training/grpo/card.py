"""The model card of a checkpoint that GRPO trained, written from its run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from apr_plugin.models.checkpoint import checkpoint_source, weights_identity
from apr_plugin.report.card_files import to_yaml
from apr_plugin.report.machine import hardware
from apr_plugin.training.grpo.recipe import GrpoRecipe
from apr_plugin.training.sft.card import lines_of, machine_of, profile_lines, profile_words, thin, versions
from apr_plugin.training.sft.learner import sizes
from apr_plugin.training.student import Student
from apr_plugin.training.synthesis.questions import TrainingQuestion

if TYPE_CHECKING:
    from apr_plugin.training.profile import Carried


def card_of(
    trainer: Any,
    recipe: GrpoRecipe,
    questions: Sequence[TrainingQuestion],
    left_out: Mapping[str, int],
    student: Student,
    seconds: float,
    profile: Carried | None = None,
) -> dict[str, Any]:
    """Everything that the card says: student, questions, recipe, steps, versions, machine.

    Args:
        trainer: After training.
        recipe: Its recipe.
        questions: What was asked.
        left_out: How many questions were not used, by reason.
        student: Its student.
        seconds: How long training took, in this process, without what an earlier one did.
        profile: What the checkpoint carries.
    """
    import transformers

    source = checkpoint_source(recipe.student.pretrained, "hf")
    config = transformers.AutoConfig.from_pretrained(source, revision=recipe.student.revision, trust_remote_code=False)
    return {
        "student": {
            "pretrained": recipe.student.pretrained,
            "revision": recipe.student.revision,
            "weights": weights_identity(source, config),
            "family": student.family.title,
        },
        "questions": {
            "used": len(questions),
            "kinds": dict(Counter(str(one.question.kind) for one in questions)),
            "sources": dict(Counter(one.source or "unnamed" for one in questions)),
            "left_out": dict(left_out),
        },
        "profile": None if profile is None else profile.about(),
        "recipe": recipe.model_dump(mode="json"),
        "parameters": sizes(trainer.model),
        "processes": trainer.args.world_size,
        "steps": trainer.state.global_step,
        "seconds_of_last_start": round(seconds, 1),
        "log": [log for log in trainer.state.log_history if "loss" in log],
        "versions": versions(),
        "machine": hardware(),
    }


def card_page(data: Mapping[str, Any], tag: str, words: str) -> str:
    """The card as Markdown with a model hub's front matter.

    Args:
        data: See `card_of`.
        tag: Name of the method.
        words: How it was trained, after "It was trained with apr-plugin".
    """
    base, asked = data["student"], data["questions"]
    front: dict[str, Any] = {
        "library_name": "transformers",
        "tags": ["apr-plugin", "active-perception", "video", tag],
    }
    if "/" in base["pretrained"] and not base["pretrained"].startswith(("/", ".", "~")):
        front["base_model"] = base["pretrained"]
    recipe = data["recipe"]
    text = ["---", to_yaml(front).rstrip(), "---", "", f"# {base['family']}, trained on whole investigations", ""]
    text += [
        f"It was trained with [apr-plugin](https://github.com/apr-plugin/apr-plugin) {words}. Run it with "
        "`policy=hf,pretrained=FOLDER` or `policy=vllm,pretrained=FOLDER`.",
        "",
        "| | |",
        "|---|---|",
        *lines_of(
            (
                ("student", f"{base['pretrained']} ({base['weights']})"),
                *((("teacher", recipe["teacher"]["pretrained"]),) if "teacher" in recipe else ()),
                ("questions", f"{asked['used']:,}"),
                ("kinds", ", ".join(f"{name} {count:,}" for name, count in sorted(asked["kinds"].items()))),
                ("sources", ", ".join(f"{name} {count:,}" for name, count in sorted(asked["sources"].items()))),
                ("left out", ", ".join(f"{name} {count:,}" for name, count in asked["left_out"].items()) or "none"),
                ("trajectories of a question", recipe["generations"]),
                ("questions of a step", recipe["questions_per_step"]),
                *((("rule of credit", recipe["credit"]["rule"]),) if "teacher" not in recipe else ()),
                ("trained parameters", f"{data['parameters']['trained']:,} of {data['parameters']['all']:,}"),
                ("processes", data["processes"]),
                ("steps", f"{data['steps']:,}"),
                ("seconds since the last start", f"{data['seconds_of_last_start']:,}"),
                ("machine", machine_of(data["machine"])),
                *profile_lines(data),
            )
        ),
        "",
        *profile_words(data),
        "## Steps",
        "",
        "Rewards are of the questions of each step, sampled with the weights before it. They are no evaluation: use "
        "`apr eval`.",
        "",
        "| step | loss | reward | right | turns | frames | gradient norm |",
        "|---:|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {log['step']} | "
            + " | ".join(_number(log.get(name)) for name in ("loss", "reward", "right", "turns", "frames", "grad_norm"))
            + " |"
            for log in thin(data["log"])
        ),
        "",
    ]
    text += ["## Recipe", "", "```yaml", to_yaml(recipe).rstrip(), "```", ""]
    text += ["## Versions", "", "| package | release |", "|---|---|", *lines_of(data["versions"].items()), ""]
    return "\n".join(text)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else ""
