"""Weights for rollout servers: published names, nothing missing, towers included, adapters merged, all or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from apr_plugin.errors import AprError  # noqa: E402
from apr_plugin.training.grpo.served.weights import check_names_of, merged, names_in, save_weights  # noqa: E402
from apr_plugin.training.sft.learner import TOWERS, load_learner, lora_config  # noqa: E402
from apr_plugin.training.sft.recipe import LoraSettings, StudentSettings  # noqa: E402

VL, OMNI = "qwen2_5_vl", "qwen2_5_omni"


def changed_model(folder: Path) -> Any:
    """A checkpoint's model with every parameter changed."""
    model = load_learner(StudentSettings(pretrained=str(folder)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    return model


@pytest.mark.parametrize("name", [VL, OMNI, "qwen2_5_omni_full", "qwen3_vl", "qwen3_omni_moe_full"])
def test_every_parameter_is_found_by_its_published_name(tiny: Any, tmp_path: Path, name: str) -> None:
    """The names are those of a released checkpoint, whatever the student was loaded from; transformers reads them all.

    That vLLM does too is tested with its server.
    """
    from transformers import AutoProcessor

    base = tiny(name)
    model = changed_model(base)
    out = tmp_path / "step-1"
    out.mkdir()
    (out / "left").touch()  # of an earlier start
    save_weights(model, model.state_dict(), out, processor=AutoProcessor.from_pretrained(base))
    assert not (out / "left").exists() and [path.name for path in tmp_path.iterdir()] == ["step-1"]
    check_names_of(out, str(base))
    wanted = names_in(tiny("qwen2_5_omni_full") if name == OMNI else base)
    omni = "omni" in name
    assert names_in(out) == {one for one in wanted if one.startswith("thinker.") or not omni}
    assert json.loads((out / "config.json").read_text())["model_type"].endswith("_thinker") is False

    again = load_learner(StudentSettings(pretrained=str(out)))
    for key, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, atol=0, rtol=0)
    assert any(set(key.split(".")) & set(TOWERS) for key in again.state_dict())


def test_a_missing_name_is_found(tiny: Any, tmp_path: Path) -> None:
    tensors = load_file(tiny(VL) / "model.safetensors")
    lost = next(key for key in tensors if "visual" in key)
    (tmp_path / "w").mkdir()
    save_file({key: value for key, value in tensors.items() if key != lost}, tmp_path / "w" / "model.safetensors")
    with pytest.raises(AprError, match=rf"1 tensors of .* are not among .*{lost}"):
        check_names_of(tmp_path / "w", str(tiny(VL)))


def test_adapters_are_merged_as_peft_merges_them(tiny: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoProcessor

    settings = StudentSettings(pretrained=str(tiny(VL)))
    base = load_learner(settings)
    lora = LoraSettings(r=4, alpha=12)
    model = peft.get_peft_model(base, lora_config(base, lora))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_(std=0.1)
    own = merged(model.state_dict(), lora.alpha / lora.r)
    out = tmp_path / "step-1"
    processor = AutoProcessor.from_pretrained(tiny(VL))
    save_weights(model.get_base_model(), own, out, processor=processor, dtype=torch.bfloat16)
    assert names_in(out) == names_in(tiny(VL))
    found = load_learner(settings.model_copy(update={"pretrained": str(out)})).state_dict()
    wanted = model.merge_and_unload().state_dict()
    plain = load_learner(settings).state_dict()
    assert found.keys() == wanted.keys()
    assert sum(not torch.equal(wanted[key], plain[key]) for key in wanted) == 14, "two layers of seven"
    for key, value in wanted.items():
        torch.testing.assert_close(own[key], value, atol=1e-5, rtol=0)
        torch.testing.assert_close(found[key], own[key].to(torch.bfloat16).float(), atol=0, rtol=0)


def test_weights_that_can_not_be_written_leave_nothing(tiny: Any, tmp_path: Path) -> None:
    from transformers import AutoProcessor

    model = load_learner(StudentSettings(pretrained=str(tiny(VL))))
    (tmp_path / "file").write_text("")
    with pytest.raises(AprError, match=r"cannot write the weights for the servers \(rollouts\.weights_dir\)"):
        save_weights(
            model, model.state_dict(), tmp_path / "file" / "step", processor=AutoProcessor.from_pretrained(tiny(VL))
        )
