"""`policy=hf`: a model of the families in `families.py`, run by transformers in this process.

lmms-eval --model apr --model_args policy=hf,pretrained=harryhsing/OmniAgent-RL-7B,dtype=bfloat16 --tasks …
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from apr_plugin import options
from apr_plugin.errors import AprError
from apr_plugin.loop.policy import Generation, Modality, Prompt, PromptSize, Sampling
from apr_plugin.models.checkpoint import Checkpoint, load_checkpoint
from apr_plugin.models.compat import attention_of
from apr_plugin.models.families import Pixels
from apr_plugin.models.prompt import PromptEncoder
from apr_plugin.policies.hf.cache import PrefixStore
from apr_plugin.policies.hf.engine import Engine


class HfPolicy:
    """Runs Qwen2.5-VL, Qwen3-VL, Qwen3.5, and the Thinkers of Qwen2.5-Omni and Qwen3-Omni.

    Frames are passed as images, with their times as text before them; clips as videos, with their sound if the family
    hears; sound as sound. Pictures arrive scaled by the budget (`frame_pixels`, `clip_pixels`). The processor only
    rounds their sides to whole tokens (28 or 32 pixels), whatever limits the checkpoint's own processor has, unless
    `min_pixels` or `max_pixels` are given.

    Entropies and log-probabilities are of the distribution scaled by the temperature (at 0: unscaled) over the whole
    vocabulary, before `top_p` and `top_k`. Tokens of media, or of the marks around media, are excluded and never
    sampled (`PromptEncoder.never_written`). The checkpoint's own generation settings (a repetition penalty, say) are
    not applied, except its end-of-turn tokens.

    Args:
        checkpoint: The model: loaded (`load_checkpoint`), or the caller's (`Checkpoint.around`). It is not freed by
            `close`.
        batch_size: Turns that are written at the same time.
        kv_cache: Whether keys and values of a prompt are kept, so that the next turn computes only what is new.
        kv_cache_gb: Memory for them, in GiB.
        min_pixels: Smaller pictures, and frames of clips, are enlarged to this.
        max_pixels: Larger ones are scaled down to this.
        context_tokens: Most tokens of prompt and turn together; default: the positions that the checkpoint was made
            for.
        repetition_penalty: Above 1, tokens that were already used become less likely.
        chat_template_kwargs: JSON, variables of the checkpoint's chat template: `{"enable_thinking": false}`.

    Raises:
        AprError: the checkpoint's processor can't be used.
        ValueError: an argument has a bad value.
    """

    name = "hf"

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        batch_size: int = 8,
        kv_cache: bool = True,
        kv_cache_gb: float = 4.0,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        context_tokens: int | None = None,
        repetition_penalty: float = 1.0,
        chat_template_kwargs: str | Mapping[str, Any] | None = None,
    ) -> None:
        wanted = _read(
            batch_size,
            kv_cache,
            kv_cache_gb,
            min_pixels,
            max_pixels,
            context_tokens,
            repetition_penalty,
            chat_template_kwargs,
        )
        self._checkpoint = checkpoint
        self._owned = False
        self.family = checkpoint.family
        self.modalities: frozenset[Modality] = self.family.modalities
        self.visual_token = self.family.visual_token
        self.context_tokens: int | None = wanted.context_tokens or checkpoint.context_tokens
        try:
            self._encoder = PromptEncoder(
                checkpoint.processor, self.family, wanted.pixels, checkpoint.dtype, wanted.template
            )
        except ValueError as error:
            raise AprError(
                f"policy hf: cannot use {checkpoint.identity['pretrained'] or 'this model'}: {error}"
            ) from error
        self._described = {
            "dtype": checkpoint.dtype_name,
            "attn_implementation": attention_of(checkpoint.model),
            "min_pixels": wanted.pixels.least,
            "max_pixels": wanted.pixels.most,
            "context_tokens": self.context_tokens,
            "repetition_penalty": wanted.repetition_penalty,
        } | ({"chat_template_kwargs": wanted.template} if wanted.template else {})
        self._described |= self.visual_token.described()
        self._engine = Engine(
            checkpoint,
            self._encoder,
            batch_size=wanted.batch_size,
            store=PrefixStore(wanted.kept_bytes, whole=checkpoint.cache_config is not None)
            if wanted.kept_bytes
            else None,
            context_tokens=wanted.context_tokens or checkpoint.context_tokens,
            repetition_penalty=wanted.repetition_penalty,
        )

    @classmethod
    def from_pretrained(
        cls,
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
    ) -> Self:
        """Load a checkpoint as `policy=hf` does; `close` frees it.

        Args:
            pretrained: A checkpoint's folder, or its name on the hub (owner/model). Of whole Omni checkpoints only the
                Thinker is read.
            revision: Branch, tag or commit on the hub.
            adapter: Folder of a LoRA adapter saved by PEFT; it is merged into the weights.
            dtype: `auto` (the checkpoint's own), `bfloat16`, `float16` or `float32`.
            device: `cuda`, `cuda:1`, `cpu`…; default: the first GPU, else the CPU.
            device_map: Spread the weights over devices instead, as accelerate does (`auto`).
            attn_implementation: `sdpa`, `flash_attention_2`, `eager`; default: transformers' choice.
            batch_size: As in `HfPolicy`, like all that follow.
            kv_cache: See there.
            kv_cache_gb: See there.
            min_pixels: See there.
            max_pixels: See there.
            context_tokens: See there.
            repetition_penalty: See there.
            chat_template_kwargs: See there.

        Raises:
            AprError: the checkpoint can't be loaded.
            ValueError: an argument has a bad value; nothing was loaded.
        """
        told = (
            batch_size,
            kv_cache,
            kv_cache_gb,
            min_pixels,
            max_pixels,
            context_tokens,
            repetition_penalty,
            chat_template_kwargs,
        )
        _read(*told)  # a mistake is found before gigabytes are loaded
        loaded = load_checkpoint(
            str(pretrained),
            revision=options.given(revision),
            adapter=options.given(adapter),
            dtype=dtype,
            device=options.given(device),
            device_map=options.given(device_map),
            attn_implementation=options.given(attn_implementation),
        )
        made = cls(
            loaded,
            batch_size=batch_size,
            kv_cache=kv_cache,
            kv_cache_gb=kv_cache_gb,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            context_tokens=context_tokens,
            repetition_penalty=repetition_penalty,
            chat_template_kwargs=chat_template_kwargs,
        )
        made._owned = True
        return made

    def weights_changed(self, weights: str | None = None) -> None:
        """Report that the model's weights have changed (an optimiser's step, another adapter).

        Kept keys and values are dropped, and a turn that is being written fails (`PolicyUnavailable`). `describe`, and
        with it the hash of a run's configuration, changes, so that answers of other weights are not attributed to this
        model.

        Args:
            weights: Their name, see `Checkpoint.around`. Equal names mean equal weights.
        """
        self._checkpoint.weights_changed(weights)
        self._engine.weights_changed()

    async def count(self, prompt: Prompt) -> PromptSize | None:
        """The number of tokens of the prompt, exactly as it will be read."""
        return await asyncio.to_thread(self._encoder.count, prompt)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """Write the next turn, in a batch with other prompts; cancelling drops it.

        Raises:
            PolicyUnavailable: the GPU's memory is used up, the model's output is not finite, or the policy is closed.
            ValueError: the prompt has a medium that the model can't take.
        """
        return await asyncio.wrap_future(self._engine.submit(prompt, sampling))

    def describe(self) -> dict[str, Any]:
        """The settings that decide the answers.

        `batch_size` and the cache are left out: they change answers only by rounding.
        """
        return self._checkpoint.identity | self._described

    def close(self) -> None:
        """Stop the threads, and free the model's memory if it was loaded here."""
        self._engine.close()
        if self._owned:
            self._checkpoint.free()


