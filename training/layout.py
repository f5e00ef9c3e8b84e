"""Omni checkpoints in two layouts: the Thinker alone, which is trained, and the whole model, which is released.

A released Omni model (Qwen2.5-Omni, Qwen3-Omni) has its Thinker under `thinker.` beside the parts that speak. Trainers
and `policy=hf` take the Thinker alone. Both functions copy tensors from safetensors file to safetensors file, one at a
time and bit by bit: no model is built, and no dtype changes. transformers saves the same names before and after 5.21,
which only renamed the modules in memory (tested with the installed release).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from apr_plugin.errors import AprError, require
from apr_plugin.files import read_regular

PREFIX = "thinker."
"""Before the names of the Thinker's tensors in the whole model."""

SHARD_BYTES = 4 * 1024**3
"""Size at which the next weight file begins."""

_INDEX = "model.safetensors.index.json"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth")
_NOT_COPIED = (*_WEIGHTS, "config.json")


def to_thinker(whole: Path, out: Path) -> None:
    """Write the Thinker of a whole Omni checkpoint as a checkpoint of its own.

    Args:
        whole: Folder of the whole model.
        out: New folder; tokenizer and processor files are copied into it.

    Raises:
        AprError: the folder is no whole Omni checkpoint, has no safetensors, or `out` is not empty.
    """
    config = _config(whole)
    thinker = config.get("thinker_config")
    if not isinstance(thinker, dict):
        raise AprError(f"{whole}: its config.json has no thinker_config, so it is no whole Omni model")
    names = {name: file for name, file in _tensors(whole).items() if name.startswith(PREFIX)}
    if not names:
        raise AprError(f"{whole}: none of its tensors is named {PREFIX}…")
    kind = _thinker_class(config)
    written = {**thinker, "architectures": [kind], "dtype": thinker.get("dtype", config.get("dtype"))}
    _write(out, written, whole, {name.removeprefix(PREFIX): (file, name) for name, file in names.items()})


def to_whole(thinker: Path, whole: Path, out: Path) -> None:
    """Write a whole Omni checkpoint with another Thinker.

    Args:
        thinker: Folder of the Thinker. Its tensors may have the names of the whole model: transformers writes those if
            the Thinker was loaded from a whole checkpoint.
        whole: Folder of the whole model from which everything else comes: the parts that speak, and the configuration.
        out: New folder.

    Raises:
        AprError: a folder is not what it must be, or the Thinkers have other tensors.
    """
    config, own = _config(whole), _config(thinker)
    if not isinstance(config.get("thinker_config"), dict):
        raise AprError(f"{whole}: its config.json has no thinker_config, so it is no whole Omni model")
    old, named = _tensors(whole), {name.removeprefix(PREFIX): (file, name) for name, file in _tensors(thinker).items()}
    new = {name: file for name, (file, _) in named.items()}
    expected = {name.removeprefix(PREFIX) for name in old if name.startswith(PREFIX)}
    if missing := sorted(expected ^ set(new)):
        raise AprError(
            f"{thinker}: {len(missing)} tensors differ from those of the Thinker in {whole}, for example {missing[0]}"
        )
    changed = _changed_shapes(new, {name.removeprefix(PREFIX): file for name, file in old.items() if name[8:] in new})
    if changed:
        raise AprError(f"{thinker}: the tensor {changed} has another shape than in {whole}")
    places = {name: (file, name) for name, file in old.items() if not name.startswith(PREFIX)}
    places |= {f"{PREFIX}{name}": place for name, place in named.items()}
    inner = {key: value for key, value in own.items() if key not in ("architectures", "transformers_version")}
    _write(out, {**config, "thinker_config": {**config["thinker_config"], **inner}}, whole, places)


