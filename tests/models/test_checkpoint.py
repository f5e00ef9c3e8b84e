"""Loading of checkpoints for `policy=hf`: what is refused, with one line; adapters; the identity of weights."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance import GREEDY, after, opening
from tiny_models import save_tiny

from apr_plugin.errors import AprError
from apr_plugin.policies import make_policy, policy_arguments
from apr_plugin.policies.hf.policy import HfPolicy
from apr_plugin.runs.settings import check_arguments

Tiny = Callable[[str], Path]


def refused(**arguments: Any) -> str:
    with pytest.raises(AprError) as caught:
        make_policy("hf", **{"device": "cpu", **arguments})
    said = str(caught.value)
    assert "\n" not in said and said.startswith("policy hf: "), said
    return said


@pytest.fixture
def copied(tiny: Tiny, tmp_path: Path) -> Path:
    return shutil.copytree(tiny("qwen2_5_vl"), tmp_path / "copy")


def test_what_is_not_there(tmp_path: Path) -> None:
    for place in (tmp_path / "missing", "./missing", "~/missing-checkpoint", "missing"):
        said = refused(pretrained=str(place))
        assert str(place) in said and "no folder" in said and "owner/model" in said
    (tmp_path / "empty").mkdir()
    assert "cannot load" in refused(pretrained=str(tmp_path / "empty"))


def test_a_family_that_cannot_be_run(copied: Path) -> None:
    for model_type in ("llama", "qwen2_vl"):
        config = json.loads((copied / "config.json").read_text())
        (copied / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
        said = refused(pretrained=str(copied))
        assert model_type in said and "Qwen2.5-VL" in said and "Qwen3-Omni-MoE" in said


def test_weights_that_are_pickles_or_not_all_there(copied: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    torch.save(weights, copied / "pytorch_model.bin")
    assert "safetensors" in refused(pretrained=str(copied))
    (copied / "pytorch_model.bin").unlink()
    kept = {key: value for key, value in weights.items() if "layers.1.self_attn" not in key}
    save_file(kept, copied / "model.safetensors", {"format": "pt"})
    said = refused(pretrained=str(copied))
    assert f"lacks {len(weights) - len(kept)} of the model's weights" in said and "self_attn" in said


def test_a_folder_without_its_processor(copied: Path) -> None:
    (copied / "chat_template.jinja").unlink()
    assert "no chat template" in refused(pretrained=str(copied))
    (copied / "processor_config.json").unlink()
    (copied / "tokenizer.json").unlink()
    assert "cannot load" in refused(pretrained=str(copied))


def test_code_that_comes_with_a_checkpoint_is_not_run(copied: Path) -> None:
    (copied / "evil.py").write_text("import pathlib\npathlib.Path('/tmp/apr-evil').touch()\nraise SystemExit(3)\n")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(
        json.dumps(config | {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}})
    )
    HfPolicy.from_pretrained(str(copied), device="cpu").close()
    assert not Path("/tmp/apr-evil").exists()
    assert "trust_remote_code" not in policy_arguments("hf")
    with pytest.raises(AprError, match="unknown model_arg 'trust_remote_code'"):
        check_arguments({"policy": "hf", "pretrained": "x", "trust_remote_code": True})


@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [
        ("dtype", "int8", "auto, bfloat16, float16, float32"),
        ("batch_size", 0, "batch_size"),
        ("batch_size", "many", "whole number"),
        ("kv_cache", "maybe", "true or false"),
        ("kv_cache_gb", -1, "above 0"),
        ("repetition_penalty", "nan", "above 0"),
        ("min_pixels", 0, "min_pixels"),
        ("context_tokens", -5, "context_tokens"),
        ("attn_implementation", "wrong", "wrong"),
        ("device_map", "auto", "not both"),
        ("adapter", "/nowhere", "no folder /nowhere"),
    ],
)
def test_bad_arguments_are_named(tiny: Tiny, argument: str, value: Any, said: str) -> None:
    assert said in refused(**{"pretrained": str(tiny("qwen2_5_vl")), argument: value})


def test_limits_that_contradict_each_other(tiny: Tiny) -> None:
    assert "min_pixels (900) is above max_pixels (800)" in refused(
        pretrained=str(tiny("qwen2_5_vl")), min_pixels=900, max_pixels=800
    )


def test_lmms_eval_hands_over_batch_size_and_device(tiny: Tiny) -> None:
    """Both are also names of lmms-eval's own options, which it passes on with every model."""
    pytest.importorskip("lmms_eval")
    from apr_plugin.harnesses.lmms_eval.model import ActivePerception

    arguments = f"policy=hf,pretrained={tiny('qwen2_5_vl')},batch_size=3,device=cpu,dtype=float32"
    model = ActivePerception.create_from_arg_string(
        arguments, {"batch_size": 1, "max_batch_size": None, "device": None}
    )
    policy = model.settings.policy
    assert (
        isinstance(policy, HfPolicy)
        and policy._engine.batch_size == 3
        and policy._engine.checkpoint.model.device.type == "cpu"
    )
    policy.close()


