"""A model with everything that belongs to it: loaded with transformers, or taken as it is in somebody else's hands (a trainer's).

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
from apr_plugin.loop.policy import ImagePart, VideoPart
from apr_plugin.models.compat import cache_argument, commit_of, has_linear_attention, model_class, thinker_of
from apr_plugin.models.families import Family, family_of
from apr_plugin.models.prompt import Medium

DTYPES = ("auto", "bfloat16", "float16", "float32")
_SAMPLE = 1 << 16  # bytes read at each place of a weight file, to tell one training run's weights from another's


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
    """Which weights these are."""
    borrowed: bool = False
    """Whether the model is somebody else's, who goes on to use it: see `around`."""

    @classmethod
    def around(cls, model: Any, processor: Any, *, weights: str | None = None) -> Self:
        """A model that is in memory already, as it is: a trainer's, between its steps.

        Nothing of it is changed for good. While a prompt goes through it, it is in evaluation mode and its head reads
        the last position alone; then, whatever happened, every module is in the mode it was in and no hook is left.
        Gradients are switched off by `no_grad`: what `inference_mode` makes can't be trained on (FSDP2 fails after it).
        Parameters are neither frozen nor moved. Nobody else may use the model meanwhile, and whoever changes its
        weights says so: `weights_changed`.

        Args:
            model: Of one of the families, or of a whole Omni model, whose Thinker is taken; with or without a PEFT
                adapter, sharded or not. Wrappers of data parallelism are taken off first
                (`accelerator.unwrap_model(model)`).
            processor: The checkpoint's processor.
            weights: What the weights are called in the configuration of a run, so that a resumed run knows them again:
                `step 120`. Without it they get a name that never comes again.

        Raises:
            AprError: the model is of no family that can be run, or the processor is only a part of one.
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
            family = family_of(model.config.model_type)
        except ValueError as error:
            raise AprError(str(error)) from error
        identity = {"pretrained": model.config.name_or_path, "model_type": model.config.model_type}
        made = cls(
            model, processor, family.of_config(model.config), *_limits(model, processor), identity, borrowed=True
        )
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
        """For people: `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def cache_config(self) -> Any:
        """The configuration that its caches are made by, where layers are not all alike (linear attention beside attention); else `None`."""
        return self.model.config if has_linear_attention(self.model.config) else None

    def tensor(self, array: NDArray[Any]) -> Any:
        """An array on the device that the model's input goes to."""
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
        """Logits of the last token of each row, shape (rows, vocabulary); the cache grows by the tokens given.

        Args:
            ids: Shape (rows, tokens).
            positions: Shape (3, rows, tokens), see `models.positions`.
            cache: Keys and values of the tokens before them.
            media: What their placeholders stand for.
            mask: False for filling, shape (rows, tokens before and now); `None` where there is none.
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
        """What the model's `forward` takes for media, in the order of the prompt: pixels and grids of pictures and of clips, spectrograms."""
        import torch

        device = self.model.device
        given: dict[str, Any] = {}
        for pixels, grid, kind in (
            ("pixel_values", "image_grid_thw", ImagePart),
            ("pixel_values_videos", "video_grid_thw", VideoPart),
        ):
            if seen := [medium for medium in media if isinstance(medium.part, kind)]:
                given[pixels] = torch.cat([medium.pixels for medium in seen]).to(device)
                given[grid] = torch.stack([medium.grid for medium in seen]).to(device)
        if sounds := [medium.mel for medium in media if medium.mel is not None]:
            given["input_features"], given["feature_attention_mask"] = (
                each.to(device) for each in _side_by_side(sounds)
            )
        return given

    def without_gradients(self) -> Any:
        """A context for `forward`, of the thread that calls it."""
        import torch

        return torch.no_grad() if self.borrowed else torch.inference_mode()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """The model as reading wants it, and afterwards as it was."""
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
            gc.collect()  # blocks that only cycles still hold can't be handed back
            torch.cuda.empty_cache()


def checkpoint_source(pretrained: str, policy: str) -> str:
    """The folder of a checkpoint, or its name on the hub.

    Raises:
        AprError: it is neither; the message names the policy that wanted it.
    """
    folder = Path(pretrained).expanduser()
    if folder.exists():
        return str(folder)
    if pretrained.startswith(("/", ".", "~")) or pretrained.count("/") != 1:
        raise AprError(
            f"policy {policy}: there is no folder {pretrained}; pretrained takes a checkpoint's folder or a "
            "name on the hub (owner/model)"
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
    """Load a checkpoint from a folder or the hub; arguments as `HfPolicy`.

    Raises:
        AprError: it isn't there, is of no family that can be run, or lacks weights; or something that it needs is not
            installed.
    """
    for module in ("torch", "torchvision", "transformers", *(("accelerate",) if device_map else ())):
        require(module, "hf")
    import torch
    import transformers

    if dtype not in DTYPES:
        raise AprError(f"policy hf: dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    if device and device_map:
        raise AprError("policy hf: give device=… or device_map=…, not both")
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
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        raise AprError(f"policy hf: cannot load {pretrained}: {_line(error)}") from error
    if told["missing_keys"]:
        missing = sorted(told["missing_keys"])
        raise AprError(
            f"policy hf: {pretrained} lacks {len(missing)} of the model's weights ({missing[0]}, …); it is "
            f"not a whole {family.title}"
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
    return Checkpoint(model, processor, family.of_config(model.config), *_limits(model, processor), identity)


def _limits(model: Any, processor: Any) -> tuple[frozenset[int], int]:
    """The tokens that end a turn, and the positions that a model was made for."""
    ends = model.generation_config.eos_token_id
    eos = {*(ends if isinstance(ends, list) else [ends]), processor.tokenizer.eos_token_id} - {None}
    return frozenset(eos), int(model.config.get_text_config().max_position_embeddings)


def _adapted(model: Any, adapter: str) -> tuple[Any, dict[str, str]]:
    """The model with a LoRA adapter merged into its weights, and which adapter that is."""
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
    """16 hex digits over small files as a whole, and over the size and a few stretches of large ones: cheap, and another for other weights."""
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


def _side_by_side(spectrograms: list[Any]) -> tuple[Any, Any]:
    """Spectrograms of shape (bins, columns) as one tensor, shape (n, bins, most columns), and which of its columns count."""
    import torch

    columns = torch.tensor([each.shape[1] for each in spectrograms])
    most = int(columns.max())
    padded = torch.stack([torch.nn.functional.pad(each, (0, most - each.shape[1])) for each in spectrograms])
    return padded, (torch.arange(most)[None] < columns[:, None]).long()


def _line(error: BaseException) -> str:
    """The first line of an error, which says what went wrong; libraries add paragraphs."""
    return str(error).strip().split("\n")[0].strip() or type(error).__name__
