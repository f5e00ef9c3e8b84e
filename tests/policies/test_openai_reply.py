"""Replies as different servers write them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from conformance import check_generation
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_plugin.loop import Generation, Sampling
from apr_plugin.loop.policy import Usage
from apr_plugin.policies.openai.reply import BadReply, entropy, read_reply

KEYS = (
    "choices",
    "message",
    "content",
    "finish_reason",
    "logprobs",
    "logprob",
    "top_logprobs",
    "token_ids",
    "usage",
    "prompt_tokens",
    "text",
    "prompt_tokens_details",
    "cached_tokens",
    "multimodal_tokens",
    "image",
    "audio",
    "metrics",
    "queue_time_ms",
    "refusal",
)


def read(data: Any, top_logprobs: int | None = None, temperature: float = 0.0) -> Generation:
    return read_reply(json.loads(json.dumps(data)), top_logprobs=top_logprobs, temperature=temperature, queue_s=1.5)


def reply(message: Any = "hello", usage: Any = None, **choice: Any) -> dict[str, Any]:
    content = message if isinstance(message, dict) else {"role": "assistant", "content": message}
    return {"choices": [{"index": 0, "message": content, "finish_reason": "stop"} | choice], "usage": usage}


@pytest.mark.parametrize(
    ("details", "cached", "visual", "audio"),
    [
        (None, None, None, None),
        ({"cached_tokens": 64, "audio_tokens": 0}, 64, None, 0),  # OpenAI
        ({"cached_tokens": 64, "multimodal_tokens": {"image": 30, "video": 12, "audio": 7}}, 64, 42, 7),  # vLLM
        ({"cached_tokens": 0, "multimodal_tokens": None}, 0, None, None),
        ({"cached_tokens": 3, "image_tokens": 30, "video_tokens": 1}, 3, 31, None),  # SGLang
        ({"cached_tokens": "many", "audio_tokens": -1, "image_tokens": 1.5}, None, None, None),
        ({"cached_tokens": 101, "audio_tokens": 60, "image_tokens": 50}, None, None, None),  # more than the whole
        # vLLM, a clip with interleaved sound: both are the whole clip.
        (
            {"multimodal_tokens": {"video": 33, "audio": 33}},
            None,
            None,
            None,
        ),
        ("none", None, None, None),
    ],
)
def test_usage_of_every_server(details: Any, cached: Any, visual: Any, audio: Any) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105, "prompt_tokens_details": details}
    assert read(reply(usage=usage)).usage == Usage(100, cached, 5, visual, audio)
    assert read(reply(usage=None)).usage == Usage()


def test_text_wherever_it_stands() -> None:
    assert read(reply("a turn")).text == "a turn"
    assert read(reply([{"type": "text", "text": "a "}, {"type": "text", "text": "turn"}])).text == "a turn"
    assert read(reply({"content": None, "refusal": "I can't"})).text == "I can't"
    assert read(reply({"content": None, "reasoning_content": "hm"}, finish_reason="length")).finish_reason == "length"
    assert read(reply(finish_reason=None)).finish_reason == "stop"


@pytest.mark.parametrize(
    "data", ["<html>", None, [], {}, {"choices": []}, {"choices": None}, {"choices": ["x"]},
    {"choices": [{"text": "x"}]}, {"error": "overloaded"},
             reply(finish_reason="abort"), reply(finish_reason="error")],
)  # fmt: skip
def test_what_is_no_turn_is_not_taken_for_an_empty_one(data: Any) -> None:
    with pytest.raises(BadReply):
        read(data)


def logprobs(*tokens: tuple[Any, list[Any]]) -> dict[str, Any]:
    listed = [(own, [{"token": "o", "logprob": other} for other in others]) for own, others in tokens]
    return {"content": [{"token": "t", "logprob": own, "top_logprobs": others} for own, others in listed]}


def test_logprobs_that_no_file_could_hold() -> None:
    one = (-0.5, [-0.5, -1.0])
    assert read(reply(logprobs=logprobs(one)), 2).logprobs == (-0.5,)
    assert read(reply(logprobs=logprobs(one))).logprobs is None, "not asked for"
    for odd in (math.nan, None, "x"):
        broken = read(reply(logprobs=logprobs(one, (odd, [-1.0]))), 2)
        assert broken.logprobs is None and broken.entropies is None and broken.entropy_top_k is None
    floor = read(reply(logprobs=logprobs((-math.inf, [-0.1, -math.inf]), (1e-9, [0.0, -math.inf]))), 2)
    assert floor.logprobs == (-9999.0, 0.0) and floor.entropies == (0.0, 0.0)
    json.dumps([floor.logprobs, floor.entropies], allow_nan=False)
    assert read(reply(logprobs=logprobs((-0.5, []))), 2).entropies is None
    for odd in (None, {"content": None}, "x", {"content": ["x"]}):
        assert read(reply(logprobs=odd), 2).logprobs is None


def test_ids_of_other_tokens_are_left_out() -> None:
    assert read(reply(logprobs=logprobs((-0.5, []), (-0.5, [])), token_ids=[4, 5]), 0).token_ids == (4, 5)
    assert read(reply(logprobs=logprobs((-0.5, [])), token_ids=[4, 5]), 0).token_ids is None
    assert read(reply(token_ids=[4, None])).token_ids is None


def test_entropy_is_that_of_the_renormalised_distribution() -> None:
    assert entropy([math.log(0.2)] * 4, 0) == pytest.approx(math.log(4))
    assert entropy([-0.1], 1.0) == 0.0
    assert entropy([0.0, -9999.0], 0.01) == pytest.approx(0.0)
    skewed = [math.log(0.7), math.log(0.2)]
    assert entropy(skewed, 0.5) < entropy(skewed, 1.0) == entropy(skewed, 0) < entropy(skewed, 4.0) < math.log(2)


def test_timings_that_vllm_gives() -> None:
    told = read(
        reply()
        | {
            "metrics": {
                "queue_time_ms": 500,
                "time_to_first_token_ms": 2000.0,
                "generation_time_ms": 250,
                "mean_itl_ms": None,
            }
        }
    ).timings
    assert (told.queue_s, told.prefill_s, told.decode_s) == (2.0, 2.0, 0.25)
    assert read(reply() | {"metrics": {"queue_time_ms": None}}).timings.queue_s == 1.5


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(top=_JSON, choice=_JSON, k=st.sampled_from([None, 0, 3]))
def test_whatever_a_server_writes_is_a_turn_or_a_bad_reply(top: Any, choice: Any, k: int | None) -> None:
    usual = {"choices": [{"message": {"content": "x"}} | (choice if isinstance(choice, dict) else {})]}
    for data in (top, choice, usual | (top if isinstance(top, dict) else {}), usual):
        try:
            done = read_reply(data, top_logprobs=k, temperature=0.5, queue_s=0.0)
        except BadReply:
            continue
        check_generation(done, Sampling(), limit=False)
