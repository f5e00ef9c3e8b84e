"""`policy=vllm`: a vLLM engine in this process, for many episodes at once on one or more GPUs.

        lmms-eval --model apr --tasks videomme --model_args \
            policy=vllm,pretrained=Qwen/Qwen2.5-VL-7B-Instruct,tensor_parallel_size=2,concurrency=32

Log-probabilities are of the distribution that a token was drawn from: after the temperature, `top_k`, `top_p` and
`min_p` (`Generation.logprobs_of`), and without the tokens of media and of the marks around media, which are never
sampled.

Pictures, clips with their timing and sound go to the model's own inputs. The prefix cache is on, and the loop's prompts
are made for it. Needs `pip install 'apr-plugin[vllm]'`. A server (`vllm serve`) is used through `policy=openai`
instead; `docs/models.md` describes both.

What is repeatable: each generation has its own seed, but vLLM's batches depend on timing, and the last bits of the
logits depend on the batches. Two runs can differ at any temperature, also at concurrency 1 (a cached prefix is not
computed in the same pieces). Resuming is safe: a finished question is never asked again.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from apr_plugin import options
from apr_plugin.errors import require
from apr_plugin.loop.policy import (
    Generation,
    GenerationTimings,
    LogprobsOf,
    Modality,
    Prompt,
    PromptSize,
    Sampling,
    Usage,
)
from apr_plugin.models import bundled
from apr_plugin.models.checkpoint import checkpoint_source, file_digest, weights_identity
from apr_plugin.models.compat import has_linear_attention
from apr_plugin.models.families import Family, family_of
from apr_plugin.policies import did_you_mean
from apr_plugin.policies.vllm.engine import VllmEngine
from apr_plugin.policies.vllm.prompt import VllmPrompts

_OURS = ("logprobs", "max_tokens", "n", "output_kind", "seed", "temperature", "top_k", "top_p")
"""Fields of vLLM's `SamplingParams` that the loop sets."""