def test_a_missing_library_is_named(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torchvision" else real(name, *a))
    with pytest.raises(AprError, match=r"torchvision is not installed; add it with: pip install 'apr-plugin\[hf\]'"):
        make_policy("hf", pretrained=str(tiny("qwen2_5_vl")))


def test_weights_are_told_apart(tiny: Tiny, tmp_path: Path) -> None:
    """Two training runs save the same configuration and files of the same size."""
    described = {}
    for name, folder in (("a", tiny("qwen2_5_vl")), ("moved", shutil.copytree(tiny("qwen2_5_vl"), tmp_path / "moved"))):
        policy = HfPolicy.from_pretrained(str(folder), device="cpu")
        described[name] = policy.describe()
        policy.close()
    other = HfPolicy.from_pretrained(
        str(save_tiny("qwen2_5_vl", tmp_path / "other", seed=1)),
        device="cpu",
        dtype="bfloat16",
        batch_size=2,
        kv_cache=False,
    )
    assert other.describe()["weights"] != described["a"]["weights"] == described["moved"]["weights"]
    assert other.describe()["dtype"] == "bfloat16" and described["a"]["dtype"] == "float32"
    assert {
        "pretrained",
        "revision",
        "model_type",
        "weights",
        "dtype",
        "attn_implementation",
        "min_pixels",
        "max_pixels",
    } <= set(described["a"])
    assert not {"batch_size", "kv_cache", "kv_cache_gb"} & set(described["a"]), (
        "they don't decide answers, so a resumed run may change them"
    )
    generation = asyncio.run(other.generate(after("frames"), GREEDY))  # bfloat16 runs
    other.close()
    assert generation.usage.completion_tokens == GREEDY.max_new_tokens


def test_an_adapter_is_merged(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    base = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny("qwen2_5_vl"))
    torch.manual_seed(0)
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
    tuned.save_pretrained(tmp_path / "lora")
    plain, adapted = (
        HfPolicy.from_pretrained(str(tiny("qwen2_5_vl")), device="cpu", adapter=adapter)
        for adapter in (None, str(tmp_path / "lora"))
    )
    ids = torch.from_numpy(plain._encoder.encode(opening()).ids)[None]
    with torch.inference_mode():
        logits = (
            tuned(input_ids=ids)
            .logits[0, -1]
            .double()
            .index_fill(0, torch.tensor(plain._encoder.never_written), -torch.inf)
        )
        wanted = torch.log_softmax(logits, -1)
    before, after_it = (asyncio.run(policy.generate(opening(), GREEDY)) for policy in (plain, adapted))
    assert after_it.logprobs is not None and after_it.token_ids is not None and before.token_ids != after_it.token_ids
    assert after_it.token_ids[0] == int(wanted.argmax()) and after_it.logprobs[0] == pytest.approx(
        float(wanted.max()), abs=1e-4
    )
    assert "adapter" not in plain.describe() and adapted.describe()["adapter"]["weights"].startswith("digest ")
    plain.close()
    adapted.close()
    (tmp_path / "lora" / "adapter_model.safetensors").rename(tmp_path / "lora" / "adapter_model.bin")
    assert "no adapter_model.safetensors" in refused(pretrained=str(tiny("qwen2_5_vl")), adapter=str(tmp_path / "lora"))


def test_weights_spread_by_accelerate_answer_the_same(tiny: Tiny) -> None:
    pytest.importorskip("accelerate")
    mapped, eager, plain = (
        HfPolicy.from_pretrained(str(tiny("qwen2_5_omni_full")), **arguments)
        for arguments in (
            {"device_map": "auto", "dtype": "float32"},
            {"device": "cpu", "attn_implementation": "eager"},
            {"device": "cpu"},
        )
    )
    turns = [asyncio.run(policy.generate(after("clip"), GREEDY)).token_ids for policy in (mapped, eager, plain)]
    assert turns[0] == turns[1] == turns[2]
    assert eager.describe()["attn_implementation"] == "eager" != plain.describe()["attn_implementation"]
    for policy in (mapped, eager, plain):
        policy.close()


def test_a_checkpoint_in_several_files(tiny: Tiny, tmp_path: Path) -> None:
    import transformers

    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny("qwen2_5_vl"))
    shutil.copytree(tiny("qwen2_5_vl"), tmp_path / "split")
    (tmp_path / "split" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "split", max_shard_size="1MB")
    assert len(list((tmp_path / "split").glob("model-*.safetensors"))) > 1
    whole, split = (
        HfPolicy.from_pretrained(str(folder), device="cpu") for folder in (tiny("qwen2_5_vl"), tmp_path / "split")
    )
    a, b = (asyncio.run(policy.generate(opening(), GREEDY)) for policy in (whole, split))
    assert a.token_ids == b.token_ids and whole.describe()["weights"] != split.describe()["weights"]
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)  # type: ignore[arg-type]
    whole.close()
    split.close()
