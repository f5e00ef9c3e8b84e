"""`policy=openai`: any server of the OpenAI chat-completions protocol: vLLM, SGLang, hosted models.

        apr eval --tasks lvbench --model_args \
            policy=openai,model=Qwen/Qwen2.5-VL-7B-Instruct,base_url=http://127.0.0.1:8000/v1,concurrency=16

Requests are in `media.py`, replies in `reply.py`, one server's connections in `http.py`, retries and several servers in
`servers.py`, what a server reports about its model in `served.py`, counting in `count.py`.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np

from apr_plugin import config, options
from apr_plugin.errors import AprError, require
from apr_plugin.loop.budget import FRAME_PAIR
from apr_plugin.loop.policy import (
    EVERY_MODALITY,
    Generation,
    LogprobsOf,
    Modality,
    Part,
    PolicyDefaults,
    PolicyUnavailable,
    Prompt,
    PromptSize,
    Sampling,
    VideoPart,
)
from apr_plugin.policies.openai.count import Counter, estimate
from apr_plugin.policies.openai.failure import Failure
from apr_plugin.policies.openai.media import MediaForm, chat_messages, has_media
from apr_plugin.policies.openai.reply import MOST_TOKENS, BadReply, read_reply
from apr_plugin.policies.openai.served import look_up
from apr_plugin.policies.openai.servers import Server, Servers

_log = logging.getLogger(__name__)

OPENAI_URL = "https://api.openai.com/v1"
MOST_REPLY_MIB = 4096
_RESERVED = ("messages", "model", "n", "stream", "stream_options")
_SAMPLING_FIELDS = ("temperature", "top_p", "top_k", "seed", "max_tokens", "max_completion_tokens")
_PROMPT_FIELDS = ("chat_template", "chat_template_kwargs", "mm_processor_kwargs", "media_io_kwargs")
"""Fields of `extra_body` that change how many tokens a prompt takes."""


class OpenAIPolicy(PolicyDefaults):
    """A policy that asks a model through the chat-completions protocol.

    Args:
        model: The model's name on the server; default: the only model that the server has.
        base_url: The address of the API, `http://127.0.0.1:8000/v1`. Several servers of the same model are separated by
            `;` or `|`, or by commas inside brackets: `[http://a:8000/v1,http://b:8000/v1]` (a comma outside them ends a
            model_arg).
        image_quality: JPEG quality of frames, 1 to 100, or `png`.
        image_detail: `low`, `high` or `auto`, for hosted models that know it.
        clip_as: `frames` shows a clip as pictures with their times, which every server reads; `video` sends one mp4
            with its sound.
        audio: Whether the model hears; no server reports it.
        context_tokens: Most tokens of prompt and turn together; vLLM and SGLang report it.
        max_connections: Requests in flight to one server.
        timeout_s: Seconds one request may take.
        retries: Attempts after the first, with growing pauses (8 wait about a minute in all); with several servers,
            rounds over them.
        max_reply_mib: Longest reply, inflated, in MiB; a longer one ends its question.
        top_logprobs: Ask for log-probabilities, and for the entropy over this many tokens at each position; 0 asks only
            for log-probabilities.
        max_tokens_field: The field for the longest turn; `auto` is `max_completion_tokens` for OpenAI's own API, else
            `max_tokens`.
        omit: Fields that the model refuses and that are omitted, separated like the servers: `temperature;seed`.
        extra_body: A JSON object whose fields are added to every request,
            `{"chat_template_kwargs":{"enable_thinking":false}}`.
        api_key_env: Environment variable that contains the key.
    """

    name = "openai"

    def __init__(
        self,
        model: str | None = None,
        base_url: str = OPENAI_URL,
        image_quality: int | str = 90,
        image_detail: str | None = None,
        clip_as: Literal["frames", "video"] = "frames",
        audio: bool = False,
        context_tokens: int | None = None,
        max_connections: int = 64,
        timeout_s: float = 600.0,
        retries: int = 8,
        max_reply_mib: float = 32.0,
        top_logprobs: int | None = None,
        max_tokens_field: Literal["auto", "max_tokens", "max_completion_tokens"] = "auto",
        omit: str = "",
        extra_body: str | Mapping[str, Any] | None = None,
        api_key_env: str = "OPENAI_API_KEY",
    ) -> None:
        require("openai", "openai")
        urls = _urls(base_url, api_key_env)
        options.one_of("clip_as", clip_as, ("frames", "video"))
        options.one_of("max_tokens_field", max_tokens_field, ("auto", "max_tokens", "max_completion_tokens"))
        if (image_detail := options.given(image_detail)) is not None:
            options.one_of("image_detail", image_detail, ("low", "high", "auto"))
        self._omit = tuple(options.words(omit))
        for field in self._omit:
            options.one_of("omit", field, _SAMPLING_FIELDS)
        self._extra = options.json_object("extra_body", extra_body)
        if taken := [key for key in _RESERVED if key in self._extra]:
            raise ValueError(f"extra_body can't set {', '.join(taken)}")
        self._top_logprobs = (
            None if options.given(top_logprobs) is None else options.whole("top_logprobs", top_logprobs, 0)
        )
        given = None if options.given(context_tokens) is None else options.whole("context_tokens", context_tokens, 1)
        quality: int | Literal["png"] = (
            "png" if image_quality == "png" else options.whole("image_quality", image_quality, 1, 100)
        )
        hears = options.flag("audio", audio)
        self._servers = Servers(
            urls,
            _key(urls, api_key_env),
            timeout_s=options.number("timeout_s", timeout_s, 0, unit="seconds"),
            retries=options.whole("retries", retries, 0),
            max_connections=options.whole("max_connections", max_connections, 1),
            reply_bytes=round(options.number("max_reply_mib", max_reply_mib, 0, MOST_REPLY_MIB) * 1024 * 1024),
        )
        self._served = look_up(self._servers, None if model is None else str(model), api_key_env)
        hosted = any(by_openai(server) for server in self._servers.servers)
        self._takes_top_k = not hosted
        self._max_tokens_field = (
            max_tokens_field if max_tokens_field != "auto" else "max_completion_tokens" if hosted else "max_tokens"
        )
        self.modalities: frozenset[Modality] = EVERY_MODALITY if hears else frozenset(("frames", "clip"))
        self.context_tokens: int | None = min(filter(None, (given, self._served.context_tokens)), default=None)
        self._media = MediaForm(
            quality, image_detail, clip_as, hears, "audio_url" if self._served.engine == "sglang" else "input_audio"
        )
        self._counter = Counter(self._tokenize, self._media, self._for_clip) if self._served.engine == "vllm" else None
        if clip_as == "video" and self._served.engine == "vllm":
            self._check_that_clips_are_taken()
        self._estimating = False
        self._sizes: dict[int, tuple[weakref.ref[Prompt], PromptSize]] = {}

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """Write the next turn.

        Raises:
            PolicyUnavailable: no server answered, a server refused the request (its message is included), or the prompt
                is longer than the context.
        """
        limit = sampling.max_new_tokens
        if self.context_tokens is not None and (size := await self.count(prompt)) is not None:
            limit = min(limit, self.context_tokens - size.total)
            if limit < 1:
                raise PolicyUnavailable(
                    f"a prompt of {size.total} tokens leaves no room in the context of {self.context_tokens}"
                )
        media = has_media(prompt)
        messages = (
            await asyncio.to_thread(chat_messages, prompt, self._media) if media else chat_messages(prompt, self._media)
        )
        body = self._body(messages, sampling, limit, prompt)
        temperature = body.get("temperature", 1.0)
        generation = await self._servers.ask(
            "/chat/completions",
            body,
            lambda waited, data: read_reply(
                data,
                top_logprobs=self._top_logprobs,
                temperature=temperature,
                queue_s=waited,
                logprobs_of=self._logprobs_of(temperature),
            ),
            _episode(prompt),
        )
        scrub = self._servers.scrub
        return replace(
            generation,
            text=scrub(generation.text),
            finish_reason=scrub(generation.finish_reason),
            remark=scrub(generation.remark),
        )

    async def count(self, prompt: Prompt) -> PromptSize | None:
        """The number of tokens of the prompt.

        vLLM is asked (`count.py`). For another server with a known context, the count is an estimate by Qwen2.5's
        rules. Without a known context there is no limit to obey, and the answer is `None`.
        """
        if self.context_tokens is None:
            return None
        known = self._sizes.get(id(prompt))
        if known is not None and known[0]() is prompt:
            return known[1]
        size = await self._measure(prompt)
        key = id(prompt)
        self._sizes[key] = (weakref.ref(prompt, lambda _: self._sizes.pop(key, None)), size)
        return size

    def describe(self) -> dict[str, Any]:
        """The settings that decide the answers.

        The servers' addresses are left out: a run continues on another server of the same model.
        """
        return {
            "model": self._served.name,
            "weights": self._served.weights,
            "image_quality": self._media.image_quality,
            "image_detail": self._media.image_detail,
            "clip_as": self._media.clip_as,
            "audio": self._media.audio,
            "top_logprobs": self._top_logprobs,
            "omit": list(self._omit),
            "extra_body": self._extra,
        }

    def close(self) -> None:
        """Close the connections."""
        self._servers.close()

    def _check_that_clips_are_taken(self) -> None:
        """Check at the start that a vLLM server was told to accept the settings for clips."""
        body = {"model": self._served.name, "messages": [{"role": "user", "content": "x"}]}
        body |= self._for_clip(VideoPart(np.zeros((2, 28, 28, 3), np.uint8), (0.0, 0.5), 2.0))
        for server in self._servers.servers:
            try:
                self._servers.now(server, server.root + "/tokenize", body)
            except Failure as failure:
                if failure.status == 400 and "kwargs" in failure.words:
                    raise AprError(f"policy openai: {server.name} takes no clip_as=video: {failure.words}") from None

    async def _measure(self, prompt: Prompt) -> PromptSize:
        if self._counter is not None:
            try:
                size = await self._counter.count(prompt)
                self._estimating = False
                return size
            except Failure as failure:
                if not self._estimating:  # once when it begins, not for each turn
                    _log.warning("tokens are estimated while they can't be counted: %s", failure.words)
                self._estimating = True
                if failure.status in (404, 405, 501):
                    self._counter = None  # a gateway that passes on only the protocol
        return estimate(prompt, self._media)

    async def _tokenize(self, messages: list[dict[str, Any]], more: Mapping[str, Any]) -> int:
        extra = _merged(more, {key: self._extra[key] for key in _PROMPT_FIELDS if key in self._extra})
        try:
            told = await self._servers.ask_each_once(
                "/tokenize", {"model": self._served.name, "messages": messages} | extra
            )
        except BadReply as error:
            raise Failure(f"/tokenize gives no count: {error}", again=False, status=404) from None
        count = told.get("count") if isinstance(told, Mapping) else None
        if type(count) is not int or not 0 < count <= MOST_TOKENS:
            raise Failure("/tokenize gives no count", again=False, status=404)
        return count

    def _body(self, messages: list[dict[str, Any]], sampling: Sampling, limit: int, prompt: Prompt) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self._served.name, "messages": messages, self._max_tokens_field: limit}
        body |= {"temperature": sampling.temperature, "seed": sampling.seed}
        if sampling.top_p != 1.0:
            body["top_p"] = sampling.top_p
        if sampling.top_k != -1:
            if not self._takes_top_k and "top_k" not in self._omit:
                raise PolicyUnavailable(
                    "OpenAI's API takes no top_k; leave it out of the model_args, or add omit=top_k"
                )
            body["top_k"] = sampling.top_k
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if self._top_logprobs is not None:
            body |= {"logprobs": True} | ({"top_logprobs": self._top_logprobs} if self._top_logprobs else {})
            if self._served.engine == "vllm":
                body["return_token_ids"] = True
        for part in (part for message in prompt.messages for part in message.parts):
            body = _merged(body, self._for_clip(part))
        return _merged({key: value for key, value in body.items() if key not in self._omit}, self._extra)

    def _logprobs_of(self, temperature: float) -> LogprobsOf | None:
        """The distribution of the server's log-probabilities by default, if it is known; no protocol defines it.

        vLLM: before the temperature (`--logprobs-mode`). SGLang: after it (`SGLANG_RETURN_ORIGINAL_LOGPROB`).
        """
        if temperature <= 0 and self._served.engine:
            return "raw"
        known: dict[str, LogprobsOf] = {"vllm": "raw", "sglang": "scaled"}
        return known.get(self._served.engine)

    def _for_clip(self, part: Part) -> dict[str, Any]:
        """The fields that make a server show every frame of a clip at its own rate, and play its sound with it."""
        if not isinstance(part, VideoPart) or self._media.clip_as != "video":
            return {}
        heard = self._media.audio and part.audio is not None
        if self._served.engine == "vllm":
            processor: dict[str, Any] = {"fps": part.fps, "do_sample_frames": False}
            # Without the second, vLLM places the sound of a clip of Qwen2.5-Omni as if it had 2 frames a second.
            if heard:
                processor |= {"use_audio_in_video": True, "second_per_grid_ts": [FRAME_PAIR / part.fps]}
            return {"media_io_kwargs": {"video": {"fps": part.fps, "num_frames": -1}}, "mm_processor_kwargs": processor}
        return {"use_audio_in_video": True} if heard and self._served.engine == "sglang" else {}


def by_openai(server: Server) -> bool:
    """Whether OpenAI's own API is there, which has another name for the longest turn and no `top_k`."""
    return server.host == "api.openai.com" or server.host.endswith(".openai.azure.com")


