"""The model card of a trained checkpoint, written from its run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from apr_plugin.loop.profile_file import PROFILE_FILE
from apr_plugin.models.checkpoint import checkpoint_source, weights_identity
from apr_plugin.report.card_files import to_yaml
from apr_plugin.report.machine import hardware
from apr_plugin.training.rows import tokens_of
from apr_plugin.training.sft.learner import sizes
from apr_plugin.training.sft.recipe import Recipe
from apr_plugin.training.student import Student

if TYPE_CHECKING:
    from apr_plugin.training.profile import Carried
    from apr_plugin.training.sft.running import Checked
    from apr_plugin.training.sft.trainer import RowTrainer

PACKAGES = ("apr-plugin", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "av")
"""Packages whose releases are named."""


def card_of(
    trainer: RowTrainer,
    recipe: Recipe,
    student: Student,
    checked: Checked,
    seconds: float,
    profile: Carried | None = None,
) -> dict[str, Any]:
    """Everything that the card says: student, rows, recipe, losses, versions, machine.

    Args:
        trainer: After training.
        recipe: Its recipe.
        student: Its student.
        checked: Its rows, and those that were left out.
        seconds: How long training took, in this process, without what an earlier one did.
        profile: What the checkpoint carries.
    """
    import transformers

    source = checkpoint_source(recipe.student.pretrained, "hf")
    config = transformers.AutoConfig.from_pretrained(source, revision=recipe.student.revision, trust_remote_code=False)
    train, held = checked.rows.of("train"), checked.rows.of("validation")
    about = checked.rows.about
    logs = trainer.state.log_history
    return {
        "student": {
            "pretrained": recipe.student.pretrained,
            "revision": recipe.student.revision,
            "weights": weights_identity(source, config),
            "family": student.family.title,
        },
        "rows": {
            "train": len(train),
            "validation": len(held),
            "tokens": tokens_of(train),
            "longest": max(row.tokens for row in train),
            "sources": dict(Counter(row.source for row in train)),
            "videos": len({video for row in train for video in row.videos}),
            "dropped": about.get("dropped", {}),
            "unreadable": len(checked.bad),
        },
        "funnel": about.get("funnel"),
        "profile": None if profile is None else profile.about(),
        "recipe": recipe.model_dump(mode="json"),
        "parameters": sizes(trainer.model),
        "processes": trainer.args.world_size,
        "forwards_per_step": trainer.args.gradient_accumulation_steps,
        "steps": trainer.state.global_step,
        "epochs": round(float(trainer.state.epoch or 0), 3),
        "seconds_of_last_start": round(seconds, 1),
        "losses": [
            _only(log, ("step", "loss", "grad_norm", "learning_rate", "mean_token_accuracy"))
            for log in logs
            if "loss" in log
        ],
        "validation": [
            _only(log, ("step", "eval_loss", "eval_mean_token_accuracy")) for log in logs if "eval_loss" in log
        ],
        "versions": versions(),
        "machine": hardware(),
    }


def card_page(data: Mapping[str, Any]) -> str:
    """The card as Markdown with a model hub's front matter."""
    base = data["student"]
    front: dict[str, Any] = {
        "library_name": "transformers",
        "tags": ["apr-plugin", "active-perception", "video", "sft"],
    }
    if "/" in base["pretrained"] and not base["pretrained"].startswith(("/", ".", "~")):
        front["base_model"] = base["pretrained"]
    rows, losses = data["rows"], data["losses"]
    text = ["---", to_yaml(front).rstrip(), "---", "", f"# {base['family']}, trained on turns of an agent", ""]
    text += [
        "It was trained with [apr-plugin](https://github.com/apr-plugin/apr-plugin) on single turns of investigations "
        "of videos: the prompt as the policy saw it, with earlier media purged, and the turn. Run it with "
        "`policy=hf,pretrained=FOLDER` or `policy=vllm,pretrained=FOLDER`.",
        "",
        "| | |",
        "|---|---|",
        *lines_of(
            (
                ("student", f"{base['pretrained']} ({base['weights']})"),
                ("rows", f"{rows['train']:,} for training, {rows['validation']:,} for validation"),
                ("tokens", f"{rows['tokens']:,}; the longest row {rows['longest']:,}"),
                ("videos", f"{rows['videos']:,}"),
                ("sources", ", ".join(f"{name} {count:,}" for name, count in sorted(rows["sources"].items()))),
                ("trained parameters", f"{data['parameters']['trained']:,} of {data['parameters']['all']:,}"),
                ("processes", data["processes"]),
                ("steps", f"{data['steps']:,} ({data['epochs']} epochs)"),
                ("seconds since the last start", f"{data['seconds_of_last_start']:,}"),
                ("machine", machine_of(data["machine"])),
                *profile_lines(data),
            )
        ),
        "",
        *profile_words(data),
    ]
    if data["funnel"]:
        text += ["## Funnel: from attempts to what is kept", "", str(data["funnel"]).strip(), ""]
    if rows["dropped"]:
        dropped = [
            f"| {_cell(source)} | {_cell(reason)} | {count['dropped']:,} | {count['turns']:,} |"
            for source, reasons in rows["dropped"].items()
            for reason, count in reasons.items()
        ]
        text += [
            "## What became no row",
            "",
            "| source | reason | dropped | turns |",
            "|---|---|---:|---:|",
            *dropped,
            "",
        ]
    if rows["unreadable"]:
        text += [f"{rows['unreadable']} trajectories could not be rebuilt and were left out.", ""]
    text += ["## Losses", "", "| step | loss | token accuracy |", "|---:|---:|---:|"]
    text += [
        f"| {log['step']} | {log['loss']:.4f} | {_share(log.get('mean_token_accuracy'))} |" for log in thin(losses)
    ]
    if data["validation"]:
        text += ["", "| step | validation loss | token accuracy |", "|---:|---:|---:|"]
        text += [
            f"| {log['step']} | {log['eval_loss']:.4f} | {_share(log.get('eval_mean_token_accuracy'))} |"
            for log in data["validation"]
        ]
    text += ["", "Accuracy of single tokens says little about how the agent answers: evaluate it with `apr eval`.", ""]
    text += ["## Recipe", "", "```yaml", to_yaml(data["recipe"]).rstrip(), "```", ""]
    text += ["## Versions", "", "| package | release |", "|---|---|", *lines_of(data["versions"].items()), ""]
    return "\n".join(text)


