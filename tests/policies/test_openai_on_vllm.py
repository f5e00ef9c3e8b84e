"""`policy=openai` with a real vLLM server on the CPU.

The conformance suite, and counts compared with what the server says it used.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conformance import ATTACK, GREEDY, Make, PolicyConformance, after, attacked, opening
from vllm_server import MODEL, VllmServer

from apr_plugin.loop import Sampling
from apr_plugin.policies import make_policy
from apr_plugin.policies.openai.media import MediaForm, chat_messages
from apr_plugin.policies.openai.policy import OpenAIPolicy

pytest.importorskip("openai")
pytestmark = [pytest.mark.xdist_group("vllm"), pytest.mark.slow]


class TestOpenAIOnVllm(PolicyConformance):
    batch_invariant = False  # kernels add in another order if other requests are in the batch
    seeded = False

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, vllm_server: VllmServer) -> Iterator[Make]:
        yield lambda: make_policy("openai", base_url=vllm_server.base_url, top_logprobs=5)


def test_counts_are_those_of_the_server(vllm_server: VllmServer) -> None:
    policy = OpenAIPolicy(base_url=vllm_server.base_url)
    assert policy.context_tokens == 8192

    async def go() -> list[tuple[Any, Any, int]]:
        prompts = [
            (opening(), 0),
            *((after(kind, frames=n, sound=False), n) for kind in ("frames", "clip") for n in (2, 7)),
        ]
        return [
            (await policy.count(prompt), (await policy.generate(prompt, GREEDY)).usage, pictures)
            for prompt, pictures in prompts
        ]

    for size, usage, pictures in asyncio.run(go()):
        assert 0 <= size.total - usage.prompt_tokens <= pictures, "at most one token too many for each picture"
        assert pictures == 0 or 0 < usage.visual_tokens <= size.visual


def test_log_probabilities_are_before_the_temperature(vllm_server: VllmServer, tiny_checkpoint: Path) -> None:
    """Compare with a plain forward of transformers on the ids that the server returns, including the prompt's.

    Pictures have their positions in those.
    """
    torch = pytest.importorskip("torch")
    from apr_plugin.models.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(str(tiny_checkpoint), device="cpu", dtype="float32")
    policy = OpenAIPolicy(base_url=vllm_server.base_url, top_logprobs=0)
    made = asyncio.run(policy.generate(opening(), Sampling(temperature=2.0, top_k=5, seed=1, max_new_tokens=8)))
    assert made.logprobs_of == "raw" and made.prompt_token_ids is not None and made.token_ids is not None
    ids = torch.tensor([[*made.prompt_token_ids, *made.token_ids]])
    with torch.no_grad():
        told = torch.log_softmax(checkpoint.model(input_ids=ids).logits[0, -len(made.token_ids) - 1 : -1], -1)
    wanted = told.gather(1, ids[0, -len(made.token_ids) :, None])[:, 0].tolist()
    assert made.logprobs == pytest.approx(wanted, abs=0.05)
    shown = asyncio.run(policy.generate(after("frames", frames=3), GREEDY))
    assert shown.prompt_token_ids is not None
    assert shown.prompt_token_ids.count(checkpoint.model.config.image_token_id) == shown.usage.visual_tokens


def test_words_of_strangers_open_no_turn_and_add_no_picture(vllm_server: VllmServer) -> None:
    def tokens(messages: list[dict[str, Any]]) -> list[str]:
        body = json.dumps({"model": MODEL, "messages": messages, "return_token_strs": True}).encode()
        url = vllm_server.base_url.removesuffix("/v1") + "/tokenize"
        with urllib.request.urlopen(
            urllib.request.Request(url, body, {"Content-Type": "application/json"}), timeout=120
        ) as reply:
            told: list[str] = json.load(reply)["token_strs"]
        return told

    def marks(messages: list[dict[str, Any]]) -> list[int]:
        written = tokens(messages)
        return [written.count(mark) for mark in ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>")]

    clean, hostile = (chat_messages(attacked(words), MediaForm()) for words in ("harmless", ATTACK))
    assert marks(clean) == marks(hostile) and marks(clean)[0] == len(clean) + 1 and marks(clean)[3] > 0
    raw = [{"role": "user", "content": ATTACK}]
    assert marks(raw)[0] == 4, "the server itself takes them for what they say"
    asyncio.run(OpenAIPolicy(base_url=vllm_server.base_url).generate(attacked(ATTACK), GREEDY))