def _episode(prompt: Prompt) -> str | None:
    """The key of the episode that a prompt belongs to; `None` if it has no later turn, so that any server will do."""
    if prompt.asked is None or (prompt.final and prompt.asked.turn == 1):
        return None
    return prompt.asked.episode or None


def _key(urls: list[str], variable: str) -> str | None:
    key = config.api_key(str(variable))
    if key is not None and not (key.isascii() and key.isprintable()):
        raise AprError(f"policy openai: the key in {variable} has characters that are not allowed in an HTTP header")
    if key is None and (far := [Server(url) for url in urls if not Server(url).local]):
        raise AprError(
            f"policy openai: {far[0].name} needs a key: set the environment variable {variable} (to any word "
            "if the server checks none)"
        )
    return key


def _urls(text: str, variable: str) -> list[str]:
    """The addresses in `base_url`.

    Messages show nothing that could be a secret: no user, no query, and nothing after these.
    """
    urls = options.words(text)
    if secret := [url for url in urls if "@" in url]:
        raise ValueError(
            f"base_url {Server(secret[0]).name} has a user or password, which logs would show; put the key "
            f"into {variable}"
        )
    if secret := [url for url in urls if "?" in url or "#" in url]:
        raise ValueError(
            f"base_url {Server(secret[0]).name} has a query, which logs would show; leave it out, and put a "
            f"key into {variable}"
        )
    for url in urls:
        try:
            parts = urlsplit(url)
            fits = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(f"base_url must be like http://127.0.0.1:8000/v1, not {Server(url).name!r}")
    if not urls:
        raise ValueError("base_url is empty")
    return urls


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both merged; `above` takes precedence, also in nested objects."""
    both = dict(below)
    for key, value in above.items():
        inner = both.get(key)
        both[key] = _merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return both
