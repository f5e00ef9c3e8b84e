"""The weights of a step as a checkpoint that vLLM and transformers load, in a folder that appears when it is complete.

Names are the published ones: transformers' own `save_pretrained` writes them, and the Thinker of an Omni model gets the
prefix under which the whole model has it, because vLLM reads whole Omni checkpoints only. Adapters are merged into the
weights: W + B A alpha / r (arXiv 2106.09685, section 4.1).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apr_plugin.errors import AprError
from apr_plugin.models.checkpoint import checkpoint_source
from apr_plugin.training.layout import PREFIX, as_whole, prefixed

_PEFT = "base_model.model."
_BASE = ".base_layer."


def merged(state: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """The weights of a model with adapters, under the names of the model without them, with the adapters merged.

    Args:
        state: The state of PEFT's model.
        scale: alpha / r.
    """
    import torch

    plain = {name.removeprefix(_PEFT): value for name, value in state.items()}
    made: dict[str, Any] = {}
    for name, value in plain.items():
        if ".lora_" in name:
            continue
        if _BASE in name and name.endswith(".weight"):
            module = name.partition(_BASE)[0]
            (down,) = (plain[key] for key in plain if key.startswith(f"{module}.lora_A."))
            (up,) = (plain[key] for key in plain if key.startswith(f"{module}.lora_B."))
            delta = (up.to(torch.float32) @ down.to(torch.float32)) * scale
            value = (value.to(torch.float32) + delta.to(value.device)).to(value.dtype)
        made[name.replace(_BASE, ".")] = value
    return made


def save_weights(model: Any, state: Mapping[str, Any], folder: Path, *, processor: Any, dtype: Any = None) -> None:
    """Write a checkpoint.

    Args:
        model: The model, without wrappers and adapters; only its class and configuration are used.
        state: All of its weights, under their names in memory.
        folder: New folder; one that is there is replaced.
        processor: Saved beside them, so that a server can also be started with the folder.
        dtype: Torch type of the weights in the files; `None` keeps theirs.

    Raises:
        AprError: it can't be written.
    """
    part = folder.with_name(f"{folder.name}.part")
    cast = {
        name: value.to(dtype) if dtype is not None and value.is_floating_point() else value
        for name, value in state.items()
    }
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        model.save_pretrained(part, state_dict=cast, safe_serialization=True)
        if is_thinker(model.config):
            as_whole(part)
        processor.save_pretrained(part)
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise AprError(
            f"{folder}: cannot write the weights for the servers (rollouts.weights_dir): {error.strerror or error}"
        ) from error


def is_thinker(config: Any) -> bool:
    """Whether a model is the Thinker of an Omni model."""
    return str(config.model_type).endswith("_thinker")


def names_in(folder: Path) -> set[str]:
    """The names of the tensors in a checkpoint's safetensors."""
    from safetensors import safe_open

    names: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            names |= set(opened.keys())
    return names


def check_names_of(folder: Path, pretrained: str) -> None:
    """Compare the names in a folder of weights with those of the checkpoint that is trained.

    A server loads what it finds and says of the rest only in its log that it was not loaded; a name that has changed
    would leave old weights there. A checkpoint of which no file is here is not compared.

    Raises:
        AprError: a tensor of the checkpoint is missing in the folder.
    """
    source = Path(checkpoint_source(pretrained, "hf")).expanduser()
    if not source.is_dir():
        return
    base, ours = names_in(source), names_in(folder)
    if any(name.startswith(PREFIX) for name in ours):  # the parts that speak are not trained
        base = {name for name in base if name.startswith(PREFIX)} or {prefixed(name) for name in base}
    # transformers leaves out a last layer that is tied, and buffers that are computed.
    base = {name for name in base if not name.endswith(("lm_head.weight", "inv_freq"))}
    if missing := sorted(base - ours):
        raise AprError(
            f"{folder}: {len(missing)} tensors of {pretrained} are not among the weights for the servers (the first: "
            f"{missing[0]}); the installed transformers saves them under other names"
        )
