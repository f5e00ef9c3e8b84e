"""`Guard`: who may ask. It stands before the application, so that nothing of a refused request is read."""

from __future__ import annotations

import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from apr_plugin.harnesses.serve.refused import Refused

App = Callable[[Mapping[str, Any], Callable[..., Awaitable[Any]], Callable[..., Awaitable[None]]], Awaitable[None]]
"""An application (ASGI)."""

OPEN = ("/health", "/openapi.json")
"""What is answered without a key."""


class Guard:
    """Checks the key and the name under which the server was called.

    Args:
        app: What answers.
        key: The key that a request has to bring as `Authorization: Bearer KEY`, or `None`.
        loopback: Whether the server listens on a loopback address alone. Then a request has to call it by such a name:
            a page of another site, whose name points here, can't.
    """

    def __init__(self, app: App, *, key: str | None = None, loopback: bool = True) -> None:
        self.app = app
        self._key = None if key is None else key.encode()
        self._loopback = loopback

    async def __call__(
        self, scope: Mapping[str, Any], receive: Callable[..., Awaitable[Any]], send: Callable[..., Awaitable[None]]
    ) -> None:
        """Answer, or refuse (ASGI)."""
        if scope["type"] == "http" and (fault := self._fault(scope)) is not None:
            await _refuse(fault, send)
        elif scope["type"] != "websocket":
            await self.app(scope, receive, send)

    def _fault(self, scope: Mapping[str, Any]) -> Refused | None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if self._loopback and not is_loopback(_host(headers.get(b"host", b""))):
            return Refused(421, "this server answers for the loopback address only", "misdirected_request")
        if self._key is None or scope["path"] in OPEN:
            return None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._key):
            return Refused(401, "the API key is missing or wrong (Authorization: Bearer KEY)", "invalid_api_key")
        return None


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host(header: bytes) -> str:
    """The name in a Host header, without the port."""
    text = header.decode("latin-1").strip()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


async def _refuse(fault: Refused, send: Callable[..., Awaitable[None]]) -> None:
    body = json.dumps(fault.body()).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    if fault.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": fault.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
