"""Replies of the chat-completions protocol as generations, whichever server wrote them.

Beside the protocol's own fields these are read where they are present: `cached_tokens` and `audio_tokens` (OpenAI), `multimodal_tokens`, `token_ids`
and `metrics` (vLLM with --enable-prompt-tokens-details, `return_token_ids` and --enable-per-request-metrics), `image_tokens` and `video_tokens`
(SGLang). A count that no field gives stays `None`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from apr_plugin.loop.policy import Generation, GenerationTimings, Usage

FLOOR = -9999.0
"""Stands for a log-probability of minus infinity, as vLLM writes it: JSON has no infinities."""

GAVE_UP = ("abort", "error")
"""Finish reasons with which an engine gives a request up (SGLang, vLLM)."""


class BadReply(ValueError):
    """The server answered, but not with a turn; asking again may help."""


def read_reply(data: Any, *, top_logprobs: int | None, temperature: float, queue_s: float) -> Generation:
    """The first choice of a completion.

    Args:
        data: The reply's JSON.
        top_logprobs: How many alternatives were asked for at each token; 0 asks for log-probabilities alone, `None` for nothing.
        temperature: What the turn was sampled at. Servers give log-probabilities before it, so entropies are taken after dividing by it.
        queue_s: Seconds the request waited on our side.

    Raises:
        BadReply: there is no turn in it.
    """
    if not isinstance(data, Mapping):
        raise BadReply(f"the reply is no JSON object: {data!s:.100}")
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping) or not isinstance(choices[0].get("message"), Mapping):
        raise BadReply(f"the reply holds no choice: {dict(data)!s:.200}")
    choice = choices[0]
    finish = choice.get("finish_reason")
    if finish in GAVE_UP:
        raise BadReply(f"the engine gave the request up (finish_reason {finish})")
    tokens = _tokens(choice) if top_logprobs is not None else None
    logprobs = _logprobs(tokens)
    entropies = _entropies(tokens, top_logprobs, temperature) if top_logprobs and logprobs is not None else None
    ids = choice.get("token_ids")
    written = ids if isinstance(ids, list) and all(type(token) is int for token in ids) else None
    if written is not None and logprobs is not None and len(written) != len(logprobs):
        written = None
    return Generation(
        text=_text(choice["message"]),
        usage=_usage(data.get("usage")),
        finish_reason=finish if isinstance(finish, str) and finish else "stop",
        token_ids=None if written is None else tuple(written),
        logprobs=logprobs,
        entropies=entropies,
        entropy_top_k=top_logprobs if entropies is not None else None,
        timings=_timings(data.get("metrics"), queue_s),
    )


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    refusal = message.get("refusal")
    return refusal if isinstance(refusal, str) else ""


def _usage(given: Any) -> Usage:
    usage = given if isinstance(given, Mapping) else {}
    details = usage.get("prompt_tokens_details")
    details = details if isinstance(details, Mapping) else {}
    kinds = details.get("multimodal_tokens")
    kinds = kinds if isinstance(kinds, Mapping) else {key: details.get(f"{key}_tokens") for key in ("image", "video", "audio")}
    pictures = [count for count in (_count(kinds.get("image")), _count(kinds.get("video"))) if count is not None]
    prompt, cached, heard = _count(usage.get("prompt_tokens")), _count(details.get("cached_tokens")), _count(kinds.get("audio"))
    seen = sum(pictures) if pictures else None
    if (seen and seen == heard) or (prompt is not None and (seen or 0) + (heard or 0) > prompt):
        seen = heard = None  # vLLM counts a clip with its sound in step for both; and parts that are more than the whole tell nothing
    if prompt is not None and (cached or 0) > prompt:
        cached = None
    return Usage(prompt, cached, _count(usage.get("completion_tokens")), seen, heard)


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _tokens(choice: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    given = choice.get("logprobs")
    content = given.get("content") if isinstance(given, Mapping) else None
    return content if isinstance(content, list) and all(isinstance(token, Mapping) for token in content) else None


def _logprobs(tokens: list[Mapping[str, Any]] | None) -> tuple[float, ...] | None:
    """Log-probabilities of the sampled tokens; nothing where one of them is no number."""
    found = [_finite(token.get("logprob")) for token in tokens or []]
    return None if tokens is None or None in found else tuple(value for value in found if value is not None)


def _finite(value: Any) -> float | None:
    if not isinstance(value, int | float) or math.isnan(value):
        return None
    return min(max(float(value), FLOOR), 0.0)


def _entropies(tokens: list[Mapping[str, Any]] | None, k: int, temperature: float) -> tuple[float, ...] | None:
    found = []
    for token in tokens or []:
        listed = token.get("top_logprobs")
        values = [_finite(other.get("logprob")) for other in listed if isinstance(other, Mapping)] if isinstance(listed, list) else []
        known = sorted((value for value in values if value is not None), reverse=True)[:k]
        if not known:
            return None
        found.append(entropy(known, temperature))
    return tuple(found)


def entropy(logprobs: list[float], temperature: float) -> float:
    """Entropy (nats) of the distribution over these tokens alone, renormalised, at a temperature; the unscaled one at temperature 0."""
    scaled = [value / temperature if temperature > 0 else value for value in logprobs]
    top = max(scaled)
    weights = [math.exp(value - top) for value in scaled]
    total = sum(weights)
    return sum(-w / total * math.log(w / total) for w in weights if w > 0) + 0.0


def _timings(metrics: Any, queue_s: float) -> GenerationTimings:
    """What vLLM's per-request metrics tell; its time to the first token begins when the request leaves its queue."""
    told = metrics if isinstance(metrics, Mapping) else {}

    def seconds(key: str) -> float | None:
        value = told.get(key)
        return value / 1000 if isinstance(value, int | float) and 0 <= value < math.inf else None

    waited = queue_s + (seconds("queue_time_ms") or 0.0)
    return GenerationTimings(queue_s=waited, prefill_s=seconds("time_to_first_token_ms"), decode_s=seconds("generation_time_ms"))