def as_whole(folder: Path) -> None:
    """Give a Thinker's checkpoint the names and the configuration of a whole Omni checkpoint without speech, in place.

    vLLM reads whole Omni checkpoints only.

    Args:
        folder: Of the Thinker; its tensors may have the names of the whole model already.

    Raises:
        OSError: it can't be written.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            tensors = {prefixed(name): opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        renamed = file.with_suffix(".renamed")
        save_file(tensors, renamed, metadata={"format": "pt"})
        renamed.replace(file)
    for index in folder.glob("*.safetensors.index.json"):
        told = json.loads(index.read_text())
        told["weight_map"] = {prefixed(name): file for name, file in told["weight_map"].items()}
        index.write_text(json.dumps(told, indent=2) + "\n")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    kinds = [kind.replace("Thinker", "") for kind in config.get("architectures") or ()]
    whole = {
        "architectures": kinds,
        "model_type": config["model_type"].removesuffix("_thinker"),
        "enable_audio_output": False,
        "thinker_config": config,
    }
    path.write_text(json.dumps(whole, indent=2) + "\n")


def prefixed(name: str) -> str:
    """The name in a whole checkpoint, which transformers itself writes if the Thinker was loaded from one."""
    return name if name.startswith(PREFIX) else PREFIX + name


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads(read_regular(folder / "config.json"))
    except (OSError, ValueError, RecursionError) as error:
        raise AprError(f"{folder}: cannot read config.json: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(config, dict):
        raise AprError(f"{folder}: config.json holds no JSON object")
    return config


def _thinker_class(config: Mapping[str, Any]) -> str:
    kinds = config.get("architectures") or [""]
    return (
        f"{str(kinds[0]).partition('ForConditionalGeneration')[0].removesuffix('Model')}ThinkerForConditionalGeneration"
    )


def _tensors(folder: Path) -> dict[str, Path]:
    """The file of each tensor."""
    require("safetensors", "hf")
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise AprError(f"{folder}: it has no safetensors; other weight files are never read")
    found: dict[str, Path] = {}
    for file in files:
        try:
            with safe_open(file, "np") as opened:
                found |= dict.fromkeys(opened.keys(), file)
        except (SafetensorError, OSError) as error:
            raise AprError(f"{file}: cannot read it: {error}") from error
    return found


def _changed_shapes(new: Mapping[str, Path], old: Mapping[str, Path]) -> str | None:
    """The first tensor whose shape differs."""
    shapes: list[dict[str, list[int]]] = [dict(_shapes(places)) for places in (new, old)]
    return next((name for name in sorted(shapes[0]) if shapes[0][name] != shapes[1].get(name)), None)


def _shapes(places: Mapping[str, Path]) -> Iterator[tuple[str, list[int]]]:
    from safetensors import safe_open

    for file in dict.fromkeys(places.values()):
        with safe_open(file, "np") as opened:
            for name in (name for name, own in places.items() if own == file):
                full = name if name in opened.keys() else f"{PREFIX}{name}"  # noqa: SIM118 - not a mapping
                yield name, list(opened.get_slice(full).get_shape())


def _write(out: Path, config: Mapping[str, Any], source: Path, places: Mapping[str, tuple[Path, str]]) -> None:
    """Write a folder: the configuration, the other files of `source`, and each tensor under its new name."""
    require("torch", "hf")
    from safetensors import safe_open
    from safetensors.torch import save_file
    from tqdm import tqdm

    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise AprError(f"{out}: it is not empty; name a new folder")
        ignored = shutil.ignore_patterns(*_NOT_COPIED)
        shutil.copytree(source, out, ignore=ignored, dirs_exist_ok=True)
        (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        shards: list[list[str]] = []
        held: dict[str, Any] = {}
        size = total = 0

        def flush() -> None:
            nonlocal held, size
            if held:
                save_file(held, out / f"part-{len(shards):05}.safetensors", metadata={"format": "pt"})
                shards.append(list(held))
                held, size = {}, 0

        order = sorted(places.items(), key=lambda place: (str(place[1][0]), place[0]))
        for name, (file, was) in tqdm(order, desc="tensors", unit="tensor", disable=len(order) < 500):
            with safe_open(file, "pt") as opened:
                tensor = opened.get_tensor(was)
            bytes_ = tensor.numel() * tensor.element_size()
            if size and size + bytes_ > SHARD_BYTES:
                flush()
            held[name] = tensor
            size, total = size + bytes_, total + bytes_
        flush()
        weights: dict[str, str] = {}
        for number, shard in enumerate(shards):
            last = f"model-{number + 1:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
            (out / f"part-{number:05}.safetensors").rename(out / last)
            weights |= dict.fromkeys(shard, last)
        if len(shards) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weights.items()))}
            (out / _INDEX).write_text(json.dumps(index, indent=2) + "\n")
    except OSError as error:
        raise AprError(f"{out}: cannot write there: {error.strerror or error}") from error
