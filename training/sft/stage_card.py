"""The model card of a checkpoint that was trained in stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apr_plugin.models.checkpoint import checkpoint_source, weights_identity
from apr_plugin.report.card_files import to_yaml
from apr_plugin.report.machine import hardware
from apr_plugin.training.profile import Carried
from apr_plugin.training.sft.card import lines_of, machine_of, profile_lines, profile_words, thin, versions
from apr_plugin.training.sft.learner import sizes
from apr_plugin.training.sft.mixes import Mix
from apr_plugin.training.sft.recipe import Recipe, StageSettings
from apr_plugin.training.student import Student


def stage_card(
    trainer: Any,
    recipe: Recipe,
    stage: StageSettings,
    student: Student,
    mix: Mix,
    before: Sequence[Mapping[str, Any]],
    measured: Sequence[Mapping[str, Any]],
    seconds: float,
    profile: Carried | None = None,
) -> dict[str, Any]:
    """Everything that the card says.

    Args:
        trainer: After training.
        recipe: The whole recipe.
        stage: The stage that was trained.
        student: Its student.
        mix: Its rows.
        before: The earlier stages, as in their cards.
        measured: Its measurements.
        seconds: How long the stage took, since the last start.
        profile: What the checkpoint carries.
    """
    import transformers

    source = checkpoint_source(recipe.student.pretrained, "hf")
    config = transformers.AutoConfig.from_pretrained(source, revision=recipe.student.revision, trust_remote_code=False)
    logs = trainer.state.log_history
    whole = sum(each.share for each in mix.sources)
    names = ("step", "loss", "grad_norm", "learning_rate", "mean_token_accuracy", "num_tokens")
    own = {
        "name": stage.name,
        "sources": {each.title: round(each.share / whole, 4) for each in mix.sources},
        "steps": trainer.state.global_step,
        "forwards_per_step": trainer.args.gradient_accumulation_steps,
        "row_tokens": round(mix.row_tokens, 1),
        "seconds_of_last_start": round(seconds, 1),
        "measured": list(measured),
        "losses": [{name: log[name] for name in names if name in log} for log in logs if "loss" in log],
    }
    return {
        "student": {
            "pretrained": recipe.student.pretrained,
            "revision": recipe.student.revision,
            "weights": weights_identity(source, config),
            "family": student.family.title,
        },
        "profile": None if profile is None else profile.about(),
        "stages": [*before, own],
        "recipe": recipe.model_dump(mode="json"),
        "parameters": sizes(trainer.model),
        "processes": trainer.args.world_size,
        "versions": versions(),
        "machine": hardware(),
    }


def stage_page(data: Mapping[str, Any]) -> str:
    """The card as Markdown with a model hub's front matter."""
    front = {"library_name": "transformers", "tags": ["apr-plugin", "active-perception", "video", "sft"]}
    base = data["student"]
    text = ["---", to_yaml(front).rstrip(), "---", "", f"# {base['family']}, trained in stages", ""]
    text += ["It was trained with [apr-plugin](https://github.com/apr-plugin/apr-plugin). Run it with", ""]
    text += ["`policy=hf,pretrained=FOLDER`.", "", "| | |", "|---|---|"]
    text += lines_of(
        (
            ("student", f"{base['pretrained']} ({base['weights']})"),
            ("trained parameters", f"{data['parameters']['trained']:,} of {data['parameters']['all']:,}"),
            ("processes", data["processes"]),
            ("machine", machine_of(data["machine"])),
            *profile_lines(data),
        )
    )
    text += ["", *profile_words(data)]
    for stage in data["stages"]:
        text += ["", f"## Stage {stage['name']}", "", "| | |", "|---|---|"]
        text += lines_of(
            (
                ("rows", ", ".join(f"{name} {share:.0%}" for name, share in stage["sources"].items())),
                ("steps", f"{stage['steps']:,}"),
                ("tokens of an average row", stage["row_tokens"]),
                ("seconds since the last start", f"{stage['seconds_of_last_start']:,}"),
            )
        )
        if stage["measured"]:
            names = [name for name in stage["measured"][-1] if name not in ("step", "reached")]
            text += ["", f"| step | {' | '.join(names)} |", "|---:" * (1 + len(names)) + "|"]
            text += [
                f"| {line['step']} | {' | '.join(f'{line[name]:.4f}' for name in names)} |"
                for line in thin(stage["measured"])
            ]
        text += ["", "| step | loss |", "|---:|---:|"]
        text += [f"| {log['step']} | {log['loss']:.4f} |" for log in thin(stage["losses"])]
    text += ["", "## Recipe", "", "```yaml", to_yaml(data["recipe"]).rstrip(), "```", ""]
    text += ["## Versions", "", "| package | release |", "|---|---|", *lines_of(data["versions"].items()), ""]
    return "\n".join(text)
