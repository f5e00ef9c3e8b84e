"""`ServerControl`: what a trainer does with a vLLM server between rollouts: look at it, load weights, ask for them.

The endpoints are those of vLLM 0.32 with `VLLM_SERVER_DEV_MODE=1` (`entrypoints/serve/dev`, `entrypoints/rl/online`).
`reload_weights` itself drops the encoder cache and the workers' cache of media; the prefix cache, and the caches of the
scheduler and of the front end, are dropped by three further calls. A server that is started again says that its version
is `default`.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

from apr_plugin.errors import AprError
from apr_plugin.terminal import one_line

SHORT_S = 60.0
"""Most seconds of a request that does no work."""

MOST_BYTES = 64 * 1024 * 1024
"""Longest reply."""

CACHES = ("prefix", "mm", "encoder")
"""What is dropped after new weights, each by `/reset_NAME_cache`."""

TRIES = 20
"""How often a prefix cache is dropped until no request holds it."""

LOADING = "loading"
"""The version of a server while weights are loaded: if that fails, no version is true of it."""


class ServerFault(AprError):
    """A server can't be used; the message names it and says what to do."""

    said: str = ""
    """The message without the server's name."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class ServerControl:
    """One server.

    Args:
        address: Its address without `/v1`.
        key: Sent with every request, if there is one.
        reload_s: Most seconds in which it loads weights.
    """

    def __init__(self, address: str, key: str | None = None, *, reload_s: float = 900.0) -> None:
        self.address = address
        self._key = key
        self._reload_s = reload_s
        self._opener = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))

    def look(self, model: str | None, context_tokens: int) -> str:
        """Check that it can be used, and give its name of the model.

        Args:
            model: The name, if it is known.
            context_tokens: Most tokens of prompt and turn together, which the server must take.

        Raises:
            ServerFault: it can't be used.
        """
        cards = self._ask("/v1/models").get("data")
        known = {str(card.get("id")): card for card in cards or () if isinstance(card, Mapping)}
        if model is None and len(known) != 1:
            raise self._fault(f"name its model as rollouts.model: it has {', '.join(known) or 'none'}")
        name = model or next(iter(known))
        if name not in known:
            raise self._fault(f"it has no model {name!r} (rollouts.model); it has {', '.join(known) or 'none'}")
        longest = known[name].get("max_model_len")
        if isinstance(longest, int) and longest < context_tokens:
            raise self._fault(
                f"it takes {longest} tokens of prompt and turn, and the student has a context of {context_tokens}; "
                "start it with a larger --max-model-len, or lower student.context_tokens"
            )
        try:
            told = self._ask("/server_info?config_format=json")
            self._ask("/weight_info")
        except ServerFault as fault:
            raise self._fault(
                f"{fault.said}; it must be vLLM 0.32 or later, started with VLLM_SERVER_DEV_MODE=1"
            ) from None
        config = told.get("vllm_config")
        found = config.get("model_config") if isinstance(config, Mapping) else None
        mode = found.get("logprobs_mode") if isinstance(found, Mapping) else None
        if mode != "processed_logprobs":
            raise self._fault(
                f"its log-probabilities are {mode}, not those of the distribution that is sampled; start it with "
                "--logprobs-mode processed_logprobs"
            )
        return name

    def load(self, folder: str, version: str) -> None:
        """Load weights, drop every cache of what was computed with others, and check the version.

        Args:
            folder: The weights, on a path that the server can read.
            version: Their name, which no other weights have.

        Raises:
            ServerFault: it failed; the server then has no version and no usable weights until others are loaded.
        """
        self._ask("/update_weight_version", {"new_version": f"{LOADING} {version}"})
        body = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
        try:
            self._ask("/collective_rpc", body, self._reload_s)
        except ServerFault as fault:
            raise self._fault(
                f"it could not load the weights in {folder}: {fault.said}. Can it read that path "
                "(rollouts.weights_dir)? It can't be used until other weights are loaded, or it is started again"
            ) from None
        for cache in CACHES:
            self._reset(cache)
        self._ask("/update_weight_version", {"new_version": version})
        self.confirm(version)

    def version(self) -> str:
        """The name of its weights.

        Raises:
            ServerFault: it does not say.
        """
        return str(self._ask("/weight_info").get("weight_version"))

    def confirm(self, version: str) -> None:
        """Check the name of its weights.

        Raises:
            ServerFault: it has others, or does not say.
        """
        if (found := self.version()) != version:
            why = " (it was started again)" if found == "default" else ""
            raise self._fault(f"its weights are {one_line(found, 100)!r}{why}, not {version!r}")

    def _reset(self, cache: str) -> None:
        for _ in range(TRIES):
            if self._ask(f"/reset_{cache}_cache", {}).get("success", True):
                return
            time.sleep(0.5)
        raise self._fault(f"its {cache} cache could not be dropped, because requests still hold it")

    def _ask(self, path: str, body: Mapping[str, Any] | None = None, timeout_s: float = SHORT_S) -> dict[str, Any]:
        """Post a body, or get if there is none; an empty reply is an empty object."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, headers)
        try:
            with self._opener.open(request, timeout=timeout_s) as reply:
                raw = reply.read(MOST_BYTES)
            told = json.loads(raw) if raw.strip() else {}
        except urllib.error.HTTPError as error:
            with error:
                raise self._fault(f"{path}: HTTP {error.code}: {_words(error)}") from None
        except TimeoutError:
            raise self._fault(f"{path}: no answer within {timeout_s:g} s") from None
        except (OSError, HTTPException) as error:
            why = getattr(error, "reason", None) or error
            if isinstance(why, TimeoutError):
                raise self._fault(f"{path}: no answer within {timeout_s:g} s") from None
            raise self._fault(f"it can't be reached ({one_line(str(why), 200)}); is it running?") from None
        except (ValueError, RecursionError):
            raise self._fault(f"{path}: the reply is not JSON") from None
        if not isinstance(told, dict):
            raise self._fault(f"{path}: the reply is no JSON object")
        return told

    def _fault(self, said: str) -> ServerFault:
        words = said.replace(self._key, "[key]") if self._key else said
        fault = ServerFault(f"rollout server {self.address}: {words}")
        fault.said = words
        return fault


def _words(error: urllib.error.HTTPError) -> str:
    try:
        told = json.loads(error.read(64 * 1024))
        inner = told.get("error", told) if isinstance(told, dict) else told
        words = inner.get("message") or inner.get("detail") or inner if isinstance(inner, dict) else inner
    except (OSError, HTTPException, ValueError, RecursionError):
        words = error.reason
    return one_line(str(words), 400)
