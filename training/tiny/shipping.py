"""`apr train ship`: a trained small agent as a folder that can travel with the package.

Only what is needed to run it: weights in bfloat16, tokenizer, processor, profile, what it was trained for, and a model
card from the records of its run. The layout is that of a whole Omni checkpoint, because vLLM reads no other. The
configuration keeps the type in which it was trained, so that `dtype=auto` computes in float32.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apr_plugin import __version__, terminal
from apr_plugin.errors import AprError, require
from apr_plugin.loop.profile_file import PROFILE_FILE, read_profile
from apr_plugin.models.bundled import ABOUT, NAME
from apr_plugin.training.layout import as_whole
from apr_plugin.training.sft.running import FINAL
from apr_plugin.training.tiny.notes import KINDS
from apr_plugin.training.tiny.recipe import STAGES
from apr_plugin.training.tiny.ship_card import page, records

WEIGHTS = "model.safetensors"
COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "processor_config.json",
    "chat_template.jinja",
    PROFILE_FILE,
)
"""Files of a checkpoint that are copied; nothing else of its folder travels."""

MOST_MB = 20.0
"""Largest size of a whole agent in megabytes (10^6 bytes)."""

STAGE_MB = 5.0
"""Largest size of the checkpoint of a stage."""


def ship(run: Path, out: Path, stage: str | None = None, note: str = "") -> Path:
    """Write the agent of a run.

    Args:
        run: Folder of `apr train recipe`.
        out: The folder to write; one that was written by this function is replaced.
        stage: Take what this stage ended with, instead of the whole run.
        note: What the card says besides, in Markdown, for what the records of the run don't tell.

    Returns:
        The folder.

    Raises:
        AprError: the run or the stage is not finished, something in it is missing or wrong, the result is too large or
            is not the same agent when it is loaded, or it can't be written.
    """
    for module in ("torch", "torchvision", "transformers", "safetensors"):
        require(module, "train")
    run, out = run.expanduser(), out.expanduser()
    source = _source(run, stage)
    told = records(run, source, stage)
    if not (source / PROFILE_FILE).is_file():
        raise AprError(f"{source}: it has no {PROFILE_FILE}, without which nobody knows how to ask the agent")
    profile = read_profile(source)
    _check_free(out)
    part = out.with_name(f".{out.name}.part")
    console = terminal.console(stderr=True)
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        with console.status("writing and loading it again …"):
            _copy(source, part)
            (part / ABOUT).write_text(json.dumps(_about(told, stage), indent=2) + "\n", encoding="utf-8")
            weights = check_same(source, part)
        card = page(told, profile, weights, _megabytes(part / WEIGHTS), note)
        (part / "README.md").write_text(card, encoding="utf-8")
        _check_size(part, STAGE_MB if stage else MOST_MB)
        shutil.rmtree(out, ignore_errors=True)
        part.replace(out)
    except OSError as error:
        raise AprError(f"{out}: cannot write it: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    size = sum(_megabytes(file) for file in out.iterdir())
    console.print(f"{out}: {size:.2f} MB, {weights}; its README.md is the model card", soft_wrap=True)
    return out


def check_same(source: Path, shipped: Path) -> str:
    """Check that a shipped folder loads as the checkpoint that it was made from, rounded to bfloat16.

    Returns:
        The identity of its weights, as a run's card names them.

    Raises:
        AprError: a tensor differs, or one of them can't be loaded.
    """
    import torch

    from apr_plugin.models.checkpoint import load_checkpoint

    before, after = (load_checkpoint(str(folder), device="cpu", dtype="float32") for folder in (source, shipped))
    states = [loaded.model.state_dict() for loaded in (before, after)]
    if names := sorted(set(states[0]) ^ set(states[1])):
        raise AprError(f"{shipped}: loaded again it has other tensors than {source}, for example {names[0]}")
    for name, value in states[0].items():
        if not torch.isfinite(value).all():
            raise AprError(f"{source}: {name} has values that are no finite numbers")
        if not torch.equal(value.to(torch.bfloat16).float(), states[1][name].float()):
            raise AprError(f"{shipped}: {name} is not that of {source} in bfloat16")
    vocabularies = [loaded.processor.tokenizer.backend_tokenizer.to_str() for loaded in (before, after)]
    if vocabularies[0] != vocabularies[1]:
        raise AprError(f"{shipped}: its tokenizer is not that of {source}")
    return str(after.identity["weights"])


def _source(run: Path, stage: str | None) -> Path:
    """The finished checkpoint."""
    if stage is None:
        if not (run / FINAL / "config.json").is_file():
            raise AprError(
                f"{run}: it has no {FINAL}/, so the recipe is not finished; the same apr train recipe goes on, or name "
                f"a finished stage with --stage ({', '.join(_finished(run)) or 'there is none yet'})"
            )
        return run / FINAL
    finished = _finished(run)
    if stage not in finished:
        raise AprError(
            f"{run}: there is no finished stage {terminal.quoted(stage, 60)}; finished are "
            f"{', '.join(finished) or 'none'}"
        )
    return finished[stage] / FINAL


def _finished(run: Path) -> dict[str, Path]:
    """The folders of the finished stages by their name."""
    return {
        folder.name.partition("-")[2]: folder
        for folder in sorted((run / STAGES).glob("[0-9]*-*"))
        if (folder / FINAL / "config.json").is_file()
    }


def _check_free(out: Path) -> None:
    if not out.exists() or (out / ABOUT).is_file() or (out.is_dir() and not any(out.iterdir())):
        return
    raise AprError(f"{out}: it is there already, and is no shipped agent; name a new folder")


def _copy(source: Path, part: Path) -> None:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    for name in COPIED:
        if not (source / name).is_file():
            raise AprError(f"{source}: it has no {name}")
        shutil.copyfile(source / name, part / name)
    try:
        tensors = load_file(source / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise AprError(f"{source / WEIGHTS}: cannot read the weights: {error}") from error
    cast = {
        name: (value.to(torch.bfloat16) if value.is_floating_point() else value).contiguous()
        for name, value in tensors.items()
    }
    save_file(cast, part / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((part / "config.json").read_text("utf-8"))
    if str(config.get("model_type")).endswith("_thinker"):
        as_whole(part)
    (part / WEIGHTS).chmod(0o644)  # safetensors are written for their owner alone


def _about(told: Mapping[str, Any], stage: str | None) -> dict[str, Any]:
    """What the agent was trained for."""
    plays = any(source.startswith("needle_agents") for one in told["stages"] for source in one["sources"])
    return {
        "name": NAME,
        "stage": stage,
        "needle_kinds": [str(kind) for kind in KINDS] if plays else [],
        "written_by": f"apr-plugin {__version__}",
    }


def _check_size(folder: Path, most_mb: float) -> None:
    size = sum(_megabytes(file) for file in folder.iterdir())
    if size > most_mb:
        raise AprError(f"it would have {size:.1f} MB, and at most {most_mb:g} MB travel; train a smaller model")


def _megabytes(file: Path) -> float:
    return file.stat().st_size / 1e6