def profile_lines(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The line of the profile in the table of a card."""
    profile = data.get("profile")
    if profile is None:
        return []
    return [("profile", f"{PROFILE_FILE}, digest {profile['digest']}: wire {profile['wire']}, {profile['origin']}")]


def profile_words(data: Mapping[str, Any]) -> list[str]:
    """What a card says about the profile."""
    if data.get("profile") is None:
        return []
    return [
        f"Its `{PROFILE_FILE}` says in which form it was trained: wire, instructions, limits, sizes of pictures. Both "
        "policies read it; an argument of a run wins over it.",
        "",
    ]


def _only(log: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: log[name] for name in names if name in log}


def thin(losses: Sequence[Mapping[str, Any]], most: int = 20) -> list[Mapping[str, Any]]:
    """About so many lines, spread over the run, the last one included."""
    every = max(1, -(-len(losses) // most))
    return [*losses[:-1:every], losses[-1]] if losses else []


def lines_of(pairs: Iterable[tuple[Any, Any]]) -> list[str]:
    """Lines of a table with two columns."""
    return [f"| {_cell(name)} | {_cell(value)} |" for name, value in pairs]


def _cell(value: Any) -> str:
    """Text for a cell of a table: on one line, with nothing that ends the cell or begins a tag."""
    text = " ".join(str(value).split())
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _share(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) else ""


def machine_of(machine: Mapping[str, Any]) -> str:
    """The processors of a machine in words."""
    gpus = ", ".join(f"{count} x {name}" for name, count in Counter(machine.get("gpus") or ()).items())
    return gpus or f"{machine.get('cores')} cores, {machine.get('cpu')}"


def versions() -> dict[str, str]:
    """Releases of the packages that are named."""
    from importlib import metadata

    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