class VllmPolicy:
    """A vLLM engine in this process; arguments that are left out have vLLM's own defaults.

    Args:
        pretrained: Name on the hub, or a folder. An Omni checkpoint must be a whole one, not a Thinker alone.
        revision: Branch, tag or commit on the hub.
        dtype: `auto`, `bfloat16`, `float16` or `float32`.
        quantization: A method that vLLM knows (`fp8`, `awq`, `gptq`, `bitsandbytes`, …).
        adapter: Folder of a LoRA adapter.
        tensor_parallel_size: GPUs that share one copy of the model.
        data_parallel_size: Copies of the model; episodes are spread over them.
        gpu_memory_utilization: Share of each GPU's memory to use, 0 to 1.
        max_model_len: Most tokens of prompt and completion together; fewer than the model's own limit saves memory.
        limit_mm_per_prompt: JSON, most pictures, clips and sounds of a prompt: `{"image": 60, "video": 1, "audio": 1}`.
            A modality set to 0 takes no memory and becomes an action that is not offered.
        enable_prefix_caching: Whether the part of a prompt that an earlier one has too is reused.
        entropy_top_k: Entropies are over this many of the most likely tokens; 0 means no entropies.
        engine_args: JSON, further fields of vLLM's `AsyncEngineArgs`: `{"enforce_eager": true}`.
        sampling_args: JSON, further fields of vLLM's `SamplingParams`: `{"repetition_penalty": 1.05}`.
        chat_template_kwargs: JSON, variables of the checkpoint's chat template: `{"enable_thinking": false}`.
        stall_s: Seconds without a first or a further token after which a turn ends as `policy_unavailable`.

    Raises:
        MissingExtra: vLLM is not installed.
        ValueError: an argument is unknown or has a bad value, or the checkpoint's family can't be run.
        RuntimeError: the engine did not start.
    """

    name = "vllm"

    def __init__(
        self,
        pretrained: str,
        revision: str | None = None,
        dtype: str | None = None,
        quantization: str | None = None,
        adapter: str | None = None,
        tensor_parallel_size: int = 1,
        data_parallel_size: int = 1,
        gpu_memory_utilization: float | None = None,
        max_model_len: int | None = None,
        limit_mm_per_prompt: str | Mapping[str, Any] | None = None,
        enable_prefix_caching: bool = True,
        entropy_top_k: int = 20,
        engine_args: str | Mapping[str, Any] | None = None,
        sampling_args: str | Mapping[str, Any] | None = None,
        chat_template_kwargs: str | Mapping[str, Any] | None = None,
        stall_s: float = 1800.0,
    ) -> None:
        require("vllm", "vllm")
        self._stall_s = options.number("stall_s", stall_s, 0, unit="seconds")
        template = options.json_object("chat_template_kwargs", chat_template_kwargs)
        limits = options.json_object("limit_mm_per_prompt", limit_mm_per_prompt)
        self._more = options.json_object("engine_args", engine_args)
        self._sampling = options.json_object("sampling_args", sampling_args)
        self._top_k = options.whole("entropy_top_k", entropy_top_k, 0)
        revision, dtype, quantization, adapter = (
            options.given(value) for value in (revision, dtype, quantization, adapter)
        )
        share, longest = options.given(gpu_memory_utilization), options.given(max_model_len)
        longest = None if longest is None else options.whole("max_model_len", longest, 1)
        given, pretrained = str(pretrained), checkpoint_source(str(pretrained), self.name)
        _check("sampling_args", self._sampling, _sampling_fields(), _OURS)
        wanted: dict[str, Any] = {
            "model": pretrained,
            "revision": revision,
            "dtype": dtype,
            "quantization": quantization,
            "tensor_parallel_size": options.whole("tensor_parallel_size", tensor_parallel_size, 1),
            "data_parallel_size": options.whole("data_parallel_size", data_parallel_size, 1),
            "gpu_memory_utilization": None if share is None else options.number("gpu_memory_utilization", share, 0, 1),
            "max_model_len": longest,
            "limit_mm_per_prompt": limits or None,
            "enable_prefix_caching": options.flag("enable_prefix_caching", enable_prefix_caching),
        }
        _check("engine_args", self._more, _engine_fields(), (*wanted, "trust_remote_code"))
        self.family, processor, weights, linear = _checkpoint(
            pretrained, revision, self._more.get("mm_processor_kwargs") or {}
        )
        self._prompts = VllmPrompts(processor, self.family, template)
        self.modalities: frozenset[Modality] = _perceived(self.family, limits)
        self.visual_token = self.family.visual_token
        self._described: dict[str, Any] = {
            "pretrained": given if given == bundled.NAME else pretrained,
            "revision": revision,
            "weights": weights,
            "dtype": dtype,
            "quantization": quantization,
            "adapter": None if adapter is None else {"path": adapter, "weights": _adapter_weights(adapter)},
            "max_model_len": longest,
            "limit_mm_per_prompt": limits,
            "engine_args": self._more,
            "sampling_args": self._sampling,
        } | ({"chat_template_kwargs": template} if template else {})
        self._described |= self.visual_token.described()
        arguments = {key: value for key, value in wanted.items() if value is not None}
        # Log-probabilities of the distribution that was sampled from, as the loop's records define them, not of the raw
        # logits. vLLM keeps processed media twice, here and in the engine. If many requests come at once the two caches
        # diverge: the engine looks for an entry that only the other has, and every later request waits for ever
        # (github.com/vllm-project/vllm/issues/31404, /issues/46354, /pull/34749).
        arguments["mm_processor_cache_gb"] = 0
        arguments |= {
            "logprobs_mode": "processed_logprobs",
            "max_logprobs": max(20, self._top_k),
            "disable_log_stats": False,
        }
        if quantization != "bitsandbytes":  # which has its own loader
            arguments["load_format"] = "safetensors"  # never a pickle
        if adapter is not None:
            arguments |= {"enable_lora": True, "max_lora_rank": _rank(adapter)}
        self._engine = VllmEngine(arguments | self._more, adapter, linear=linear, stall_s=self._stall_s)
        self.context_tokens: int | None = self._engine.max_model_len

    async def count(self, prompt: Prompt) -> PromptSize:
        """The number of tokens that the prompt will have in this engine."""
        return await asyncio.to_thread(self._prompts.count, prompt)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """Write the next turn.

        Raises:
            PolicyUnavailable: the engine has died, was closed, could not take the prompt, or has returned no token for
                `stall_s` seconds.
        """
        request = await asyncio.to_thread(self._prompts.request, prompt)
        output = await self._engine.generate(request, self._parameters(sampling))
        return self._read(output, self._prompts.opened_by(request), self._logprobs_of(sampling))

    def describe(self) -> dict[str, Any]:
        """The settings that decide the answers.

        The number of GPUs and the share of their memory are left out: a run may be resumed on another machine.
        """
        return dict(self._described)

    def close(self) -> None:
        """End the engine and its processes."""
        self._engine.close()

    def _parameters(self, sampling: Sampling) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        more = dict(self._sampling)
        if isinstance(held := more.get("structured_outputs"), Mapping):
            from vllm.sampling_params import StructuredOutputsParams

            more["structured_outputs"] = StructuredOutputsParams(**held)
        if sampling.stop:
            more.setdefault("stop", list(sampling.stop))
        biased = {int(token): bias for token, bias in more.pop("logit_bias", {}).items()}
        # One addition for all requests of a step, and exact.
        more["logit_bias"] = biased | dict.fromkeys(self._prompts.never_written, -math.inf)
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_new_tokens,
            seed=sampling.seed,
            logprobs=self._top_k,
            output_kind=RequestOutputKind.DELTA,
            **more,
        )

    def _logprobs_of(self, sampling: Sampling) -> LogprobsOf:
        """The distribution after everything that vLLM does to the logits (`logprobs_mode=processed_logprobs`)."""
        if sampling.temperature <= 0:
            return "raw"
        cut = sampling.top_p < 1 or sampling.top_k > 0 or self._sampling.get("min_p", 0) > 0
        return "truncated" if cut else "scaled"

    def _read(self, output: Any, opened: str, logprobs_of: LogprobsOf) -> Generation:
        written = output.outputs[0]
        ids = tuple(written.token_ids)
        prompt = output.prompt_token_ids or []
        counts = {kind: prompt.count(token) for kind, token in self._prompts.ids_of.items()}
        positions = written.logprobs or []
        return Generation(
            text=opened + written.text,
            usage=Usage(
                prompt_tokens=len(prompt),
                cached_tokens=output.num_cached_tokens,
                completion_tokens=len(ids),
                visual_tokens=counts["image"] + counts["video"],
                audio_tokens=counts.get("audio", 0),
            ),
            finish_reason=written.finish_reason or "stop",
            token_ids=ids,
            logprobs=tuple(min(0.0, at[token].logprob) for at, token in zip(positions, ids, strict=True))
            if positions
            else None,
            logprobs_of=logprobs_of if positions else None,
            prompt_token_ids=tuple(prompt),
            entropies=tuple(_entropy(at, self._top_k) for at in positions) if positions and self._top_k else None,
            entropy_top_k=self._top_k if positions and self._top_k else None,
            timings=_timings(output.metrics),
        )


