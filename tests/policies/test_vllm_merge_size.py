"""A checkpoint that merges 4 by 4 patches on a real vLLM server: it takes as many tokens as are counted here."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from conformance import GREEDY, after, opening
from vllm_server import serve, vllm_python

from apr_plugin.loop.policy import ImagePart, Message, Prompt, TextPart
from apr_plugin.policies.openai.policy import OpenAIPolicy

pytest.importorskip("openai")
pytestmark = [pytest.mark.xdist_group("vllm"), pytest.mark.slow, pytest.mark.timeout(1200)]


def pictures(*sizes: tuple[int, int]) -> Prompt:
    rng = np.random.default_rng(0)
    parts = [ImagePart(rng.integers(0, 255, (height, width, 3), np.uint8)) for height, width in sizes]
    return Prompt((Message("user", (TextPart("What is shown?"), *parts)),))


def test_the_server_takes_as_many_tokens_as_are_counted(tmp_path: Path) -> None:
    python = vllm_python()
    transformers = pytest.importorskip("transformers")
    from tiny_models import save_tiny

    from apr_plugin.models.families import family_of
    from apr_plugin.policies.vllm.prompt import VllmPrompts

    folder = save_tiny("qwen2_5_omni_merge4_full", tmp_path / "model")
    config = transformers.AutoConfig.from_pretrained(folder)
    family = family_of(config.model_type).of_config(config.thinker_config)
    counted = VllmPrompts(transformers.AutoProcessor.from_pretrained(folder), family)
    prompts = [opening(), pictures((56, 56)), pictures((56, 56), (112, 112), (100, 300)), after("frames", frames=5)]
    with serve(
        python, folder, tmp_path / "server.log", "--limit-mm-per-prompt", '{"image": 8, "video": 0, "audio": 0}'
    ) as server:
        policy = OpenAIPolicy(base_url=server.base_url)
        for prompt in prompts:
            size = counted.count(prompt)
            usage = asyncio.run(policy.generate(prompt, GREEDY)).usage
            assert usage.prompt_tokens == size.total, prompt.text
        assert counted.count(prompts[1]).visual == 1
