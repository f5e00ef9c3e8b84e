"""`Student`: how the model that will be trained reads prompts and writes turns; its weights are not loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Self

from apr_plugin.errors import AprError, require, told
from apr_plugin.models.checkpoint import Checkpoint, checkpoint_source
from apr_plugin.models.compat import quiet_about_default_talker
from apr_plugin.models.families import Family, Pixels, family_of
from apr_plugin.models.prompt import PromptEncoder


class Student:
    """A checkpoint's encoder, the tokens that end its turns, and its context.

    Args:
        processor: The checkpoint's whole processor.
        family: Its family, with the numbers of its configuration (`Family.of_config`).
        context_tokens: Most tokens of prompt and turn together.
        ends: Ids of tokens that end a turn, in addition to the tokenizer's own.
        dtype: Torch type of the media's tensors: that of the weights in training.
        pixels: Limits of a picture or frame, as `min_pixels` and `max_pixels` of the policy.
        template: Further variables of the chat template: `{"enable_thinking": False}`.
        name: Its name in messages.

    Raises:
        AprError: the tokenizer lacks a token that the family needs or the end of a turn, or there is no chat template.
    """

    def __init__(
        self,
        processor: Any,
        family: Family,
        context_tokens: int,
        *,
        ends: Iterable[int] = (),
        dtype: Any = None,
        pixels: Pixels | None = None,
        template: Mapping[str, Any] | None = None,
        name: str = "the student",
    ) -> None:
        require("torch", "hf")
        import torch

        self.family = family
        self.context_tokens = context_tokens
        self.pixels = pixels or Pixels()
        self.template = dict(template or {})
        self.name = name
        try:
            self.encoder = PromptEncoder(processor, family, self.pixels, dtype or torch.float32, self.template)
        except ValueError as error:
            raise AprError(f"{name} can't be trained: {error}") from error
        self.tokenizer = self.encoder.tokenizer
        if self.tokenizer.eos_token_id is None:
            raise AprError(f"{name} can't be trained: its tokenizer names no token that ends a turn (eos_token)")
        self.end: int = int(self.tokenizer.eos_token_id)
        """The token that ends a turn."""
        self.ends = frozenset(ends) | {self.end}
        """Every token that may end a turn."""
        self.pad: int = self.end if self.tokenizer.pad_token_id is None else int(self.tokenizer.pad_token_id)
        """The token of padding."""
        self.special = frozenset(
            number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special
        ) | frozenset(self.encoder.never_written)
        """Ids of special tokens, among them the placeholders of media."""
        self.media_marks = tuple(self.tokenizer.convert_ids_to_tokens(list(self.encoder.never_written)))
        """The texts of the placeholders of media, and of the bounds of media."""
        user = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
        self.opened = self.encoder.opened(self.encoder.rendered(user))
        """What the chat template has already written of a turn: `<think>` and a line break for some models."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained: str,
        *,
        revision: str | None = None,
        context_tokens: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        dtype: str = "float32",
        template: Mapping[str, Any] | None = None,
    ) -> Self:
        """Read a checkpoint's processor and configuration, from a folder or the hub.

        Args:
            pretrained: The folder, or the name on the hub.
            revision: Branch, tag or commit on the hub.
            context_tokens: Default: the positions that it was made for.
            min_pixels: Smaller pictures are enlarged to this.
            max_pixels: Larger ones are scaled down to this.
            dtype: Torch type of the media's tensors: `bfloat16`, `float16` or `float32`.
            template: See `Student`.

        Raises:
            AprError: it can't be read, or is of no family that can be trained; see also `Student`.
        """
        for module in ("torch", "torchvision", "transformers"):
            require(module, "hf")
        import torch
        import transformers

        quiet_about_default_talker()
        source = checkpoint_source(pretrained, "hf")
        common: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
        try:
            config = transformers.AutoConfig.from_pretrained(source, **common)
            config = getattr(config, "thinker_config", config)
            family = family_of(config.model_type).of_config(config)
            processor = transformers.AutoProcessor.from_pretrained(source, **common)
        except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
            raise AprError(f"cannot read the checkpoint {pretrained}: {told(error).splitlines()[0]}") from error
        if not hasattr(processor, "image_processor"):  # AutoProcessor falls back to a bare tokenizer
            raise AprError(f"cannot read the checkpoint {pretrained}: it has no whole processor (preprocessor_config)")
        try:
            family.checked(processor)
        except ValueError as error:
            raise AprError(f"cannot train the checkpoint {pretrained}: {error}") from error
        longest = int(config.get_text_config().max_position_embeddings)
        return cls(
            processor,
            family,
            context_tokens or longest,
            ends=_ends(source, common),
            dtype=getattr(torch, dtype),
            pixels=Pixels(min_pixels, max_pixels),
            template=template,
            name=pretrained,
        )

    @classmethod
    def of(cls, checkpoint: Checkpoint, context_tokens: int | None = None, **more: Any) -> Self:
        """The student of a model that is already loaded; `more` is passed to `Student`."""
        return cls(
            checkpoint.processor,
            checkpoint.family,
            context_tokens or checkpoint.context_tokens,
            ends=checkpoint.eos,
            dtype=checkpoint.dtype,
            name=str(checkpoint.identity["pretrained"] or "the student"),
            **more,
        )

    @cached_property
    def digest(self) -> str:
        """16 hex digits that change if the same prompt could have other tokens."""
        digest = hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode())
        about: list[Any] = [self.encoder.chat_template, self.template, self.family.title, self.family.factor, self.end]
        about += [self.pixels.least, self.pixels.most, self.family.positions_per_s, self.family.chunk_s]
        digest.update(json.dumps(about, sort_keys=True).encode())
        return digest.hexdigest()[:16]

    def text(self, ids: Iterable[int]) -> str:
        """The words of tokens, without special ones, as a trajectory keeps them."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


def _ends(source: str, common: dict[str, Any]) -> list[int]:
    """The tokens with which the checkpoint's generation settings end a turn; none if it has no such settings."""
    import transformers

    try:
        ends = transformers.GenerationConfig.from_pretrained(source, revision=common["revision"]).eos_token_id
    except (OSError, ValueError):
        return []
    return [int(end) for end in (ends if isinstance(ends, list) else [ends]) if end is not None]
