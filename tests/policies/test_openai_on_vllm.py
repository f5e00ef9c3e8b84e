"""`policy=openai` against a real vLLM server on the CPU: the conformance suite, and counts against what the server says it used."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from conformance import GREEDY, Make, PolicyConformance, after, opening
from vllm_server import VllmServer

from apr_plugin.policies import make_policy
from apr_plugin.policies.openai import OpenAIPolicy

pytest.importorskip("openai")
pytestmark = [pytest.mark.xdist_group("vllm"), pytest.mark.slow]


class TestOpenAIOnVllm(PolicyConformance):
    batch_invariant = False  # kernels add up in another order when other requests are in the batch
    seeded = False

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, vllm_server: VllmServer) -> Iterator[Make]:
        yield lambda: make_policy("openai", base_url=vllm_server.base_url, top_logprobs=5)


def test_counts_are_those_of_the_server(vllm_server: VllmServer) -> None:
    policy = OpenAIPolicy(base_url=vllm_server.base_url)
    assert policy.context_tokens == 8192

    async def go() -> list[tuple[Any, Any, int]]:
        prompts = [(opening(), 0), *((after(kind, frames=n, sound=False), n) for kind in ("frames", "clip") for n in (2, 7))]
        return [(await policy.count(prompt), (await policy.generate(prompt, GREEDY)).usage, pictures) for prompt, pictures in prompts]

    for size, usage, pictures in asyncio.run(go()):
        assert 0 <= size.total - usage.prompt_tokens <= pictures, "at most one token too many for each picture"
        assert pictures == 0 or 0 < usage.visual_tokens <= size.visual
