"""A model with everything that belongs to it.

It is loaded with transformers, or is a model that already exists, such as a trainer's.

Weights are read from safetensors only, and code that comes with a checkpoint is never run.
"""

from __future__ import annotations

import gc
import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from apr_plugin.errors import AprError, require
from apr_plugin.models import bundled
from apr_plugin.models.batch import media_of
from apr_plugin.models.compat import (
    cache_argument,
    commit_of,
    has_linear_attention,
    model_class,
    quiet_about_default_talker,
    thinker_of,
)
from apr_plugin.models.families import Family, family_of
from apr_plugin.models.prompt import Medium

DTYPES = ("auto", "bfloat16", "float16", "float32")
# Bytes read at each place of a weight file, to distinguish the weights of different training runs.
_SAMPLE = 1 << 16


@dataclass
class Checkpoint:
    """A model with everything that belongs to it."""

    model: Any
    processor: Any
    family: Family
    eos: frozenset[int]
    """Tokens that end a turn."""
    context_tokens: int
    """Positions that the model was made for."""
    identity: dict[str, Any]
    """The identity of the weights."""
    borrowed: bool = False
    """Whether the model belongs to the caller, who goes on to use it: see `around`."""

    @classmethod
    def around(cls, model: Any, processor: Any, *, weights: str | None = None) -> Self:
        """Wrap a model that is already in memory, such as a trainer's between its steps.

        The model is not changed permanently. While a prompt goes through it, it is in evaluation mode and its head
        reads only the last position. After that, also after an error, every module is in its previous mode and no hook
        is left. Gradients are switched off by `no_grad`, because tensors that `inference_mode` makes can't be trained
        on (FSDP2 fails after it). Parameters are neither frozen nor moved. Nobody else may use the model in the
        meantime. Whoever changes its weights must call `weights_changed`.

        Args:
            model: A model of one of the families, or a whole Omni model, whose Thinker is used; with or without a PEFT
                adapter, sharded or not. Remove wrappers of data parallelism first
                (`accelerator.unwrap_model(model)`).
            processor: The checkpoint's processor.
            weights: The name of the weights in the configuration of a run, by which a resumed run recognizes them:
                `step 120`. Without it they get a name that is never used again.

        Raises:
            AprError: the model's family can't be run, or the processor is incomplete.
        """
        for part, wanted in ((model, "config"), (processor, "tokenizer"), (processor, "image_processor")):
            if not hasattr(part, wanted):
                raise AprError(
                    f"{type(part).__name__} has no {wanted}: a policy takes a transformers model, without the "
                    "wrapper of data parallelism, and the "
                    "checkpoint's whole processor (AutoProcessor)"
                )
        model = thinker_of(model)
        try:
            family = family_of(model.config.model_type).of_config(model.config).checked(processor)
        except ValueError as error:
            raise AprError(str(error)) from error
        identity = {"pretrained": model.config.name_or_path, "model_type": model.config.model_type}
        made = cls(model, processor, family, *_limits(model, processor), identity, borrowed=True)
        made.weights_changed(weights)
        return made

    def weights_changed(self, weights: str | None = None) -> None:
        """Give the weights a new name; see `around`."""
        self.identity = self.identity | {"weights": f"in memory, {weights or uuid.uuid4().hex}"}

    @property
    def dtype(self) -> Any:
        """Torch type of the weights."""
        return self.model.dtype

    @property
    def dtype_name(self) -> str:
        """The name for messages: `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def cache_config(self) -> Any:
        """The configuration that its caches need if its layers differ (some have linear attention); else `None`."""
        return self.model.config if has_linear_attention(self.model.config) else None

    def tensor(self, array: NDArray[Any]) -> Any:
        """Move an array to the device of the model's input."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self.model.device)

    def forward(
        self,
        ids: NDArray[np.int64],
        positions: NDArray[Any],
        cache: Any,
        *,
        media: Sequence[Medium] = (),
        mask: NDArray[np.bool_] | None = None,
    ) -> Any:
        """Logits of the last token of each row, shape (rows, vocabulary); the given tokens are added to the cache.

        Args:
            ids: Shape (rows, tokens).
            positions: Shape (3, rows, tokens), see `models.positions`.
            cache: Keys and values of the tokens before `ids`.
            media: The media of their placeholders.
            mask: False for padding, shape (rows, tokens before and now); `None` if there is no padding.
        """
        with self._reading():
            out = self.model(
                input_ids=self.tensor(ids),
                position_ids=self.tensor(positions),
                attention_mask=None if mask is None else self.tensor(mask).long(),
                use_cache=True,
                **{cache_argument(self.model): cache},
                **self.arguments(media),
            )
        return out.logits[:, -1]

    def arguments(self, media: Sequence[Medium]) -> dict[str, Any]:
        """The media arguments of the model's `forward`: pixels and grids of pictures and of clips, spectrograms.

        They are in the order of the prompt.
        """
        device = self.model.device
        return {name: tensor.to(device) for name, tensor in media_of(media).items()}

    def without_gradients(self) -> Any:
        """A context for `forward`, for the thread that calls it."""
        import torch

        return torch.no_grad() if self.borrowed else torch.inference_mode()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Put the model into the state for reading, and restore its state afterwards."""
        training = [module for module in self.model.modules() if module.training] if self.borrowed else []
        # Only the last token's logits are ever used; 152,000 floats for each token of a long prompt would be gigabytes.
        hook = self.model.get_output_embeddings().register_forward_pre_hook(
            lambda _, given: (given[0][:, -1:], *given[1:])
        )
        try:
            for module in training:
                module.training = False
            yield
        finally:
            hook.remove()
            for module in training:
                module.training = True

    def free(self) -> None:
        """Release the model, and the memory that is not used elsewhere."""
        import torch

        self.model = self.processor = None
        if torch.cuda.is_available():
            gc.collect()  # memory that only reference cycles still hold can't be released
            torch.cuda.empty_cache()


def checkpoint_source(pretrained: str, policy: str) -> str:
    """The folder of a checkpoint, or its name on the hub.

    The name of the agent that comes with this package (`models.bundled`) is its folder; a folder of that name in the
    working directory is `./NAME`.

    Raises:
        AprError: it is neither; the message names the policy that needs it.
    """
    if (own := bundled.folder_of(pretrained, policy)) is not None:
        return str(own)
    folder = Path(pretrained).expanduser()
    if folder.exists():
        return str(folder)
    if pretrained.startswith(("/", ".", "~")) or pretrained.count("/") != 1:
        raise AprError(
            f"policy {policy}: there is no folder {pretrained}; pretrained takes a checkpoint's folder, a "
            f"name on the hub (owner/model), or {bundled.NAME}"
        )
    return pretrained


def load_checkpoint(
    pretrained: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    device_map: str | None = None,
    attn_implementation: str | None = None,
    adapter: str | None = None,
) -> Checkpoint:
    """Load a checkpoint from a folder or the hub; the arguments are those of `HfPolicy`.

    Raises:
        AprError: the checkpoint is not there, its family can't be run, or it lacks weights; or something that it needs
            is not installed.
    """
    for module in ("torch", "torchvision", "transformers", *(("accelerate",) if device_map else ())):
        require(module, "hf")
    import torch
    import transformers

    if dtype not in DTYPES:
        raise AprError(f"policy hf: dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    if device and device_map:
        raise AprError("policy hf: give device=… or device_map=…, not both")
    quiet_about_default_talker()
    source = checkpoint_source(pretrained, "hf")
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(source, **common)
        family = family_of(config.model_type)
        model, told = model_class(family.model_class, family.title, config).from_pretrained(
            source,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            device_map=device_map,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
            **common,
        )
        processor = transformers.AutoProcessor.from_pretrained(source, **common)
        family = family.of_config(model.config).checked(processor)
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        raise AprError(f"policy hf: cannot load {pretrained}: {_line(error)}") from error
    if told["missing_keys"]:
        missing = sorted(told["missing_keys"])
        raise AprError(
            f"policy hf: {pretrained} lacks {len(missing)} of the model's weights ({missing[0]}, …); it is "
            f"not a complete {family.title}"
        )
    identity = {
        "pretrained": pretrained,
        "revision": revision,
        "model_type": config.model_type,
        "weights": weights_identity(source, config),
    }
    if adapter:
        model, identity["adapter"] = _adapted(model, adapter)
    if not device_map:
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model.eval().requires_grad_(False)
    return Checkpoint(model, processor, family, *_limits(model, processor), identity)


def _limits(model: Any, processor: Any) -> tuple[frozenset[int], int]:
    """The tokens that end a turn, and the number of positions that the model was made for."""
    ends = model.generation_config.eos_token_id
    eos = {*(ends if isinstance(ends, list) else [ends]), processor.tokenizer.eos_token_id} - {None}
    return frozenset(eos), int(model.config.get_text_config().max_position_embeddings)


def _adapted(model: Any, adapter: str) -> tuple[Any, dict[str, str]]:
    """The model with a LoRA adapter merged into its weights, and the identity of the adapter."""
    if not (folder := Path(adapter).expanduser()).is_dir():
        raise AprError(
            f"policy hf: there is no folder {adapter}; adapter takes the folder that PEFT saved "
            "(adapter_config.json, adapter_model.safetensors)"
        )
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise AprError(
                f"policy hf: adapter {adapter} has no {name}; only adapters saved by PEFT as safetensors are loaded"
            )
    require("peft", "train")
    from peft import PeftModel

    try:
        merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise AprError(f"policy hf: adapter {adapter} does not fit the model: {_line(error)}") from error
    return merged, {
        "path": adapter,
        "weights": file_digest(folder, ("adapter_config.json", "adapter_model.safetensors")),
    }


def weights_identity(source: str, config: Any) -> str:
    """The hub's commit, or a digest of the folder."""
    folder = Path(source)
    if not folder.is_dir():
        return f"commit {commit_of(config)}"
    index = folder / "model.safetensors.index.json"
    files = (
        sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        if index.is_file()
        else ["model.safetensors"]
    )
    return file_digest(folder, ("config.json", *([index.name] if index.is_file() else []), *files))


def file_digest(folder: Path, names: Sequence[str]) -> str:
    """16 hex digits that identify files: over all of a small file, and over the size and a few parts of a large one.

    This is cheap, and differs for other weights.
    """
    digest = hashlib.sha256()
    for name in names:
        path = folder / name
        size = path.stat().st_size
        digest.update(f"{name} {size} ".encode())
        with path.open("rb") as file:
            for part in range(0, 9) if size > 16 * _SAMPLE else (0,):
                file.seek(part * max(0, size - _SAMPLE) // 8)
                digest.update(file.read(_SAMPLE if size > 16 * _SAMPLE else -1))
    return f"digest {digest.hexdigest()[:16]}"


def _line(error: BaseException) -> str:
    """The first line of an error, which says what went wrong; libraries add further paragraphs."""
    return str(error).strip().split("\n")[0].strip() or type(error).__name__
