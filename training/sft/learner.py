"""The model that is trained: loaded in full, with the chosen weights free and the others fixed."""

from __future__ import annotations

from typing import Any

from apr_plugin.errors import AprError, require, told
from apr_plugin.models.checkpoint import checkpoint_source
from apr_plugin.models.compat import model_class
from apr_plugin.models.families import family_of
from apr_plugin.training.sft.recipe import LearnSettings, LoraSettings, StudentSettings

TOWERS = ("visual", "audio_tower")
"""Names of the modules that see and hear, in every family."""

PROJECTORS = ("merger", "merger_list", "deepstack_merger_list", "proj", "proj1", "proj2")
"""Names of their last layers, which lead into the language model."""


def load_learner(student: StudentSettings) -> Any:
    """Load a checkpoint for training; of a whole Omni model, its Thinker.

    Raises:
        AprError: it can't be read, lacks weights, or is of no family that can be trained.
    """
    for module in ("torch", "torchvision", "transformers"):
        require(module, "train")
    import torch
    import transformers

    source = checkpoint_source(student.pretrained, "hf")
    common: dict[str, Any] = {"revision": student.revision, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(source, **common)
        family = family_of(config.model_type)
        model, loaded = model_class(family.model_class, family.title, config).from_pretrained(
            source,
            dtype=getattr(torch, student.dtype),
            attn_implementation=student.attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
            **common,
        )
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        raise AprError(f"cannot load {student.pretrained}: {told(error).splitlines()[0]}") from error
    if missing := sorted(loaded["missing_keys"]):
        raise AprError(
            f"{student.pretrained} lacks {len(missing)} of the model's weights ({missing[0]}, …); it is not a complete "
            f"{family.title}"
        )
    return model


def choose_weights(model: Any, learn: LearnSettings) -> None:
    """Say for each parameter of a model whether it is trained (`requires_grad`)."""
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        tower = next((number for number, part in enumerate(parts) if part in TOWERS), None)
        if tower is None:
            parameter.requires_grad_(True)
        elif learn.towers == "projector":
            parameter.requires_grad_(parts[tower + 1] in PROJECTORS)
        else:
            parameter.requires_grad_(learn.towers == "trained")


def lora_config(model: Any, lora: LoraSettings) -> Any:
    """PEFT's configuration for adapters in the language model only.

    Raises:
        AprError: PEFT is not installed, or no layer has such a name.
    """
    require("peft", "train")
    import torch
    from peft import LoraConfig

    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and name.rsplit(".", 1)[-1] in lora.targets
        and not set(name.split(".")) & set(TOWERS)
    ]
    if not layers:
        raise AprError(f"lora.targets: the language model has no linear layer named {', '.join(lora.targets)}")
    return LoraConfig(
        task_type="CAUSAL_LM", r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=layers
    )


def sizes(model: Any) -> dict[str, int]:
    """Numbers of parameters: `all`, and `trained`."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return {"all": sum(n for n, _ in counts), "trained": sum(n for n, free in counts if free)}