@dataclass(frozen=True)
class _Options:
    batch_size: int
    kept_bytes: int
    """0 keeps nothing."""
    pixels: Pixels
    context_tokens: int | None
    repetition_penalty: float
    template: dict[str, Any]


def _read(
    batch_size: Any,
    kv_cache: Any,
    kv_cache_gb: Any,
    min_pixels: Any,
    max_pixels: Any,
    context_tokens: Any,
    repetition_penalty: Any,
    template: Any,
) -> _Options:
    """Read the options as a user may have written them."""
    limits = {
        "min_pixels": options.given(min_pixels),
        "max_pixels": options.given(max_pixels),
        "context_tokens": options.given(context_tokens),
    }
    least, most, longest = (None if value is None else options.whole(key, value, 1) for key, value in limits.items())
    if least is not None and most is not None and least > most:
        raise ValueError(f"min_pixels ({least}) is above max_pixels ({most})")
    kept = int(options.number("kv_cache_gb", kv_cache_gb, 0) * 2**30)
    return _Options(
        batch_size=options.whole("batch_size", batch_size, 1),
        kept_bytes=kept if options.flag("kv_cache", kv_cache) else 0,
        pixels=Pixels(least, most),
        context_tokens=longest,
        repetition_penalty=options.number("repetition_penalty", repetition_penalty, 0),
        template=options.json_object("chat_template_kwargs", template),
    )
