"""What training leaves: a folder for transformers, `policy=hf`, and vLLM (`policies/test_vllm.py`)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from conformance import GREEDY, for_both_engines  # noqa: E402 - after the libraries it needs
from safetensors.torch import load_file  # noqa: E402
from sft_making import recipe_of, rows_of, trained_omni  # noqa: E402

from apr_plugin.models.batch import Example, batch_of  # noqa: E402
from apr_plugin.models.checkpoint import load_checkpoint  # noqa: E402
from apr_plugin.models.families import Pixels  # noqa: E402
from apr_plugin.models.prompt import PromptEncoder  # noqa: E402
from apr_plugin.policies import make_policy  # noqa: E402
from apr_plugin.training.sft.recipe import Recipe  # noqa: E402
from apr_plugin.training.sft.running import run_sft  # noqa: E402


def turns(pretrained: Path) -> dict[str, list[int]]:
    """Greedy turns of `policy=hf`."""
    policy = make_policy("hf", pretrained=str(pretrained), device="cpu", dtype="float32")
    try:
        return {
            kind: list(asyncio.run(policy.generate(prompt, GREEDY)).token_ids or ())
            for kind, prompt in for_both_engines().items()
            if kind != "audio" or "audio" in policy.modalities
        }
    finally:
        policy.close()


def test_a_trained_thinker(tiny: Any, shared_videos: dict[str, Path], tmp_path: Path) -> None:
    """Greedy turns are equal by `policy=hf` from both layouts, and by plain transformers; and they were changed."""
    import transformers

    whole = tiny("qwen2_5_omni_full")
    final, new = trained_omni(whole, shared_videos, tmp_path)
    written = turns(final)
    assert written == turns(new) != turns(whole)

    model = transformers.AutoModelForMultimodalLM.from_pretrained(final, dtype=torch.float32)
    assert type(model).__name__ == "Qwen2_5OmniThinkerForConditionalGeneration"
    processor = transformers.AutoProcessor.from_pretrained(final)
    ours = load_checkpoint(str(final), device="cpu", dtype="float32")
    encoder = PromptEncoder(processor, ours.family, Pixels(), torch.float32)
    for kind, prompt in for_both_engines().items():
        encoded, ids = encoder.encode(prompt), written[kind]
        batch = batch_of([Example(encoded, ids)], ours.family, pad=0)
        with torch.no_grad():
            logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits[0]
        logits[:, list(encoder.never_written)] = -torch.inf  # a policy never writes a placeholder
        assert logits[len(encoded.ids) - 1 : -1].argmax(-1).tolist() == ids, kind

    card = json.loads((final / "training.json").read_text())
    page = (final / "README.md").read_text()
    assert page.startswith("---\nlibrary_name: transformers\n") and "## Losses" in page and "| trl | " in page
    assert card["student"]["weights"].startswith("digest ") and card["steps"] == 2 and len(card["losses"]) == 2
    assert card["rows"]["train"] == 9 and card["recipe"]["learn"]["towers"] == "trained"
    assert {"torch", "transformers", "trl", "av"} <= card["versions"].keys() and card["machine"]["cores"]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "qwen3_omni_moe"])
def test_other_families(name: str, tiny: Any, student: Any, shared_videos: dict[str, Path], tmp_path: Path) -> None:
    """Each is trained, saved under its published names, and read again."""
    rows = rows_of(student(name), shared_videos, tmp_path)
    final = run_sft(
        Recipe.model_validate(recipe_of(tiny(name), rows, trainer={"max_steps": 1, "save_strategy": "no"})),
        tmp_path / "out",
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny(name), final))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert all(torch.equal(before[key], after[key]) for key in before if "visual" in key or "audio_tower" in key)
    assert turns(final)["opening"]
