"""What vLLM itself makes of a prompt before a model runs: token ids with expanded placeholders, and M-RoPE positions.

`vllm_inside.py` uses it, in the environment whose version of vLLM is pinned, because vLLM may move these parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from apr_plugin.loop.policy import Prompt
from apr_plugin.models.families import Pixels
from apr_plugin.policies.vllm.policy import _checkpoint
from apr_plugin.policies.vllm.prompt import VllmPrompts


def in_vllm(folder: str) -> tuple[Callable[[Prompt], tuple[list[int], Any]], Callable[[int], Pixels]]:
    """Make two functions for the checkpoint in a folder.

    One maps a prompt to (token ids, positions of shape (3, n)), the other a number of frames to a frame's limits.
    """
    from torch import nn
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.model_executor.model_loader import get_model_cls
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.inputs import MultiModalFeatureSpec
    from vllm.multimodal.processing import ProcessorInputs, TimingContext

    family, processor, _, _ = _checkpoint(folder, None, {})
    prompts = VllmPrompts(processor, family)
    limits = {"image": 8, "video": 1} | ({"audio": 1} if family.hears else {})
    config = AsyncEngineArgs(
        model=folder, dtype="float32", max_model_len=8192, enforce_eager=True, limit_mm_per_prompt=limits
    ).create_engine_config()
    reader = MULTIMODAL_REGISTRY.create_processor(config.model_config)
    model = type("Weightless", (get_model_cls(config.model_config),), {"__init__": nn.Module.__init__})()
    model.config = getattr(config.model_config.hf_config, "thinker_config", config.model_config.hf_config)

    def made(prompt: Prompt) -> tuple[list[int], Any]:
        request = prompts.request(prompt)
        items = reader.info.parse_mm_data(request["multi_modal_data"])
        options = request.get("mm_processor_kwargs", {})
        inputs = ProcessorInputs(
            prompt=request["prompt_token_ids"], mm_data_items=items, hf_processor_mm_kwargs=options, mm_uuid_items=None
        )
        read = reader.apply(inputs, TimingContext())
        ids = list(read["prompt_token_ids"])
        features = [
            MultiModalFeatureSpec(data=data, modality=modality, identifier=digest, mm_position=place)
            for modality, places in read["mm_placeholders"].items()
            for data, place, digest in zip(
                read["mm_kwargs"][modality], places, read["mm_hashes"][modality], strict=True
            )
        ]
        positions, _ = model.get_mrope_input_positions(
            ids, sorted(features, key=lambda feature: feature.mm_position.offset)
        )
        return ids, positions.long()

    return made, prompts._clip_limits
