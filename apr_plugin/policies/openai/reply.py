"""Replies of the chat-completions protocol as generations, for all kinds of servers.

These fields are read too if they are present: `cached_tokens` and `audio_tokens` (OpenAI), `multimodal_tokens`,
`token_ids`, `prompt_token_ids` and `metrics` (vLLM with --enable-prompt-tokens-details, `return_token_ids` and
--enable-per-request-metrics), `image_tokens` and `video_tokens` (SGLang). A count without a field stays `None`. So does
a number that no server can mean: negative, not finite, or too large.

A reply without text gets a remark that says why (`Generation.remark`): a server that separates thought from text
returns a turn that was cut off while thinking as an empty text with its thought beside it.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any

from apr_plugin.loop.policy import Generation, GenerationTimings, LogprobsOf, Usage

FLOOR = -9999.0
"""The number for a log-probability of minus infinity, as vLLM writes it: JSON has no infinities."""

GAVE_UP = ("abort", "error")
"""Finish reasons for a request that an engine gave up (SGLang, vLLM)."""

MOST_TOKENS = 1_000_000_000
"""A larger count, or token id, is not valid."""

LONGEST_S = 7 * 86_400.0
"""A longer time is not valid."""

_CUT_OFF = ("length", "max_tokens", "max_output_tokens")
_FINISH = re.compile(r"[A-Za-z][\w.-]{0,39}")
_THOUGHT = ("reasoning_content", "reasoning", "thinking")
"""Fields other than `content` in which servers return a model's thought."""
_DIGITS = 18
_repr = reprlib.Repr()
_repr.maxlevel = 4
_repr.maxdict = 8
_repr.maxlist = 8
_repr.maxstring = 2000
_repr.maxother = 200


class BadReply(ValueError):
    """The server answered, but not with a turn; asking again may help."""


def decode(content: bytes, kind: str) -> Any:
    """Parse JSON as servers write it.

    A whole number of more than 18 digits becomes `null`, and bytes that are not text become U+FFFD.

    Args:
        content: The body.
        kind: Its Content-Type, which is named if the body is not JSON; JSON is read with any type.

    Raises:
        BadReply: it is not JSON.
    """
    text = content.decode(json.detect_encoding(content), "replace").strip()
    if not text:
        raise BadReply("the reply is empty")
    try:
        return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= _DIGITS else None)
    except RecursionError:
        raise BadReply("the reply is not JSON (nested too deeply)") from None
    except ValueError as error:
        kind = kind.partition(";")[0].strip().lower()
        if kind and not kind.endswith("json"):
            raise BadReply(f"the reply is not JSON but {kind[:60]}: {text[:100]}") from None
        raise BadReply(f"the reply is not JSON ({error})") from None


def read_reply(
    data: Any, *, top_logprobs: int | None, temperature: float, queue_s: float, logprobs_of: LogprobsOf | None = None
) -> Generation:
    """Read the first choice of a completion.

    Args:
        data: The reply's JSON.
        top_logprobs: How many alternatives were asked for at each token; 0 asks only for log-probabilities, `None` for
            nothing.
        temperature: The temperature at which the turn was sampled.
        queue_s: Seconds the request waited on our side.
        logprobs_of: The distribution of the server's log-probabilities. Unless they are already scaled by the
            temperature, they are divided by it before entropies are computed.

    Raises:
        BadReply: the reply has no turn.
    """
    if not isinstance(data, Mapping):
        raise BadReply(f"the reply is not a JSON object: {_shown(data):.100}")
    choices = data.get("choices")
    if (
        not isinstance(choices, list)
        or not choices
        or not isinstance(choices[0], Mapping)
        or not isinstance(choices[0].get("message"), Mapping)
    ):
        raise BadReply(f"the reply has no choice: {_shown(data):.200}")
    choice = choices[0]
    finish = _finish(choice.get("finish_reason"))
    if finish in GAVE_UP:
        raise BadReply(f"the engine gave up the request (finish_reason {finish})")
    tokens = _tokens(choice) if top_logprobs is not None else None
    logprobs = _logprobs(tokens)
    entropies = (
        _entropies(tokens, top_logprobs, 1.0 if logprobs_of == "scaled" else temperature)
        if top_logprobs and logprobs is not None
        else None
    )
    ids = choice.get("token_ids")
    written = ids if isinstance(ids, list) and None not in map(_count, ids) else None
    if written is not None and logprobs is not None and len(written) != len(logprobs):
        written = None
    text, usage = _text(choice["message"]), _usage(data.get("usage"))
    return Generation(
        text=text,
        remark="" if text.strip() else _remark(choice["message"], finish, data.get("usage")),
        usage=usage,
        finish_reason=finish,
        token_ids=None if written is None else tuple(written),
        logprobs=logprobs,
        logprobs_of=None if logprobs is None else logprobs_of,
        prompt_token_ids=_prompt(data.get("prompt_token_ids"), usage),
        entropies=entropies,
        entropy_top_k=top_logprobs if entropies is not None else None,
        timings=_timings(data.get("metrics"), queue_s),
    )


def _shown(value: Any) -> str:
    """A value for a message; a long or deep value is cut."""
    return value if isinstance(value, str) else _repr.repr(dict(value) if isinstance(value, Mapping) else value)


def _finish(given: Any) -> str:
    """Why the turn ended, in the protocol's words; a value that is not a word counts as absent."""
    if not isinstance(given, str) or not _FINISH.fullmatch(given):
        return "stop"
    return "length" if given.lower() in _CUT_OFF else given


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        content = [content]
    if isinstance(content, list):
        # Parts with thought have no `text`.
        texts = (part.get("text") for part in content if isinstance(part, Mapping))
        return "".join(text for text in texts if isinstance(text, str))
    if content is not None:
        raise BadReply(f"the reply's content is not text: {_shown(content):.100}")
    refusal = message.get("refusal")
    return refusal if isinstance(refusal, str) else ""


