"""`policy=hf`: a model of the families in `families.py`, run by transformers in this process.

lmms-eval --model apr --model_args policy=hf,pretrained=harryhsing/OmniAgent-RL-7B,dtype=bfloat16 --tasks …
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from apr_plugin.errors import AprError
from apr_plugin.loop.policy import Generation, Modality, Prompt, PromptSize, Sampling
from apr_plugin.models.checkpoint import load_checkpoint
from apr_plugin.models.families import Pixels
from apr_plugin.models.prompt import PromptEncoder
from apr_plugin.policies import json_object
from apr_plugin.policies.hf.cache import PrefixStore
from apr_plugin.policies.hf.engine import Engine


class HfPolicy:
    """Runs Qwen2.5-VL, Qwen3-VL, Qwen3.5, and the Thinkers of Qwen2.5-Omni and Qwen3-Omni.

    Frames go in as images, with their times as words before them; clips as videos, with their sound where the family hears; sound as sound. Pictures
    arrive scaled by the budget (`frame_pixels`, `clip_pixels`); the processor only rounds their sides to whole tokens (28 or 32 pixels), whatever
    limits the checkpoint's own processor has, unless `min_pixels` or `max_pixels` say otherwise.

    Entropies and log-probabilities are of the distribution scaled by the temperature (at 0: unscaled) over the whole vocabulary, before `top_p` and
    `top_k`. The checkpoint's own generation settings (a repetition penalty, say) are not applied; only its end-of-turn tokens are taken.

    Args:
        pretrained: A checkpoint's folder, or its name on the hub (owner/model). Whole Omni checkpoints are read for their Thinker alone.
        revision: Branch, tag or commit on the hub.
        adapter: Folder of a LoRA adapter saved by PEFT; it is merged into the weights.
        dtype: `auto` (the checkpoint's own), `bfloat16`, `float16` or `float32`.
        device: `cuda`, `cuda:1`, `cpu`…; the first GPU by default, else the CPU.
        device_map: Spread the weights over devices instead, as accelerate does (`auto`).
        attn_implementation: `sdpa`, `flash_attention_2`, `eager`; transformers' choice by default.
        batch_size: Turns that are written at the same time.
        kv_cache: Whether keys and values of a prompt are kept, so that the next turn computes only what is new.
        kv_cache_gb: Memory for them, in GiB.
        min_pixels: Smaller pictures, and frames of clips, are enlarged to it.
        max_pixels: Larger ones are scaled down to it.
        context_tokens: Most tokens of prompt and turn together; the positions that the checkpoint was made for by default.
        repetition_penalty: Above 1, words already used become less likely.
        chat_template_kwargs: JSON, variables of the checkpoint's chat template: `{"enable_thinking": false}`.

    Raises:
        AprError: the checkpoint can't be loaded, or an argument has a bad value.
    """

    name = "hf"

    def __init__(
        self,
        pretrained: str,
        revision: str | None = None,
        adapter: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        device_map: str | None = None,
        attn_implementation: str | None = None,
        batch_size: int = 8,
        kv_cache: bool = True,
        kv_cache_gb: float = 4.0,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        context_tokens: int | None = None,
        repetition_penalty: float = 1.0,
        chat_template_kwargs: str | Mapping[str, Any] | None = None,
    ) -> None:
        batch_size = _whole("batch_size", batch_size)
        least, most = (None if value is None else _whole(key, value) for key, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)))
        if least is not None and most is not None and least > most:
            raise AprError(f"policy hf: min_pixels ({least}) is above max_pixels ({most})")
        gigabytes, penalty = _number("kv_cache_gb", kv_cache_gb), _number("repetition_penalty", repetition_penalty)
        cached = _flag("kv_cache", kv_cache)
        template = json_object("chat_template_kwargs", chat_template_kwargs)
        checkpoint = load_checkpoint(
            str(pretrained),
            revision=revision,
            adapter=adapter,
            dtype=dtype,
            device=device,
            device_map=device_map,
            attn_implementation=attn_implementation,
        )
        self.family = checkpoint.family
        self.modalities: frozenset[Modality] = self.family.modalities
        self.context_tokens: int | None = _whole("context_tokens", context_tokens) if context_tokens is not None else checkpoint.context_tokens
        try:
            self._encoder = PromptEncoder(checkpoint.processor, self.family, Pixels(least, most), checkpoint.dtype, template)
        except ValueError as error:
            raise AprError(f"policy hf: cannot use {pretrained}: {error}") from error
        self._described = {
            **checkpoint.identity,
            "dtype": checkpoint.dtype_name,
            "attn_implementation": checkpoint.model.config._attn_implementation,
            "min_pixels": least,
            "max_pixels": most,
            "context_tokens": self.context_tokens,
            "repetition_penalty": penalty,
        } | ({"chat_template_kwargs": template} if template else {})
        self._engine = Engine(
            checkpoint,
            self._encoder,
            batch_size=batch_size,
            store=PrefixStore(int(gigabytes * 2**30), whole=checkpoint.cache_config is not None) if cached else None,
            context_tokens=self.context_tokens,
            repetition_penalty=penalty,
        )

    async def count(self, prompt: Prompt) -> PromptSize | None:
        """Tokens of the prompt, exactly as it will be read."""
        return await asyncio.to_thread(self._encoder.count, prompt)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """Write the next turn. Other prompts are written beside it; cancelling drops it.

        Raises:
            PolicyUnavailable: the GPU's memory is used up, the model's output is not finite, or the policy is closed.
            ValueError: a medium that the model can't take.
        """
        return await asyncio.wrap_future(self._engine.submit(prompt, sampling))

    def describe(self) -> dict[str, Any]:
        """Everything that decides the answers. `batch_size` and the cache are left out: they change answers by rounding alone."""
        return dict(self._described)

    def close(self) -> None:
        """Stop the threads and free the model's memory."""
        self._engine.close()


def _whole(key: str, value: Any) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if number < 1:
        raise AprError(f"policy hf: {key} must be a whole number of at least 1, not {value!r}")
    return number


def _number(key: str, value: Any) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise AprError(f"policy hf: {key} must be a number above 0, not {value!r}")
    return number


def _flag(key: str, value: Any) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if str(value).lower() not in known:
        raise AprError(f"policy hf: {key} must be True or False, not {value!r}")
    return known[str(value).lower()]
