"""`policy=openai`: what is sent, over a real socket, to a small server."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np
import pytest
from apr_testing import answer, look
from chat_server import ChatServer, one_tls_context  # noqa: F401 - a fixture
from conformance import GREEDY, LOOK, Make, PolicyConformance, after, notebook, opening, percept, picture
from PIL import Image

from apr_plugin.errors import AprError
from apr_plugin.loop import Generation, Percept, Policy, PolicyUnavailable, Prompt, Sampling
from apr_plugin.loop.policy import AudioPart, ImagePart, Message, TextPart, VideoPart
from apr_plugin.policies import make_policy
from apr_plugin.policies.openai.count import text_tokens
from apr_plugin.policies.openai.policy import OpenAIPolicy, by_openai
from apr_plugin.policies.openai.servers import Server

pytest.importorskip("openai")


class TestOpenAI(PolicyConformance):
    """Clips as frames with times, sound, log-probabilities."""

    settings: ClassVar[dict[str, Any]] = {"audio": True, "top_logprobs": 5}

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls) -> Iterator[Make]:
        with ChatServer([look(0, 2), answer("B")]) as server:
            yield lambda: make_policy("openai", base_url=server.url, **cls.settings)


class TestOpenAIVideo(TestOpenAI):
    """Clips as one mp4, lossless pictures, no sound, a small context."""

    settings: ClassVar = {"clip_as": "video", "image_quality": "png", "context_tokens": 4096}


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer([look(0, 2), answer("B")]) as running:
        yield running


def generate(policy: Policy, *prompts: Prompt, sampling: Sampling = GREEDY) -> list[Generation]:
    async def all_of_them() -> list[Generation]:
        return [await policy.generate(prompt, sampling) for prompt in prompts]

    return asyncio.run(all_of_them())


def only(*parts: Any) -> Prompt:
    return Prompt((Message("user", parts),))


def test_a_turn_that_stays_is_sent_as_the_same_bytes(server: ChatServer) -> None:
    book = notebook()
    prompts = []
    for number in range(1, 6):
        prompts.append(book.prompt(number, 8))
        book.add(LOOK, percept(("frames", "audio", "clip")[number % 3]))
    generate(OpenAIPolicy(base_url=server.url, audio=True), *prompts, prompts[-1])
    assert server.raw[-1] == server.raw[-2]
    sent = [json.dumps(chat["messages"]).removesuffix("]") for chat in server.chats]
    for shorter, longer in zip(server.chats[1:-2], sent[2:-1], strict=True):
        assert longer.startswith(json.dumps(shorter["messages"][:-1]).removesuffix("]"))
    for chat in server.chats:
        assert all(isinstance(message["content"], str) for message in chat["messages"][:-1]), (
            "words are sent as a string"
        )


def test_pictures_arrive_as_they_were(server: ChatServer) -> None:
    images = [picture(n, 64, 48) for n in range(3)]
    prompt = only(
        TextPart("a"), ImagePart(images[0]), TextPart("b"), TextPart("c"), ImagePart(images[1]), ImagePart(images[2])
    )
    sizes = {}
    for quality in (40, 90, "png"):
        generate(OpenAIPolicy(base_url=server.url, image_quality=quality, image_detail="low"), prompt)
        (content,) = (message["content"] for message in server.chats[-1]["messages"])
        assert [part.get("text") for part in content] == ["a", None, "bc", None, None]
        urls = [part["image_url"] for part in content if part["type"] == "image_url"]
        assert all(url["detail"] == "low" for url in urls)
        got = [np.asarray(Image.open(io.BytesIO(base64.b64decode(url["url"].partition(",")[2])))) for url in urls]
        sizes[quality] = sum(len(url["url"]) for url in urls)
        for sent, came in zip(images, got, strict=True):
            limit = {40: 12, 90: 2, "png": 0}[quality]
            assert came.shape == sent.shape and np.abs(came.astype(int) - sent).mean() <= limit
    assert sizes[40] < sizes[90]


def test_sound_arrives_as_it_was(server: ChatServer) -> None:
    waveform = np.clip(np.random.default_rng(0).normal(0, 0.4, 4000), -1.2, 1.2).astype(np.float32)
    generate(OpenAIPolicy(base_url=server.url, audio=True), only(TextPart("hear"), AudioPart(waveform, 16_000)))
    part = server.chats[-1]["messages"][0]["content"][1]
    assert part["type"] == "input_audio" and part["input_audio"]["format"] == "wav"
    with wave.open(io.BytesIO(base64.b64decode(part["input_audio"]["data"]))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        got = np.frombuffer(file.readframes(10_000), "<i2") / 32_767
    assert np.abs(got - np.clip(waveform, -1, 1)).max() < 1e-4
    with ChatServer(engine="sglang") as sglang:
        generate(OpenAIPolicy(base_url=sglang.url, audio=True), only(TextPart("hear"), AudioPart(waveform, 16_000)))
        assert sglang.chats[-1]["messages"][0]["content"][1]["type"] == "audio_url"


def test_a_clip_is_sent_as_frames_or_as_a_film(server: ChatServer) -> None:
    frames = np.stack([picture(n, 75, 61) for n in range(6)])  # odd sides
    hum = (0.3 * np.sin(np.arange(24_000) * 0.1)).astype(np.float32)
    times = tuple(10 + n * 0.4 for n in range(6))
    prompt = only(
        TextPart("Clip 10.00s-12.00s"), VideoPart(frames, times, 2.5, AudioPart(hum, 16_000)), TextPart("\n[NOTICE]")
    )
    for hears in (True, False):
        generate(OpenAIPolicy(base_url=server.url, audio=hears), prompt)
        content = server.chats[-1]["messages"][0]["content"]
        words = [part["text"] for part in content if part["type"] == "text"]
        assert words[:2] == ["Clip 10.00s-12.00s\nFrame 10.00s:", "\nFrame 10.40s:"] and words[-1] == "\n[NOTICE]"
        assert sum(part["type"] == "image_url" for part in content) == 6
        assert sum(part["type"] == "input_audio" for part in content) == hears

        extra = {"mm_processor_kwargs": {"fps": 1, "max_pixels": 9}}
        generate(OpenAIPolicy(base_url=server.url, audio=hears, clip_as="video", extra_body=json.dumps(extra)), prompt)
        body = server.chats[-1]
        assert body["media_io_kwargs"] == {"video": {"fps": 2.5, "num_frames": -1}}
        asked = {"fps": 1, "max_pixels": 9, "do_sample_frames": False} | (
            {"use_audio_in_video": True, "second_per_grid_ts": [0.8]} if hears else {}
        )
        assert body["mm_processor_kwargs"] == asked, "what the user set wins, the rest stays"
        assert asked in [counted.get("mm_processor_kwargs") for counted in server.tokenized], (
            "a clip is counted as it is sent"
        )
        data = base64.b64decode(
            body["messages"][0]["content"][1]["video_url"]["url"].removeprefix("data:video/mp4;base64,")
        )
        with av.open(io.BytesIO(data)) as file:
            assert float(file.streams.video[0].average_rate or 0) == 2.5 and bool(file.streams.audio) == hears
            got = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        assert len(got) == 6 and got[0].shape == (62, 76, 3)
        assert all(np.abs(came[:61, :75].astype(int) - sent).mean() < 8 for came, sent in zip(got, frames, strict=True))
        if hears:
            with av.open(io.BytesIO(data)) as file:
                sound = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
            assert abs(len(sound) / 16_000 - 1.5) < 0.1 and 0.1 < np.abs(sound).mean() < 0.3


def test_sampling_is_passed_on(server: ChatServer) -> None:
    generate(OpenAIPolicy(base_url=server.url), opening(), sampling=Sampling(0.7, 0.9, 20, 33, 5, ("```",)))
    plain = {key: value for key, value in server.chats[-1].items() if key != "messages"}
    assert plain == {
        "model": "small",
        "max_tokens": 33,
        "temperature": 0.7,
        "seed": 5,
        "top_p": 0.9,
        "top_k": 20,
        "stop": ["```"],
    }
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "seed": 9}
    policy = OpenAIPolicy(
        base_url=server.url,
        max_tokens_field="max_completion_tokens",
        omit="temperature;top_k",
        extra_body=json.dumps(extra),
        top_logprobs=0,
    )
    generate(policy, opening(), sampling=Sampling(0.7, 1.0, 20, 33, 5))
    plain = {key: value for key, value in server.chats[-1].items() if key != "messages"}
    assert plain == {"model": "small", "max_completion_tokens": 33, "logprobs": True, "return_token_ids": True} | extra
    assert server.tokenized[-1]["chat_template_kwargs"] == {"enable_thinking": False}, (
        "the template's settings count too"
    )
    assert policy.describe()["extra_body"] == extra and policy.describe()["omit"] == ["temperature", "top_k"]
    assert by_openai(Server("https://api.openai.com/v1")) and by_openai(Server("https://x.openai.azure.com/openai/v1"))
    assert not by_openai(Server("http://api.openai.com.example/v1"))


def test_entropies_are_marked_as_over_the_top_k(server: ChatServer) -> None:
    (told,) = generate(
        OpenAIPolicy(base_url=server.url, top_logprobs=4), opening(), sampling=Sampling(max_new_tokens=3)
    )
    chances = np.array([0.5, 0.25, 0.125, 0.0625]) / 0.9375
    assert told.entropy_top_k == 4 and told.entropies == pytest.approx([-(chances * np.log(chances)).sum()] * 3)
    (warm,) = generate(
        OpenAIPolicy(base_url=server.url, top_logprobs=4), opening(), sampling=Sampling(2.0, max_new_tokens=3)
    )
    flatter = np.sqrt(chances) / np.sqrt(chances).sum()
    assert warm.entropies == pytest.approx([-(flatter * np.log(flatter)).sum()] * 3), (
        "of the distribution that tokens are drawn from"
    )
    with ChatServer([look(0, 2)], engine="sglang") as scaling:
        (scaled,) = generate(
            OpenAIPolicy(base_url=scaling.url, top_logprobs=4), opening(), sampling=Sampling(2.0, max_new_tokens=3)
        )
    assert scaled.entropies == told.entropies, "SGLang has divided by the temperature already"
    (alone,) = generate(OpenAIPolicy(base_url=server.url, top_logprobs=0), opening())
    assert (
        alone.entropies is None and alone.entropy_top_k is None and alone.logprobs == pytest.approx([np.log(0.5)] * 8)
    )


def test_the_engine_decides_what_log_probabilities_are_of() -> None:
    """vLLM's are before the temperature, SGLang's are after it, and those of others are unknown.

    Only vLLM returns the ids of the prompt.
    """
    for engine, warm, greedy in (("vllm", "raw", "raw"), ("sglang", "scaled", "raw"), ("someone", None, None)):
        with ChatServer([look(0, 2)], engine=engine) as server:
            policy = OpenAIPolicy(base_url=server.url, top_logprobs=0)
            made = [generate(policy, opening(), sampling=Sampling(temperature))[0] for temperature in (0.7, 0.0)]
            assert [one.logprobs_of for one in made] == [warm, greedy] and all(one.logprobs is not None for one in made)
            size = made[0].usage.prompt_tokens
            assert size and made[0].prompt_token_ids == (tuple(range(size)) if engine == "vllm" else None)
            (silent,) = generate(OpenAIPolicy(base_url=server.url), opening())
            assert (silent.logprobs, silent.logprobs_of, silent.prompt_token_ids) == (None, None, None)


def test_a_prompt_that_does_not_fit_is_never_sent(server: ChatServer) -> None:
    size = asyncio.run(OpenAIPolicy(base_url=server.url).count(opening()))
    assert size is not None
    for context, limit in ((size.total + 20, 20), (size.total + 1, 1)):
        (done,) = generate(
            OpenAIPolicy(base_url=server.url, context_tokens=context), opening(), sampling=Sampling(max_new_tokens=4096)
        )
        assert (
            server.chats[-1]["max_tokens"] == limit == done.usage.completion_tokens and done.finish_reason == "length"
        )
    before = len(server.chats)
    with pytest.raises(
        PolicyUnavailable, match=f"a prompt of {size.total} tokens leaves no room in the context of {size.total}"
    ):
        generate(OpenAIPolicy(base_url=server.url, context_tokens=size.total), opening())
    assert len(server.chats) == before
    server.context_tokens = 100
    assert OpenAIPolicy(base_url=server.url, context_tokens=500).context_tokens == 100, (
        "the server's own limit counts too"
    )


def test_every_size_is_counted_once_and_no_picture_travels_for_it(server: ChatServer) -> None:
    policy = OpenAIPolicy(base_url=server.url, audio=True)
    noise = np.random.default_rng(0).integers(0, 255, (4, 280, 280, 3), np.uint8)
    looks = [Percept("frames", 0, 0.0, 3.0, images=noise[:n], times_s=(0.0, 1.0, 2.0, 3.0)[:n]) for n in (2, 3, 4)]
    prompts = [notebook().passive_prompt([seen]) for seen in looks]
    generate(policy, *prompts, *prompts)
    assert sum(len(json.dumps(body)) for body in server.tokenized) < 60_000 < min(len(data) for data in server.raw)
    shown = [body for body in server.tokenized if "image_url" in json.dumps(body)]
    assert len(shown) == 1, "one blank picture for the one size"
    for seconds in (1.0, 1.05, 1.1, 3.0):
        generate(policy, after("audio", seconds=seconds))
    heard = [body for body in server.tokenized if "input_audio" in json.dumps(body)]
    assert len(heard) == 3


def test_without_a_tokenizer_a_known_context_is_kept_by_an_estimate() -> None:
    asked: dict[str, Any] = {"context_tokens": 9000}
    for settings in ({"engine": "sglang"}, {"tokenizes": False}, {"engine": "x", "context_tokens": None}):
        with ChatServer(**settings) as server:
            policy = OpenAIPolicy(base_url=server.url, audio=True, **asked)
            for kind in ("frames", "audio", "clip"):
                size = asyncio.run(policy.count(after(kind)))
                (done,) = generate(policy, after(kind))
                assert size is not None and done.usage.prompt_tokens is not None
                assert done.usage.prompt_tokens <= size.total <= 1.6 * done.usage.prompt_tokens
    with ChatServer(engine="x", context_tokens=None) as server:
        assert asyncio.run(OpenAIPolicy(base_url=server.url).count(opening())) is None, (
            "with no context there is nothing to keep to"
        )


def test_words_are_estimated_on_the_high_side() -> None:
    # Numbers of tokens of the tokenizer of Qwen2.5, which takes digits one by one.
    for text, tokens in (
        ("Frame 12.34s:\n", 9),
        ("The quick brown fox jumps over the lazy dog.", 10),
        ('{"observation": "", "think": "look"}', 10),
    ):
        assert tokens <= text_tokens(text) <= 2 * tokens
    assert text_tokens("") == 0 and text_tokens("日本語") >= 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"base_url": "localhost:8000"}, "base_url must be like"),
        ({"base_url": "http://me:secret@host/v1"}, "base_url http://host/v1 has a user or password"),
        ({"base_url": " ; "}, "base_url is empty"),
        ({"base_url": "http://host/v1?token=SECRET"}, "base_url http://host/v1 has a query"),
        ({"base_url": "[http://host/v1#SECRET,http://other/v1]"}, "base_url http://host/v1 has a query"),
        ({"base_url": "http://a/v1;http://b/v1?key=SECRET;more=SECRET"}, "base_url http://b/v1 has a query"),
        ({"base_url": "http://me:SECRET;SECRET@host/v1"}, "base_url host/v1 has a user or password"),
        ({"base_url": "http://[::1/v1"}, "base_url must be like"),
        ({"base_url": "http://host:99999/v1"}, "base_url must be like"),
        ({"base_url": "file:///etc/passwd"}, "base_url must be like"),
        ({"clip_as": "gif"}, "clip_as must be frames or video, not 'gif'"),
        ({"image_quality": 101}, "image_quality must be a whole number from 1 to 100"),
        ({"image_quality": "jpg"}, "image_quality must be"),
        ({"image_detail": "medium"}, "image_detail must be low, high or auto"),
        ({"audio": "maybe"}, "audio must be true or false"),
        ({"timeout_s": 0}, "timeout_s must be"),
        ({"timeout_s": float("nan")}, "timeout_s must be"),
        ({"timeout_s": "soon"}, "soon"),
        ({"retries": -1}, "retries must be a whole number of at least 0"),
        ({"max_reply_mib": 0}, "max_reply_mib must be a number above 0"),
        ({"max_reply_mib": "nan"}, "max_reply_mib must be"),
        ({"max_connections": 0}, "max_connections must be"),
        ({"context_tokens": "many"}, "context_tokens must be"),
        ({"top_logprobs": -1}, "top_logprobs must be"),
        ({"max_tokens_field": "max"}, "max_tokens_field must be"),
        ({"omit": "messages"}, "omit must be"),
        ({"extra_body": "{"}, "extra_body must be a JSON object"),
        ({"extra_body": "[1]"}, "extra_body must be a JSON object"),
        ({"extra_body": '{"stream": true}'}, "extra_body can't set stream"),
        ({"temprature": 1}, "temprature"),
    ],
)
def test_a_bad_argument_is_refused_by_name(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(AprError, match=words) as caught:
        make_policy("openai", **{"base_url": "http://127.0.0.1:9/v1"} | arguments)
    assert "\n" not in str(caught.value) and "SECRET" not in str(caught.value)


def test_the_model_is_looked_up_first(server: ChatServer) -> None:
    assert make_policy("openai", base_url=server.url).describe()["model"] == "small"
    with pytest.raises(AprError, match="has no model 'large'; it has small"):
        make_policy("openai", base_url=server.url, model="large")
    with (
        ChatServer(model="other", engine="x") as other,
        pytest.raises(AprError, match="different models, /models/small and /models/other"),
    ):
        make_policy("openai", base_url=f"{server.url};{other.url}")
    with ChatServer(model="other", engine="x") as lenient:
        assert make_policy("openai", base_url=lenient.url, model="large").describe()["model"] == "large", (
            "some servers take any name"
        )
    with pytest.raises(AprError, match=r"no server answers \(http://127\.0\.0\.1:9/v1: the connection failed"):
        make_policy("openai", base_url="http://127.0.0.1:9/v1", model="m")


def test_a_server_that_takes_no_clips_is_found_out_first() -> None:
    with ChatServer(trusts_kwargs=False) as server:
        with pytest.raises(
            AprError, match="takes no clip_as=video: HTTP 400: Per-request mm_processor_kwargs are disabled"
        ):
            make_policy("openai", base_url=server.url, clip_as="video")
        make_policy("openai", base_url=server.url)
    with ChatServer(trusts_kwargs=False, tokenizes=False, engine="sglang") as server:
        make_policy("openai", base_url=server.url, clip_as="video", audio=True)


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AprError, match=r"openai is not installed; add it with: pip install 'apr-plugin\[openai\]'"):
        make_policy("openai", base_url="http://127.0.0.1:9/v1")
