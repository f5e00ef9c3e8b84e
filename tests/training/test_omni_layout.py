"""The Thinker out of a whole Omni checkpoint and back, through the real classes of transformers."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
from safetensors.torch import load_file, save_file

from apr_plugin.errors import AprError
from apr_plugin.training import layout
from apr_plugin.training.layout import to_thinker, to_whole


def _weights(folder: Path) -> dict[str, Any]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def _equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype and torch.equal(value, other[name]) for name, value in one.items()
    )


@pytest.mark.parametrize("family", ["qwen2_5_omni_full", "qwen3_omni_moe_full"])
def test_there_and_back_is_bit_equal(
    family: str, tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    whole = tiny(family)
    to_thinker(whole, tmp_path / "thinker")
    config = json.loads((tmp_path / "thinker" / "config.json").read_text())
    kind = getattr(transformers, config["architectures"][0])
    model, told = kind.from_pretrained(tmp_path / "thinker", output_loading_info=True)
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    model.save_pretrained(tmp_path / "trained")

    monkeypatch.setattr(layout, "SHARD_BYTES", 200_000)  # several weight files
    to_whole(tmp_path / "trained", whole, tmp_path / "new")
    assert len(list((tmp_path / "new").glob("*.safetensors"))) > 1
    to_thinker(tmp_path / "new", tmp_path / "again")
    assert _equal(_weights(tmp_path / "again"), _weights(tmp_path / "trained"))
    old, new = _weights(whole), _weights(tmp_path / "new")
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        assert torch.equal(new[name], tensor) != name.startswith("thinker."), name
    loaded = kind.from_pretrained(whole)
    loaded.save_pretrained(tmp_path / "prefixed")
    assert all(name.startswith("thinker.") for name in _weights(tmp_path / "prefixed"))
    again, told = kind.from_pretrained(tmp_path / "prefixed", output_loading_info=True)
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert _equal(again.state_dict(), loaded.state_dict())
    to_whole(tmp_path / "prefixed", whole, tmp_path / "same_again")
    assert _equal(_weights(tmp_path / "same_again"), old)
    to_whole(tmp_path / "thinker", whole, tmp_path / "same")
    assert _equal(_weights(tmp_path / "same"), old)
    for name in ("tokenizer.json", "processor_config.json"):
        if (whole / name).exists():
            assert _digest(tmp_path / "new" / name) == _digest(whole / name) == _digest(tmp_path / "thinker" / name)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_thinker_out_of_a_whole_model_answers_as_the_whole(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    import asyncio

    from conformance import opening

    from apr_plugin.loop import Sampling
    from apr_plugin.policies.hf.policy import HfPolicy

    to_thinker(tiny("qwen2_5_omni_full"), tmp_path / "thinker")
    said = []
    for folder in (tiny("qwen2_5_omni_full"), tmp_path / "thinker"):
        policy = HfPolicy.from_pretrained(pretrained=str(folder), dtype="float32")
        said.append(asyncio.run(policy.generate(opening(), Sampling(max_new_tokens=12))).token_ids)
        policy.close()
    assert said[0] == said[1] and said[0]


def test_what_is_no_omni_model_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    whole, other = tiny("qwen2_5_omni_full"), tiny("qwen2_5_vl")
    for call, words in (
        (lambda: to_thinker(other, tmp_path / "a"), "no thinker_config"),
        (lambda: to_whole(other, whole, tmp_path / "a"), "tensors differ from those of the Thinker"),
        (lambda: to_whole(whole, other, tmp_path / "a"), "no thinker_config"),
        (lambda: to_thinker(tmp_path, tmp_path / "a"), "cannot read config.json"),
    ):
        with pytest.raises(AprError, match=words):
            call()
    assert not (tmp_path / "a").exists()
    bare = tmp_path / "bare"
    shutil.copytree(whole, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(AprError, match="no safetensors"):
        to_thinker(bare, tmp_path / "a")
    (bare / "model.safetensors").write_bytes(b"\xff" * 50)
    with pytest.raises(AprError, match="cannot read it"):
        to_thinker(bare, tmp_path / "a")
    with pytest.raises(AprError, match="not empty"):
        to_thinker(whole, bare)
    to_thinker(whole, tmp_path / "thinker")
    weights = load_file(tmp_path / "thinker" / "model.safetensors")
    save_file(
        weights | {"lm_head.weight": weights["lm_head.weight"][:-1].clone()}, tmp_path / "thinker" / "model.safetensors"
    )
    with pytest.raises(AprError, match=r"lm_head\.weight has another shape"):
        to_whole(tmp_path / "thinker", whole, tmp_path / "a")