def _remark(message: Mapping[str, Any], finish: str, usage: Any) -> str:
    """Why a reply has no text, for the model that wrote it and for readers; empty if there is no reason."""
    thought = next((text for key in _THOUGHT if isinstance(text := message.get(key), str) and text.strip()), "")
    details = usage.get("completion_tokens_details") if isinstance(usage, Mapping) else None
    tokens = _count(details.get("reasoning_tokens")) if isinstance(details, Mapping) else None
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    thinks = bool(
        thought
        or tokens
        or any(isinstance(part, Mapping) and part.get("type") in ("thinking", "reasoning") for part in parts)
    )
    if finish == "length":
        thinking = " while thinking" if thinks else ""
        return (
            f"the reply was cut off{thinking}, at its length limit (max_new_tokens), before the turn began; think "
            "less, then write the turn."
        )
    if names := _tool_calls(message):
        return (
            f"the reply holds no text but a tool call ({names}); there are no tools here: write the turn as one "
            "JSON object."
        )
    if finish == "content_filter":
        return "the server's content filter took the reply away."
    return "the reply is thought alone; write the turn after it." if thinks else ""


def _tool_calls(message: Mapping[str, Any]) -> str:
    """The names of the called tools."""
    given = message.get("tool_calls")
    calls = [call.get("function") for call in given if isinstance(call, Mapping)] if isinstance(given, list) else []
    calls.append(message.get("function_call"))
    found = [call for call in calls if isinstance(call, Mapping)]
    names = [
        name if isinstance(name := call.get("name"), str) and _FINISH.fullmatch(name) else "without a name"
        for call in found
    ]
    return ", ".join(names[:3])


def _usage(given: Any) -> Usage:
    usage = given if isinstance(given, Mapping) else {}
    details = usage.get("prompt_tokens_details")
    details = details if isinstance(details, Mapping) else {}
    kinds = details.get("multimodal_tokens")
    kinds = (
        kinds
        if isinstance(kinds, Mapping)
        else {key: details.get(f"{key}_tokens") for key in ("image", "video", "audio")}
    )
    pictures = [count for count in (_count(kinds.get("image")), _count(kinds.get("video"))) if count is not None]
    prompt, cached, heard = (
        _count(usage.get("prompt_tokens")),
        _count(details.get("cached_tokens")),
        _count(kinds.get("audio")),
    )
    seen = sum(pictures) if pictures else None
    if (seen and seen == heard) or (prompt is not None and (seen or 0) + (heard or 0) > prompt):
        seen = heard = (
            # vLLM counts a clip with interleaved sound for both; and parts larger than the whole are useless
            None
        )
    if prompt is not None and (cached or 0) > prompt:
        cached = None
    return Usage(prompt, cached, _count(usage.get("completion_tokens")), seen, heard)


def _prompt(given: Any, usage: Usage) -> tuple[int, ...] | None:
    """The prompt's token ids, if their number is the number that was counted."""
    if not isinstance(given, list) or None in map(_count, given) or usage.prompt_tokens not in (None, len(given)):
        return None
    return tuple(given)


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None


def _tokens(choice: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    given = choice.get("logprobs")
    content = given.get("content") if isinstance(given, Mapping) else None
    return content if isinstance(content, list) and all(isinstance(token, Mapping) for token in content) else None


def _logprobs(tokens: list[Mapping[str, Any]] | None) -> tuple[float, ...] | None:
    """Log-probabilities of the sampled tokens; none if one of them is not a number."""
    found = [_finite(token.get("logprob")) for token in tokens or []]
    return None if tokens is None or None in found else tuple(value for value in found if value is not None)


def _finite(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
        return None
    return float(min(max(value, FLOOR), 0.0))


def _entropies(tokens: list[Mapping[str, Any]] | None, k: int, temperature: float) -> tuple[float, ...] | None:
    found = []
    for token in tokens or []:
        listed = token.get("top_logprobs")
        values = (
            [_finite(other.get("logprob")) for other in listed if isinstance(other, Mapping)]
            if isinstance(listed, list)
            else []
        )
        known = sorted((value for value in values if value is not None), reverse=True)[:k]
        if not known:
            return None
        found.append(entropy(known, temperature))
    return tuple(found)


def entropy(logprobs: list[float], temperature: float) -> float:
    """Entropy (nats) of the distribution over these tokens alone, renormalised, at a temperature.

    At temperature 0 the distribution is unscaled.
    """
    scaled = [value / temperature if temperature > 0 else value for value in logprobs]
    top = max(scaled)
    weights = [math.exp(value - top) for value in scaled]
    total = sum(weights)
    return sum(-w / total * math.log(w / total) for w in weights if w > 0) + 0.0


def _timings(metrics: Any, queue_s: float) -> GenerationTimings:
    """Read vLLM's per-request metrics; its time to the first token begins when the request leaves its queue."""
    told = metrics if isinstance(metrics, Mapping) else {}

    def seconds(key: str) -> float | None:
        value = told.get(key)
        return (
            value / 1000
            if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LONGEST_S * 1000
            else None
        )

    waited = queue_s + (seconds("queue_time_ms") or 0.0)
    return GenerationTimings(
        queue_s=waited, prefill_s=seconds("time_to_first_token_ms"), decode_s=seconds("generation_time_ms")
    )
