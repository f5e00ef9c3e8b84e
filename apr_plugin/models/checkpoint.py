"""Loading a checkpoint with transformers: model, processor, adapter, and what tells one checkpoint from another.

Weights are read from safetensors only, and code that comes with a checkpoint is never run.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_plugin.errors import AprError, require
from apr_plugin.loop.policy import ImagePart, VideoPart
from apr_plugin.models.compat import LINEAR_ATTENTION_SINCE, cache_argument, has_linear_attention, release, rope_holder, taken
from apr_plugin.models.families import Family, family_of
from apr_plugin.models.prompt import Encoded, Medium

DTYPES = ("auto", "bfloat16", "float16", "float32")
_SAMPLE = 1 << 16  # bytes read at each place of a weight file, to tell one training run's weights from another's


@dataclass
class Checkpoint:
    """A loaded model with everything that belongs to it."""

    model: Any
    processor: Any
    family: Family
    eos: frozenset[int]
    """Tokens that end a turn."""
    context_tokens: int
    """Positions that the model was made for."""
    identity: dict[str, Any]
    """Which weights these are."""

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

    def positions(self, encoded: Encoded) -> Any:
        """M-RoPE positions of a whole prompt by the family's rule, shape (3, 1, n), on the CPU.

        The rule is that of the model's class in transformers, except for Qwen2.5-VL: since transformers 5.3 its class has counted the words after a
        clip from within the clip, and some releases time clips wrongly (github.com/huggingface/transformers/issues/45381, /pull/48669).
        """
        import torch

        if self.family.clip == "plain":
            return torch.from_numpy(_plain_positions(encoded, float(self.model.config.vision_config.tokens_per_second)))[:, None]
        ids = torch.from_numpy(encoded.ids)[None]
        images = [medium.grid for medium in encoded.media if isinstance(medium.part, ImagePart)]
        clips = [(medium, medium.part) for medium in encoded.media if isinstance(medium.part, VideoPart)]
        config = self.model.config
        types = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
        between = torch.tensor([2 / part.fps for _, part in clips]) if clips else None
        sounds = [medium.mel.shape[1] for medium in encoded.media if medium.mel is not None]
        offered = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": types,
            "image_grid_thw": torch.stack(images) if images else None,
            "video_grid_thw": torch.stack([medium.grid for medium, _ in clips]) if clips else None,
            "second_per_grid_ts": between,
            "second_per_grids": between,
            "use_audio_in_video": any(medium.mel is not None for medium, _ in clips),
            "audio_seqlens": torch.tensor(sounds) if sounds else None,
        }
        rule = rope_holder(self.model).get_rope_index
        positions, _ = rule(**taken(rule, offered))
        return positions

    def forward(
        self, ids: NDArray[np.int64], positions: Any, cache: Any, *, media: Sequence[Medium] = (), mask: NDArray[np.bool_] | None = None
    ) -> Any:
        """Logits of the last token of each row, shape (rows, vocabulary); the cache grows by the tokens given.

        Args:
            ids: Shape (rows, tokens).
            positions: Shape (3, rows, tokens).
            cache: Keys and values of what stands before them.
            media: What their placeholders stand for.
            mask: False for filling, shape (rows, tokens before and now); `None` where there is none.
        """
        import torch

        device, model = self.model.device, self.model
        given: dict[str, Any] = {}
        for pixels, grid, kind in (("pixel_values", "image_grid_thw", ImagePart), ("pixel_values_videos", "video_grid_thw", VideoPart)):
            if seen := [medium for medium in media if isinstance(medium.part, kind)]:
                given[pixels] = torch.cat([medium.pixels for medium in seen]).to(device)
                given[grid] = torch.stack([medium.grid for medium in seen]).to(device)
        if sounds := [medium.mel for medium in media if medium.mel is not None]:
            given["input_features"], given["feature_attention_mask"] = (each.to(device) for each in _side_by_side(sounds))
        out = model(
            input_ids=self.tensor(ids),
            position_ids=positions.to(device),
            attention_mask=None if mask is None else self.tensor(mask).long(),
            use_cache=True,
            **{cache_argument(model): cache},
            **given,
        )
        return out.logits[:, -1]

    def free(self) -> None:
        """Give the memory back."""
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
        raise AprError(f"policy {policy}: there is no folder {pretrained}; pretrained takes a checkpoint's folder or a name on the hub (owner/model)")
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
        AprError: it isn't there, is of no family that can be run, or lacks weights; or something that it needs is not installed.
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
        if not hasattr(transformers, family.model_class):
            raise AprError(f"policy hf: transformers {transformers.__version__} has no {family.model_class}; upgrade it")
        if has_linear_attention(config) and release() < LINEAR_ATTENTION_SINCE:
            since = ".".join(map(str, LINEAR_ATTENTION_SINCE))
            raise AprError(
                f"policy hf: {family.title} needs transformers {since} or later: the linear attention of {transformers.__version__} does not go on "
                "from what it has read; upgrade it"
            )
        model, told = getattr(transformers, family.model_class).from_pretrained(
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
        raise AprError(f"policy hf: {pretrained} lacks {len(missing)} of the model's weights ({missing[0]}, …); it is not a whole {family.title}")
    identity = {"pretrained": pretrained, "revision": revision, "model_type": config.model_type, "weights": weights_identity(source, config)}
    if adapter:
        model, identity["adapter"] = _adapted(model, adapter)
    if not device_map:
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model.eval().requires_grad_(False)
    # Only the last token's logits are ever used; 152,000 floats for each token of a long prompt would be gigabytes.
    model.get_output_embeddings().register_forward_pre_hook(lambda _, given: (given[0][:, -1:], *given[1:]))
    ends = model.generation_config.eos_token_id
    eos = {*(ends if isinstance(ends, list) else [ends]), processor.tokenizer.eos_token_id} - {None}
    text = model.config.get_text_config()
    timed = family.with_timing(getattr(model.config, "position_id_per_seconds", None), getattr(model.config, "seconds_per_chunk", None))
    return Checkpoint(model, processor, timed, frozenset(eos), int(text.max_position_embeddings), identity)


def _adapted(model: Any, adapter: str) -> tuple[Any, dict[str, str]]:
    """The model with a LoRA adapter merged into its weights, and which adapter that is."""
    if not (folder := Path(adapter).expanduser()).is_dir():
        raise AprError(
            f"policy hf: there is no folder {adapter}; adapter takes the folder that PEFT saved (adapter_config.json, adapter_model.safetensors)"
        )
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise AprError(f"policy hf: adapter {adapter} has no {name}; only adapters saved by PEFT as safetensors are loaded")
    require("peft", "train")
    from peft import PeftModel

    try:
        merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise AprError(f"policy hf: adapter {adapter} does not fit the model: {_line(error)}") from error
    return merged, {"path": adapter, "weights": file_digest(folder, ("adapter_config.json", "adapter_model.safetensors"))}


def weights_identity(source: str, config: Any) -> str:
    """The hub's commit, or a digest of the folder."""
    folder = Path(source)
    if not folder.is_dir():
        return f"commit {config._commit_hash}"
    index = folder / "model.safetensors.index.json"
    files = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values())) if index.is_file() else ["model.safetensors"]
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


def _plain_positions(encoded: Encoded, per_second: float) -> NDArray[np.int64]:
    """M-RoPE positions (time, height, width), shape (3, n): Qwen2.5-VL report (arXiv 2502.13923) 2.1.2, as released with the model.

    Words count on in all three. A medium begins where the words before it end and advances by row and column, a clip by time too: `per_second`
    positions for each second, rounded down. The words after it go on above its highest position.
    """
    places = np.empty((3, len(encoded.ids)), np.int64)
    done = position = 0
    for medium in encoded.media:
        words = np.arange(medium.start - done)
        places[:, done : medium.start] = position + words
        position += len(words)
        frames, rows, columns = medium.grid.tolist()
        grid = np.indices((frames, rows // 2, columns // 2)).reshape(3, -1)
        if isinstance(medium.part, VideoPart):
            grid[0] = (grid[0] * (2 / medium.part.fps * per_second)).astype(np.int64)
        done = medium.start + grid.shape[1]
        places[:, medium.start : done] = position + grid
        position += int(grid.max()) + 1
    places[:, done:] = position + np.arange(len(encoded.ids) - done)
    return places


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
