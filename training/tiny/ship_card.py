"""The model card of a shipped small agent: every figure comes from the records of its run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from apr_plugin.errors import AprError
from apr_plugin.files import read_regular
from apr_plugin.loop.profile_file import PROFILE_FILE, ProfileFile
from apr_plugin.models.bundled import NAME
from apr_plugin.report.card_files import to_yaml
from apr_plugin.tasks.needle.questions import Kind
from apr_plugin.training.sft.card import lines_of, machine_of, thin
from apr_plugin.training.sft.running import RUN
from apr_plugin.training.sft.telling import spent
from apr_plugin.training.tiny.notes import KINDS
from apr_plugin.training.tiny.recipe import STAGES
from apr_plugin.training.tiny.worlds import GATES, TRAINING

RECORD = "training.json"
"""In the folder of a trained checkpoint: the data of its own card."""


def records(run: Path, source: Path, stage: str | None) -> dict[str, Any]:
    """What is known of a run.

    Args:
        run: Its folder.
        source: The checkpoint that is shipped.
        stage: The stage of which it is the result; `None`: all of them.

    Returns:
        The data of the checkpoint's card, with `run` (what the run is made of), the measurements so far and the cost of
        each stage (`measured`, `spent`), and `stage`.

    Raises:
        AprError: a record is missing or can't be read.
    """
    told = _read(source / RECORD)
    told["run"], told["stage"] = _read(run / RUN), stage
    folders = {folder.name.partition("-")[2]: folder for folder in sorted((run / STAGES).glob("[0-9]*-*"))}
    try:
        for one in told["stages"]:
            one["spent"] = spent(folders[one["name"]])
    except (KeyError, TypeError) as error:
        raise AprError(f"{run}: its records do not fit together: there is no {error}") from error
    return told


def _read(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_regular(file))
    except (OSError, ValueError, RecursionError) as error:
        raise AprError(f"{file}: cannot read it: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(data, dict):
        raise AprError(f"{file}: it holds no JSON object")
    return data


def licence() -> str:
    """The licence of this package, as its own description names it.

    Raises:
        AprError: it is not known.
    """
    try:
        about = metadata.metadata("apr-plugin")
    except metadata.PackageNotFoundError:
        about = None
    found = next((str(about[name]) for name in ("License-Expression", "License") if about and about[name]), None)
    if found is None:
        raise AprError("the licence of apr-plugin is not known: it is not installed as a package")
    return found


def page(told: Mapping[str, Any], profile: ProfileFile, weights: str, megabytes: float, note: str = "") -> str:
    """The card as Markdown with a model hub's front matter.

    Args:
        told: See `records`.
        profile: How the agent is asked.
        weights: Identity of the weights.
        megabytes: Size of the weights' file, in 10^6 bytes.
        note: What it says besides.
    """
    front = {
        "license": licence().lower(),
        "library_name": "transformers",
        "tags": ["apr-plugin", "active-perception", "video", "agent"],
    }
    parameters, start, shrink = told["parameters"]["all"], told["run"]["start"], float(told["run"]["shrink"])
    plays = any(source.startswith("needle_agents") for one in told["stages"] for source in one["sources"])
    words = {"run": f"`policy=hf,pretrained={NAME}`" if told["stage"] is None else "`policy=hf,pretrained=FOLDER`"}
    what = (
        "An agent that chooses what to look at in a video"
        if plays
        else f"The small agent of apr-plugin after its stage `{told['stage']}`, before it plays"
    )
    text = ["---", to_yaml(front).rstrip(), "---", "", f"# {NAME}" + (f", {told['stage']}" if told["stage"] else "")]
    text += [
        "",
        f"{what}: {parameters:,} parameters, trained from random weights by `apr train recipe` of "
        f"[apr-plugin](https://github.com/apr-plugin/apr-plugin). Run it with {words['run']}; `policy=vllm` reads it "
        "too.",
        "",
    ]
    if shrink != 1:
        text += [f"**A trial:** every length was divided by {shrink:g}, and gates asked for nothing.", ""]
    if note:
        text += [note.strip(), ""]
    sums = {name: sum(one["spent"][name] for one in told["stages"]) for name in ("tokens", "seconds", "cpu_seconds")}
    text += ["| | |", "|---|---|"]
    text += lines_of(
        (
            ("architecture", f"Thinker of {told['student']['family']}, in the layout of a whole Omni checkpoint"),
            ("parameters", f"{parameters:,}"),
            ("weights", f"bfloat16, {megabytes:.2f} MB, {weights}; computed in the type that config.json names"),
            ("profile", f"{PROFILE_FILE}: {profile}"),
            ("before training", f"random weights of seed {start['seed']}; {_sizes(start['size'])}"),
            ("tokens", f"{sums['tokens']:,.0f}, over all starts"),
            ("time", f"{sums['seconds']:,.0f} seconds, {sums['cpu_seconds']:,.0f} CPU seconds of the first process"),
            ("processes", told["processes"]),
            ("machine", f"{machine_of(told['machine'])}, {told['machine'].get('memory_gib')} GiB"),
            ("licence", f"{licence()}, that of apr-plugin"),
        )
    )
    text += ["", *_use(plays), *_data(), *_stages(told)]
    text += ["## Versions", "", "| package | release |", "|---|---|", *lines_of(told["versions"].items()), ""]
    return "\n".join(text)


def _sizes(size: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in size.items())


def _use(plays: bool) -> list[str]:
    kinds, others = ", ".join(KINDS), ", ".join(kind for kind in Kind if kind not in KINDS)
    limits = [
        "- It knows videos of `apr needle make` and questions in that benchmark's words, and nothing else. About other "
        "videos, or in other words, what it says means nothing.",
        f"- Its teacher answers questions of the kinds {kinds}." + (f" It was not taught {others}." if others else ""),
        "- It is small and trained by imitation: it can be wrong with high confidence. Its confidence was not "
        "calibrated.",
        "- It writes what the form of its profile asks for. In another form it was never trained.",
    ]
    if not plays:
        limits.insert(0, "- It was not yet trained to look and answer by itself.")
    return [
        "## Intended use",
        "",
        "To try the loop of apr-plugin on a processor, to test harnesses and servers with a model that really looks, "
        "and to begin training from. It is no model for videos of the world.",
        "",
        "## Limits",
        "",
        *limits,
        "",
    ]


def _data() -> list[str]:
    return [
        "## Data",
        "",
        "Frames, questions and turns are made while it trains, from seeds: the world of the needle benchmark, and the "
        "turns of a scripted teacher. No recorded video, no text of others and no other model is in them. Training "
        f"takes worlds of the seeds {TRAINING.start} to {TRAINING.stop - 1}, gates those of {GATES.start} to "
        f"{GATES.stop - 1}; the sets of `apr needle make` take 64-bit hashes.",
        "",
    ]


def _stages(told: Mapping[str, Any]) -> list[str]:
    settings = {one["name"]: one for one in told["recipe"]["stages"]}
    text = [
        "## Stages",
        "",
        "| stage | rows | steps | tokens | seconds | CPU seconds |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for one in told["stages"]:
        rows = ", ".join(f"{name} {share:.0%}" for name, share in one["sources"].items())
        cost = one["spent"]
        text.append(
            f"| {one['name']} | {rows} | {one['steps']:,} | {cost['tokens']:,.0f} | {cost['seconds']:,.0f} | "
            f"{cost['cpu_seconds']:,.0f} |"
        )
    text += [
        "",
        "Cost is over all starts; what was done again after a stop counts again. Gates let the model write by itself, "
        "greedily, about drawn frames of worlds that training does not meet. They are no figures of a benchmark: those "
        "are measured with `apr eval` on real files.",
        "",
    ]
    for one in told["stages"]:
        text += _gate(one, settings[one["name"]].get("gate"))
    return text


def _gate(one: Mapping[str, Any], gate: Mapping[str, Any] | None) -> list[str]:
    if not gate or not one["measured"]:
        return []
    lines = one["measured"]
    names = [name for name in lines[-1] if name not in ("step", "reached")]
    asked = [f"{gate['reach'][name]:g}" if gate["reach"].get(name) else "" for name in names]
    text = [f"### Gate of {one['name']}: {gate['measure']}", ""]
    text += [f"| step | {' | '.join(names)} | reached |", "|---:" * (1 + len(names)) + "|---|"]
    text += [f"| asked for | {' | '.join(asked)} | |"]
    text += [
        f"| {line['step']:,} | {' | '.join(f'{line[name]:.3f}' for name in names)} | "
        f"{'yes' if line['reached'] else 'no'} |"
        for line in thin(lines, 8)
    ]
    return [*text, ""]
