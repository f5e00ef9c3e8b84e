"""What servers report about their models.

It is asked once, so that a wrong address, key or name is found before the first question.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from apr_plugin.errors import AprError
from apr_plugin.policies.openai.failure import Failure
from apr_plugin.policies.openai.reply import MOST_TOKENS
from apr_plugin.policies.openai.servers import Server, Servers

_log = logging.getLogger(__name__)

_Cards = list[Mapping[str, Any]]

LONGEST_NAME = 500
"""Most characters of a model's name; a longer text is not a name."""


@dataclass(frozen=True)
class Served:
    """A model as its server describes it."""

    name: str
    """Its name in requests."""
    engine: str = ""
    """`vllm`, `sglang`, or empty for any other."""
    weights: str | None = None
    """What the server says it loaded (a folder, a hub's name), if that is not the name."""
    context_tokens: int | None = None
    """Most tokens of prompt and turn together."""


def look_up(servers: Servers, model: str | None, variable: str) -> Served:
    """Ask every server for its models.

    Args:
        servers: The servers to ask. One that does not answer is ignored if another one does.
        model: The requested name, or `None` for the only model there is.
        variable: Environment variable of the key, for messages.

    Raises:
        AprError: no server answers, one refuses the key, the model is not there, or the servers differ.
    """
    with ThreadPoolExecutor(len(servers.servers)) as pool:
        found = dict(zip(servers.servers, pool.map(lambda server: _ask(servers, server), servers.servers), strict=True))
    failures = {server: told for server, told in found.items() if isinstance(told, Failure)}
    away = [
        server
        for server, failure in failures.items()
        if failure.unreachable or (failure.again and failure.status is None)
    ]
    for server, failure in failures.items():
        if failure.status in (401, 403):
            told = (
                f"refuses the key in {variable}"
                if servers.has_key
                else f"needs a key: set the environment variable {variable}"
            )
            raise AprError(f"policy openai: {server.name} {told} ({failure.words})")
        if failure.status is not None and failure.status < 400:
            raise AprError(f"policy openai: {server.name}: {failure.words}")
        if server in away and len(away) < len(found):
            _log.warning("%s does not answer yet: %s", server.name, failure.words)
    if len(away) == len(found):
        words = "; ".join(f"{server.name}: {failures[server].words}" for server in away)
        raise AprError(f"policy openai: no server answers ({words}); start it, or correct base_url=")
    served = [
        _served(model, _cards(told, servers), server) for server, told in found.items() if not isinstance(told, Failure)
    ]
    if not served:
        if model is None:
            raise AprError("policy openai: the server does not say which models it has; name one with model=")
        return Served(model)
    first = served[0]
    for other in served[1:]:
        if (other.name, other.weights) != (first.name, first.weights):
            raise AprError(
                f"policy openai: the servers have different models, {first.weights or first.name} and "
                f"{other.weights or other.name}"
            )
    return Served(
        first.name, first.engine, first.weights, min(filter(None, (one.context_tokens for one in served)), default=None)
    )


def _ask(servers: Servers, server: Server) -> Any:
    try:
        return servers.now(server, "/models")
    except Failure as failure:
        return failure


def _cards(told: Any, servers: Servers) -> _Cards:
    """The models that have a name, with what is reported about them; text that is not a name counts as absent."""
    data = told.get("data") if isinstance(told, Mapping) else None
    cards = [dict(card) for card in data if isinstance(card, Mapping)] if isinstance(data, list) else []
    for card in cards:
        for key in ("id", "root"):
            text = card.get(key)
            named = isinstance(text, str) and text.isprintable() and 0 < len(text) <= LONGEST_NAME
            card[key] = servers.scrub(str(text)) if named else None
    return [card for card in cards if card["id"] is not None]


def _served(model: str | None, cards: _Cards, server: Server) -> Served:
    names = [str(card["id"]) for card in cards]
    if model is None:
        if len(names) != 1:
            raise AprError(
                f"policy openai: name the model with model=; {server.name} has "
                f"{', '.join(names[:8]) or 'none that it names'}"
            )
        model = names[0]
    card = next((card for card in cards if card["id"] == model), None)
    if card is None:
        if cards and cards[0].get("owned_by") == "vllm":  # others also accept names that they don't list
            raise AprError(f"policy openai: {server.name} has no model {model!r}; it has {', '.join(names[:8])}")
        return Served(model)
    owner, weights, most = card.get("owned_by"), card.get("root"), card.get("max_model_len")
    return Served(
        model,
        engine=str(owner) if owner in ("vllm", "sglang") else "",
        weights=weights if isinstance(weights, str) and weights != model else None,
        context_tokens=most if type(most) is int and 0 < most <= MOST_TOKENS else None,
    )