def _entropy(position: Mapping[int, Any], top_k: int) -> float:
    """Entropy in nats over the `top_k` most likely tokens, renormalised.

    Tokens that sampling ruled out have probability 0.
    """
    kept = sorted((entry.logprob for entry in position.values()), reverse=True)[:top_k]
    weights = [math.exp(logprob) for logprob in kept]
    total = math.fsum(weights)
    return max(0.0, -math.fsum(w / total * math.log(w / total) for w in weights if w > 0)) if total > 0 else 0.0


def _timings(metrics: Any) -> GenerationTimings:
    """Read the engine's own clock."""
    if metrics is None or not metrics.first_token_ts:
        return GenerationTimings()
    return GenerationTimings(
        queue_s=max(0.0, metrics.scheduled_ts - metrics.queued_ts),
        prefill_s=max(0.0, metrics.first_token_ts - metrics.scheduled_ts),
        decode_s=max(0.0, metrics.last_token_ts - metrics.first_token_ts),
    )


def _check(name: str, given: Mapping[str, Any], known: Sequence[str], ours: Sequence[str]) -> None:
    for key in given:
        if key in ours:
            raise ValueError(f"{name} can't set {key}, which is set already")
        if key not in known:
            raise ValueError(f"{name}: vLLM knows no {key!r}{did_you_mean(key, known)}")


@cache
def _engine_fields() -> tuple[str, ...]:
    from vllm import AsyncEngineArgs

    return tuple(field.name for field in fields(AsyncEngineArgs))


@cache
def _sampling_fields() -> tuple[str, ...]:
    from vllm import SamplingParams

    return tuple(SamplingParams.__struct_fields__)


def _checkpoint(pretrained: str, revision: str | None, options: Mapping[str, Any]) -> tuple[Family, Any, str, bool]:
    """The family of a checkpoint, its processor, the identity of its weights, and whether it has linear attention."""
    from transformers import AutoConfig, AutoProcessor

    config = AutoConfig.from_pretrained(pretrained, revision=revision, trust_remote_code=False)
    if config.model_type.endswith("_thinker"):
        raise ValueError(
            f"{pretrained} contains only a Thinker; vLLM reads whole Omni checkpoints (a Thinker runs with policy=hf)"
        )
    thinker = getattr(config, "thinker_config", config)
    family = family_of(config.model_type).of_config(thinker)
    processor = AutoProcessor.from_pretrained(pretrained, revision=revision, trust_remote_code=False, **options)
    return family.checked(processor), processor, weights_identity(pretrained, config), has_linear_attention(thinker)


def _perceived(family: Family, limits: Mapping[str, Any]) -> frozenset[Modality]:
    """What the model perceives, without modalities whose limit is 0."""
    kinds: dict[str, Modality] = {"image": "frames", "video": "clip", "audio": "audio"}
    return family.modalities - {modality for kind, modality in kinds.items() if limits.get(kind) == 0}


def _adapter_weights(adapter: str) -> str:
    try:
        return file_digest(Path(adapter).expanduser(), ("adapter_config.json", "adapter_model.safetensors"))
    except OSError as error:
        raise ValueError(f"adapter: {error.filename} can't be read: {error.strerror}") from error


def _rank(adapter: str) -> int:
    """The smallest rank for which vLLM reserves memory that is enough for a LoRA adapter."""
    path = Path(adapter).expanduser() / "adapter_config.json"
    try:
        rank = int(json.loads(path.read_text("utf-8"))["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"adapter: {path} can't be read as the configuration of a LoRA adapter: {error}") from error
    return next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), rank)
